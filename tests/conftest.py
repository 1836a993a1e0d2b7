"""What several test files share: where things are, and which chapters there are."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("icd", deadline=None)
hypothesis.settings.load_profile("icd")


def pages_in_toc() -> list[str]:
    """The book's pages in reading order, as `_toc.yml` names them."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf8"))
    pages = [toc["root"]]

    def walk(node: dict) -> None:
        for chapter in node.get("chapters", []) + node.get("sections", []):
            pages.append(chapter["file"])
            walk(chapter)
        for part in node.get("parts", []):
            walk(part)

    walk(toc)
    return pages


def chapters_in_toc() -> list[Path]:
    """The pages that are notebooks."""
    paths = (ROOT / "book" / f"{page}.ipynb" for page in pages_in_toc())
    return [path for path in paths if path.exists()]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
