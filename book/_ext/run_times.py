"""How long every chapter ran, as a table: the directive `run-times`.

Like MyST-NB's own `nb-exec-table`, but with chapters' titles in place of files'
names, and with what they sum to.
"""

from __future__ import annotations

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective


class Times(nodes.General, nodes.Element):
    """Where the table will stand once every chapter is read."""


class RunTimes(SphinxDirective):
    """```{run-times}```, with nothing inside."""

    def run(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["run-times"] = True
        return [Times()]


def pages_with_times(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """These are written anew whenever a chapter was read anew."""
    return [page for page, said in env.metadata.items() if "run-times" in said]


def row(*cells: nodes.Node) -> nodes.row:
    """A row, the first cell on the left and the others on the right."""
    sides = [[], *[["text-end"]] * (len(cells) - 1)]
    return nodes.row(
        "",
        *[
            nodes.entry("", nodes.paragraph("", "", cell), classes=side)
            for cell, side in zip(cells, sides, strict=True)
        ],
    )


def table(app: Sphinx, docname: str) -> nodes.table:
    """Chapters and seconds, their sum and their mean."""
    runs = NbMetadataCollector.get_doc_data(app.env)
    seconds = {
        page: said["exec_data"]["runtime"]
        for page, said in sorted(runs.items())
        if said.get("exec_data") and said["exec_data"]["runtime"] is not None
    }
    rows = [
        row(
            nodes.reference(
                "",
                app.env.titles[page].astext(),
                refuri=app.builder.get_relative_uri(docname, page),
                internal=True,
            ),
            nodes.Text(f"{taken:.1f}"),
        )
        for page, taken in seconds.items()
    ]
    total = sum(seconds.values())
    for name, value in (
        ("All of them", total),
        ("The mean of them", total / max(1, len(seconds))),
    ):
        rows.append(row(nodes.strong("", name), nodes.strong("", f"{value:.1f}")))
    head = nodes.thead("", row(nodes.Text("chapter"), nodes.Text("seconds")))
    columns = [nodes.colspec(colwidth=80), nodes.colspec(colwidth=20)]
    return nodes.table(
        "",
        nodes.tgroup("", *columns, head, nodes.tbody("", *rows), cols=2),
        classes=["colwidths-auto"],
    )


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the table where the page asks for it."""
    for place in list(doctree.findall(Times)):
        place.replace_self(table(app, docname))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(Times)
    app.add_directive("run-times", RunTimes)
    app.connect("env-updated", pages_with_times)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
