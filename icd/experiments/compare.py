"""Compare methods over seeds: same initial weights, same batches, and one row of results for every run."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from icd.datasets import DataSet
from icd.datasets.cache import CachedImages
from icd.errors import RunError, did_you_mean
from icd.experiments.run import Part, check_same_classes, load_images, new_student, result_settings
from icd.experiments.statistics import Interval, paired_interval
from icd.files import write_atomically
from icd.objective import METHODS
from icd.trainer.checkpoint import flatten
from icd.trainer.distributed import best_device, check_precision, is_main_process, world_size
from icd.trainer.evaluate import accuracy
from icd.trainer.loop import fit_together
from icd.trainer.provenance import commit, device_name
from icd.trainer.recipe import EXECUTION_FIELDS, Recipe
from icd.trainer.state import check_students
from icd.trainer.student import Student

# pandas is imported where it is used: it takes 0.3 s, and most commands read no table.

#: Settings that two runs of one experiment may differ in. The same images may be in any folder.
FREE = {"data.root", "recipe.seed", *(f"recipe.{name}" for name in EXECUTION_FIELDS)}


@dataclass(frozen=True)
class Result:
    """One finished run: its accuracy, and how it was made.

    Attributes:
        method: the method, or the name of the published run.
        seed: of the weights, and of the order and crops of the images.
        accuracy: fraction of `images` test or validation images, after the last epoch.
        objective, network, epochs: as trained.
        together: how many students were trained side by side.
        seconds: wall time of all of them, the teacher's forward passes included.
        peak_mb: peak memory of the (first) process.
        device, commit: of the training; comma-separated if a run was resumed elsewhere.
        command: what was run.
        settings: data, recipe and teacher, as `icd.experiments.run.result_settings` returns them.
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
    settings: dict[str, Any]


COLUMNS = [field.name for field in fields(Result)]


@dataclass(frozen=True)
class Comparison:
    """Students of several methods, trained over several seeds (chapters 2 and 6).

    The students of a seed start from the same weights, see the same batches and share the teacher's forward
    pass, so differences between methods are paired.

    Attributes:
        methods: names in `icd.objective.METHODS`.
        seeds: of the weights and of the order and crops of the images.
        network: of the students, a name in `icd.networks.NETWORKS`.
        data: the images.
        recipe: how all are trained; each of `seeds` replaces its seed.
        teacher: the network that all are trained from.
        folder: for results.csv, and a folder for each seed.
        teacher_classes: the names of the teacher's classes; None if unknown.
        split: what accuracy is measured on. "validation" trains on the other training images, "test" on all.
        progress: show bars.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    network: str
    data: DataSet
    recipe: Recipe
    teacher: nn.Module
    folder: str | Path
    teacher_classes: tuple[str, ...] | None = None
    split: Literal["validation", "test"] = "validation"
    progress: bool = True

    @cached_property
    def training_images(self) -> CachedImages:
        """The images to train on."""
        part: Part = "train" if self.split == "validation" else "trainval"
        return load_images(self.data, part, self.progress)

    @cached_property
    def test_images(self) -> CachedImages:
        """The images to measure on."""
        return load_images(self.data, self.split, self.progress)

    def check(self) -> None:
        """Load the images and raise for settings that cannot be compared. Writes nothing to the folder.

        Raises:
            RunError: an unknown method, none or one given twice, no seed, or results of other settings.
        """
        for method in self.methods:
            if method not in METHODS:
                hint = did_you_mean(method, list(METHODS), f"There are {', '.join(METHODS)}")
                raise RunError(f'there is no method "{method}":{hint}')
            if list(self.methods).count(method) > 1:
                raise RunError(f'the method "{method}" is given twice: give it once')
        if not self.methods or not self.seeds:
            raise RunError(
                f"{len(self.methods)} methods for {len(self.seeds)} seeds: give one or more of both"
            )
        if self.recipe.seed:
            raise RunError(
                f"the recipe's seed is {self.recipe.seed}: a comparison takes its seeds from --seeds alone"
            )
        for method in self.methods:
            check_same_classes(METHODS[method](), self.teacher_classes, self.training_images.classes)
        student = new_student(self.network, METHODS[self.methods[0]](), self.training_images, 0)
        check_students([student], self.training_images, self.test_images, self.teacher, self.recipe, 60.0, 1)
        if not self._finished():
            check_precision(self.recipe.precision, best_device())

    def run(self) -> list[Result]:
        """Train what has no row in `folder/results.csv` yet; return all rows.

        A stopped seed resumes from its checkpoint.

        Raises:
            RunError, NonFiniteLoss, KeyboardInterrupt: as `check` and `icd.trainer.fit_together`.
        """
        self.check()
        rows = self._finished()
        for seed in self.seeds:
            done = {row.method for row in rows if row.seed == seed}
            missing = [method for method in self.methods if method not in done]
            if not missing:
                continue
            students = [
                new_student(self.network, METHODS[method](), self.training_images, seed, method)
                for method in missing
            ]
            fit_together(
                students,
                self.training_images,
                replace(self.recipe, seed=seed),
                teacher=self.teacher,
                folder=Path(self.folder) / f"seed-{seed}-{'+'.join(missing)}",
                progress=self.progress,
            )
            for student in students:
                settings = result_settings(self.data, self.recipe, student.provenance, split=self.split)
                rows.append(
                    measure(student, self.test_images, self.network, seed, settings, together=len(students))
                )
            if is_main_process():
                write_results(Path(self.folder) / "results.csv", rows)
        return rows

    def _finished(self) -> list[Result]:
        table = Path(self.folder) / "results.csv"
        rows = read_results(table) if table.exists() else []
        settings = result_settings(self.data, self.recipe, split=self.split)
        for row in rows:
            objective = str(METHODS[row.method]()) if row.method in METHODS else ""
            same = (row.network, row.objective) == (self.network, objective)
            if not same or not same_settings(row.settings, settings):
                raise RunError(
                    f"{table} has results of other settings ({row.method}, seed {row.seed}): "
                    "choose another folder"
                )
        return rows


def same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two runs differ in `FREE` settings alone. An unknown teacher equals any."""
    flat = [{k: v for k, v in flatten(settings).items() if k not in FREE} for settings in (one, other)]
    teachers = {settings.pop("teacher", None) for settings in flat} - {None}
    return flat[0] == flat[1] and len(teachers) <= 1


