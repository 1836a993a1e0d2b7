"""One student: its network, objective, optimizer and one training step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icd.errors import NonFiniteLoss
from icd.objective import Objective
from icd.scores import Scores, Scoring
from icd.trainer.distributed import (
    average,
    synchronise,
)
from icd.trainer.recipe import Recipe

KEPT = "The last checkpoint, if one was written, is from before"


@dataclass
class Student:
    """One student on its way (chapter 6): its network, its objective, and its log so far."""

    network: nn.Module
    objective: Objective
    name: str = "student"
    history: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)  # device, commit, ... from which epoch on

    def start(self, recipe: Recipe, accelerator: Accelerator) -> None:
        """Take a place on the device, with a fresh optimizer."""
        to_channels_last(self.network, accelerator.device).train()
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
        log = {"history": self.history, "provenance": self.provenance, "sums": self.sums}
        return {"network": weights, "optimizer": optimizer, **log}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.sums = state["history"], state["sums"]
        self.provenance = state.get("provenance", [])  # which early checkpoints lack


def split(images: int, pieces: int) -> list[slice]:
    """The rows of each of so many equal pieces."""
    length = images // pieces
    return [slice(first, first + length) for first in range(0, images, length)]


def compiled(scoring: Scoring, recipe: Recipe) -> Scoring:
    """The same module; its operators will be fused where the recipe asks for it."""
    if recipe.compile:
        scoring.compile()
    return scoring


def to_channels_last(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, its filters in the layout that convolutions are quickest in."""
    return network.to(device).to(memory_format=torch.channels_last)
