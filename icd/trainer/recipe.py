"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["auto", "float32", "bf16", "fp16"]

#: Fields that change how a step is computed, not which step. A resumed run keeps their first values.
EXECUTION_FIELDS = ("precision", "sync_batch_norm", "compile")


@dataclass(frozen=True)
class Recipe:
    """How a student is trained (chapter 2). The defaults are those of the published runs.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all processes. The last short batch is dropped.
        learning_rate: the highest learning rate; .05 as published, .01 for MobileNetV2 and ShuffleNet.
        schedule: "multistep" divides the rate by 10 at each of `milestones`; "one-cycle" raises it over the
            first fifth of the run and lowers it along a cosine, for runs of a few minutes.
        milestones: fractions of the run; published: epochs 150, 180 and 210 of 240.
        body_rate: factor of the learning rate for all weights of the network but its head's; below 1 to
            fine-tune a pretrained network.
        momentum: of SGD.
        nesterov: use Nesterov momentum. The published runs do not; short runs gain by it.
        weight_decay: of SGD.
        max_grad_norm: the gradient of all trained weights is clipped to this norm.
        seed: of the order of the images, of each image's crop and flip, and of the weights of terms.
        sync_batch_norm: on several GPUs, compute batch statistics over the whole batch
            (`torch.nn.SyncBatchNorm`), so that the run equals one on a single GPU up to rounding. Without it
            each process normalises by its own part of the batch, the first one's statistics are kept, and a
            run can only be resumed with the same number of processes.
        precision: "auto" is bf16 where the device computes it natively, fp16 with loss scaling on older
            GPUs, float32 elsewhere. Losses compute in float32 in any case. float32 on a GPU is PyTorch's
            default, in which convolutions may use TF32.
        accumulation_steps: split a batch that does not fit into memory into this many parts and add their
            gradients before the step. Not the same run: batch statistics are over a part, and a loss that
            compares the images of a batch compares those of a part.
        compile: run the networks through `torch.compile`: a minute or more at the start, and a C++ compiler
            on a CPU. Rounds differently.

    Raises:
        ValueError: a value with which nothing can be trained.
    """

    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: Literal["multistep", "one-cycle"] = "multistep"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    body_rate: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    max_grad_norm: float = 40.0
    seed: int = 0
    sync_batch_norm: bool = False
    precision: Precision = "auto"
    accumulation_steps: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation_steps", "seed"):
            if not isinstance(getattr(self, name), int):
                self._refuse(name, "give a whole number")
        for name in ("epochs", "batch_size", "learning_rate", "max_grad_norm", "accumulation_steps"):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "give a positive number")
        limits: dict[str, float] = {
            "body_rate": math.inf,
            "momentum": 1.0,
            "weight_decay": math.inf,
            "seed": 2**63,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                self._refuse(name, f"give 0 or more, and less than {limit:g}")
        choices: dict[str, Sequence[Any]] = {
            "schedule": ("multistep", "one-cycle"),
            "precision": ("auto", "float32", "bf16", "fp16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                self._refuse(name, "choose " + " or ".join(f'"{choice}"' for choice in known))
        if not isinstance(self.milestones, Sequence) or not all(0 <= m <= 1 for m in self.milestones):
            self._refuse("milestones", "give fractions of the run, from 0 to 1, like (0.5, 0.75)")
        if self.nesterov and not self.momentum:
            self._refuse("momentum", "Nesterov momentum needs a positive number")

    def _refuse(self, name: str, advice: str) -> None:
        raise ValueError(f"the recipe's {name} is {getattr(self, name)!r}: {advice}")

    def rate(self, progress: float) -> float:
        """Return the learning rate when a fraction `progress` of the run, in [0, 1), is done."""
        if self.schedule == "multistep":
            return self.learning_rate * 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        if progress < 0.2:
            return self.learning_rate * (0.04 + 0.96 * progress / 0.2)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))
