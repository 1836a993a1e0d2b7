"""Chapters as text: what a notebook must and must not hold. (`make chapters` runs them.)"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, chapters_in_toc

CHAPTERS = chapters_in_toc()
FIRST_CELL = re.search(
    r"```python\n(import sys\n\nif \"google\.colab\".*?)\n```",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8"),
    re.DOTALL,
)
#: MyST's own syntax, which Colab and JupyterLab would show as it stands.
MYST = {
    "a directive": re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\{", re.MULTILINE),
    "a role": re.compile(r"\{[\w:+.-]+\}`"),
    "a target": re.compile(r"^\([\w-]+\)=\s*$", re.MULTILINE),
    "a comment": re.compile(r"^%\s", re.MULTILINE),
    "a block break": re.compile(r"^\+\+\+", re.MULTILINE),
    "a substitution": re.compile(r"\{\{.*?\}\}"),
    "a colon fence": re.compile(r"^\s*:{3,}", re.MULTILINE),
}
DRAWS = re.compile(r"\bplt\.show\(|\bcontact_sheet\(")


def without_code_and_maths(text: str) -> str:
    """Markdown less what is shown as it stands or set as maths."""
    text = re.sub(r"^(```|~~~)[\w-]*\n.*?^\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return re.sub(r"\$[^$\n]+\$", "", text)


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    """One chapter, read."""
    path: Path = request.param
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_no_outputs(chapter) -> None:
    for cell in chapter.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "widgets" not in chapter.metadata
    assert chapter.metadata.kernelspec.name == "python3"


def test_cited_works_are_in_the_references(chapter) -> None:
    references = (ROOT / "book" / "references.bib").read_text(encoding="utf8")
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    works = re.findall(r"\((https?://(?:arxiv\.org|doi\.org|jmlr\.org)/[^)\s]+)\)", text)
    missing = [work for work in works if work.removeprefix("https://doi.org/") not in references]
    assert not missing, missing


def test_first_code_cell_installs_on_colab_only(chapter) -> None:
    first = next(cell for cell in chapter.cells if cell.cell_type == "code")
    assert FIRST_CELL is not None
    assert first.source == FIRST_CELL[1]
    assert first.metadata.get("tags") == ["remove-cell"]


def test_markdown_is_plain(chapter) -> None:
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            text = without_code_and_maths(cell.source)
            found = {name: pattern.search(text) for name, pattern in MYST.items()}
            assert not {name: match[0] for name, match in found.items() if match}


def test_html_is_plain(chapter) -> None:
    """Of HTML only what Colab, JupyterLab and the book all show."""
    allowed = {
        "details",
        "summary",
        "div",
        "p",
        "br",
        "sub",
        "sup",
        "kbd",
        "img",
        "a",
        "b",
        "i",
        "code",
        "pre",
    }
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"`[^`]*`", "", without_code_and_maths(cell.source))
            assert {tag.lower() for tag in re.findall(r"</?([a-zA-Z][\w-]*)", text)} <= allowed
            for image in re.findall(r"<img\b[^>]*>|!\[[^\]]*\]", text):
                assert re.search(r'alt="[^"]{10,}"|!\[.{10,}\]', image), (
                    f"{image} says nothing of what is seen"
                )


def test_figures_have_alt_text(chapter) -> None:
    for cell in chapter.cells:
        if cell.cell_type == "code" and DRAWS.search(cell.source):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 4, f"no alt text, or too little, in the metadata of\n{cell.source}"


def test_opens_with_a_title_and_one_level_below(chapter) -> None:
    headings = [
        heading
        for cell in chapter.cells
        if cell.cell_type == "markdown"
        for heading in re.findall(r"^#+ ", without_code_and_maths(cell.source), re.MULTILINE)
    ]
    levels = [len(heading) - 1 for heading in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_something_to_look_at_to_play_with_and_to_check(chapter) -> None:
    code = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "code")
    assert DRAWS.search(code)
    assert "flipbook(" in code
    plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(plain)))
