"""Softmax, KL divergence and cosines that stay finite, computed in float32 or better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# The functions that a new loss is made of; the others save time.
__all__ = ["cosines", "full_precision", "kl_divergence", "log_softmax", "mask_out", "soften"]

T = TypeVar("T")

# Larger logits could give inf - inf in a float32 softmax; no network outputs them.
LARGEST_LOGIT = 1e30
# A shorter vector is all rounding: it has no direction.
SHORTEST = 1e-12
# In float16 the gradient of the direction of such a vector, about 1 / length, overflows.
SHORTEST_OF = {torch.float16: 2.0**-10}


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Disable autocast, and yield the tensors in their widest dtype, at least float32."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.to(dtype) for t in tensors)


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return logits divided by a temperature, clamped so that their differences are finite (chapter 1)."""
    # hardtanh is a clamp whose gradient takes one pass instead of five.
    return F.hardtanh(logits / temperature, -LARGEST_LOGIT, LARGEST_LOGIT)


def log_softmax(logits: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Return log-probabilities over the last axis; entries where `out` is True are masked (chapter 1)."""
    softened = soften(logits, temperature)
    return (softened if out is None else mask_out(softened, out)).log_softmax(-1)


def mask_out(softened: Tensor, out: Tensor) -> Tensor:
    """Return softened logits whose entries `out` have probability 0 and a finite log-probability."""
    return softened.masked_fill(out, -10 * LARGEST_LOGIT)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis from log-probabilities (chapter 2), exactly 0 if equal."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def cosines(vectors: Tensor, centre: bool = False, shortest: float = SHORTEST) -> Tensor:
    """Return the cosines between the n vectors of each set, (B, n, C) -> (B, n, n) (chapter 4).

    Inner products are divided by the lengths, whose squares are the products' diagonal, so the result is
    symmetric to the bit. Each vector is first divided by its largest entry, a constant to the gradient: a
    cosine does not depend on length, and products neither overflow nor vanish.

    Args:
        vectors: n vectors of C entries for each of B sets.
        centre: subtract the mean of each vector's entries first.
        shortest: a vector with no entry above this, or of which centring leaves only rounding, has no
            direction: its cosines are 0, the one with itself too.
    """
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / F.threshold(largest, shortest, math.inf)
    if centre:
        scaled = scaled - scaled.mean(-1, keepdim=True)
    products = torch.bmm(scaled, scaled.mT)
    squares = products.diagonal(dim1=1, dim2=2)
    rounding = vectors.shape[-1] * torch.finfo(vectors.dtype).eps
    inverse = F.threshold(squares, rounding**2, math.inf).rsqrt()  # 1 / length, 0 without a direction
    return products * (inverse[:, :, None] * inverse[:, None, :])


def smaller_size(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Return the smaller height and the smaller width of two maps (B, D, H, W)."""
    return min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])


def for_each(matrix: Tensor, batch: Tensor) -> Tensor:
    """Return `matrix @ batch`, (n, m) with (B, m, k) -> (B, n, k), in two operators; `@` takes six."""
    return torch.bmm(matrix.expand(len(batch), -1, -1), batch)


def constants(make: Callable[..., T]) -> Callable[..., T]:
    """Cache the constant tensors that `make(dtype, device, *arguments)` returns.

    The decorated function takes a tensor, whose dtype and device it uses, in place of both. Constants are
    built once and not at every step, which also avoids copies from host to GPU.
    """
    cached = lru_cache(maxsize=64)(make)

    def cached_constants(like: Tensor, *arguments: object) -> T:
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be used for gradients
            # Fake tensors do not outlive their mode, so they are not cached.
            return (cached if type(like) is Tensor else make)(like.dtype, like.device, *arguments)

    return cached_constants
