"""What the commands share: a run's images, teacher and settings, checked before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from torch import nn

from icd.datasets import DataSet
from icd.datasets.cache import CachedImages
from icd.errors import DataError, RunError
from icd.experiments.model_file import ModelCard, load_model, save_model
from icd.experiments.published import published_runs
from icd.networks.build import network
from icd.networks.pretrained import load_published
from icd.objective import Objective
from icd.trainer.checkpoint import flatten
from icd.trainer.distributed import is_main_process
from icd.trainer.loop import fit
from icd.trainer.recipe import Recipe
from icd.trainer.state import check_intervals


class Teacher(NamedTuple):
    """Whom a student learns from; weights that others share have no card."""

    path: str
    network: nn.Module
    card: ModelCard | None


def prepare(
    folder: str,
    name: str,
    objective: Objective,
    data: DataSet,
    recipe: Recipe,
    images: Literal["train", "trainval"],
    teacher: Teacher | None,
    note: str,
    often: tuple[float, int],
) -> Callable[[], None]:
    """Check what a student is to be trained with; returns what trains and saves it.

    `often`: after how many seconds, and how many epochs, a checkpoint is written.
    """
    seconds, epochs = often
    check_intervals(seconds, epochs)
    place = Path(folder)
    pixels, validation = load(data, images), load(data, "validation") if images == "train" else None
    if teacher is not None:
        check_classes(teacher, objective, pixels.classes)
    torch.manual_seed(recipe.seed)
    student = network(name, len(pixels.classes), data.size)
    card = ModelCard(
        name,
        pixels.classes,
        data.size,
        data.resize,
        pixels.mean,
        pixels.std,
        note,
        resize_size=pixels.resize_size,
        crop=data.crop,
        margin=data.margin,
    )

    def run() -> None:
        print(f"{name} for {objective} on {len(pixels)} images of {len(pixels.classes)} classes")
        began = time.perf_counter()
        history = fit(
            student,
            objective,
            pixels,
            recipe,
            teacher=None if teacher is None else teacher.network,
            validation=validation,
            folder=place,
            checkpoint_seconds=seconds,
            checkpoint_epochs=epochs,
        )
        if is_main_process():
            save_model(place / "model.safetensors", student, card)
        last = history[-1]
        seen = (
            f", {100 * last['validation_accuracy']:.2f} % of the validation images"
            if validation is not None
            else ""
        )
        print(f"{100 * last['train_accuracy']:.2f} % of the training images{seen}")
        print(f"saved {place / 'model.safetensors'} after {time.perf_counter() - began:.0f} s")

    return run


def load_teacher(path: str, name: str | None, data: DataSet) -> Teacher:
    """A run's network, or weights that others share, of the network `name`."""
    if Path(path).suffix in ("", ".safetensors"):
        if not Path(path).exists() and Path(path).name in published_runs():
            recipe = Path(path).name
            raise RunError(
                f"there is no teacher in {path} yet: python -m icd distil --recipe {recipe} makes it"
            )
        return Teacher(path, *load_model(path))
    if name is None:
        raise RunError(f"{path} does not say which network its weights are of: give --teacher_network")
    classes = len(data.load("test").classes)
    return Teacher(path, load_published(name, path, classes, data.size), None)


def check_classes(teacher: Teacher, objective: Objective, classes: tuple[str, ...]) -> None:
    """Raise where an objective compares class with class, and they are not the same ones."""
    known = classes if teacher.card is None else teacher.card.classes
    if known == classes or not any(term.same_classes for term in objective.terms):
        return
    first, (there, here) = next(
        (number, pair) for number, pair in enumerate(zip_longest(known, classes), 1) if pair[0] != pair[1]
    )
    said = ["none" if name is None else f'"{name}"' for name in (there, here)]
    raise RunError(
        f"{teacher.path} was taught other classes than the images have: class {first} is {said[0]} there and "
        f"{said[1]} here. Of all terms, only clustering() accepts that"
    )


def read_box(text: str) -> tuple[float, ...]:
    """left,top,width,height as numbers."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise RunError(f'--box is "{text}": give left,top,width,height in pixels, like 60,27,325,304')
    return values


def load(data: DataSet, split: Literal["train", "validation", "trainval", "test"]) -> CachedImages:
    """The images of a split; says what had to be repairs in them."""
    pixels = data.load(split)
    for what, count in pixels.repairs.items():
        print(f"{split}: {count} images, {what}")
    return pixels


def data_of(run: Path) -> DataSet:
    """Which images a run used, by the `config.yaml` beside it, or RunError."""
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    settings = read_settings(path, advice="give --root")
    try:
        return DataSet(**settings["data"])
    except (LookupError, TypeError, DataError) as error:
        reason = f" ({error})" if isinstance(error, DataError) else ""
        raise RunError(f"{path} does not say which images the run used{reason}: give --root") from error


def read_settings(path: Path, advice: str) -> dict[str, Any]:
    """What `config.yaml` beside a run holds, or RunError with the advice."""
    try:
        settings = yaml.safe_load(path.read_bytes())
        flatten(settings)  # what has no names and values, or holds itself, is no table of settings
        return settings
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} holds no settings, or it is damaged: {advice}") from error
