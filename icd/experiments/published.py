"""The published runs, a row of `data/recipes.csv` each: complete, named, and with its published figure."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from icd.errors import did_you_mean
from icd.files import data_path
from icd.objective import Objective, parse
from icd.trainer.recipe import Recipe


class Figure(NamedTuple):
    """What a paper or its authors' log print."""

    top1: float  # test accuracy in percent
    source: str
    note: str  # what is odd about it at its source


class Cost(NamedTuple):
    """What a run takes: `benchmarks/cost.py` counts it, and nobody needs a GPU for that."""

    teacher_parameters: int  # 0 where a network learns alone
    student_parameters: int
    steps: int
    float32_gb: float  # the most that tensors take in a step, in GB of 10^9 bytes, less the data set
    fp16_gb: float  # the same under autocast to 16 bits


@dataclass(frozen=True)
class PublishedRun:
    """How a published figure was made: all that `icd.training.fit` needs to make it again.

    Attributes:
        name: of the recipe.
        table: of `data/published/`, in which the figure stands at `pair`, `method`, `factor` and `value`.
        pair: teacher->student, as published.
        method: "teacher" and "student" are these networks' own training.
        factor, value: what an ablation changes, and to what; empty elsewhere.
        data: "cub200" or "cifar100".
        size: pixels a side of what the networks see.
        teacher: a name in `icd.zoo.NETWORKS`; empty where a network learns alone.
        network: the student's name, or of the network that learns alone.
        objective: the expression.
        recipe: batches, rates and epochs.
    """

    name: str
    table: str
    pair: str
    method: str
    factor: str
    value: str
    data: str
    size: int
    teacher: str
    network: str
    objective: Objective
    recipe: Recipe

    @property
    def teacher_recipe(self) -> str:
        """The recipe of the teacher's own training."""
        return f"{self.data}-{self.pair.split('->')[0].lower()}"

    def published(self) -> Figure:
        """The figure that this run is to be held against."""
        wanted = {name: getattr(self, name) for name in ("pair", "method", "factor", "value")}
        for row in _rows(f"published/{self.table}.csv"):
            if all(row.get(name, "") == text for name, text in wanted.items()):
                return Figure(float(row["top1"]), row["source"], row.get("note", ""))
        raise LookupError(f"{self.name}: {self.table}.csv has no such figure")

    def cost(self) -> Cost:
        """Weights, steps and memory."""
        row = next(row for row in _rows("cost.csv") if row["name"] == self.name)
        return Cost(
            teacher_parameters=int(row["teacher_parameters"]),
            student_parameters=int(row["student_parameters"]),
            steps=int(row["steps"]),
            float32_gb=float(row["float32_gb"]),
            fp16_gb=float(row["fp16_gb"]),
        )

    def settings(self) -> dict[str, Any]:
        """The options of `python -m icd distil` that stand for this run, or of `teach` without a teacher."""
        taught = {
            "teacher": f"runs/{self.teacher_recipe}",
            "teacher_network": self.teacher,
            "method": str(self.objective),
        }
        return {
            **(taught if self.teacher else {}),
            "folder": f"runs/{self.name}",
            "network": self.network,
            "images": "trainval",
            "data": {"root": self.data, "size": self.size},
            "recipe": {name: value for name, value in asdict(self.recipe).items() if name != "seed"},
        }


@lru_cache(maxsize=1)
def published_runs() -> dict[str, PublishedRun]:
    """Every row of `data/recipes.csv`, by name."""
    runs = {}
    for row in _rows("recipes.csv"):
        text = {name: row[name] for name in ("table", "pair", "method", "factor", "value", "data")}
        runs[row["name"]] = PublishedRun(
            name=row["name"],
            **text,
            size=int(row["size"]),
            teacher=row["teacher"],
            network=row["network"],
            objective=parse(row["objective"]),
            recipe=Recipe(
                epochs=int(row["epochs"]),
                batch_size=int(row["batch_size"]),
                learning_rate=float(row["learning_rate"]),
                milestones=tuple(map(float, row["milestones"].split())),
                momentum=float(row["momentum"]),
                weight_decay=float(row["weight_decay"]),
                max_grad_norm=float(row["max_grad_norm"]),
            ),
        )
    return runs


def published_run(name: str) -> PublishedRun:
    """The row of that name.

    Raises:
        ValueError: no such row; the message offers the nearest name.
    """
    runs = published_runs()
    if name not in runs:
        raise ValueError(
            f'there is no recipe "{name}":{did_you_mean(name, list(runs))} '
            f"`python -m icd recipes` lists all {len(runs)}"
        )
    return runs[name]


@lru_cache
def _rows(file: str) -> list[dict[str, str]]:
    with open(data_path(file), newline="", encoding="utf8") as text:
        return list(csv.DictReader(text))
