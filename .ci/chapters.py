"""Run the chapters whose outputs are not cached, several at a time, and cache them for Jupyter Book.

python .ci/chapters.py [--jobs 2]

Jupyter Book runs no chapter that its cache (`_build/.jupyter_cache`) holds. Each chapter runs from a fresh
kernel with one thread: on two cores, two at a time are quicker than one after another with two threads.
"""

import argparse
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract

CACHE, RUN = Path("_build/.jupyter_cache"), Path("build/chapters")


def cached(cache: JupyterCacheAbstract, chapter: Path) -> bool:
    """Return whether the cache holds the outputs of a chapter's cells."""
    try:
        cache.match_cache_notebook(nbformat.read(chapter, as_version=4))
    except KeyError:
        return False
    return True


def seconds(timings: list[dict[str, str]]) -> float:
    """Return the time from the first cell's start to the last one's reply."""
    moments = [
        datetime.fromisoformat(moment.replace("Z", "+00:00")) for cell in timings for moment in cell.values()
    ]
    return (max(moments) - min(moments)).total_seconds() if moments else 0.0


def keep(cache: JupyterCacheAbstract, chapter: Path) -> None:
    """Put the executed copy of a chapter into the cache and print its time, if it ran to its end."""
    notebook = nbformat.read(RUN / chapter.name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failed = any(output.output_type == "error" for cell in cells for output in cell.outputs)
    if failed or cells[-1].execution_count is None:
        return
    # The run notes times in the cells; the cache finds a notebook by its cells, as they were before.
    taken = seconds([cell.metadata.pop("execution", {}) for cell in cells])
    bundle = CacheBundleIn(notebook, str(chapter.resolve()), data={"execution_seconds": taken})
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    print(f"{taken:6.1f} s  {chapter.name}")


def main(jobs: int) -> int:
    cache = get_cache(CACHE)
    missing = [chapter for chapter in sorted(Path("book").glob("*.ipynb")) if not cached(cache, chapter)]
    if not missing:
        print("no chapter has changed since it ran")
        return 0
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)
    copies = [shutil.copy(chapter, RUN) for chapter in missing]
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        f"{jobs}",
        "--dist",
        "worksteal",
        "--nbmake",
        "--overwrite",
    ]
    ran = subprocess.run(
        [*pytest, "--nbmake-timeout=1200", *copies], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    for chapter in missing:
        keep(cache, chapter)
    # Else Sphinx keeps the page of an unchanged chapter, with the outputs and the time of an earlier run.
    shutil.rmtree("_build/.doctrees", ignore_errors=True)
    return ran.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="chapters at a time")
    sys.exit(main(parser.parse_args().jobs))
