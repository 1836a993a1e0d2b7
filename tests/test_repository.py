"""What is said in several places is said the same in all of them, and a fresh clone can be installed."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, chapters_in_toc, pages_in_toc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
README = (ROOT / "README.md").read_text(encoding="utf8")
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}


def requirements(*texts: str) -> dict[str, Requirement]:
    """Requirements by their canonical name."""
    parsed = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pins(file: str) -> list[Requirement]:
    """The lines of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf8").splitlines())
    return [Requirement(line) for line in lines if line]


def version(pin: Requirement) -> str:
    """The one version that a constraint allows."""
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


ASKED = requirements(*PROJECT["dependencies"])
EVERYTHING = ASKED | requirements(
    *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)
)


def test_colab_replaces_nothing() -> None:
    has = {canonicalize_name(pin.name): version(pin) for pin in pins("tests/colab-constraints.txt")}
    replaced = [
        f"{name} {has[name]}" for name, r in ASKED.items() if name in has and has[name] not in r.specifier
    ]
    assert not replaced
    # A package that Colab lacks may be installed: it must be this one, small and pure.
    assert set(ASKED) - set(has) == {"jsonargparse"}
    assert "3.13" in PROJECT["requires-python"] or "<3.14" in PROJECT["requires-python"]


def test_constraints_satisfy_what_is_asked() -> None:
    for pin in pins("constraints.txt"):
        asked = EVERYTHING.get(canonicalize_name(pin.name))
        assert asked is None or version(pin) in asked.specifier, pin


def test_conda_says_the_same() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))["dependencies"]
    pip = next(item["pip"] for item in listed if isinstance(item, dict))
    conda = requirements(*(item for item in listed if isinstance(item, str) and item != "pip"))
    python = conda.pop("python")
    said = {CONDA_NAMES.get(name, name): requirement for name, requirement in conda.items()}
    said |= requirements(*(item for item in pip if not item.startswith("--")))
    assert {name: r.specifier for name, r in said.items()} == {
        name: r.specifier for name, r in EVERYTHING.items()
    }
    assert str(python.specifier) == str(Requirement(f"python{PROJECT['requires-python']}").specifier)


#: Other people's repositories that a chapter cites.
CITED = {
    "github.com/yzd-v/cls_KD",
    "github.com/shicaiwei123/SDD-CVPR2024",
    "github.com/HobbitLong/RepDistiller",
    "github.com/megvii-research/mdistiller",
    "github.com/ChenBill900703/CRD-Reproduction",
    "github.com/maomaochongaa/iCD",
}


