"""Softmax and divergence that stay finite, in float32 at least, whatever precision the networks run in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# What a loss of one's own is made of; the rest saves time.
__all__ = ["cosines", "full_precision", "kl_divergence", "log_softmax", "mask_out", "soften"]

T = TypeVar("T")

# Beyond this a softmax in float32 could meet inf - inf; no score of a network is as large.
HUGE = 1e30
# Of smaller vectors rounding has left no direction.
TINY = 1e-12
# And of these a direction's gradient, one over their length, is more than a float16 can hold.
FAINT = {torch.float16: 2.0**-10}


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Inside, autocast is off; yields the tensors in one precision, float32 at least."""
    precise = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(precise) for t in tensors)


def soften(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Scores divided by a temperature, and kept where differences are finite (chapter 1)."""
    # A clamp, whose gradient takes one pass, not five.
    return F.hardtanh(scores / temperature, -HUGE, HUGE)


def log_softmax(scores: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Log-probabilities over the last axis; entries `out` are left out (chapter 1)."""
    softened = soften(scores, temperature)
    return (softened if out is None else mask_out(softened, out)).log_softmax(-1)


def mask_out(softened: Tensor, out: Tensor) -> Tensor:
    """Tempered scores with the entries `out` so low that their probability is 0 and its logarithm finite."""
    return softened.masked_fill(out, -10 * HUGE)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, from log-probabilities (chapter 2).

    Exactly 0 where both are the same.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def cosines(vectors: Tensor, centre: bool = False, faint: float = TINY) -> Tensor:
    """Cosines between the n vectors of each set, (B, n, C) -> (B, n, n) (chapter 4).

    They are inner products divided by lengths, and the squared lengths stand on the products'
    diagonal. The result is symmetric to the bit. A cosine does not change with a vector's
    length. So the largest entry is divided out first, that products neither overflow nor
    vanish, and is a constant to the gradient for the same reason. With `centre`, the mean of
    each vector's entries is subtracted. A vector with no entry above `faint`, or of which
    centring leaves nothing but rounding, has no direction: its cosines are zero, with itself
    too.
    """
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / F.threshold(largest, faint, math.inf)
    if centre:
        scaled = scaled - scaled.mean(-1, keepdim=True)
    products = torch.bmm(scaled, scaled.mT)
    squares = products.diagonal(dim1=1, dim2=2)
    rounding = vectors.shape[-1] * torch.finfo(vectors.dtype).eps
    # 1 / length, 0 without a direction.
    inverse = F.threshold(squares, rounding**2, math.inf).rsqrt()
    return products * (inverse[:, :, None] * inverse[:, None, :])


def for_each(matrix: Tensor, batch: Tensor) -> Tensor:
    """`matrix @ batch`, (n, m) with (B, m, k) -> (B, n, k), in two operators where `@` takes six."""
    return torch.bmm(matrix.expand(len(batch), -1, -1), batch)


def constants(make: Callable[..., T]) -> Callable[..., T]:
    """Remembers the constant tensors that `make(dtype, device, *arguments)` returns.

    What is returned takes a tensor like them in the place of dtype and device. So a step does not make them
    again, and does not wait for a GPU to be sent them.
    """
    remember = lru_cache(maxsize=64)(make)

    def made(like: Tensor, *arguments: object) -> T:
        with torch.inference_mode(False):  # what is made inside of it is of no use to a gradient outside
            # A fake tensor lives no longer than its mode.
            return (remember if type(like) is Tensor else make)(like.dtype, like.device, *arguments)

    return made
