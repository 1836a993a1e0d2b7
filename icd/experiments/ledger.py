"""Published figures beside those of your own runs: `icd.recipes` says how, this keeps what came of it."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from icd.datasets import DataSet
from icd.datasets.cache import CachedImages
from icd.errors import RunError, did_you_mean
from icd.experiments.compare import Result, measure, read_results, write_results
from icd.experiments.published import Figure, PublishedRun, published_run, published_runs
from icd.files import make_folder
from icd.trainer.distributed import is_main_process
from icd.trainer.recipe import EXECUTION_FIELDS
from icd.trainer.student import Student

TEST_IMAGES = {"cub200": 5_794, "cifar100": 10_000}
#: What may differ from a published run that is the same experiment. (The same images may lie in any folder.)
FREE = {"data.root", "recipe.seed", *(f"recipe.{name}" for name in EXECUTION_FIELDS)}


class Line(NamedTuple):
    """One published figure, and what was measured."""

    run: PublishedRun
    published: Figure
    measured: tuple[float, ...]  # percent of the test images, one of each seed; empty where nobody ran it


def command_of(run: PublishedRun, data: DataSet) -> str:
    """The command that makes a run on these images: the recipe's, and all that differs from it."""
    origin = published_run(run.name)
    text = f"python -m icd distil --recipe {run.name}"
    if run.network != origin.network:
        text += f" --network {run.network}"
    if str(run.objective) != str(origin.objective):
        text += f" --method {shlex.quote(str(run.objective))}"
    kept = DataSet(origin.data, size=origin.size)
    for group, now, then in (("data", data, kept), ("recipe", run.recipe, origin.recipe)):
        published = asdict(then)
        for name, value in asdict(now).items():
            if value != published[name]:
                text += f" --{group}.{name} {shlex.quote(_word(value))}"
    return text


def _word(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def enter(
    run: PublishedRun, learner: Student, test: CachedImages, data: DataSet, folder: str | Path
) -> Result:
    """The row of a finished run in `folder/results.csv`, which is measured once and then read.

    Its command names the precision that "auto" came to, and ends in a digest of the teacher's weights, which
    the log and the checkpoint of the run have too.

    Args:
        run: what was run, with the settings that it was run with.
        learner: the student, which has learned.
        test: the test images; none of them was looked at before.
        data: which images it learned from, and how they are cut.
        folder: for the table; the one that holds the runs.

    Raises:
        RunError: the run has not ended, the table is none, or it has another run of that name and seed: one
            that differs in more than what is free, in its teacher or in the number of images.
    """
    if len(learner.history) != run.recipe.epochs:
        raise RunError(
            f"{run.name} has gone through {len(learner.history)} of {run.recipe.epochs} epochs: let it end, "
            "then measure it"
        )
    if str(learner.objective) != str(run.objective):
        raise RunError(f"{run.name} is {run.objective}, and the student learned by {learner.objective}")
    made = learner.provenance[-1] if learner.provenance else {}
    precision = made.get("precision", run.recipe.precision)
    command = command_of(replace(run, recipe=replace(run.recipe, precision=precision)), data)
    if teacher := made.get("teacher"):
        command += f" # teacher={teacher}"
    table = Path(folder) / "results.csv"
    make_folder(table.parent)
    with FileLock(table.with_suffix(".lock")):  # two notebooks may end at once
        rows = read_results(table) if table.exists() else []
        for row in rows:
            if (row.method, row.seed) == (run.name, run.recipe.seed):
                there, here = _changes(row.command), _changes(command)
                teachers = {there.pop("#", ""), here.pop("#", "")} - {""}  # early rows do not say
                if row.images != len(test) or there != here or len(teachers) > 1:
                    raise RunError(
                        f"{table} has another run of {run.name} with seed {row.seed}: {row.images} images, "
                        f"{row.command}. Give this one another folder, or take that row out"
                    )
                return row
        measured = measure(learner, test, network=run.network, seed=run.recipe.seed, command=command)
        rows.append(replace(measured, method=run.name))
        if is_main_process():
            write_results(table, rows)
    return rows[-1]


def beside(
    folder: str | Path, data: str, methods: Sequence[str] = ("KD", "SD-KD", "iCD-KD"), table: str = "top1"
) -> list[Line]:
    """Published figures, each with what `folder/results.csv` holds of it: pair by pair, in the papers' order.

    Only runs of the very recipe count, on all test images; one that was cut short, or that saw other
    images, is no measurement of the published figure.

    Args:
        folder: of the runs; there need be no table in it.
        data: "cub200" or "cifar100".
        methods: which ones, as published; "teacher" and "student" are networks that learned alone.
        table: "top1" or "ablations".

    Raises:
        ValueError: nothing of that kind was published.
        RunError: the table is none.
    """
    runs = [run for run in published_runs().values() if run.table == f"{data}_{table}"]
    known = sorted({run.method for run in runs})
    for method in methods:
        if method not in known:
            hint = did_you_mean(method, known)
            raise ValueError(f'{data}_{table}.csv has no method "{method}":{hint} there are {known}')
    path = Path(folder) / "results.csv"
    rows = read_results(path) if path.exists() else []
    return [
        Line(run, run.published(), tuple(100 * row.accuracy for row in rows if _is_of(row, run)))
        for run in runs
        if run.method in methods
    ]


def _is_of(row: Result, run: PublishedRun) -> bool:
    """Whether a row is that of the published run, but for what is free; any teacher will do."""
    whole = row.method == run.name and row.images == TEST_IMAGES[run.data]
    return whole and {**_changes(row.command), "#": ""} == {"recipe": run.name, "#": ""}


def _changes(command: str) -> dict[str, str]:
    """The recipe of a command, what else it sets that is not free, and after # whose teacher it was.

    Empty where it is no command of `enter`.
    """
    try:
        program, words = shlex.split(command)[:4], shlex.split(command)[4:]
        options = dict(zip(words[::2], words[1::2], strict=True))
    except ValueError:
        return {}
    if program != ["python", "-m", "icd", "distil"]:
        return {}
    named = {name.removeprefix("--"): value for name, value in options.items()}
    return {name: value for name, value in named.items() if name not in FREE}


def as_markdown(lines: Sequence[Line]) -> str:
    """The lines as a table in Markdown, and below it what is odd about a figure at its source."""
    notes = list(dict.fromkeys(line.published.note for line in lines if line.published.note))
    head = ["| teacher → student | method | published | measured by you |", "| :-- | :-- | --: | --: |"]
    rows = [_row(line, notes) for line in lines]
    return "\n".join([*head, *rows, *(f"\n{number}) {note}." for number, note in enumerate(notes, 1))])


def _row(line: Line, notes: list[str]) -> str:
    run, (top1, _, note) = line.run, line.published
    pair, method = run.pair.replace("->", " → "), f"{run.method} {run.factor} {run.value}".strip()
    mark = f" <sup>{notes.index(note) + 1})</sup>" if note else ""
    said = f"{statistics.mean(line.measured):.2f}" if line.measured else "not measured yet"
    seeds = f" ({len(line.measured)} seeds)" if len(line.measured) > 1 else ""
    return f"| {pair} | {method} | {top1:.2f}{mark} | {said}{seeds} |"
