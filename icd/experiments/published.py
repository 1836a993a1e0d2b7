"""The published runs of `data/recipes.csv`, their published figures, and your own results beside them."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from icd.datasets import DataSet
from icd.datasets.cache import CachedImages
from icd.errors import RunError, did_you_mean
from icd.experiments.compare import (
    Result,
    measure,
    read_results,
    result_settings,
    same_settings,
    write_results,
)
from icd.files import data_path, make_folder
from icd.objective import Objective, parse
from icd.trainer.distributed import is_main_process
from icd.trainer.recipe import Recipe
from icd.trainer.student import Student

TEST_IMAGES = {"cub200": 5_794, "cifar100": 10_000}


class Figure(NamedTuple):
    """A figure as a paper or its authors' log prints it."""

    top1: float  # test accuracy in percent
    source: str
    note: str  # what is odd about it at its source


class Cost(NamedTuple):
    """What a run takes, as `tests/benchmarks/cost.py` counts it without a GPU."""

    teacher_parameters: int  # 0 for a network that is trained alone
    student_parameters: int
    steps: int
    float32_gb: float  # peak memory of a step's tensors in GB of 10^9 bytes, without the data set
    fp16_gb: float  # the same under autocast to 16 bits


@dataclass(frozen=True)
class PublishedRun:
    """The settings behind a published figure.

    Attributes:
        name: of the recipe.
        table: the file in `data/published/` with the figure, at `pair`, `method`, `factor` and `value`.
        pair: teacher->student, as published.
        method: as published; "teacher" and "student" are these networks trained alone.
        factor, value: what an ablation varies, and its value; empty elsewhere.
        data: "cub200" or "cifar100".
        size: pixels a side of the networks' input.
        teacher: a name in `icd.networks.NETWORKS`; empty for a network that is trained alone.
        network: the trained network, a name in `icd.networks.NETWORKS`.
        objective: what is minimised.
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
        """The name of the recipe that trains the teacher."""
        return f"{self.data}-{self.pair.split('->')[0].lower()}"

    def published(self) -> Figure:
        """Return the published figure."""
        wanted = {name: getattr(self, name) for name in ("pair", "method", "factor", "value")}
        for row in _rows(f"published/{self.table}.csv"):
            if all(row.get(name, "") == text for name, text in wanted.items()):
                return Figure(float(row["top1"]), row["source"], row.get("note", ""))
        raise LookupError(f"{self.table}.csv has no row of {self.name}")

    def cost(self) -> Cost:
        """Return what the run takes, from `data/cost.csv`."""
        row = next(row for row in _rows("cost.csv") if row["name"] == self.name)
        return Cost(
            int(row["teacher_parameters"]),
            int(row["student_parameters"]),
            int(row["steps"]),
            float(row["float32_gb"]),
            float(row["fp16_gb"]),
        )

    def settings(self) -> dict[str, Any]:
        """Return the options of `icd distil` for this run, or of `icd teach` if it has no teacher."""
        teacher = {
            "teacher": f"runs/{self.teacher_recipe}",
            "teacher_network": self.teacher,
            "method": str(self.objective),
        }
        return {
            **(teacher if self.teacher else {}),
            "folder": f"runs/{self.name}",
            "network": self.network,
            "images": "trainval",
            "data": {"root": self.data, "size": self.size},
            "recipe": {name: value for name, value in asdict(self.recipe).items() if name != "seed"},
        }

    def folder(self, runs: Path) -> Path:
        """Return the run's folder in `runs`: that of the command line, if only the seed or epochs differ."""
        epochs, seed = self.recipe.epochs, self.recipe.seed
        changed = f"-{epochs}-epochs" if epochs != published_run(self.name).recipe.epochs else ""
        return runs / (self.name + changed + (f"-seed-{seed}" if seed else ""))

    def results_folder(self, runs: Path) -> Path:
        """Return the folder of the run's results.csv: `runs`, or its own folder for other epochs."""
        same = self.recipe.epochs == published_run(self.name).recipe.epochs
        return runs if same else self.folder(runs)


@lru_cache(maxsize=1)
def published_runs() -> dict[str, PublishedRun]:
    """Return every row of `data/recipes.csv`, by name."""
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


def published_run(name: str, **recipe: Any) -> PublishedRun:
    """Return the run of that name, with a fresh objective.

    Args:
        name: of the recipe.
        recipe: fields of its recipe to change; None leaves a field as published.

    Raises:
        ValueError: there is no such run; the message suggests the closest name.
    """
    runs = published_runs()
    if name not in runs:
        raise ValueError(
            f'there is no recipe "{name}":{did_you_mean(name, list(runs))} '
            f"`icd recipes` lists all {len(runs)}"
        )
    run, changes = runs[name], {field: value for field, value in recipe.items() if value is not None}
    return replace(run, objective=parse(str(run.objective)), recipe=replace(run.recipe, **changes))


@lru_cache
def _rows(file: str) -> list[dict[str, str]]:
    import pandas as pd

    table = pd.read_csv(data_path(file), dtype=str, keep_default_na=False)
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


