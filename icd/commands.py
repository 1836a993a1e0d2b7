"""What `python -m icd` can do. Each command is a function; its options are the function's.

One that trains only checks what it was given, and returns the rest as a function without arguments: a command
that is refused leaves nothing behind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from torch import nn

from icd import birdlets
from icd import compare as comparison
from icd.checkpoint import RunError, flat
from icd.checks import check_seconds
from icd.datasets import Changes, DataSet
from icd.evidence import accuracy
from icd.objective import METHODS, Objective
from icd.photos import DataError
from icd.pixels import Pixels
from icd.processes import is_main
from icd.recipes import published_run, published_runs
from icd.saved import Card, load_model, name_bird, save_model
from icd.spelling import named
from icd.training import Recipe, fit
from icd.zoo import NETWORKS, load_published
from icd.zoo import network as build


def teach(
    folder: str,
    network: str = "resnet18-32",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    images: Literal["fit", "train"] = "fit",
    checkpoint_seconds: float = 60.0,
) -> Callable[[], None]:
    """Train a network on labels alone: a teacher, or a student without one.

    Args:
        folder: where the run lies: its settings, log, checkpoint and model. Give the same command again and
            a run that was stopped goes on.
        network: one of the networks that `python -m icd networks` lists.
        data: which images.
        recipe: how it is trained.
        images: "fit" keeps the validation images out; "train" learns from all training images.
        checkpoint_seconds: what a killed run may lose, at most. Folders that keep what was replaced, as
            Google Drive does in its bin, are spared by 600.
    """
    note = "trained on labels alone"
    return _train(folder, network, METHODS["alone"], data, recipe, images, None, note, checkpoint_seconds)


def distil(
    teacher: str,
    folder: str,
    method: str = "iCD-KD",
    network: str = "resnet10-16",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    images: Literal["fit", "train"] = "fit",
    teacher_network: str | None = None,
    checkpoint_seconds: float = 60.0,
) -> Callable[[], None]:
    """Train a student from a teacher.

    --recipe NAME, with a name that `python -m icd recipes` lists, stands for all settings of a published
    run, teacher runs/TEACHER and folder runs/NAME included; options beside it change single ones.

    Args:
        teacher: the folder of a finished `teach`, or its model.safetensors; or weights that others share, as
            torch.save wrote them.
        folder: where the run lies: its settings, log, checkpoint and model. Give the same command again and
            a run that was stopped goes on.
        method: one of the methods that `python -m icd methods` lists, or an expression as it prints them.
        network: one of the networks that `python -m icd networks` lists.
        data: which images.
        recipe: how it is trained.
        images: "fit" keeps the validation images out; "train" learns from all training images.
        teacher_network: whose weights others share: a name that `python -m icd networks` lists.
        checkpoint_seconds: what a killed run may lose, at most. Folders that keep what was replaced, as
            Google Drive does in its bin, are spared by 600.
    """
    objective, note = named(method), f"{method}, taught by {teacher}"
    master = _load_teacher(teacher, teacher_network, data)
    return _train(folder, network, objective, data, recipe, images, master, note, checkpoint_seconds)


def compare(
    teacher: str,
    folder: str,
    methods: str = "alone,KD,SD-KD,iCD-KD",
    seeds: int = 5,
    network: str = "resnet10-16",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    split: Literal["validation", "test"] = "validation",
) -> Callable[[], None]:
    """Compare methods over seeds: a table of runs, and the differences with their intervals.

    Students of a seed start alike and see the same batches. Give the same command again and what was
    stopped goes on; with more methods or seeds, only what is missing runs.

    Args:
        teacher: the folder of a finished `teach`, or its model.safetensors.
        folder: for results.csv and the runs.
        methods: names that `python -m icd methods` lists, with commas between them.
        seeds: how many: 0, 1, ... of them.
        network: of the students, one that `python -m icd networks` lists.
        data: which images.
        recipe: how all students are trained.
        split: what accuracy is measured on. "validation" to choose settings, learning from the other
            training images; "test" once, when they are chosen, learning from all of them.
    """
    names = [name.strip() for name in methods.split(",")]
    comparison.check_methods(names, range(seeds))
    if recipe.seed:
        raise RunError(
            f"the recipe's seed is {recipe.seed}: a comparison runs the seeds from 0, as many as --seeds says"
        )
    master, card = load_model(teacher)
    train = _load(data, "fit" if split == "validation" else "train")
    for name in names:
        _check_classes(Teacher(teacher, master, card), METHODS[name], train.classes)
    held = _load(data, split)
    comparison.finished(folder, network, recipe, held)
    build(network, len(train.classes), data.size)

    def run() -> None:
        rows = comparison.compare(names, range(seeds), network, train, held, recipe, master, folder)
        for name in names:
            scores = [100 * row.accuracy for row in rows if row.method == name]
            mean = statistics.mean(scores)
            print(f"{name:10} {mean:6.2f} % of {rows[0].images} {split} images ({len(scores)} seeds)")
        for baseline in ("alone", "KD"):
            for name, interval in comparison.differences(rows, baseline).items():
                print(f"{name:10} against {baseline:6} {interval}")

    return run


def evaluate(
    run: str, split: Literal["validation", "test", "train"] = "test", data: Changes = Changes()
) -> None:
    """Measure a trained network: the share of images that it names right.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        split: "validation" for choosing settings, "test" once, at the end.
        data: which images, where they are others than the run's.
    """
    model, card = load_model(run)
    try:
        own = _data_of(Path(run))
    except RunError:
        if data.root is None:
            raise
        own = DataSet(data.root, crop=card.crop, margin=card.margin, size=card.size, resize=card.resize)
    pixels = _load(data.applied(own), split)
    if pixels.classes != card.classes:
        here, there = (f"{len(names)} ({names[0]}, ...)" for names in (pixels.classes, card.classes))
        raise RunError(f"{run} knows other classes, {there}, than the data set has, {here}: give --data.root")
    share = accuracy(model, pixels)
    error = (share * (1 - share) / len(pixels)) ** 0.5
    print(f"{100 * share:.2f} % of {len(pixels)} {split} images (standard error {100 * error:.2f})")


def predict(run: str, picture: str, top: int = 5, box: str | None = None) -> None:
    """Name the bird in any picture.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        picture: an image file.
        top: how many names to print, the likeliest first.
        box: where the bird is, as left,top,width,height in pixels of the picture. For a network that learned
            from birds cut out by their boxes.
    """
    model, card = load_model(run)
    where = None if box is None else _read_box(box)
    names = name_bird(model, card, picture, top, where)
    if where is None and card.crop == "box":
        print(
            f"{run} learned from birds that were cut out by their boxes: "
            "--box left,top,width,height helps, or a picture that the bird fills"
        )
    for name, chance in names:
        print(f"{100 * chance:5.1f} %  {name}")


def pack(run: str, file: str, note: str = "") -> None:
    """Write a trained network in half the space, 16 bits a weight, to hand on.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        file: where to, a name that ends in .safetensors.
        note: what its card shall say; what it says now by default.
    """
    if not file.endswith(".safetensors"):
        raise RunError(f"{file}: give a name that ends in .safetensors")
    model, card = load_model(run)
    save_model(file, model, replace(card, note=note or card.note), half=True)
    print(f"{file}: {Path(file).stat().st_size / 1e6:.1f} MB")


def draw(
    folder: str,
    species: int = 30,
    families: int = 6,
    train: int = 30,
    test: int = 30,
    size: int = 64,
    seed: int = 1,
) -> None:
    """Draw the Birdlets, the embedded data set, in the layout of CUB-200-2011.

    Args:
        folder: where.
        species: how many, spread over the families.
        families: how many; species of one differ in small parts.
        train: training images of each species.
        test: test images of each species.
        size: pixels a side.
        seed: of every pose, light and background; 0 is the set on which the difficulty was set.
    """
    print(birdlets.draw(folder, species, families, train, test, size, seed))


def methods() -> None:
    """List the methods: the name, and the objective that it stands for."""
    for name, objective in METHODS.items():
        print(f"{name:10} {objective}")


def recipes(name: str = "") -> None:
    """List the recipes of the published runs with the published figures, or show one and what it takes.

    Args:
        name: of the recipe to show in full; part of a name lists those that have it.
    """
    runs = published_runs()
    if name not in runs:
        chosen = [run for run in runs.values() if name in run.name]
        for run in chosen or [published_run(name)]:  # which says what is near
            print(f"{run.name:52} {run.published().top1:6.2f} %")
        return
    run, figure = runs[name], runs[name].published()
    print(f"{run.pair}, {run.method} {run.factor} {run.value}".rstrip())
    print(
        f"published: {figure.top1} % of the test images ({figure.source}){figure.note and f'. {figure.note}'}"
    )
    teachers, weights, steps, full, half = run.cost()
    taught = f", taught by {_millions(teachers)}" if run.teacher else ""
    print(
        f"takes: {_millions(weights)} weights{taught}; {steps:,} steps; "
        f"memory of a step {full:g} GB in float32, {half:g} in fp16 (an estimate, less the images)"
    )
    print(yaml.safe_dump(run.settings(), sort_keys=False).rstrip())


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} million"


def networks() -> None:
    """List the networks, with how many numbers each learns for 200 classes."""
    for name in NETWORKS:
        print(f"{name:14} {sum(p.numel() for p in build(name, 200).parameters()):>12,}")


COMMANDS = {
    f.__name__: f for f in (teach, distil, compare, evaluate, predict, pack, draw, methods, recipes, networks)
}


class Teacher(NamedTuple):
    """Whom a student learns from; weights that others share have no card."""

    path: str
    network: nn.Module
    card: Card | None


def _train(
    folder: str,
    name: str,
    objective: Objective,
    data: DataSet,
    recipe: Recipe,
    images: Literal["fit", "train"],
    teacher: Teacher | None,
    note: str,
    checkpoint_seconds: float,
) -> Callable[[], None]:
    check_seconds("checkpoint_seconds", checkpoint_seconds)
    place = Path(folder)
    pixels, validation = _load(data, images), _load(data, "validation") if images == "fit" else None
    if teacher is not None:
        _check_classes(teacher, objective, pixels.classes)
    torch.manual_seed(recipe.seed)
    student = build(name, len(pixels.classes), data.size)
    card = Card(
        name,
        pixels.classes,
        data.size,
        data.resize,
        pixels.mean,
        pixels.std,
        note,
        whole=pixels.whole,
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
            checkpoint_seconds=checkpoint_seconds,
        )
        if is_main():
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


def _load_teacher(path: str, name: str | None, data: DataSet) -> Teacher:
    if Path(path).suffix in ("", ".safetensors"):
        if not Path(path).exists() and Path(path).name in published_runs():
            recipe = Path(path).name
            raise RunError(
                f"there is no teacher in {path} yet: python -m icd distil --recipe {recipe} makes it"
            )
        return Teacher(path, *load_model(path))
    if name is None:
        raise RunError(f"{path} does not say which network its weights are of: give --teacher_network")
    classes = len(data.pixels("test").classes)
    return Teacher(path, load_published(name, path, classes, data.size), None)


def _check_classes(teacher: Teacher, objective: Objective, classes: tuple[str, ...]) -> None:
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


def _read_box(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise RunError(f'--box is "{text}": give left,top,width,height in pixels, like 60,27,325,304')
    return values


def _load(data: DataSet, split: Literal["train", "fit", "validation", "test"]) -> Pixels:
    pixels = data.pixels(split)
    for what, count in pixels.mended.items():
        print(f"{split}: {count} images, {what}")
    return pixels


def _data_of(run: Path) -> DataSet:
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    settings = read_settings(path, advice="give --data.root")
    try:
        return DataSet(**settings["data"])
    except (LookupError, TypeError, DataError) as error:
        reason = f" ({error})" if isinstance(error, DataError) else ""
        raise RunError(f"{path} does not say which images the run used{reason}: give --data.root") from error


def read_settings(path: Path, advice: str) -> dict[str, Any]:
    """What `config.yaml` beside a run holds, or RunError with the advice."""
    try:
        settings = yaml.safe_load(path.read_bytes())
        flat(settings)  # what has no names and values, or holds itself, is no table of settings
        return settings
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} holds no settings, or it is damaged: {advice}") from error
