"""Training: a recipe, one loop, and students that learn side by side from one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from icd.datasets.cache import CachedImages
from icd.datasets.images import ImageList
from icd.errors import RunError
from icd.losses.checks import check_positive
from icd.objective import Objective, Term
from icd.scores import Scoring
from icd.trainer.checkpoint import Checkpoint, load_state
from icd.trainer.distributed import (
    agreed,
    all_or_none,
    make_accelerator,
    native_precision,
    share,
)
from icd.trainer.evaluate import accuracy
from icd.trainer.interrupt import stop_politely
from icd.trainer.memory import memory_needed, memory_to_spare, peak_megabytes, say_memory, time_left
from icd.trainer.recipe import Precision, Recipe, check_seconds
from icd.trainer.student import Student, compiled, to_channels_last


def fit(
    student: nn.Module,
    objective: Objective | Term,
    data: CachedImages,
    recipe: Recipe = Recipe(),
    **options: Any,
) -> list[dict[str, Any]]:
    """Train one student in place (chapter 6); returns its log, a dict for each epoch.

    `options` (teacher, validation, folder, ...) and errors are those of `fit_together`.
    """
    learner = Student(student, objective if isinstance(objective, Objective) else Objective((objective,)))
    fit_together([learner], data, recipe, **options)
    return learner.history


@all_or_none()
def fit_together(
    learners: Sequence[Student],
    data: CachedImages,
    recipe: Recipe = Recipe(),
    *,
    teacher: nn.Module | None = None,
    validation: CachedImages | None = None,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_epochs: int = 1,
    patience_seconds: float = 300.0,
    progress: bool = True,
) -> None:
    """Train students side by side on the same batches (chapter 6).

    The teacher is asked once for all of them. Started in several processes (`accelerate launch`,
    `notebook_launcher`), each takes its share of every batch, and the first one writes. See
    `icd.processes` for what is equal to a run of one process.

    Each student becomes what it would become alone. In fp16 that holds but for rounding and skipped steps,
    since all share one scale of the loss: where a student's gradients overflow, its step alone is skipped,
    and the scale is halved for all.

    Args:
        learners: students with their objectives and names; trained in place.
        data: training images.
        recipe: how.
        teacher: what objectives compare with; it is not trained.
        validation: images whose accuracy is logged after every epoch.
        folder: for the log, and checkpoints, each in the place of the one before. Called again with
            the same folder and settings, a run goes on where it was; on a CPU, to the same bits. One that
            has ended is read, whatever precision it was computed in.
        checkpoint_seconds: a checkpoint is written so often: what a killed process may lose, at most.
        checkpoint_epochs: and whenever so many epochs are done, and at the end.
        patience_seconds: how long a process waits for another that is silent; the first run decides.
        progress: show a bar with the terms, images a second and the time left.

    Raises:
        RunError: the folder holds a run with other settings or cannot be made, there is no teacher where one
            is needed, a student knows fewer classes than the images have, two have one name, a batch cannot
            be shared equally by the processes, or one of them ended and stops the others.
        NonFiniteLoss: with epoch, step and term; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, to any process, once a checkpoint of that very step is
            written.
    """
    check_run(learners, data, validation, teacher)
    check_seconds("checkpoint_seconds", checkpoint_seconds)
    check_positive("checkpoint_epochs", checkpoint_epochs)
    precision = precision_of(recipe, folder)
    accelerator = make_accelerator(precision, patience_seconds)
    device, steps, size = accelerator.device, data.steps(recipe.batch_size), recipe.batch_size
    mine = share(min(size, len(data)))
    own = min(size, len(data)) // mine[1]
    if own % recipe.pieces:
        raise RunError(
            f"{own} images cannot be split into {recipe.pieces} equal pieces: "
            "let the recipe's pieces be a number that divides them"
        )
    talks = progress and accelerator.is_main_process
    if talks and recipe.precision == "auto" and precision not in ("auto", native_precision(device)):
        print(f"goes on in {precision}, as it began; a new run would take {native_precision(device)} here")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # images are of one size: it pays to find the best convolution
        torch.cuda.empty_cache()  # else what an earlier run left counts as taken
        torch.cuda.reset_peak_memory_stats()
        students = [(learner.network, learner.objective) for learner in learners]
        need = memory_needed(students, teacher, data, own, recipe.pieces, accelerator)
        data, validation = (
            data.near(device, need),
            None if validation is None else validation.near(device, need),
        )
        if talks:
            print(say_memory(need, *torch.cuda.mem_get_info(device)))
    for learner in learners:
        learner.start(recipe, accelerator)
    if teacher is not None:
        teacher = compiled(Scoring(to_channels_last(teacher, device).eval()), recipe)
    checkpoint = Checkpoint(folder, learners, recipe, data, teacher, accelerator, every=checkpoint_seconds)
    epoch, step = checkpoint.restore()
    images = None
    bar = tqdm(
        total=recipe.epochs * steps * size,
        initial=(epoch * steps + step) * size,
        unit="image",
        mininterval=0.5,
        disable=not talks,
    )
    here, since, forecast_due = epoch * steps + step, checkpoint.seconds(), talks
    with stop_politely() as stop, bar, memory_to_spare():
        while epoch < recipe.epochs:
            images, target = data.training_batch(recipe.seed, epoch, step, size, device, mine, out=images)
            with torch.no_grad(), accelerator.autocast():
                told = teacher(images) if teacher is not None else None
            rate = recipe.rate((epoch + step / steps) / recipe.epochs)
            for learner in learners:
                learner.step(images, target, told, epoch + 1, rate)
            step += 1
            if bar.update(size):  # true when it is time to show something new
                means = learners[0].read(epoch + 1, step)
                bar.set_postfix(
                    {"epoch": epoch + 1, **{k: f"{v:.3g}" for k, v in means.items()}}, refresh=False
                )
            if step == steps:
                for learner in learners:
                    row = {"epoch": epoch + 1, **learner.read(epoch + 1, steps), "learning_rate": rate}
                    if validation is not None:
                        row["validation_accuracy"] = accuracy(learner.network, validation)
                    learner.close_epoch(**row, seconds=checkpoint.seconds(), peak_mb=peak_megabytes())
                epoch, step = epoch + 1, 0
                checkpoint.write_log()
                if forecast_due and epoch < recipe.epochs:
                    a_step = (checkpoint.seconds() - since) / (epoch * steps - here)
                    bar.write(time_left(a_step * steps, recipe.epochs - epoch))
                    forecast_due = False
            stopping, due = agreed(stop.requested, checkpoint.due())
            whole = step == 0 and (epoch % checkpoint_epochs == 0 or epoch == recipe.epochs)
            if stopping or due or whole:
                checkpoint.save(epoch, step)
            if stopping:
                agreed(True)  # that the checkpoint is written: once one process leaves, launchers end all
                raise KeyboardInterrupt
    for learner in learners:
        learner.network.eval()


def check_run(
    learners: Sequence[Student],
    data: CachedImages,
    validation: CachedImages | None,
    teacher: nn.Module | None,
) -> None:
    """Raise a RunError for what cannot be trained together, before anything runs."""
    names = [learner.name for learner in learners]
    if not names:
        raise RunError("there is no student: give one learner or more")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(
            f'two students are named "{twice}": give one of them another name, as the log needs one'
        )
    for what, images in (("training", data), ("validation", validation)):
        if isinstance(images, ImageList):
            raise RunError(f"the {what} images are not decoded: hand them to icd.pixels.load first")
    if validation is not None:
        named = ([f'"{name}"' for name in images.classes] for images in (data, validation))
        for index, (one, other) in enumerate(zip_longest(*named, fillvalue="missing")):
            if one != other:
                raise RunError(
                    f"class {index} is {one} in the training images and {other} in the validation images: "
                    "give both the same classes, in one order"
                )
    if teacher is None and any(learner.objective.needs_teacher for learner in learners):
        raise RunError(
            "the objective compares with a teacher and none was given: hand one over with teacher="
        )
    for learner in learners:
        head = getattr(learner.network, "head", None)
        if isinstance(head, nn.Linear) and head.out_features < len(data.classes):
            raise RunError(
                f"{learner.name} tells {head.out_features} classes apart, and the training images are of "
                f"{len(data.classes)}: build it for as many"
            )


def precision_of(recipe: Recipe, folder: str | Path | None) -> Precision:
    """The precision that a recipe asks for; of a run that was stopped, "auto" is the one it began in.

    For a run that has ended any will do: there is nothing left to compute.
    """
    state = None if folder is None else load_state(folder)
    if state is None:
        return recipe.precision
    if state["epoch"] == recipe.epochs:
        return "auto"
    begun: Precision = state["settings"].get("precision", "auto")
    return begun if recipe.precision == "auto" else recipe.precision