def test_one_address() -> None:
    """Every link to a repository or to published pages is ours, for `make address` to change, or cited."""
    tool = runpy.run_path(str(ROOT / ".ci" / "address.py"))
    owner, name = tool["parts"]((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    assert f"https://github.com/{owner}/{name}" == ADDRESS
    ours = tool["spellings"](owner, name)
    link = re.compile(
        r"(?:colab\.research\.google\.com/)?github(?:\.com)?/[\w.-]+/[\w.-]+|[\w-]+\.github\.io/[\w.-]+"
    )
    strangers = []
    for path in tool["tracked"]():
        if path.relative_to(ROOT).parts[0] in ("data", "icd", "tests", ".github"):
            continue  # cards and docstrings may link to other people's work
        for found in link.findall(path.read_text(encoding="utf8")):
            address = found.removeprefix("colab.research.google.com/").removesuffix(".git").rstrip(".")
            if address not in ours and address not in CITED and "/you/" not in address:
                strangers.append(f"{path.relative_to(ROOT)}: {found}")
    assert not strangers


def test_address_command(tmp_path) -> None:
    """In a copy of the repository, one command moves it."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "book").mkdir()
    pages = ("README.md", "CONTRIBUTING.md", "book/running.md")
    for name in ("pyproject.toml", "_config.yml", "CITATION.cff", *pages):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf8"), encoding="utf8")
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "address.py"
    script.write_text((ROOT / ".ci" / "address.py").read_text(encoding="utf8"), encoding="utf8")
    moved = "https://github.com/someone-else/birds"
    subprocess.run([sys.executable, script, moved], check=True, capture_output=True)
    readme = (tmp_path / "README.md").read_text(encoding="utf8")
    assert ADDRESS not in readme
    assert moved in readme
    assert "https://someone-else.github.io/birds/" in readme
    assert "colab.research.google.com/github/someone-else/birds/blob" in readme
    assert f"url: {moved}\n" in (tmp_path / "_config.yml").read_text(encoding="utf8")
    for page in ("README.md", "book/running.md"):  # the folder that is entered is the one that is made
        assert f"\ngit clone {moved} icd-book && cd icd-book\n" in (tmp_path / page).read_text(
            encoding="utf8"
        )


@pytest.mark.parametrize(
    "url", ["nonsense", "http://github.com/a/b", "https://github.com/a", "", "https://github.com/a/b/c"]
)
def test_address_that_is_none(url) -> None:
    """The argument is to blame, not pyproject.toml, and nothing is written."""
    ended = subprocess.run(
        [sys.executable, ROOT / ".ci" / "address.py", url], capture_output=True, text=True, check=False
    )
    said = f"{url!r} is no address of a repository: give https://github.com/OWNER/NAME\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)


@pytest.mark.parametrize(
    "url", ["https://github.com/a/b-c", "https://github.com/a/b-c/", "https://github.com/a/b-c.git"]
)
def test_addresses_that_mean_the_same(url) -> None:
    assert runpy.run_path(str(ROOT / ".ci" / "address.py"))["wanted"](url) == ("a", "b-c")


def test_readme_lists_the_chapters() -> None:
    rows = re.findall(
        r"^\| \[(.+?)\]\((book/.+?\.ipynb)\) \| (.+?) \| (.+?) \| (.+) \|$", README, re.MULTILINE
    )
    chapters = chapters_in_toc()
    assert [row[1] for row in rows] == [path.relative_to(ROOT).as_posix() for path in chapters]
    for (title, file, *_, badge), path in zip(rows, chapters, strict=True):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert first.splitlines()[0] == f"# {title}"
        slug = ADDRESS.removeprefix("https://")
        assert (
            f"https://colab.research.google.com/{slug.replace('github.com', 'github')}/blob/main/{file}"
            in badge
        )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "book/running.md"])
def test_shell_blocks_are_shell(page) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf8"), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_every_page_is_in_the_book() -> None:
    listed = {ROOT / "book" / page for page in pages_in_toc()}
    found = {
        path.with_suffix("")
        for path in (ROOT / "book").rglob("*")
        if path.suffix in (".ipynb", ".md") and not any(part.startswith((".", "_")) for part in path.parts)
    }
    assert {
        path for path in found if path.relative_to(ROOT / "book").parts[0] not in ("labs", "solutions")
    } == listed


def test_citation_names_every_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert citation["repository-code"] == ADDRESS
    assert str(citation["version"]) == PROJECT["version"]
    years = {(paper["authors"][0]["family-names"], paper["year"]) for paper in citation["references"]}
    assert years >= {
        ("Xue", 2025),
        ("Hinton", 2015),
        ("Zhao", 2022),
        ("Yang", 2023),
        ("Wei", 2024),
        ("Romero", 2015),
        ("Tian", 2020),
        ("Chen", 2021),
    }


def code_lines(*parts: str) -> int:
    """Count the lines of modules and folders of the package, without blank lines, comments and docstrings."""
    files = [
        file for part in parts for file in [ROOT / "icd" / f"{part}.py", *(ROOT / "icd" / part).rglob("*.py")]
    ]
    return sum(code_lines_of(file) for file in files if file.is_file())


def code_lines_of(file: Path) -> int:
    text = file.read_text(encoding="utf8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = (line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in documented)
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_the_package_is_thin() -> None:
    """The budget: the losses and the trainer are what it is for, and all else is kept small beside them.

    Documentation is not counted, so that nobody saves on it.
    """
    assert code_lines("losses", "scores", "terms", "objective", "trainer") <= 2100
    assert code_lines("") <= 6200
    entries = [
        path.name for path in (ROOT / "icd").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))
    ]
    assert len(entries) <= 14, sorted(entries)
    long = {
        str(file): len(file.read_text(encoding="utf8").splitlines()) for file in (ROOT / "icd").rglob("*.py")
    }
    assert not {file: count for file, count in long.items() if count > 350}


#: What each part of the package may import of the others.
IMPORTS = {
    "errors": set(),
    "files": {"errors"},
    "losses": {"errors", "files"},
    "scores": {"losses", "errors", "files"},
    "terms": {"scores", "losses", "errors", "files"},
    "objective": {"terms", "scores", "losses", "errors", "files"},
    "networks": {"scores", "losses", "errors", "files"},
    "datasets": {"errors", "files"},
    "trainer": {"objective", "terms", "scores", "losses", "datasets", "errors", "files"},
    "figures": {"errors"},
}
IMPORTS["experiments"] = IMPORTS.keys() - {"figures"}
IMPORTS["cli"] = IMPORTS.keys() - {"figures"}
IMPORTS["__main__"] = {"cli"}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports anywhere, for type checkers alone as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                # `from icd.trainer import loop` imports icd.trainer.loop
                module = f"{node.module}.{alias.name}"
                yield module if is_module(module) else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def arrows() -> dict[str, set[str]]:
    """What each module of the package imports of it; the front door, which loads lazily, left out."""
    found = {}
    for path in sorted((ROOT / "icd").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "icd":
            found[name] = {other for other in imported(path) if other.partition(".")[0] == "icd"}
    return found


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in others
        if (part := module.split(".")[1]) != (of := other.split(".")[1] if "." in other else "icd")
        if of not in IMPORTS[part]
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = arrows()
    # A package gathers names of its modules: a circle only if these import the package.
    sorter = graphlib.TopologicalSorter({module: others - {module} for module, others in found.items()})
    sorter.prepare()


#: Names that stay importable from `icd` itself.
PUBLIC = {
    "local_logits",
    "kd_loss",
    "dkd_loss",
    "nkd_loss",
    "scale_decoupled_loss",
    "gram",
    "icd_loss",
    "score",
    "Scores",
    "fit",
    "Recipe",
    "network",
    "METHODS",
    "load_model",
    "birds",
    "birdlets",
}


@pytest.mark.thorough
def test_the_front_door_imports_lazily_and_opens_every_name() -> None:
    """A loss needs torch alone; the rest is imported when it is asked for."""
    script = f"""
import sys
import icd
print(*sorted({{"accelerate", "torchvision", "matplotlib", "pandas", "sklearn", "scipy"}} & set(sys.modules)))
for name in {sorted(PUBLIC)}:
    assert getattr(icd, name) is not None and name in dir(icd)
from icd.networks import network
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


@pytest.mark.slow
def test_data_travels_in_the_wheel(tmp_path) -> None:
    """Built without a network: the build backend is part of the test environment."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = (
        [path for path in (ROOT / "data").rglob("*") if path.is_file()] if (ROOT / "data").exists() else []
    )
    assert names >= {f"icd/data/{path.relative_to(ROOT / 'data').as_posix()}" for path in shipped}
    assert names >= {path.relative_to(ROOT).as_posix() for path in (ROOT / "icd").rglob("*.py")}
    assert all(name.startswith(("icd/", "icd_book-")) for name in names)


LIGHT = """
import runpy, sys
sys.modules.update(dict.fromkeys({refused!r}))  # as if they were not installed
from icd import METHODS, Recipe, fit, network
from icd.datasets.cache import CachedImages
gpu = runpy.run_path("tests/benchmarks/gpu.py")
gpu["check_losses_agree"](gpu["plan_for"](gpu["torch"].device("cpu"), tiny=True))
"""


@pytest.mark.thorough
def test_training_needs_only_what_a_cuda_image_has():
    """`make gpu` runs with torch, accelerate, safetensors, pandas and tqdm alone."""
    refused = {"PIL", "filelock", "platformdirs", "torchvision", "matplotlib", "seaborn", "jsonargparse"}
    refused |= {"scipy", "sklearn", "IPython", "timm"}
    script = LIGHT.format(refused=refused)
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
