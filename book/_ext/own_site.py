"""Links to the published book, made relative in the built one.

A notebook links to the book's pages by their published address, since that works in
Colab and in JupyterLab too. Within the built book such a link must lead to the page
beside it: offline, on a copy, before anything is published.
"""

from __future__ import annotations

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


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", make_relative)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
