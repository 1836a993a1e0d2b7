"""What `python -m icd` can do. Each command is a function; its options are the function's.

One that trains only checks what it was given, and returns the rest as a function without arguments: a command
that is refused leaves nothing behind.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml

from icd.datasets import DataSet, birdlets
from icd.errors import RunError
from icd.experiments import compare as comparison
from icd.experiments.model_file import classify, load_model, save_model
from icd.experiments.published import published_run, published_runs
from icd.experiments.run import Teacher, check_classes, data_of, load, load_teacher, prepare, read_box
from icd.networks.build import network as build
from icd.networks.registry import NETWORKS
from icd.objective import METHODS, parse
from icd.trainer.evaluate import accuracy
from icd.trainer.recipe import Recipe


def teach(
    folder: str,
    network: str = "resnet18-32",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    images: Literal["train", "trainval"] = "train",
    checkpoint_seconds: float = 60.0,
    checkpoint_epochs: int = 1,
) -> Callable[[], None]:
    """Train a network on labels alone: a teacher, or a student without one.

    Args:
        folder: where the run lies: its settings, log, checkpoint and model. Give the same command again and
            a run that was stopped goes on.
        network: one of the networks that `python -m icd networks` lists.
        data: which images.
        recipe: how it is trained.
        images: "train" keeps the validation images out; "trainval" trains on all training images.
        checkpoint_seconds: what a killed run may lose, at most.
        checkpoint_epochs: a checkpoint is written at the end of so many epochs as well. Folders that keep
            what was replaced, as Google Drive does in its bin, are spared by 240, and 600 seconds.
    """
    note = "trained on labels alone"
    often = checkpoint_seconds, checkpoint_epochs
    return prepare(folder, network, METHODS["alone"](), data, recipe, images, None, note, often)


def distil(
    teacher: str,
    folder: str,
    method: str = "iCD-KD",
    network: str = "resnet10-16",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    images: Literal["train", "trainval"] = "train",
    teacher_network: str | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_epochs: int = 1,
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
        images: "train" keeps the validation images out; "trainval" trains on all training images.
        teacher_network: whose weights others share: a name that `python -m icd networks` lists.
        checkpoint_seconds: what a killed run may lose, at most.
        checkpoint_epochs: a checkpoint is written at the end of so many epochs as well. Folders that keep
            what was replaced, as Google Drive does in its bin, are spared by 240, and 600 seconds.
    """
    objective, note = parse(method), f"{method}, taught by {teacher}"
    master = load_teacher(teacher, teacher_network, data)
    often = checkpoint_seconds, checkpoint_epochs
    return prepare(folder, network, objective, data, recipe, images, master, note, often)


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
    train = load(data, "train" if split == "validation" else "trainval")
    for name in names:
        check_classes(Teacher(teacher, master, card), METHODS[name](), train.classes)
    held = load(data, split)
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
    run: str, split: Literal["validation", "test", "train", "trainval"] = "test", root: str | None = None
) -> None:
    """Measure the accuracy of a trained network.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        split: "validation" for choosing settings, "test" once, at the end.
        root: of the images, if it is not the run's: "birdlets", "cub200", "cifar100" or a folder.
    """
    model, card = load_model(run)
    try:
        own = data_of(Path(run))
    except RunError:
        if root is None:
            raise
        own = DataSet(root, crop=card.crop, margin=card.margin, size=card.size, resize=card.resize)
    pixels = load(own if root is None else replace(own, root=root), split)
    if pixels.classes != card.classes:
        here, there = (f"{len(names)} ({names[0]}, ...)" for names in (pixels.classes, card.classes))
        raise RunError(f"{run} knows other classes, {there}, than the data set has, {here}: give --root")
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
    where = None if box is None else read_box(box)
    names = classify(model, card, picture, top, where)
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
    for name in METHODS:
        print(f"{name:10} {METHODS[name]()}")


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
