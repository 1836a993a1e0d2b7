"""What a run is: the checks before it, the settings that identify it, and its state for a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from icd.datasets.cache import CachedImages
from icd.errors import RunError
from icd.trainer.checkpoint import Checkpoint, damaged
from icd.trainer.provenance import commit, describe, device_name, digest
from icd.trainer.recipe import Precision, Recipe
from icd.trainer.student import Student

# Accelerate's names of precisions, and ours.
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}


def check_students(
    students: Sequence[Student],
    data: CachedImages,
    validation: CachedImages | None,
    teacher: nn.Module | None,
    recipe: Recipe,
    checkpoint_seconds: float,
    checkpoint_epochs: int,
) -> None:
    """Raise for what cannot be trained, before anything runs."""
    check_intervals(checkpoint_seconds, checkpoint_epochs)
    own_images(recipe, data, 1)
    names = [student.name for student in students]
    if not names:
        raise RunError("there is no student: give one or more")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(
            f'two students are named "{twice}": rename one of them, as the log needs a name for each'
        )
    for what, images in (("training", data), ("validation", validation)):
        if images is not None and not isinstance(images, CachedImages):
            raise RunError(
                f"the {what} images are not decoded: pass them through icd.datasets.cache.load first"
            )
    if validation is not None:
        classes = ([f'"{name}"' for name in images.classes] for images in (data, validation))
        for index, (one, other) in enumerate(zip_longest(*classes, fillvalue="missing")):
            if one != other:
                raise RunError(
                    f"class {index} is {one} in the training images and {other} in the validation images: "
                    "give both the same classes in the same order"
                )
    if teacher is None and any(student.objective.needs_teacher for student in students):
        raise RunError("the objective compares with a teacher and none was given: pass teacher=")
    for student in students:
        head = getattr(student.network, "head", None)
        if isinstance(head, nn.Linear) and head.out_features < len(data.classes):
            raise RunError(
                f"{student.name} has {head.out_features} classes, and the training images have "
                f"{len(data.classes)}: build it for as many"
            )
    built = [id(student.objective) for student in students if student.objective.needs_build]
    if len(built) > len(set(built)):
        raise RunError("two students share an objective that learns or remembers: give each its own")


def own_images(recipe: Recipe, data: CachedImages, processes: int) -> int:
    """Return how many images of a batch a process takes; raise if they cannot be split for accumulation."""
    own = min(recipe.batch_size, len(data)) // processes
    if own % recipe.accumulation_steps:
        raise RunError(
            f"{own} images cannot be split into {recipe.accumulation_steps} equal parts: "
            "choose accumulation_steps that divide them"
        )
    return own


def check_intervals(checkpoint_seconds: float, checkpoint_epochs: int) -> None:
    """Raise for intervals between checkpoints that mean nothing."""
    if not checkpoint_seconds >= 0:  # refuses NaN as well
        raise ValueError(f"checkpoint_seconds is {checkpoint_seconds}: give 0 seconds or more")
    if not checkpoint_epochs >= 1:
        raise ValueError(f"checkpoint_epochs is {checkpoint_epochs!r}: give 1 or more")


def resolve_precision(recipe: Recipe, saved: dict[str, Any] | None) -> Precision:
    """Return the recipe's precision; "auto" is the one in which a saved run began."""
    if saved is None:
        return recipe.precision
    if saved["epoch"] == recipe.epochs:
        return "auto"  # nothing is left to compute
    begun: Precision = saved["settings"].get("precision", "auto")
    return begun if recipe.precision == "auto" else recipe.precision


def run_settings(
    students: Sequence[Student],
    data: CachedImages,
    teacher: nn.Module | None,
    recipe: Recipe,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return everything that must be the same for a run to resume."""
    fields = json.loads(json.dumps(asdict(recipe)))
    processes = 1 if recipe.sync_batch_norm else accelerator.num_processes
    return {
        "recipe": {k: v for k, v in fields.items() if k not in ("precision", "sync_batch_norm")},
        "precision": PRECISIONS[accelerator.mixed_precision],  # what "auto" resolved to
        "number of images behind a batch statistic": recipe.batch_size // processes,
        "objectives": {student.name: str(student.objective) for student in students},
        "networks": {student.name: describe(student.network) for student in students},
        "images": f"{len(data)} of {len(data.classes)} classes, {data.size} pixels, {data.fingerprint}",
        "teacher": None if teacher is None else digest(teacher),
    }


def restore(
    students: Sequence[Student],
    saved: dict[str, Any] | None,
    folder: str | Path | None,
    accelerator: Accelerator,
    checkpoint: Checkpoint,
) -> tuple[int, int]:
    """Load a saved state into the students; return its epoch and step, both from 0."""
    if saved is None:
        return 0, 0
    try:
        for student in students:
            student.restore(saved["students"][student.name])
        if accelerator.scaler is not None and saved["scaler"] is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] is not None and accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_cuda"], accelerator.device)
        checkpoint.started -= saved["seconds"]
        return int(saved["epoch"]), int(saved["step"])
    except Exception as error:
        raise damaged(folder) from error


def run_state(students: Sequence[Student], accelerator: Accelerator) -> dict[str, Any]:
    """Return what `restore` needs."""
    scaler, device = accelerator.scaler, accelerator.device
    return {
        "students": {student.name: student.state() for student in students},
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def record_provenance(
    students: Sequence[Student], epoch: int, settings: dict[str, Any], accelerator: Accelerator
) -> None:
    """Record device, commit, torch version and precision from `epoch` (from 1) on, if they changed."""
    here = {
        "device": device_name(accelerator.device, accelerator.num_processes),
        "commit": commit(),
        "torch": str(torch.__version__),
        "precision": settings["precision"],
        "teacher": settings["teacher"],
    }
    for student in students:
        if not student.provenance or {**student.provenance[-1], **here} != student.provenance[-1]:
            student.provenance.append({"epoch": epoch, **here})
