"""Write the repository's address, which stands in pyproject.toml, everywhere else that it is spelled out.

python .ci/address.py                                  say where it stands
python .ci/address.py https://github.com/you/name      change it
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)/?")
SOURCE = re.compile(rf'^Repository = "{ADDRESS.pattern}"$', re.MULTILINE)


def parts(text: str) -> tuple[str, str]:
    """Owner and name of the repository, out of pyproject.toml's text."""
    found = SOURCE.search(text)
    if found is None:
        raise SystemExit("pyproject.toml: no Repository = https://github.com/OWNER/NAME")
    return found[1], found[2]


def wanted(url: str) -> tuple[str, str]:
    """Owner and name out of an address."""
    found = ADDRESS.fullmatch(url)
    if found is None:
        raise SystemExit(f"{url!r} is no address of a repository: give https://github.com/OWNER/NAME")
    return found[1], found[2].removesuffix(".git")


def spellings(owner: str, name: str) -> tuple[str, ...]:
    """The ways in which an address is spelled: the repository, Colab's path to it, the published book."""
    return f"github.com/{owner}/{name}", f"github/{owner}/{name}", f"{owner}.github.io/{name}"


def tracked() -> list[Path]:
    """The text files of the repository, this one's own examples left out."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    kinds = {".md", ".toml", ".yml", ".yaml", ".ipynb", ".cff", ".py", ".bib"}
    paths = (ROOT / name for name in names if name)
    return [
        path for path in paths if path.suffix in kinds and path.is_file() and path != Path(__file__).resolve()
    ]


def main(url: str | None) -> None:
    old = spellings(*parts((ROOT / "pyproject.toml").read_text(encoding="utf8")))
    new = old if url is None else spellings(*wanted(url))
    for path in tracked():
        text = path.read_text(encoding="utf8")
        count = sum(text.count(spelling) for spelling in old)
        if not count:
            continue
        for before, after in zip(old, new, strict=True):
            text = text.replace(before, after)
        if url is not None:
            path.write_text(text, encoding="utf8")
        print(f"{count:3d}  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
