"""How near a student's Gram matrices come to its teacher's, with the clustering term and without it.

    python tests/benchmarks/gram_distance.py

Trains SD-KD and iCD-KD side by side over five seeds with the recipe of data/results/birdlets.csv, and writes
data/results/birdlets-gram.csv. The distance is the clustering loss itself, over Birdlets' 900 test images.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch
from torch import nn

from icd.datasets import birdlets, birds, cache
from icd.experiments.model_file import load_model
from icd.files import data_path
from icd.losses import icd_loss
from icd.networks import network
from icd.objective import METHODS
from icd.scores import score
from icd.trainer import Recipe, Student, fit_together
from icd.trainer.evaluate import accuracy
from icd.trainer.provenance import commit, device_name

TABLE = data_path("results") / "birdlets-gram.csv"
COLUMNS = ("method", "seed", "distance", "untrained", "accuracy", "images", "epochs", "seconds", "device")


@torch.no_grad()
def all_regions(model: nn.Module, data: cache.CachedImages) -> torch.Tensor:
    """Return the logits of the 21 regions of every image, (N, 21, C)."""
    model.eval()
    return torch.cat([score(model, images).local() for images, _ in data.batches(300)])


def main() -> None:
    """Train, measure, and write a row for each run."""
    root = birdlets.folder(progress=False)
    train, test = (
        cache.load(birds.CUB200(root, split, size=56), progress=False) for split in ("train", "test")
    )
    teacher, _ = load_model(data_path("teachers/birdlets.safetensors"))
    target = all_regions(teacher, test)
    rows = []
    for seed in range(5):
        recipe = Recipe(45, 32, 0.1, "one-cycle", nesterov=True, seed=seed)
        students = []
        for method in ("SD-KD", "iCD-KD"):
            torch.manual_seed(seed)
            students.append(Student(network("resnet10-16", 30), METHODS[method](), method))
        untrained = icd_loss(all_regions(students[0].network, test), target).item()
        began = time.perf_counter()
        fit_together(students, train, recipe, teacher=teacher, progress=False)
        seconds = time.perf_counter() - began
        for student in students:
            distance = icd_loss(all_regions(student.network, test), target).item()
            right = accuracy(student.network, test)
            device = device_name(torch.device("cpu"))
            values = (
                student.name,
                seed,
                f"{distance:.6f}",
                f"{untrained:.6f}",
                f"{right:.6f}",
                len(test),
                45,
            )
            rows.append(dict(zip(COLUMNS, (*values, round(seconds, 1), device), strict=True)))
            rows[-1] |= {"commit": commit(), "command": "python tests/benchmarks/gram_distance.py"}
            print(rows[-1], flush=True)
        with Path(TABLE).open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
