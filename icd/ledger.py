"""Published figures beside those of your own runs: `icd.recipes` says how, this keeps what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from icd.checkpoint import RunError
from icd.compare import Result, measure, read_results, write_results
from icd.pixels import Pixels
from icd.processes import is_main
from icd.recipes import Figure, PublishedRun, published_runs
from icd.training import Learner

TEST_IMAGES = {"cub200": 5_794, "cifar100": 10_000}


class Line(NamedTuple):
    """One published figure, and what was measured."""

    run: PublishedRun
    published: Figure
    measured: tuple[float, ...]  # percent of the test images, one of each seed; empty where nobody ran it


def enter(run: PublishedRun, learner: Learner, test: Pixels, folder: str | Path) -> Result:
    """The row of a finished run in `folder/results.csv`, which is measured once and then read.

    Args:
        run: what was run, with the settings that it was run with.
        learner: the student, which has learned.
        test: the test images; none of them was looked at before.
        folder: for the table; the one that holds the runs.

    Raises:
        RunError: the run has not ended, the table is none, or it has another run of that name.
    """
    if len(learner.history) != run.recipe.epochs:
        raise RunError(
            f"{run.name} has gone through {len(learner.history)} of {run.recipe.epochs} epochs: let it end, "
            "then measure it"
        )
    table = Path(folder) / "results.csv"
    rows = read_results(table) if table.exists() else []
    for row in rows:
        if (row.method, row.seed) == (run.name, run.recipe.seed):
            if (row.epochs, row.objective, row.images) != (run.recipe.epochs, str(run.objective), len(test)):
                raise RunError(
                    f"{table} holds another run of {run.name} with seed {row.seed}: {row.epochs} epochs, "
                    f"{row.images} images. Give this one another seed or folder"
                )
            return row
    command = f"python -m icd distil --recipe {run.name} --recipe.seed {run.recipe.seed}"
    row = measure(learner, test, network=run.network, seed=run.recipe.seed, command=command)
    rows.append(replace(row, method=run.name))
    if is_main():
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
    """
    path = Path(folder) / "results.csv"
    rows = read_results(path) if path.exists() else []
    lines = []
    for run in published_runs().values():
        if run.table != f"{data}_{table}" or run.method not in methods:
            continue
        wanted = (run.name, str(run.objective), run.network, run.recipe.epochs, TEST_IMAGES[data])
        measured = [
            100 * row.accuracy
            for row in rows
            if (row.method, row.objective, row.network, row.epochs, row.images) == wanted
        ]
        lines.append(Line(run, run.published(), tuple(measured)))
    return lines


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
