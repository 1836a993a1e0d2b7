"""Training: a recipe, one loop, and students that learn side by side from one teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from icd.budget import memory_needed, memory_to_spare, peak_megabytes, say_memory, time_left
from icd.checkpoint import Checkpoint, NonFiniteLoss, RunError, check_run, precision_of, stop_politely
from icd.checks import Precision, check_positive, check_recipe, check_seconds
from icd.evidence import accuracy
from icd.objective import Objective, Term
from icd.pixels import Pixels
from icd.processes import agreed, all_or_none, average, make_accelerator, native_precision, share, synchronise
from icd.scores import Scores, Scoring

KEPT = "The last checkpoint, if one was written, is from before"


@dataclass(frozen=True)
class Recipe:
    """How a student is trained. The defaults are those of the published runs.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all processes; the last short batch is dropped.
        learning_rate: at its highest; .05 as published, .01 for MobileNetV2 and ShuffleNet.
        schedule: "steps" divides the rate by 10 at each of `milestones`; "one-cycle" raises it
            over the first fifth and lowers it along a cosine, for runs of a few minutes.
        milestones: shares of the run; published: 150, 180 and 210 of 240 epochs.
        momentum: of SGD.
        nesterov: look ahead along the momentum. The published runs do not; short ones gain by it.
        weight_decay: of SGD.
        clip: gradients longer than this are shortened to it.
        seed: of the order of the images, and of how each is cut and flipped.
        sync_batch_norm: where several processes train, batch normalisation takes its statistics over the
            batch of all of them. They then give what one process gives, to rounding (which training
            magnifies), for two more messages in every such layer, and a run goes on with any number of
            them. Without it each process has the statistics of its share, the first one's are kept, and a
            run goes on with as many processes only. In a single process both are the same.
        precision: "auto" takes bf16 where the device computes it natively, fp16 with loss scaling
            on older GPUs, float32 elsewhere; a run that was stopped goes on in what it began in. Losses
            compute in float32 in any case. float32 on a GPU is PyTorch's default: convolutions round their
            factors to TF32 where the GPU has it, the rest not.
        pieces: a batch that does not fit into memory may be split into so many, whose gradients are added
            before a step. Not the same run: the statistics of batch normalisation are over a piece, and a
            loss that compares the images of a batch with each other compares those of a piece.
        compile: let `torch.compile` fuse the networks' operators: a minute or more at the start, and a C++
            compiler on a CPU. Rounds otherwise.
    """

    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: Literal["steps", "one-cycle"] = "steps"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    clip: float = 40.0
    seed: int = 0
    sync_batch_norm: bool = False
    precision: Precision = "auto"
    pieces: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        check_recipe(vars(self))

    def rate(self, progress: float) -> float:
        """The learning rate when a share `progress` of the run, in [0, 1), is done."""
        if self.schedule == "steps":
            return self.learning_rate * 0.1 ** sum(progress >= share for share in self.milestones)
        if progress < 0.2:
            return self.learning_rate * (0.04 + 0.96 * progress / 0.2)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


@dataclass
class Learner:
    """One student on its way (chapter 6): its network, its objective, and its log so far."""

    network: nn.Module
    objective: Objective
    name: str = "student"
    history: list[dict[str, Any]] = field(default_factory=list)
    made_on: list[dict[str, Any]] = field(default_factory=list)  # device, commit, ... from which epoch on

    def start(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Take a place on the device, with a fresh optimizer."""
        settle(self.network, accelerator.device).train()
        if recipe.sync_batch_norm and accelerator.num_processes > 1:
            synchronise(self.network)
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            # One kernel, and loss scaling does not make the host wait for the GPU.
            fused=accelerator.device.type == "cuda",
        )
        scoring = compiled(Scoring(self.network), recipe)
        self.scoring, self.optimizer = accelerator.prepare(scoring, optimizer)
        # Without Accelerate's wrapper, which copies all that a network says to float32 under autocast.
        accelerator.unwrap_model(self.scoring, keep_fp32_wrapper=False)
        if recipe.momentum:
            # The fused step leaves new momenta unwritten where loss scaling skips it: they begin at zero.
            for weight in self.network.parameters():
                self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        self.accelerator, self.clip, self.pieces = accelerator, recipe.clip, recipe.pieces
        self.columns = (*self.objective.names, "train_accuracy")
        self.sums = [0.0] * len(self.columns)  # over the epoch's steps so far
        self.waiting: list[Tensor] = []  # what later steps said, not yet copied from the device

    def step(
        self,
        images: Tensor,
        target: Tensor,
        teacher: Scores | None,
        epoch: int,
        rate: float,
    ) -> None:
        """One step of SGD (chapter 6); nothing here waits for the device."""
        said = []
        for piece in split(len(images), self.pieces):
            with self.accelerator.autocast():
                scores = self.scoring(images[piece])
            told = None if teacher is None else teacher.rows(piece)
            loss, parts = self.objective(scores, told, target[piece], epoch)
            self.accelerator.backward(loss / self.pieces)
            right = (scores.logits.detach().argmax(1) == target[piece]).float().mean()
            said.append(torch.cat([parts, right[None]]))
        self.accelerator.unscale_gradients(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.waiting.append(average(torch.stack(said).mean(0)))

    def read(self, epoch: int, step: int) -> dict[str, float]:
        """Wait for the steps of `epoch` up to `step` (both from 1); returns the epoch's means so far."""
        rows = torch.stack(self.waiting).tolist() if self.waiting else []
        self.waiting = []
        for number, row in enumerate(rows, step - len(rows) + 1):
            for column, value in zip(self.columns, row, strict=True):
                if not math.isfinite(value):
                    raise NonFiniteLoss(
                        f"{self.name}: {column} is {value} in epoch {epoch}, step {number}. Lower the "
                        f"learning rate, or train in float32. {KEPT}"
                    )
            self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
        return {column: total / step for column, total in zip(self.columns, self.sums, strict=True)}

    def close_epoch(self, **row: Any) -> None:
        self.history.append(row)
        self.sums = [0.0] * len(self.columns)

    def state(self) -> dict[str, Any]:
        """All that decides how this student goes on."""
        weights = self.network.state_dict()
        broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
        if broken:
            raise NonFiniteLoss(
                f"{self.name}: {broken[0]} is not finite after {len(self.history)} whole epoch(s). Lower the "
                f"learning rate, or train in float32. {KEPT}"
            )
        optimizer = self.optimizer.state_dict()
        log = {"history": self.history, "made_on": self.made_on, "sums": self.sums}
        return {"network": weights, "optimizer": optimizer, **log}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.sums = state["history"], state["sums"]
        self.made_on = state.get("made_on", [])  # which early checkpoints lack


def fit(
    student: nn.Module, objective: Objective | Term, data: Pixels, recipe: Recipe = Recipe(), **options: Any
) -> list[dict[str, Any]]:
    """Train one student in place (chapter 6); returns its log, a dict for each epoch.

    `options` (teacher, validation, folder, ...) and errors are those of `fit_together`.
    """
    learner = Learner(student, objective if isinstance(objective, Objective) else Objective((objective,)))
    fit_together([learner], data, recipe, **options)
    return learner.history


@all_or_none()
def fit_together(
    learners: Sequence[Learner],
    data: Pixels,
    recipe: Recipe = Recipe(),
    *,
    teacher: nn.Module | None = None,
    validation: Pixels | None = None,
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
        teacher = compiled(Scoring(settle(teacher, device).eval()), recipe)
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


def split(images: int, pieces: int) -> list[slice]:
    """The rows of each of so many equal pieces."""
    length = images // pieces
    return [slice(first, first + length) for first in range(0, images, length)]


def compiled(scoring: Scoring, recipe: Recipe) -> Scoring:
    """The same module; its operators will be fused where the recipe asks for it."""
    if recipe.compile:
        scoring.compile()
    return scoring


def settle(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, its filters in the layout that convolutions are quickest in."""
    return network.to(device).to(memory_format=torch.channels_last)
