"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["auto", "float32", "bf16", "fp16"]


def check_seconds(name: str, value: float) -> None:
    if not value >= 0:  # nor NaN
        raise ValueError(f"{name} is {value}: give 0 seconds or more")


def check_recipe(values: Mapping[str, Any]) -> None:
    """Raise for the values of an `icd.training.Recipe` with which nothing can be trained."""

    def refuse(name: str, advice: str) -> None:
        raise ValueError(f"the recipe's {name} is {values[name]!r}: {advice}")

    for name in ("epochs", "batch_size", "pieces", "seed"):
        if not isinstance(values[name], int):
            refuse(name, "give a whole number")
    for name in ("epochs", "batch_size", "learning_rate", "clip", "pieces"):
        if not 0 < values[name] < math.inf:
            refuse(name, "give a positive number")
    for name, limit in (("momentum", 1.0), ("weight_decay", math.inf), ("seed", 2**63)):
        if not 0 <= values[name] < limit:
            refuse(name, f"give 0 or more, and less than {limit:g}")
    for name, choices in (
        ("schedule", ("steps", "one-cycle")),
        ("precision", ("auto", "float32", "bf16", "fp16")),
    ):
        if values[name] not in choices:
            refuse(name, "choose " + " or ".join(f'"{choice}"' for choice in choices))
    shares = values["milestones"]
    if not isinstance(shares, Sequence) or not all(0 <= share <= 1 for share in shares):
        refuse("milestones", "give shares of the run, from 0 to 1, like (0.5, 0.75)")
    if values["nesterov"] and not values["momentum"]:
        refuse("momentum", "nesterov looks ahead along it, so give a positive number")


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
