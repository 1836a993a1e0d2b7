"""What each published run takes: weights, steps, and the memory of a step. Writes `data/cost.csv`.

    python tests/benchmarks/cost.py

Memory is that of a step with empty tensors (`icd.trainer.memory.step_bytes`), in GB of 10^9 bytes. Images
and what a GPU's driver and libraries take, come on top.
"""

from __future__ import annotations

import argparse
import csv
import io
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from icd.experiments.published import Cost, PublishedRun, published_runs
from icd.files import write_atomically
from icd.networks import network
from icd.objective import parse
from icd.trainer.memory import step_bytes

CLASSES = {"cub200": 200, "cifar100": 100}
IMAGES = {"cub200": 5_994, "cifar100": 50_000}  # to learn from


@cache
def gigabytes(
    data: str, size: int, teacher: str, student: str, objective: str, batch: int, half: bool
) -> float:
    """The most memory of a step."""
    classes = CLASSES[data]
    need = step_bytes(
        [(network(student, classes, size), parse(objective))],
        network(teacher, classes, size) if teacher else None,
        images=batch,
        size=size,
        classes=classes,
        precision="fp16" if half else "float32",
    )
    return round(need / 1e9, 2)


def parameters(name: str, classes: int, size: int) -> int:
    return sum(p.numel() for p in network(name, classes, size).parameters())


def cost(run: PublishedRun) -> Cost:
    """Of one run."""
    classes, batch = CLASSES[run.data], run.recipe.batch_size
    of_step = (run.data, run.size, run.teacher, run.network, str(run.objective), batch)
    return Cost(
        teacher_parameters=parameters(run.teacher, classes, run.size) if run.teacher else 0,
        student_parameters=parameters(run.network, classes, run.size),
        steps=run.recipe.epochs * (IMAGES[run.data] // batch),
        float32_gb=gigabytes(*of_step, half=False),
        fp16_gb=gigabytes(*of_step, half=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=Path(__file__).parents[2] / "data" / "cost.csv")
    file = parser.parse_args().file
    torch.set_num_threads(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *Cost._fields])
    for name, run in tqdm(published_runs().items(), unit="run"):
        writer.writerow([name, *cost(run)])
    write_atomically(file, text.getvalue())
    print(file)


if __name__ == "__main__":
    main()