def measure(
    student: Student,
    images: CachedImages,
    network: str,
    seed: int,
    settings: dict[str, Any],
    together: int = 1,
    command: str | None = None,
) -> Result:
    """Measure a trained student's accuracy on `images`; return it as a row.

    `command` is by default the command line of this process.
    """
    last = student.history[-1]
    here = {
        "device": device_name(next(student.network.parameters()).device, world_size()),
        "commit": commit(),
    }
    made = {name: ", ".join(dict.fromkeys(on[name] for on in student.provenance or [here])) for name in here}
    return Result(
        method=student.name,
        seed=seed,
        accuracy=accuracy(student.network, images),
        images=len(images),
        objective=str(student.objective),
        network=network,
        epochs=last["epoch"],
        together=together,
        seconds=last["seconds"],
        peak_mb=last["peak_mb"],
        device=made["device"],
        commit=made["commit"],
        command=command_line() if command is None else command,
        settings=settings,
    )


def differences(rows: Sequence[Result], baseline: str) -> dict[str, Interval]:
    """Return each method's mean gain over `baseline` in points, paired by seed (chapters 2 and 6).

    Methods with fewer than two seeds in common with the baseline are skipped.
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
    """Return the rows of a results table.

    Raises:
        RunError: there is no such file, it has other columns, or a value is wrong; with its line.
    """
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of a row with too many values
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # text that is not UTF-8 or CSV
        raise RunError(f"{path} is not a table of results ({str(error).strip()})") from error
    if list(table.columns) != COLUMNS:
        raise RunError(f"{path} is not a table of results: its columns are not {','.join(COLUMNS)}")
    results: dict[tuple[str, int], Result] = {}
    for line, row in enumerate(table.to_dict("records"), 2):
        result = _read_row(f"{path}:{line}", row)
        if results.setdefault((result.method, result.seed), result) is not result:
            raise RunError(f"{path}:{line}: {result.method} with seed {result.seed} has a row already")
    return list(results.values())


def _read_row(place: str, row: dict[Any, Any]) -> Result:
    readers: dict[str, tuple[Any, str]] = {
        "int": (int, "a whole number"),
        "float": (float, "a number"),
        "dict[str, Any]": (lambda text: dict(json.loads(text)), "settings in JSON"),
    }
    values: dict[str, Any] = {}
    for field in fields(Result):
        text = row[field.name]
        read, kind = readers.get(str(field.type), (str, ""))
        try:
            values[field.name] = read(text)
        except (ValueError, TypeError, RecursionError):
            raise RunError(f"{place}: the {field.name} is {text!r}, not {kind}") from None
    if not 0 <= values["accuracy"] <= 1:
        raise RunError(f"{place}: the accuracy is {values['accuracy']}, not a fraction from 0 to 1")
    return Result(**values)


def write_results(path: str | Path, rows: Sequence[Result]) -> None:
    """Write a results table atomically."""
    import pandas as pd

    records = [asdict(row) | {"settings": json.dumps(row.settings)} for row in rows]
    text = pd.DataFrame(records, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
    write_atomically(Path(path), text)


def command_line() -> str:
    """Return the command that started this process."""
    several = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(world_size()), "-m"]
    return shlex.join([*(several if world_size() > 1 else []), "icd", *sys.argv[1:]])
