"""What a run shows: accuracy, differences with their intervals, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from icd.pixels import Pixels


@torch.no_grad()
def predictions(model: nn.Module, data: Pixels, batch_size: int = 256) -> Tensor:
    """The logits of every image, (N, C) float32 on the host, in the order of `data`."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = [model(images).float().cpu() for images, _ in data.batches(batch_size, device)]
    model.train(was_training)
    return torch.cat(logits)


def accuracy(model: nn.Module, data: Pixels) -> float:
    """The share of images whose highest logit is their class, top-1."""
    return (predictions(model, data).argmax(1) == data.labels.cpu()).double().mean().item()


def within(groups: Sequence[int] | np.ndarray, logits: Tensor, labels: Tensor) -> float:
    """Of the wrong answers, the share that stays inside the right group (a bird's family, say).

    Args:
        groups: the group of each class, (C,).
        logits: (N, C).
        labels: (N,).

    Returns:
        A share in [0, 1]; NaN where no answer is wrong.
    """
    group = torch.as_tensor(np.asarray(groups))
    answer = logits.argmax(1)
    wrong = answer != labels.cpu()
    return (group[answer[wrong]] == group[labels.cpu()[wrong]]).double().mean().item()


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        verdict = "no difference seen" if self.low <= 0 <= self.high else "a difference"
        return f"{self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}] over {self.pairs} seeds: {verdict}"


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of `a - b`, run by run with the same seed, and its Student t interval.

    Raises:
        ValueError: fewer than two pairs, or lists of different length.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"{len(a)} and {len(b)} runs: a paired interval needs two pairs at least, seed by seed"
        )
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, spread = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    reach = float(student_t.ppf((1 + confidence) / 2, len(difference) - 1)) * spread
    return Interval(float(mean), float(mean - reach), float(mean + reach), len(difference))
