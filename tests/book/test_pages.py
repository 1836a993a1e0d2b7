"""The built book in a browser: quiet, self-contained, usable at every width, sliders with no kernel.

`make pages` builds the book and runs these. They drive the system's Chromium or Chrome and its driver.
"""

from __future__ import annotations

import functools
import html
import http.server
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml
from helpers import ROOT, pages_in_toc

pytestmark = pytest.mark.page

SITE = ROOT / "_build" / "html"
PAGES = [f"{page}.html" for page in pages_in_toc()]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
DRIVER = shutil.which("chromedriver")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def cannot(reason: str) -> None:
    """Say aloud that nothing was looked at; where a browser is required, fail."""
    if os.environ.get("ICD_REQUIRE_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(f"NO PAGE WAS LOOKED AT: {reason}")


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The built book's address on this machine."""
    if not (SITE / "index.html").exists():
        cannot("there is no built book: make book")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Silent, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser(site: str, tmp_path_factory: pytest.TempPathFactory):
    """Headless Chromium that keeps its console and its requests."""
    if BROWSER is None or DRIVER is None:
        cannot("Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def widen(browser, width: int) -> None:
    """Give the window a width."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def show(browser, address: str, width: int = 1440) -> None:
    """Load a page at a width, and wait until its formulas are set."""
    widen(browser, width)
    browser.get(address)
    browser.execute_async_script(
        "const done = arguments[0];"
        "const settled = () => window.MathJax?.startup?.promise?.then(() => done(), done) ?? done();"
        "document.readyState === 'complete' ? settled() : addEventListener('load', settled)"
    )


def requests(browser) -> set[str]:
    """Every address asked for since the last look, less what the page holds in itself."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url for url in asked if not url.startswith(("data:", "blob:", "chrome:", "about:"))}


class Page(NamedTuple):
    """A page that was loaded at 1440 pixels, and what the browser asked for and complained of."""

    name: str
    requests: set[str]
    complaints: list[str]


def load(browser, start: str, name: str) -> Page:
    """Load a page, and keep its requests and its errors."""
    browser.get("about:blank")
    requests(browser)
    browser.get_log("browser")
    show(browser, f"{start}/{name}")
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # The theme's own: what it says at a first visit, and fonts that its older version preloads from a file.
    theirs = ("invalid theme mode", "/_static/vendor/fontawesome/")
    complaints = [text for text in severe if not any(words in text for words in theirs)]
    return Page(name, requests(browser), complaints)


@pytest.fixture(scope="module", params=PAGES)
def page(request, browser, site: str) -> Page:
    """A page that is loaded once for all tests below: each sets the width that it needs."""
    return load(browser, site, request.param)


def test_a_page_is_quiet_and_asks_no_other_host(browser, site: str, page: Page) -> None:
    assert f"{site}/{page.name}" in page.requests
    assert not {url for url in page.requests if not url.startswith(site)}
    assert not page.complaints
    assert not browser.execute_script(
        "return [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent)"
    )


@pytest.mark.parametrize("width", [1440, 768, 360])
def test_no_sideways_scroll(browser, page: Page, width: int) -> None:
    widen(browser, width)
    too_wide = browser.execute_script(
        "const root = document.documentElement;"
        "if (root.scrollWidth <= root.clientWidth && innerWidth <= arguments[0]) return [];"
        "return [...document.querySelectorAll('article *')]"
        ".filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 120)).concat(`${root.scrollWidth} > ${root.clientWidth}`)",
        width,
    )
    assert not too_wide


def test_what_scrolls_sideways_can_be_seen_and_reached(browser, page: Page) -> None:
    widen(browser, 360)
    # What goes on to the side without a mark, a focus and a name; prose that does; pictures wider than 27rem.
    amiss = """
        const done = arguments[0];
        const folded = [...document.querySelectorAll("article details:not([open])")];
        folded.forEach(one => { one.open = true; });
        setTimeout(() => {
            const wide = [...document.querySelectorAll("article *")].filter(e =>
                e.scrollWidth > e.clientWidth + 1 && e.checkVisibility()
                && /auto|scroll/.test(getComputedStyle(e).overflowX));
            const names = ["tabindex", "role", "aria-label"];
            const mute = wide.filter(e => !e.matches(".more-right")
                || e.tagName !== "MJX-CONTAINER" && !names.every(name => e.hasAttribute(name)));
            const large = [...document.querySelectorAll(".cell_output img")].filter(i => i.clientWidth > 432);
            const prose = wide.filter(e => e.closest(".stream.prose"));
            const found = [...mute, ...prose, ...large].map(e => e.outerHTML.slice(0, 200));
            folded.forEach(one => { one.open = false; });
            done(found);
        }, 500)
    """
    assert not browser.execute_async_script(amiss)
    frame = browser.execute_script(
        "return [...document.querySelectorAll('.figure-frame.more-right')].find(e => !e.closest('details'))"
    )
    if frame is not None:
        browser.execute_script("arguments[0].scrollTo(1000, 0)", frame)
        browser.execute_async_script("setTimeout(arguments[0], 200)")
        assert {"more-left", "more-right"} & set(frame.get_attribute("class").split()) == {"more-left"}
        widen(browser, 1440)
        browser.execute_async_script("setTimeout(arguments[0], 500)")
        assert frame.get_attribute("class").split() == ["figure-frame", "docutils", "container"]
        assert frame.get_attribute("role") is None


def test_images_say_what_is_seen(browser, page: Page) -> None:
    silent = browser.execute_script(
        "return [...document.querySelectorAll('article img')]"
        ".filter(i => (i.alt ?? '').trim().length < 10 || /^(_images|.*\\.(png|svg))/.test(i.alt))"
        ".map(i => i.outerHTML.slice(0, 200))"
    )
    assert not silent
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert not browser.execute_script(broken)


def test_sliders_move_their_picture(browser, page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    widen(browser, 1440)

    def seen() -> tuple[str, str, str]:
        """The picture shown, its text, and what the slider says."""
        (image,) = [image for image in book.find_elements(By.TAG_NAME, "img") if image.is_displayed()]
        said = book.find_element(By.TAG_NAME, "output").text
        assert slider.get_attribute("aria-valuetext") == said
        return image.get_attribute("src"), image.get_attribute("alt"), said

    for book in browser.find_elements(By.CSS_SELECTOR, ".icd-flipbook"):
        slider = book.find_element(By.CSS_SELECTOR, "input[type=range]")
        assert len(book.get_attribute("outerHTML")) <= 300_000
        assert slider.accessible_name
        last = int(slider.get_attribute("max"))
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)

        slider.send_keys(Keys.HOME)
        first = seen()
        slider.send_keys(Keys.ARROW_RIGHT)
        assert slider.get_property("value") == "1"
        assert all(before != after for before, after in zip(first[1:], seen()[1:], strict=True))
        slider.send_keys(Keys.END)
        assert slider.get_property("value") == str(last)
        assert seen()[0] != first[0]

        edge = slider.size["width"] // 2 - 3
        ActionChains(browser).move_to_element_with_offset(slider, -edge, 0).click().perform()
        assert seen() == first
        hold = ActionChains(browser).move_to_element_with_offset(slider, -edge, 0).click_and_hold()
        hold.move_by_offset(2 * edge, 0).release().perform()
        assert slider.get_property("value") == str(last)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, out of a package that carries it."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("axe.min.js").read_text(encoding="utf8")


# Colours do not depend on the width, and take the longest. Nothing else depends on the colours.
@pytest.mark.parametrize(
    ("mode", "width", "options"),
    [
        ("light", 360, "{rules: {'color-contrast': {enabled: false}}}"),
        ("light", 1440, "{}"),
        ("dark", 1440, "{runOnly: ['color-contrast']}"),
    ],
    ids=["phone", "light", "dark"],
)
def test_axe_finds_nothing(browser, axe: str, page: Page, mode: str, width: int, options: str) -> None:
    widen(browser, width)
    browser.execute_script(
        "Object.assign(document.documentElement.dataset, {mode: arguments[0], theme: arguments[0]})", mode
    )
    if not browser.execute_script("return 'axe' in window"):
        browser.execute_script(axe)
    if width == 1440:  # code has thousands of words in two dozen colours: one of each is enough
        browser.execute_script(
            "const seen = new Set();"
            "document.querySelectorAll('article pre span:not(:has(*))').forEach(word => {"
            "  const kind = [word, ...['[class*=highlight]', '.cell_input, .cell_output']"
            "    .map(s => word.closest(s))].map(e => e?.className).join();"
            "  if (seen.has(kind)) word.remove(); else seen.add(kind); })"
        )
    browser.set_script_timeout(120)  # the API page is long
    # The theme's logo stands in a landmark of its own making, which axe does not take for one.
    found = browser.execute_async_script(
        "const done = arguments[0];"
        "setTimeout(() => axe.run({exclude: ['.navbar-brand']}, {resultTypes: ['violations'], ..."
        + options
        + "}).then("
        "  said => done(said.violations.flatMap(rule => rule.nodes.map("
        "    node => `${rule.id} (${rule.impact}): ${node.target} ${node.html.slice(0, 200)}`))),"
        "  error => done([String(error)])), 500)"
    )
    # docutils gives a bibliography roles that axe does not take for those of a list and its items.
    theirs = ('role="doc-biblioentry"', 'class="citation-list"')
    assert not [text for text in found if not any(words in text for words in theirs)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opened_as_a_file_is_quiet_too(browser, site: str, name: str) -> None:
    page = load(browser, SITE.as_uri(), name)
    assert f"{SITE.as_uri()}/{name}" in page.requests
    assert not {url for url in page.requests if not url.startswith(SITE.as_uri())}
    assert not page.complaints


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_page_has_the_colours_that_its_reader_chose(browser, site: str, mode: str) -> None:
    browser.get(f"{site}/index.html")
    browser.execute_script(f"localStorage.mode = localStorage.theme = '{mode}'")
    browser.get(f"{site}/index.html")
    chosen = browser.execute_script("return document.documentElement.dataset.theme")
    browser.execute_script("localStorage.clear()")
    assert chosen == mode


def test_the_first_frame_is_shown_without_scripts(browser, site: str) -> None:
    from selenium.webdriver.common.by import By

    with_sliders = [name for name in PAGES if "icd-flipbook" in (SITE / name).read_text(encoding="utf8")]
    assert with_sliders
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        for name in with_sliders:
            browser.get(f"{site}/{name}")
            books = browser.find_elements(By.CSS_SELECTOR, ".icd-flipbook")
            assert books
            for book in books:
                shown = [image for image in book.find_elements(By.TAG_NAME, "img") if image.is_displayed()]
                assert len(shown) == 1, name
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_statistics_name_every_chapter_and_its_seconds(site: str) -> None:
    text = (SITE / "statistics.html").read_text(encoding="utf8")
    rows = re.findall(r'<td><p>(.+?)</p></td>\s*<td class="text-end"><p>(?:<strong>)?([\d.]+)', text)
    *chapters, total, mean = [(html.unescape(name), float(seconds)) for name, seconds in rows]
    titles = re.findall(r'href="(\w[\w-]+)\.html">(\d+\. [^<]+)</a>', " ".join(name for name, _ in chapters))
    assert [page for page, _ in titles] == [page for page in pages_in_toc() if page[0].isdigit()]
    assert all(seconds > 0 for _, seconds in chapters)
    assert total[1] == pytest.approx(sum(seconds for _, seconds in chapters), abs=0.1 * len(chapters))
    assert mean[1] == pytest.approx(total[1] / len(chapters), abs=0.1)


def test_search_finds_gram(browser, site: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{site}/search.html?q=Gram")
    wait = WebDriverWait(browser, 20)
    assert wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#search-results li a"))


def test_every_public_name_is_in_the_api(site: str) -> None:
    """What a package lists in `__all__` is documented, there or where it is defined."""
    text = (SITE / "api.html").read_text(encoding="utf8")
    packages = [
        "icd",
        *(f"icd.{info.name}" for info in pkgutil.iter_modules(importlib.import_module("icd").__path__)),
    ]
    missing, found = [], 0
    for package in map(importlib.import_module, packages):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if not (callable(value) or isinstance(value, ModuleType)):
                continue  # constants, such as colours
            module = getattr(value, "__name__", name)
            found += 1
            if not re.search(rf'id="(icd[\w.]*\.{name}|module-{re.escape(module)})"', text):
                missing.append(f"{package.__name__}.{name}")
    assert found > 40
    assert not missing


def test_links_to_the_published_book_stay_in_the_built_one(site: str) -> None:
    """A reader who is offline, or looks at a book that nobody published, follows them all the same."""
    with (ROOT / "_config.yml").open(encoding="utf8") as file:
        _, owner, name = yaml.safe_load(file)["repository"]["url"].rsplit("/", 2)
    for page in PAGES:
        article = (SITE / page).read_text(encoding="utf8").partition("<article")[2].partition("</article")[0]
        assert f"{owner}.github.io/{name}" not in article, page
        for target, anchor in re.findall(r'href="([\w./-]+\.html)(?:#([\w.-]+))?"', article):
            linked = (SITE / page).parent / target
            assert linked.exists(), (page, target)
            assert not anchor or f'id="{anchor}"' in linked.read_text(encoding="utf8"), (page, target, anchor)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light(page: str, site: str) -> None:
    """At most 1.5 MB over what all pages share."""
    text = (SITE / page).read_text(encoding="utf8")
    pictures = (
        {path for path in (SITE / "_images").glob("*") if path.name in text} if "_images/" in text else set()
    )
    assert len(text.encode()) + sum(path.stat().st_size for path in pictures) <= 1_500_000


def test_no_page_names_another_host(site: str) -> None:
    """Nothing is loaded from elsewhere, also not by what a click would wake."""
    loads = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+|<link\b[^>]*>"""
    )
    for file in SITE.rglob("*.html"):
        if "_static" in Path(file).parts:
            continue
        found = loads.findall(file.read_text(encoding="utf8"))
        outside = [tag for tag in found if re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag)]
        assert not [tag for tag in outside if 'rel="canonical"' not in tag], file.name
