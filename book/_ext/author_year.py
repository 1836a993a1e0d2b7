"""The list of references names a work as the text does: by its authors and year."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class Label(BaseLabelStyle):
    """One author, two, or the first of more, and the year: Hinton et al., 2015."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        for entry in sorted_entries:
            names = [
                " ".join(person.last_names) for person in entry.persons["author"]
            ]
            said = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            yield f"{said}, {entry.fields['year']}"


class Style(Plain):
    """Like `plain`, with these labels in place of numbers."""

    default_label_style = Label


def setup(app: Sphinx) -> dict[str, bool]:
    register_plugin("pybtex.style.formatting", "author_year", Style)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
