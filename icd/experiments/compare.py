"""Methods compared fairly: the same start, the same batches, seed by seed, and a row for every run."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icd.datasets.cache import CachedImages
from icd.errors import RunError, did_you_mean
from icd.experiments.statistics import Interval, paired_interval
from icd.files import write_atomically
from icd.networks.build import network
from icd.objective import METHODS
from icd.trainer.distributed import is_main_process, world_size
from icd.trainer.evaluate import accuracy
from icd.trainer.loop import fit_together
from icd.trainer.provenance import commit, device_name
from icd.trainer.recipe import Recipe
from icd.trainer.student import Student


@dataclass(frozen=True)
class Result:
    """One finished run: what was measured, and what is needed to measure it again.

    `device` and `commit` are those that it learned on, with commas between them where there were several.
    Students of a seed learn side by side: `seconds` is the wall time of all `together` of them, teacher
    included, and `peak_mb` the most memory that the process held, the first one of several.
    """

    method: str
    seed: int
    accuracy: float
    images: int
    objective: str
    network: str
    epochs: int
    together: int
    seconds: float
    peak_mb: int
    device: str
    commit: str
    command: str


def compare(
    methods: Sequence[str],
    seeds: Sequence[int],
    student: str,
    train: CachedImages,
    held: CachedImages,
    recipe: Recipe,
    teacher: nn.Module,
    folder: str | Path,
    progress: bool = True,
) -> list[Result]:
    """Train a student by every method for every seed; returns the rows of `folder/results.csv`.

    The students of a seed start from the same weights and see the same batches, so that differences
    between methods are paired by construction; the teacher is asked once for all of them. What has a row
    in the table is not run again, and a seed that was stopped goes on from its checkpoint.

    Args:
        methods: names in `icd.objective.METHODS`.
        seeds: of the students' weights, and of the order and the cut of the images.
        student: a name in `icd.zoo.NETWORKS`.
        train: what all learn from.
        held: what accuracy is measured on, once, after the last epoch.
        recipe: how all are trained; its seed is replaced by each of `seeds`.
        teacher: whom all learn from.
        folder: for the table, and a folder for each seed.
        progress: show bars.

    Raises:
        RunError: an unknown method, none at all or one named twice, no seed, or a table of other runs.
    """
    check_methods(methods, seeds)
    table, rows = Path(folder) / "results.csv", finished(folder, student, recipe, held)
    for seed in seeds:
        done = {row.method for row in rows if row.seed == seed}
        missing = [method for method in methods if method not in done]
        if not missing:
            continue
        learners = []
        for method in missing:
            torch.manual_seed(seed)
            fresh = network(student, len(train.classes), train.size)
            learners.append(Student(fresh, METHODS[method](), method))
        place = Path(folder) / f"seed-{seed}-{'+'.join(missing)}"
        fit_together(
            learners, train, replace(recipe, seed=seed), teacher=teacher, folder=place, progress=progress
        )
        for learner in learners:
            rows.append(measure(learner, held, network=student, seed=seed, together=len(learners)))
        if is_main_process():
            write_results(table, rows)
    return rows


def check_methods(methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise a RunError for an unknown method, none at all or one named twice, or no seed."""
    for method in methods:
        if method not in METHODS:
            hint = did_you_mean(method, list(METHODS), f"There are {', '.join(METHODS)}")
            raise RunError(f'there is no method "{method}":{hint}')
        if list(methods).count(method) > 1:
            raise RunError(f'the method "{method}" is named twice: once is enough')
    if not methods or not seeds:
        raise RunError(f"{len(methods)} methods for {len(seeds)} seeds: give one or more of both")


def finished(folder: str | Path, student: str, recipe: Recipe, held: CachedImages) -> list[Result]:
    """The rows that `folder/results.csv` has already, or RunError for runs with other settings."""
    table = Path(folder) / "results.csv"
    rows = read_results(table) if table.exists() else []
    for row in rows:
        now = (student, recipe.epochs, len(held), str(METHODS[row.method]()) if row.method in METHODS else "")
        if (row.network, row.epochs, row.images, row.objective) != now:
            raise RunError(
                f"{table} holds runs with other settings ({row.method}, seed {row.seed}): name another folder"
            )
    return rows


def measure(
    learner: Student, held: CachedImages, *, network: str, seed: int, together: int = 1, command: str = ""
) -> Result:
    """The row of a student that has learned: its accuracy on `held`, and what is needed to measure it again.

    `command` is by default the one that runs.
    """
    last = learner.history[-1]
    here = {
        "device": device_name(next(learner.network.parameters()).device, world_size()),
        "commit": commit(),
    }
    # A run from before this was kept is taken for one of this device.
    made = {name: ", ".join(dict.fromkeys(on[name] for on in learner.provenance or [here])) for name in here}
    return Result(
        method=learner.name,
        seed=seed,
        accuracy=accuracy(learner.network, held),
        images=len(held),
        objective=str(learner.objective),
        network=network,
        epochs=last["epoch"],
        together=together,
        seconds=last["seconds"],
        peak_mb=last["peak_mb"],
        device=made["device"],
        commit=made["commit"],
        command=command or command_line(),
    )


def differences(rows: Sequence[Result], baseline: str) -> dict[str, Interval]:
    """How many points better each method is than `baseline`, by seed (chapters 2 and 6).

    Methods with fewer than two seeds in common with the baseline are left out.
    """
    by_method: dict[str, dict[int, float]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.seed] = 100 * row.accuracy
    reference = by_method.get(baseline, {})
    intervals = {}
    for method, scores in by_method.items():
        shared = sorted(scores.keys() & reference.keys())
        if method != baseline and len(shared) >= 2:
            intervals[method] = paired_interval([scores[s] for s in shared], [reference[s] for s in shared])
    return intervals


def read_results(path: str | Path) -> list[Result]:
    """The rows of a results table.

    Raises:
        RunError: no such file, one with other columns, or a value that does not fit its column.
    """
    try:
        reader = csv.reader(io.StringIO(Path(path).read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise RunError(f"{path}: this table cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is no table of results ({error})") from error
    columns = [field.name for field in fields(Result)]
    if not rows or rows[0][1] != columns:
        raise RunError(f"{path} is no table of results: its first line is not {','.join(columns)}")
    results: dict[tuple[str, int], Result] = {}
    for line, row in rows[1:]:
        result = _read_row(f"{path}:{line}", row)
        if results.setdefault((result.method, result.seed), result) is not result:
            raise RunError(f"{path}:{line}: {result.method} with seed {result.seed} has a row already")
    return list(results.values())


def _read_row(place: str, row: list[str]) -> Result:
    if len(row) != len(fields(Result)):
        raise RunError(f"{place}: {len(row)} values, expected {len(fields(Result))}")
    values: dict[str, Any] = {}
    for field, text in zip(fields(Result), row, strict=True):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        try:
            values[field.name] = kind(text)
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            raise RunError(f"{place}: the {field.name} is {text!r}, not {number}") from None
    if not 0 <= values["accuracy"] <= 1:
        raise RunError(f"{place}: the accuracy is {values['accuracy']}, not a share from 0 to 1")
    return Result(**values)


def write_results(path: str | Path, rows: Sequence[Result]) -> None:
    """Write a results table, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Result)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(Path(path), text.getvalue())


def command_line() -> str:
    """What to type to run this command again."""
    several = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(world_size())]
    return shlex.join([*(several if world_size() > 1 else ["python"]), "-m", "icd", *sys.argv[1:]])
