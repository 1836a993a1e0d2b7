"""The training loop: students side by side on the same batches, with one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from icd.datasets.cache import CachedImages
from icd.errors import RunError
from icd.scores import Batch, Scoring
from icd.terms import Objective, Term
from icd.trainer.checkpoint import Checkpoint, check_same_run, load_checkpoint
from icd.trainer.distributed import (
    any_rank,
    fail_together,
    make_accelerator,
    native_precision,
    rank_and_world_size,
    world_size,
)
from icd.trainer.evaluate import accuracy
from icd.trainer.interrupt import graceful_stop
from icd.trainer.memory import describe_memory, explain_out_of_memory, peak_megabytes, step_bytes, time_left
from icd.trainer.recipe import Recipe
from icd.trainer.state import (
    check_students,
    own_images,
    record_provenance,
    resolve_precision,
    restore,
    run_settings,
    run_state,
)
from icd.trainer.student import Student, compiled, to_channels_last


def fit(
    student: nn.Module,
    objective: Objective | Term,
    data: CachedImages,
    recipe: Recipe = Recipe(),
    **options: Any,
) -> list[dict[str, Any]]:
    """Train one student in place and return its log, one dict an epoch (chapter 6).

    `options` (teacher, validation, folder, ...) and errors are those of `fit_together`.
    """
    one = Student(student, objective if isinstance(objective, Objective) else Objective([objective]))
    fit_together([one], data, recipe, **options)
    return one.history


@fail_together()
def fit_together(
    students: Sequence[Student],
    data: CachedImages,
    recipe: Recipe = Recipe(),
    *,
    teacher: nn.Module | None = None,
    validation: CachedImages | None = None,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_epochs: int = 1,
    timeout_seconds: float = 300.0,
    progress: bool = True,
) -> None:
    """Train students side by side on the same batches (chapter 6).

    The teacher's forward pass is shared. Each student ends as it would alone, except in fp16, where all share
    one loss scale: rounding and skipped steps may differ. In several processes (`accelerate launch`,
    `notebook_launcher`) each takes its part of every batch and the first one writes; see
    `icd.trainer.distributed`.

    Args:
        students: networks with their objectives and names; trained in place.
        data: training images.
        recipe: how.
        teacher: the network that objectives compare with; not trained.
        validation: images whose accuracy is logged after every epoch.
        folder: for the log and the checkpoint. Called again with the same folder and settings, a run resumes;
            on a CPU, to the same bits. A finished run is loaded, in whatever precision it was computed.
        checkpoint_seconds: time between two checkpoints, the most that a killed process loses.
        checkpoint_epochs: also save after every so many epochs, and at the end.
        timeout_seconds: how long a process waits for a silent one; the first run of a process decides.
        progress: show a bar with the terms, images a second and the time left.

    Raises:
        RunError: the folder holds a run with other settings or cannot be made, a teacher is missing, a
            student has fewer classes than the images, two students have one name, processes cannot share a
            batch or a term's memory, or another process ended.
        NonFiniteLoss: a term or weight is NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM to any process, once a checkpoint of that step is written.
    """
    check_students(students, data, validation, teacher, recipe, checkpoint_seconds, checkpoint_epochs)
    saved = load_checkpoint(folder)
    precision = resolve_precision(recipe, saved)
    accelerator = make_accelerator(precision, timeout_seconds)
    device, steps, size = accelerator.device, data.steps(recipe.batch_size), recipe.batch_size
    rank = rank_and_world_size(min(size, len(data)))
    own = own_images(recipe, data, rank[1])
    checkpoint = Checkpoint(folder, accelerator.is_main_process, checkpoint_seconds)
    settings = run_settings(students, data, teacher, recipe, accelerator)
    done = saved is not None and saved["epoch"] == recipe.epochs
    if saved is not None:
        # A finished run computes nothing more, so it may be loaded on any device.
        ignore = {"precision", "recipe.compile"} if done else set()
        check_same_run(folder, saved["settings"], settings, ignore)
    verbose, native = progress and accelerator.is_main_process, native_precision(device)
    if verbose and not done and recipe.precision == "auto" and precision not in ("auto", native):
        print(f"resumes in {precision}, as it began; a new run would take {native} here")
    if device.type == "cuda":
        data, validation = _fit_into_gpu(
            students, teacher, data, validation, own, recipe, accelerator, verbose
        )
    if teacher is not None:
        teacher = compiled(Scoring(to_channels_last(teacher, device).eval()), recipe)
    for student in students:
        student.move(device)
    if any(student.objective.needs_build for student in students):
        _build(students, teacher, data, recipe, device, rank)
    for student in students:
        student.start(recipe, accelerator)
    epoch, step = restore(students, saved, folder, accelerator, checkpoint)
    if not done:
        record_provenance(students, epoch + 1, settings, accelerator)

    def save() -> None:
        for student in students:
            if step:  # raises before a state is saved that a non-finite loss led to
                student.read(epoch + 1, step)
        if not checkpoint.writes:
            return
        state = {"settings": settings, "epoch": epoch, "step": step, "seconds": checkpoint.seconds()}
        checkpoint.save(state | run_state(students, accelerator), f"epoch {epoch + 1}, step {step}")
        log()

    def log() -> None:
        rows = [{"student": student.name, **row} for student in students for row in student.history]
        checkpoint.write_log({**settings, "provenance": students[0].provenance}, rows)

    first, since, forecast = epoch * steps + step, checkpoint.seconds(), verbose
    bar = tqdm(
        total=recipe.epochs * steps * size,
        initial=first * size,
        unit="image",
        mininterval=0.5,
        disable=not verbose,
    )
    images = None
    with graceful_stop() as stop, bar, explain_out_of_memory():
        while epoch < recipe.epochs:
            batch = Batch(*data.training_batch(recipe.seed, epoch, step, size, device, rank, out=images))
            images = batch.images  # the next batch is written over it
            with torch.no_grad(), accelerator.autocast():
                teacher_scores = teacher(images) if teacher is not None else None
            rate = recipe.rate((epoch + step / steps) / recipe.epochs)
            for student in students:
                student.step(batch, teacher_scores, epoch + 1, rate)
            step += 1
            if bar.update(size):  # True when the bar is due to be redrawn
                means = students[0].read(epoch + 1, step)
                bar.set_postfix(
                    {"epoch": epoch + 1, **{k: f"{v:.3g}" for k, v in means.items()}}, refresh=False
                )
            if step == steps:
                for student in students:
                    row = {"epoch": epoch + 1, **student.read(epoch + 1, steps), "learning_rate": rate}
                    if validation is not None:
                        row["validation_accuracy"] = accuracy(student.network, validation)
                    student.end_epoch(**row, seconds=checkpoint.seconds(), peak_mb=peak_megabytes())
                epoch, step = epoch + 1, 0
                log()
                if forecast and epoch < recipe.epochs:
                    a_step = (checkpoint.seconds() - since) / (epoch * steps - first)
                    bar.write(time_left(a_step * steps, recipe.epochs - epoch))
                    forecast = False
            stopping, due = any_rank(stop.requested, checkpoint.should_save())
            epoch_due = step == 0 and (epoch % checkpoint_epochs == 0 or epoch == recipe.epochs)
            if stopping or due or epoch_due:
                save()
            if stopping:
                any_rank(True)  # wait until it is written: launchers end all processes once one leaves
                raise KeyboardInterrupt
    for student in students:
        student.network.eval()


def _fit_into_gpu(
    students: Sequence[Student],
    teacher: nn.Module | None,
    data: CachedImages,
    validation: CachedImages | None,
    images: int,
    recipe: Recipe,
    accelerator: Accelerator,
    verbose: bool,
) -> tuple[CachedImages, CachedImages | None]:
    """Estimate the memory of a step, and move the images to the GPU if they fit beside it."""
    torch.backends.cudnn.benchmark = True  # all images have one size: search for the fastest convolutions
    torch.cuda.empty_cache()  # otherwise memory cached by an earlier run counts as taken
    torch.cuda.reset_peak_memory_stats()
    need = step_bytes(
        [(student.network, student.objective) for student in students],
        teacher,
        images=images,
        size=data.size,
        classes=len(data.classes),
        precision=accelerator.mixed_precision,
        accumulation_steps=recipe.accumulation_steps,
    )
    device = accelerator.device
    data = data.to_device_if_fits(device, need)
    validation = None if validation is None else validation.to_device_if_fits(device, need)
    if verbose:
        print(describe_memory(need, *torch.cuda.mem_get_info(device)))
    return data, validation


def _build(
    students: Sequence[Student],
    teacher: nn.Module | None,
    data: CachedImages,
    recipe: Recipe,
    device: torch.device,
    rank: tuple[int, int],
) -> None:
    """Create what the objectives learn and remember, from the shapes of the first batch."""
    batch = Batch(*data.training_batch(recipe.seed, 0, 0, recipe.batch_size, device, rank))
    with torch.no_grad():
        scores = None if teacher is None else teacher(batch.images)
    for student in students:
        student.build(batch, scores, len(data), recipe.seed)
        if world_size() > 1 and (term := student.objective.memory):
            raise RunError(
                f"the term {term} remembers images, and {world_size()} processes cannot share its memory: "
                "start one process"
            )
