"""What the built book changes: links to the published book, and cells' outputs.

A notebook links to the book's pages by their published address, since that works in
Colab and in JupyterLab too. Within the built book such a link must lead to the page
beside it: offline, on a copy, before anything is published.

A docstring names the chapters that derive what it documents: the API leads there.

A cell prints sentences or columns. Sentences may break where the page ends, columns
may not: they are told apart here, and `book.css` breaks what is prose. A cell's
figure gets a frame, which scrolls on a telephone while the words around it stay.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def published_book(repository: str) -> str:
    """Where GitHub Pages puts the book of a repository, with a slash at the end."""
    owner, name = urlsplit(repository).path.strip("/").split("/")
    return f"https://{owner}.github.io/{name}/"


def make_relative(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make links to this book's pages relative; warn where one leads nowhere."""
    book = published_book(app.config.html_theme_options["repository_url"])
    for link in doctree.findall(nodes.reference):
        address = link.get("refuri", "")
        if not address.startswith(book):
            continue
        page, _, anchor = address.removeprefix(book).partition("#")
        target = page.removesuffix(".html") or "index"
        if target not in app.env.found_docs:
            logger.warning(
                "a link to %s, which is no page of this book",
                address,
                location=link,
            )
            continue
        link["refuri"] = app.builder.get_relative_uri(docname, target) + (
            anchor and f"#{anchor}"
        )
        link["internal"] = True


def mark_prose(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Mark what a cell printed as prose, unless spaces align columns in it."""
    for printed in doctree.findall(nodes.literal_block):
        if "stream" in printed["classes"] and not re.search(
            r"\S {2,}\S", printed.astext()
        ):
            printed["classes"].append("prose")


def frame_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a frame around every picture that a cell shows."""
    for output in doctree.findall(nodes.container):
        if "cell_output" in output["classes"]:
            for picture in list(output.findall(nodes.image)):
                frame = nodes.container("", classes=["figure-frame"])
                picture.replace_self(frame)
                frame += picture


def link_chapters(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    lines: list[str],
) -> None:
    """Make "chapter 4" and "chapters 4 and 5" in a docstring lead there."""
    pages = {
        int(page[:2]): page for page in app.env.found_docs if page[:2].isdigit()
    }

    def link(said: re.Match[str]) -> str:
        number = int(said["number"])
        if number not in pages:
            logger.warning("%s names chapter %s, which there is not", name, number)
            return said[0]
        return f":doc:`{said[0]} </{pages[number]}>`"

    lines[:] = re.sub(
        r"\bchapters?\s+\d+(?:(?:,| and)\s+\d+)*",
        lambda said: re.sub(r"(?:chapters?\s+)?(?P<number>\d+)", link, said[0]),
        "\n".join(lines),
    ).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", make_relative)
    app.connect("doctree-resolved", mark_prose)
    app.connect("doctree-resolved", frame_figures)
    app.connect("autodoc-process-docstring", link_chapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
