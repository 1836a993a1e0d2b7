// What is wider than its place scrolls sideways: the keyboard reaches it, a screen reader says so, and book.css fades
// the side where it goes on. Looked at again when the window changes and when a folded cell is opened.
{
    const THINGS = "pre, .figure-frame, .icd-flipbook > div:first-child, .pst-scrollable-table-container";
    const SAID = { tabindex: "0", role: "group", "aria-label": "Scrolls sideways" };

    const look = (thing) => {
        const beyond = thing.scrollWidth - thing.clientWidth;
        const scrolls = beyond > 1 && /auto|scroll/.test(getComputedStyle(thing).overflowX);
        thing.classList.toggle("more-left", scrolls && thing.scrollLeft > 1);
        thing.classList.toggle("more-right", scrolls && thing.scrollLeft < beyond - 1);
        if (!thing.matches(THINGS)) return; // a formula has a name of its own
        for (const [name, value] of Object.entries(SAID)) {
            if (scrolls) thing.setAttribute(name, value);
            else thing.removeAttribute(name);
        }
    };

    const sizes = new ResizeObserver((changes) => changes.forEach((change) => look(change.target)));
    const watch = (selector) => document.querySelectorAll(`article :is(${selector})`).forEach((e) => sizes.observe(e));
    document.addEventListener("scroll", (event) => event.target.closest?.("article *") && look(event.target), true);
    watch(THINGS);
    addEventListener("load", () => window.MathJax?.startup?.promise?.then(() => watch("mjx-container[display]")));
}
