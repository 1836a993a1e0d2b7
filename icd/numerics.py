"""Softmax and divergence that stay finite, in float32 at least, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Beyond this a softmax in float32 could meet inf - inf; no score of a network is as large.
HUGE = 1e30
# Of smaller vectors rounding has left no direction.
TINY = 1e-12


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Inside, autocast is off; yields the tensors with half precisions raised to float32."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def temper(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Scores divided by a temperature, kept where differences of two are finite."""
    return (scores / temperature).clamp(-HUGE, HUGE)


def log_softmax(scores: Tensor, temperature: float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Log-probabilities over the last axis, of the entries in `keep` alone where it is given (chapter 1)."""
    tempered = temper(scores, temperature)
    if keep is not None:
        tempered = leave_out(tempered, ~keep)
    return tempered.log_softmax(-1)


def leave_out(tempered: Tensor, out: Tensor) -> Tensor:
    """Tempered scores with the entries `out` so low that their probability is 0 and its logarithm finite."""
    return tempered.masked_fill(out, -10 * HUGE)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, from log-probabilities; exactly 0 where both are the same."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def directions(vectors: Tensor, centre: bool = False) -> Tensor:
    """Vectors of the last axis at length 1, with `centre` after their mean is subtracted.

    A direction does not change with a vector's length. So the largest entry is divided out first, that
    sums and squares neither overflow nor vanish, and is a constant to the gradient for the same reason.
    A vector of zeros, or one that centring leaves nothing but rounding of, has no direction and becomes zero.
    """
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > TINY, largest, 1.0)
    if centre:
        scaled = scaled - scaled.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    rounding = vectors.shape[-1] * torch.finfo(vectors.dtype).eps
    return torch.where(length > rounding, scaled / torch.where(length > rounding, length, 1.0), 0.0)
