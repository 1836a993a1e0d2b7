"""Put executed notebooks into the cache that Jupyter Book reads, so that no chapter runs a second time.

python .ci/keep_outputs.py _build/.jupyter_cache _build/chapters/*.ipynb
"""

import sys
from datetime import datetime
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn


def seconds(timings: list[dict[str, str]]) -> float:
    """From the first cell's start to the last one's reply."""
    moments = [
        datetime.fromisoformat(moment.replace("Z", "+00:00")) for cell in timings for moment in cell.values()
    ]
    return (max(moments) - min(moments)).total_seconds() if moments else 0.0


def main(cache_path: str, *chapters: str) -> None:
    cache = get_cache(cache_path)
    for chapter in chapters:
        notebook = nbformat.read(chapter, as_version=4)
        # The run notes times in the cells; the cache finds a notebook by its cells, as they were before.
        timings = [cell.metadata.pop("execution", {}) for cell in notebook.cells if cell.cell_type == "code"]
        taken = seconds(timings)
        source = Path("book", Path(chapter).name).resolve()
        bundle = CacheBundleIn(notebook, str(source), data={"execution_seconds": taken})
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        print(f"{taken:6.1f} s  {source.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