class PublishedRow(NamedTuple):
    """A published figure, and your results of the same run."""

    run: PublishedRun
    published: Figure
    measured: tuple[float, ...]  # percent of the test images, one for each seed


def command_of(run: PublishedRun, data: DataSet) -> str:
    """Return the command that makes a run on these images: `icd reproduce` with what the recipe lacks."""
    origin = published_run(run.name)
    words = ["icd", "reproduce", run.name]
    if run.network != origin.network:
        words += ["--network", run.network]
    if str(run.objective) != str(origin.objective):
        words += ["--method", str(run.objective)]
    published = DataSet(origin.data, size=origin.size)
    for group, now, then in (("data", data, published), ("recipe", run.recipe, origin.recipe)):
        for name, value in asdict(now).items():
            if value != getattr(then, name):
                text = list(value) if isinstance(value, tuple) else value
                words += [f"--{group}.{name}", str(text)]
    return shlex.join(words)


def record_result(
    run: PublishedRun, student: Student, test: CachedImages, data: DataSet, folder: str | Path
) -> Result:
    """Return the row of a finished run in `folder/results.csv`; measure and add it if it is not there.

    Args:
        run: with the settings that it was trained with.
        student: the trained student.
        test: the test images.
        data: the data settings of the training images.
        folder: for the table.

    Raises:
        RunError: the run has not ended, the table is damaged, or it has a row of that name and seed with
            other settings (`same_settings`), another network, objective or number of test images.
    """
    if len(student.history) != run.recipe.epochs:
        raise RunError(
            f"{run.name} has ended {len(student.history)} of {run.recipe.epochs} epochs: let it end before "
            "you measure it"
        )
    if str(student.objective) != str(run.objective):
        raise RunError(f"{run.name} minimises {run.objective}, but the student {student.objective}")
    settings = result_settings(data, run.recipe, student.provenance)
    precision = settings["recipe"]["precision"]
    command = command_of(replace(run, recipe=replace(run.recipe, precision=precision)), data)
    table = Path(folder) / "results.csv"
    make_folder(table.parent)
    with FileLock(table.with_suffix(".lock")):  # two notebooks may end at once
        rows = read_results(table) if table.exists() else []
        for row in rows:
            if (row.method, row.seed) == (run.name, run.recipe.seed):
                if row.images != len(test) or not _same_run(row, run, settings):
                    raise RunError(
                        f"{table} has another run of {run.name} with seed {row.seed}: {row.images} images, "
                        f"{row.command}. Choose another folder, or delete that row"
                    )
                return row
        measured = measure(student, test, run.network, run.recipe.seed, settings, command=command)
        rows.append(replace(measured, method=run.name))
        if is_main_process():
            write_results(table, rows)
    return rows[-1]


def _same_run(row: Result, run: PublishedRun, settings: dict[str, Any]) -> bool:
    made = (run.name, run.network, str(run.objective))
    return (row.method, row.network, row.objective) == made and same_settings(row.settings, settings)


def compare_with_published(
    folder: str | Path, data: str, methods: Sequence[str] = ("KD", "SD-KD", "iCD-KD"), table: str = "top1"
) -> list[PublishedRow]:
    """Return published figures, each with the results of that run in `folder/results.csv`.

    Only runs with the settings of the recipe on all test images count. The teacher may be any.

    Args:
        folder: of the runs; it may have no table.
        data: "cub200" or "cifar100".
        methods: as published; "teacher" and "student" are networks that were trained alone.
        table: "top1" or "ablations".

    Raises:
        ValueError: there are no published figures of a method.
        RunError: the table is damaged.
    """
    runs = [run for run in published_runs().values() if run.table == f"{data}_{table}"]
    known = sorted({run.method for run in runs})
    for method in methods:
        if method not in known:
            hint = did_you_mean(method, known)
            raise ValueError(f'{data}_{table}.csv has no method "{method}":{hint} there are {known}')
    path = Path(folder) / "results.csv"
    rows = [row for row in read_results(path) if row.images == TEST_IMAGES[data]] if path.exists() else []

    def measured(run: PublishedRun) -> tuple[float, ...]:
        settings = result_settings(DataSet(run.data, size=run.size), run.recipe)
        return tuple(100 * row.accuracy for row in rows if _same_run(row, run, settings))

    return [PublishedRow(run, run.published(), measured(run)) for run in runs if run.method in methods]


def as_markdown(rows: Sequence[PublishedRow]) -> str:
    """Return the rows as a table in Markdown, with notes on odd figures below it."""
    notes = list(dict.fromkeys(row.published.note for row in rows if row.published.note))
    lines = ["| teacher → student | method | published | measured by you |", "| :-- | :-- | --: | --: |"]
    for run, (top1, _, note), values in rows:
        pair, method = run.pair.replace("->", " → "), f"{run.method} {run.factor} {run.value}".strip()
        mark = f" <sup>{notes.index(note) + 1})</sup>" if note else ""
        mean = f"{statistics.mean(values):.2f}" if values else "not measured yet"
        seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
        lines.append(f"| {pair} | {method} | {top1:.2f}{mark} | {mean}{seeds} |")
    return "\n".join([*lines, *(f"\n{number}) {note}." for number, note in enumerate(notes, 1))])
