"""Chapters as text: what a notebook must and must not hold. (`make chapters` runs them.)"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, chapters_in_toc

import icd
from icd import losses, scores
from icd.experiments import statistics as evidence
from icd.losses import numerics
from icd.trainer import Student

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
NAMES_CHAPTERS = re.compile(r"\bchapters?\s+(\d+(?:(?:,| and)\s+\d+)*)")
#: What a chapter uses and says in words: its subject is what they return, and their source is no equation.
IN_WORDS = {"Scores", "score", "within_group_error_share", "paired_interval"}
#: Public functions whose docstring says where they are derived.
DERIVED = [
    pytest.param(value, id=name)
    for module in (losses, scores, numerics, evidence)
    for name, value in vars(module).items()
    if getattr(value, "__module__", None) == module.__name__
    and NAMES_CHAPTERS.search(value.__doc__ or "")
    and name not in IN_WORDS
]
DERIVED.append(pytest.param(Student.step, id="Student.step"))


def without_code_and_maths(text: str) -> str:
    """Markdown less what is shown as it stands or set as maths."""
    text = re.sub(r"^(```|~~~)[\w-]*\n.*?^\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return re.sub(r"\$[^$\n]+\$", "", text)


def python(cell: nbformat.NotebookNode) -> str:
    """A code cell's source with a `pass` for every line that is IPython's."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)


def printed(path: Path) -> set[str]:
    """The names of what a chapter prints the source of."""
    calls = [
        call
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and "source(" in cell.source
        for call in ast.walk(ast.parse(python(cell)))
        if isinstance(call, ast.Call) and "source" in ast.unparse(call.func)
    ]
    names = (node for call in calls for node in ast.walk(call) if isinstance(node, ast.Name | ast.Attribute))
    return {ast.unparse(node).rpartition(".")[2] for node in names}


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


FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def test_what_teaches_is_visible_and_the_rest_is_folded(chapter) -> None:
    """At most 150 lines of code are; a folded cell is folded in Colab and JupyterLab too, under a title."""
    visible = 0
    for cell in (cell for cell in chapter.cells if cell.cell_type == "code"):
        tags = set(cell.metadata.get("tags", []))
        if "hide-input" in tags:
            assert cell.metadata.get("cellView") == "form", cell.source
            assert cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source
            assert cell.source.startswith("# @title "), cell.source
            assert "code_prompt_show" in cell.metadata.get("mystnb", {}), cell.source
        if not tags & FOLDED:
            visible += sum(bool(line.strip()) for line in cell.source.splitlines())
    assert visible <= 150


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
    code = "\n".join(python(cell) for cell in chapter.cells if cell.cell_type == "code")
    assert DRAWS.search(code)
    assert "flipbook(" in code
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))


def test_opens_with_what_it_is_good_for_and_how_long_it_takes(chapter) -> None:
    text = "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    opening = text.partition("\n## ")[0]
    assert re.search(r"\byou\s+can\b", opening)
    assert re.search(
        r"\b(minutes?|seconds?|\d+\s+s)\b[^.]*\bcores\b|\bcores\b[^.]*\b(minute|second)", opening
    )


def test_has_exercises_with_solutions_folded_away(chapter) -> None:
    asked = []
    for cell, after in itertools.pairwise([*chapter.cells, None]):
        for number in re.findall(r"^\*\*(\d+)\.\*\*", cell.source, re.MULTILINE):
            assert cell.cell_type == "markdown"
            assert after is not None
            assert after.cell_type == "code"
            assert after.source.splitlines()[0] == f"# @title Solution {number}"
            # In Colab, in JupyterLab and in the book.
            assert after.metadata.get("cellView") == "form"
            assert after.metadata.get("jupyter", {}).get("source_hidden")
            assert "hide-cell" in after.metadata.get("tags", [])  # what it prints is the answer
            assert after.metadata.get("mystnb", {}).get("code_prompt_show") == "Solution"
            asked.append(int(number))
    assert asked == list(range(1, len(asked) + 1))
    assert 2 <= len(asked) <= 4


def test_closes_with_what_was_shown_and_what_was_not(chapter) -> None:
    text = "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## .+", text, re.MULTILINE)[-1] == (
        "## What was shown, what was not, and where next"
    )


@pytest.mark.parametrize("function", DERIVED)
def test_a_chapter_prints_what_it_derives(function) -> None:
    """The source itself, which a reader can hold against the equation, and no second copy."""
    said = NAMES_CHAPTERS.search(function.__doc__)
    named = {int(number) for number in re.findall(r"\d+", said[1])}
    there = [path for path in CHAPTERS if int(path.stem[:2]) in named]
    assert len(there) == len(named)
    assert any(function.__name__ in printed(path) for path in there)


@pytest.mark.parametrize("name", sorted(set(icd.__all__) - {"METHODS", "birdlets", "birds"}))
def test_what_the_package_offers_names_its_chapter(name) -> None:
    assert NAMES_CHAPTERS.search(getattr(icd, name).__doc__)
