"""Train a network and save it: the one way that commands, comparisons and chapters share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from icd.datasets.cache import CachedImages
from icd.datasets.dataset import DataSet, Split
from icd.errors import DataError, RunError
from icd.experiments.model_file import ModelCard, load_model, save_model
from icd.networks.build import network
from icd.networks.pretrained import load_published
from icd.objective import Objective
from icd.trainer.checkpoint import CHECKPOINT, flatten
from icd.trainer.distributed import best_device, check_precision, is_main_process
from icd.trainer.loop import fit_together
from icd.trainer.recipe import Recipe
from icd.trainer.state import check_students
from icd.trainer.student import Student

Part = Literal["train", "trainval"]


@dataclass(frozen=True)
class Experiment:
    """One network to train and save: a teacher, or a student of one (chapters 9 and 10).

    Attributes:
        network: a name in `icd.networks.NETWORKS`.
        objective: what is minimised.
        data: a DataSet, or loaded images, which are all trained on and not validated.
        recipe: how it is trained. Its seed also seeds the weights.
        folder: for the log, the checkpoint and model.safetensors. A stopped run resumes from it.
        teacher: the network that the objective compares with.
        teacher_classes: the names of its classes; None if unknown.
        images: "train" holds the validation images of a DataSet out and logs their accuracy;
            "trainval" trains on all training images.
        note: how the network was trained, for its card.
        weights: what the network starts from, as for `icd.networks.network`: a file, or "DEFAULT".
        checkpoint_seconds, checkpoint_epochs: when to save a checkpoint, as for `icd.trainer.fit_together`.
        progress: show bars.
    """

    network: str
    objective: Objective
    data: DataSet | CachedImages
    recipe: Recipe
    folder: str | Path
    teacher: nn.Module | None = None
    teacher_classes: tuple[str, ...] | None = None
    images: Part = "train"
    note: str = ""
    weights: str | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_epochs: int = 1
    progress: bool = True

    @cached_property
    def training_images(self) -> CachedImages:
        """The images to train on."""
        if isinstance(self.data, CachedImages):
            return self.data
        return load_images(self.data, self.images, self.progress)

    @cached_property
    def validation_images(self) -> CachedImages | None:
        """The images whose accuracy is logged after every epoch."""
        if isinstance(self.data, CachedImages) or self.images == "trainval":
            return None
        return load_images(self.data, "validation", self.progress)

    def check(self) -> None:
        """Load the images and raise for settings that cannot be trained. Writes nothing to the folder.

        Raises:
            RunError, DataError, ValueError: what is wrong with the settings or the images.
        """
        self._start()

    def run(self) -> Student:
        """Train, or resume, and save the network with its card; return the student with its log.

        Raises:
            RunError, NonFiniteLoss, KeyboardInterrupt: as `icd.trainer.fit_together`.
        """
        student = self._start()
        fit_together(
            [student],
            self.training_images,
            self.recipe,
            teacher=self.teacher,
            validation=self.validation_images,
            folder=self.folder,
            checkpoint_seconds=self.checkpoint_seconds,
            checkpoint_epochs=self.checkpoint_epochs,
            progress=self.progress,
        )
        if is_main_process():
            save_model(self.model_path, student.network, self.card())
        return student

    @property
    def model_path(self) -> Path:
        """The file of the trained network."""
        return Path(self.folder) / "model.safetensors"

    def card(self) -> ModelCard:
        """Return the card of the network: its classes, and how a picture is prepared for it."""
        images, data = self.training_images, self.data
        crop: dict[str, Any] = {}
        if isinstance(data, DataSet):
            crop = {"resize": data.resize, "crop": data.crop, "margin": data.margin}
        return ModelCard(
            self.network,
            images.classes,
            images.size,
            mean=images.mean,
            std=images.std,
            note=self.note,
            resize_size=images.resize_size,
            **crop,
        )

    def _start(self) -> Student:
        images = self.training_images
        check_same_classes(self.objective, self.teacher_classes, images.classes)
        student = new_student(self.network, self.objective, images, self.recipe.seed, weights=self.weights)
        often = self.checkpoint_seconds, self.checkpoint_epochs
        check_students([student], images, self.validation_images, self.teacher, self.recipe, *often)
        if not (Path(self.folder) / CHECKPOINT).exists():  # a finished run is loaded in any precision
            check_precision(self.recipe.precision, best_device())
        return student


def new_student(
    name: str,
    objective: Objective,
    images: CachedImages,
    seed: int,
    label: str = "student",
    weights: str | None = None,
) -> Student:
    """Return a student of the network `name` for these images; its weights are a function of the seed."""
    torch.manual_seed(seed)
    return Student(network(name, len(images.classes), images.size, weights), objective, label)


def load_images(data: DataSet, split: Split, progress: bool = True) -> CachedImages:
    """Return the images of a split; print how many of them were repaired."""
    images = data.load(split, progress)
    for what, count in images.repairs.items():
        print(f"{split}: {count} images, {what}")
    return images


def load_teacher(
    path: str, name: str | None, data: DataSet, images: Part
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """Load a teacher; return it with the names of its classes, None where the file has none.

    Args:
        path: a run's folder, a model.safetensors, or the published weights of the network `name`.
        name: a name in `icd.networks.NETWORKS`, for published weights.
        data, images: the training images. Published weights must have as many classes.

    Raises:
        RunError, ModelError: there is no such file, or it has no weights of that network.
    """
    if Path(path).suffix in ("", ".safetensors"):
        model, card = load_model(path)
        return model, card.classes
    if name is None:
        raise RunError(f"{path} does not name the network of its weights: give --teacher_network")
    return load_published(name, path, len(data.load(images).classes), data.size), None


def check_same_classes(
    objective: Objective, teacher: tuple[str, ...] | None, images: tuple[str, ...]
) -> None:
    """Raise a RunError if the objective compares classes and the teacher has others than the images."""
    if teacher is None or teacher == images or not any(term.same_classes for term in objective.terms):
        return
    pairs = enumerate(zip_longest(teacher, images), 1)
    number, names = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    there, here = ("missing" if name is None else f'"{name}"' for name in names)
    raise RunError(
        f"the teacher has other classes than the images: class {number} is {there} in the teacher and {here} "
        "in the images. Use an objective that compares no logits, such as cross_entropy() + clustering()"
    )


def data_of(run: Path) -> DataSet:
    """Return the data settings of a run, from the `config.yaml` beside it.

    Raises:
        RunError: there is no such file, or no data settings in it.
    """
    path = (run if run.is_dir() else run.parent) / "config.yaml"
    settings = read_settings(path, advice="give --root")
    try:
        return DataSet(**settings["data"])
    except (LookupError, TypeError, DataError) as error:
        reason = f" ({error})" if isinstance(error, DataError) else ""
        raise RunError(f"{path} has no valid data settings{reason}: give --root") from error


def read_settings(path: Path, advice: str) -> dict[str, Any]:
    """Return the settings in a `config.yaml`, or raise a RunError that ends with the advice."""
    try:
        settings = yaml.safe_load(path.read_bytes())
        flatten(settings)  # raises for anything but nested names and values, and for cycles
        return settings
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged or has no settings: {advice}") from error


def result_settings(
    data: DataSet, recipe: Recipe, provenance: Sequence[dict[str, Any]] = (), **more: Any
) -> dict[str, Any]:
    """Return what a row of results keeps of a run: its data and recipe, and the teacher's digest.

    The seed has a column of its own. The precision "auto" is replaced by the one that was used.
    """
    made = provenance[-1] if provenance else {}
    fields = {name: value for name, value in asdict(recipe).items() if name != "seed"}
    fields |= {"precision": made.get("precision", recipe.precision), "milestones": list(recipe.milestones)}
    teacher = {"teacher": made["teacher"]} if made.get("teacher") else {}
    return {"data": asdict(data) | {"root": str(data.root)}, "recipe": fields, **more, **teacher}
