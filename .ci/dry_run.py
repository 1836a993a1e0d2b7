"""Run chapter 9 on real photographs, as with a GPU: its real networks and recipe, at 224 pixels, two epochs.

python .ci/dry_run.py ../shared/cub-50

Three species, and a step an epoch: some minutes on two CPU cores. It fails where a cell does.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CHAPTER = Path(__file__).parents[1] / "book" / "09-cub-200-on-a-gpu.ipynb"


def main(birds: str) -> None:
    with tempfile.TemporaryDirectory() as runs:
        notebook = nbformat.read(CHAPTER, as_version=4)
        place = next(
            i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
        )
        given = (
            f"FULL, EPOCHS, RUNS = True, 2, Path({runs!r})\n"
            f"DATA = DataSet({str(Path(birds).resolve())!r}, classes=3, size=224)"
        )
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
        NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
        tables = [path.read_text(encoding="utf8") for path in sorted(Path(runs).glob("**/results.csv"))]
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stdout":
                print(output.text, end="")
    print(*tables, sep="", end="")


if __name__ == "__main__":
    main(sys.argv[1])
