"""The commands of `icd`. Each is a function, and its options are the function's.

`teach`, `distil` and `compare` return a run, which `icd.cli.execute` checks before it writes anything.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from icd.datasets import DataSet, birdlets
from icd.errors import RunError
from icd.experiments.compare import Comparison, differences
from icd.experiments.model_file import classify, load_model, save_model
from icd.experiments.published import published_run, published_runs
from icd.experiments.run import Experiment, data_of, load_images, load_teacher
from icd.networks.build import network as build
from icd.networks.registry import NETWORKS
from icd.objective import METHODS, parse
from icd.scores import score
from icd.trainer.evaluate import accuracy
from icd.trainer.recipe import Recipe

Run = Experiment | Comparison


def teach(
    folder: str,
    network: str = "resnet18-32",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    images: Literal["train", "trainval"] = "train",
    weights: str | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_epochs: int = 1,
) -> Experiment:
    """Train a network on labels alone: a teacher, or a baseline.

    Args:
        folder: for the settings, log, checkpoint and model. The same command resumes a stopped run.
        network: a name that `icd networks` lists, or torchvision/NAME, timm/NAME.
        data: the images.
        recipe: how to train. To fine-tune, a --recipe.body_rate of 0.1 or so trains the new head faster.
        images: "train" holds the validation images out; "trainval" uses all training images.
        weights: start from these weights: a file, or "DEFAULT" for the library's pretrained weights. A head
            of another number of classes is skipped.
        checkpoint_seconds: save a checkpoint every N seconds.
        checkpoint_epochs: also save one every N epochs. On Google Drive, whose bin keeps every replaced
            file, use --checkpoint_seconds 600 --checkpoint_epochs 240.
    """
    often = checkpoint_seconds, checkpoint_epochs
    note = "trained on labels alone" + (f", from {weights}" if weights else "")
    objective = METHODS["alone"]()
    return Experiment(network, objective, data, recipe, folder, None, None, images, note, weights, *often)


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
) -> Experiment:
    """Train a student from a teacher.

    Args:
        teacher: the folder of a finished run, its model.safetensors, or published weights as torch.save
            writes them.
        folder: for the settings, log, checkpoint and model. The same command resumes a stopped run.
        method: a name that `icd methods` lists, or an expression like those it prints.
        network: a name that `icd networks` lists.
        data: the images.
        recipe: how to train.
        images: "train" holds the validation images out; "trainval" uses all training images.
        teacher_network: the network of published weights, a name that `icd networks` lists.
        checkpoint_seconds: save a checkpoint every N seconds.
        checkpoint_epochs: also save one every N epochs. On Google Drive, whose bin keeps every replaced
            file, use --checkpoint_seconds 600 --checkpoint_epochs 240.
    """
    objective, often = parse(method), (checkpoint_seconds, checkpoint_epochs)
    if not Path(teacher).exists() and (recipe_name := Path(teacher).name) in published_runs():
        raise RunError(f"there is no teacher in {teacher}: train it first, with icd reproduce {recipe_name}")
    model, classes = load_teacher(teacher, teacher_network, data, images)
    note = f"{method}, teacher {teacher}"
    return Experiment(network, objective, data, recipe, folder, model, classes, images, note, None, *often)


def reproduce(name: str) -> None:
    """Train the network of a published run, by the name of its recipe.

    Loads the teacher from runs/TEACHER and saves the run in runs/NAME. Options of `icd distil` (`icd teach`
    for a teacher) after the name override the recipe, such as --recipe.seed 1 or --data.root FOLDER.

    Args:
        name: a name that `icd recipes` lists.
    """


def compare(
    teacher: str,
    folder: str,
    methods: str = "alone,KD,SD-KD,iCD-KD",
    seeds: int = 5,
    network: str = "resnet10-16",
    data: DataSet = DataSet(),
    recipe: Recipe = Recipe(),
    split: Literal["validation", "test"] = "validation",
) -> Comparison:
    """Compare methods over seeds: a table of results, and differences with intervals.

    The students of a seed have the same initial weights and batches. The same command resumes a stopped
    comparison; with more methods or seeds it trains only what is missing.

    Args:
        teacher: the folder of a finished run, or its model.safetensors.
        folder: for results.csv and the runs.
        methods: names that `icd methods` lists, separated by commas.
        seeds: how many seeds: 0, 1, 2, ...
        network: of the students, a name that `icd networks` lists.
        data: the images.
        recipe: how to train all students.
        split: measure accuracy on "validation" to choose settings (trains on the other training images), or
            on "test" once they are chosen (trains on all of them).
    """
    names = [name.strip() for name in methods.split(",")]
    model, card = load_model(teacher)
    return Comparison(names, range(seeds), network, data, recipe, model, folder, card.classes, split)


def report(run: Run) -> None:
    """Train a run and print what came of it."""
    if isinstance(run, Experiment):
        images = run.training_images
        print(f"{run.network} for {run.objective} on {len(images)} images of {len(images.classes)} classes")
        last = run.run().history[-1]
        print(f"{100 * last['train_accuracy']:.2f} % of the training images")
        if "validation_accuracy" in last:
            print(f"{100 * last['validation_accuracy']:.2f} % of the validation images")
        print(f"saved {run.model_path} after {last['seconds']:.0f} s of training")
        return
    rows = run.run()
    for name in run.methods:
        scores = [100 * row.accuracy for row in rows if row.method == name]
        mean = statistics.mean(scores)
        print(f"{name:10} {mean:6.2f} % of {rows[0].images} {run.split} images ({len(scores)} seeds)")
    for baseline in ("alone", "KD"):
        for name, interval in differences(rows, baseline).items():
            print(f"{name:10} against {baseline:6} {interval}")


def evaluate(
    run: str, split: Literal["validation", "test", "train", "trainval"] = "test", root: str | None = None
) -> None:
    """Measure the accuracy of a trained network.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        split: "validation" to choose settings, "test" once, at the end.
        root: of the images, if it is not that of the run: "birdlets", "cub200", "cifar100" or a folder.
    """
    model, card = load_model(run)
    try:
        own = data_of(Path(run))
    except RunError:
        if root is None:
            raise
        own = DataSet(root, crop=card.crop, margin=card.margin, size=card.size, resize=card.resize)
    pixels = load_images(own if root is None else replace(own, root=root), split)
    if pixels.classes != card.classes:
        here, there = (f"{len(names)} ({names[0]}, ...)" for names in (pixels.classes, card.classes))
        raise RunError(f"{run} has {there} classes and the images {here}: give --root")
    fraction = accuracy(model, pixels)
    error = (fraction * (1 - fraction) / len(pixels)) ** 0.5
    print(f"{100 * fraction:.2f} % of {len(pixels)} {split} images (standard error {100 * error:.2f})")


def predict(run: str, picture: str, top: int = 5, box: str | None = None) -> None:
    """Name the bird in a picture.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        picture: an image file.
        top: how many names to print, in order of probability.
        box: left,top,width,height of the bird in pixels of the picture, for a network that was trained on
            birds cropped to their bounding boxes.
    """
    model, card = load_model(run)
    where = None if box is None else _read_box(box)
    names = classify(model, card, picture, top, where)
    if where is None and card.crop == "box":
        print(
            f"{run} was trained on birds cropped to their boxes: give --box left,top,width,height, or a "
            "picture that the bird fills"
        )
    for name, probability in names:
        print(f"{100 * probability:5.1f} %  {name}")


def _read_box(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise RunError(f'--box is "{text}": give left,top,width,height in pixels, like 60,27,325,304')
    return values


def pack(run: str, file: str, note: str = "") -> None:
    """Save a trained network with 16 bits a weight, in half the space.

    Args:
        run: the folder of a finished run, or its model.safetensors.
        file: where to save it, a name that ends in .safetensors.
        note: replaces the note of its card.
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
    """Draw the Birdlets data set, in the layout of CUB-200-2011.

    Args:
        folder: for the images.
        species: how many, spread over the families.
        families: how many; the species of a family differ in small parts.
        train: training images of each species.
        test: test images of each species.
        size: pixels a side.
        seed: of every pose, light and background. The difficulty was tuned on seed 0.
    """
    print(birdlets.draw(folder, species, families, train, test, size, seed))


