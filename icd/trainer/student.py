"""A student: its network, its objective, its optimizer, and one training step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icd.errors import NonFiniteLoss
from icd.scores import Batch, Scores, Scoring, score
from icd.terms import Objective
from icd.trainer.distributed import all_reduce_mean, synchronise
from icd.trainer.recipe import Recipe

ADVICE = "Lower the learning rate, or train in float32. A checkpoint written earlier is unaffected"


@dataclass
class Student:
    """One student in training (chapter 6).

    Attributes:
        network: trained in place.
        objective: what it is trained for. Its terms' parameters are trained too and are not saved with the
            network.
        name: of its rows in the log.
        history: one row an epoch so far.
        provenance: device, commit, versions and precision, and the epoch from which they hold.
    """

    network: nn.Module
    objective: Objective
    name: str = "student"
    history: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)

    def build(self, first: Batch, teacher: Scores | None, images: int, seed: int) -> None:
        """Create the parameters and buffers of the objective's terms, a function of `seed` alone.

        Args:
            first: the first batch of the run, for shapes.
            teacher: the teacher's scores of it.
            images: the number of training images.
            seed: of the initial weights.
        """
        self.network.eval()  # this forward pass must not change the batch statistics
        device = first.images.device
        with torch.no_grad(), device, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.objective.build(score(self.network, first.images), teacher, images)

    def move(self, device: torch.device) -> None:
        """Move the network and the objective to a device."""
        to_channels_last(self.network, device)
        self.objective.to(device)

    def start(self, recipe: Recipe, backend: Accelerator) -> None:
        """Create the optimizer, and begin an epoch."""
        self.network.train()
        if recipe.sync_batch_norm and backend.num_processes > 1:
            self.network = synchronise(self.network, backend.device)
        optimizer = torch.optim.SGD(
            self._groups(recipe),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            # One kernel, and with loss scaling the host does not wait for the GPU.
            fused=backend.device.type == "cuda",
        )
        scoring = compiled(Scoring(self.network), recipe)
        self.scoring, self.optimizer = backend.prepare(scoring, optimizer)
        # Without Accelerate's wrapper, which copies all scores to float32 under autocast.
        backend.unwrap_model(self.scoring, keep_fp32_wrapper=False)
        if recipe.momentum:
            # A fused step that loss scaling skips leaves new momenta uninitialised: create them as zeros.
            for weight in self._weights():
                self.optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        self.backend, self.recipe = backend, recipe
        self.columns = (*self.objective.names, "train_accuracy")
        self.sums = [0.0] * len(self.columns)  # over the steps of the epoch so far
        self.pending: list[Tensor] = []  # values of later steps, not yet copied from the device

    def step(self, batch: Batch, teacher: Scores | None, epoch: int, rate: float) -> None:
        """Make one step of SGD (chapter 6) without waiting for the device.

        Args:
            batch: this process's part of the batch.
            teacher: the teacher's scores of it.
            epoch: counted from 1.
            rate: the learning rate.
        """
        values = []
        for part in split(len(batch.images), self.recipe.accumulation_steps):
            images, target = batch.images[part], batch.target[part]
            with self.backend.autocast():
                scores = self.scoring(images)
            teacher_scores = None if teacher is None else teacher.rows(part)
            loss, parts = self.objective(scores, teacher_scores, batch.rows(part), epoch)
            self.backend.backward(loss / self.recipe.accumulation_steps)
            correct = (scores.logits.detach().argmax(1) == target).float().mean()
            values.append(torch.cat([parts, correct[None]]))
        for weight in self.objective.parameters():  # the network's are averaged by its wrapper
            if weight.grad is not None:
                weight.grad = all_reduce_mean(weight.grad)
        self.backend.unscale_gradients(self.optimizer)
        nn.utils.clip_grad_norm_(self._weights(), self.recipe.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pending.append(all_reduce_mean(torch.stack(values).mean(0)))

    def _groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: all weights, or the network's body apart."""
        if recipe.body_rate == 1:
            return [{"params": list(self._weights()), "factor": 1.0}]
        head = list(getattr(self.network, "head", nn.Identity()).parameters())
        known = {id(weight) for weight in head}
        body = [weight for weight in self.network.parameters() if id(weight) not in known]
        rest = [*head, *self.objective.parameters()]
        return [{"params": body, "factor": recipe.body_rate}, {"params": rest, "factor": 1.0}]

    def _weights(self) -> Iterator[nn.Parameter]:
        """Yield everything that the optimizer trains."""
        yield from self.network.parameters()
        yield from self.objective.parameters()

    def read(self, epoch: int, step: int) -> dict[str, float]:
        """Wait for the steps of `epoch` up to `step` (both from 1); return the epoch's means so far.

        Raises:
            NonFiniteLoss: a term is NaN or infinite, with its epoch, step and name.
        """
        rows = torch.stack(self.pending).tolist() if self.pending else []
        self.pending = []
        for number, row in enumerate(rows, step - len(rows) + 1):
            for column, value in zip(self.columns, row, strict=True):
                if not math.isfinite(value):
                    raise NonFiniteLoss(
                        f"{self.name}: {column} is {value} in epoch {epoch}, step {number}. {ADVICE}"
                    )
            self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
        return {column: total / step for column, total in zip(self.columns, self.sums, strict=True)}

    def end_epoch(self, **row: Any) -> None:
        """Append a row to the log."""
        self.history.append(row)
        self.sums = [0.0] * len(self.columns)

    def state(self) -> dict[str, Any]:
        """Return everything that decides how this student continues.

        Raises:
            NonFiniteLoss: a weight is NaN or infinite.
        """
        networks = {"network": self.network.state_dict(), "objective": self.objective.state_dict()}
        for weights in networks.values():
            for name, value in weights.items():
                if isinstance(value, Tensor) and not torch.isfinite(value).all():
                    raise NonFiniteLoss(
                        f"{self.name}: {name} is not finite after {len(self.history)} epoch(s). {ADVICE}"
                    )
        log = {"history": self.history, "provenance": self.provenance, "sums": self.sums}
        return {**networks, "optimizer": self.optimizer.state_dict(), **log}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.sums, self.provenance = state["history"], state["sums"], state["provenance"]


def split(images: int, parts: int) -> list[slice]:
    """Return the rows of each of `parts` equal parts of a batch."""
    length = images // parts
    return [slice(first, first + length) for first in range(0, images, length)]


def compiled(scoring: Scoring, recipe: Recipe) -> Scoring:
    """Return the module, compiled in place if the recipe asks for it."""
    if recipe.compile:
        scoring.compile()
    return scoring


def to_channels_last(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, with weights in the memory layout in which convolutions are quickest."""
    return network.to(device).to(memory_format=torch.channels_last)