#: What the term of a method compares, by the name of the term.
COMPARES = {
    "cross_entropy": "nothing",
    "kd": "logits",
    "dkd": "logits",
    "nkd": "logits",
    "clustering": "region Gram",
    "fitnet": "one stage",
    "crd": "images, by contrast",
    "semckd": "all stages",
    "sp": "image Gram",
    "rkd": "distances between images",
    "at": "attention maps",
}


def methods() -> None:
    """List the methods and their objectives.

    Columns: what is compared; labels, whether that uses them (all methods add cross-entropy); classes,
    whether teacher and student must have the same; learns, weights trained beside the student's; keeps,
    numbers remembered; both for resnet10-32 -> resnet10-16, batches of 32, and 900 images of 30 classes.
    """
    print(f"{'':8} {'compares':28} {'labels':6} {'classes':7} {'learns':>10} {'keeps':>8}  objective")
    with torch.no_grad():
        student, teacher = (
            score(build(name, 30, 64).eval(), torch.zeros(32, 3, 64, 64))
            for name in ("resnet10-16", "resnet10-32")
        )
    for name, make in METHODS.items():
        objective = make()
        objective.build(student, teacher, images=900)
        terms: list[Any] = list(objective.terms[1:] or objective.terms)
        compares = " + ".join(COMPARES.get(term.name, "region logits") for term in terms)
        labels = any("dkd" in t.name or "nkd" in t.name or "sd_" in t.name for t in terms)
        learns = sum(weight.numel() for weight in objective.parameters())
        keeps = sum(buffer.numel() for n, buffer in objective.named_buffers() if n.endswith("memory"))
        same = any(t.same_classes for t in terms)
        print(
            f"{name:8} {compares:28} {'yes' if labels else '':6} {'same' if same else 'any':7} "
            f"{learns or '':>10} {keeps or '':>8}  {objective}"
        )


def recipes(name: str = "") -> None:
    """List the recipes of the published runs with their figures, or show one.

    Args:
        name: the recipe to show with its settings and cost; a part of a name lists those with it.
    """
    runs = published_runs()
    if name not in runs:
        chosen = [run for run in runs.values() if name in run.name]
        for run in chosen or [published_run(name)]:  # which raises
            print(f"{run.name:52} {run.published().top1:6.2f} %")
        return
    run, figure = runs[name], runs[name].published()
    print(f"{run.pair}, {run.method} {run.factor} {run.value}".rstrip())
    print(
        f"published: {figure.top1} % of the test images ({figure.source}){figure.note and f'. {figure.note}'}"
    )
    teachers, weights, steps, full, half = run.cost()
    teacher = f", teacher {_millions(teachers)}" if run.teacher else ""
    print(
        f"takes: {_millions(weights)} weights{teacher}; {steps:,} steps; "
        f"memory of a step {full:g} GB in float32, {half:g} in fp16 (an estimate, without the images)"
    )
    print(yaml.safe_dump(run.settings(), sort_keys=False).rstrip())


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} million"


def networks() -> None:
    """List the networks and their numbers of weights for 200 classes."""
    for name in NETWORKS:
        print(f"{name:14} {sum(p.numel() for p in build(name, 200).parameters()):>12,}")
