"""Scores of a network for a batch: its logits, its last feature map, and the logits of every region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd.errors import AdaptError
from icd.losses.checks import check_choice, check_scales
from icd.losses.numerics import constants, for_each, full_precision

Scales = Sequence[int]
Pooling = Literal["adaptive", "area"]


class _Fields(NamedTuple):
    logits: Tensor  # (B, C) image-level class scores
    features: Tensor  # (B, D, H, W) the map that the head reads once it is pooled
    head: nn.Module  # the classifier: linear, or one that makes a map of class scores (`adapt`)
    stages: tuple[Tensor, ...] = ()  # the maps after each stage, for losses that compare features


class Scores(_Fields):
    """The outputs of one network for one batch (chapter 3): `logits`, `features`, `head`, `stages`."""

    def local(
        self, scales: Scales = (1, 2, 4), pooling: Pooling = "adaptive", repeat: bool = False
    ) -> Tensor:
        """Return the logits of every region, (B, N, C); see `local_logits`.

        Computed once for all terms that ask for the same regions.
        """
        memo: dict = self.__dict__.setdefault("_local", {})
        how = (check_scales(scales), pooling, repeat)
        key = (*how, torch.is_grad_enabled())  # a value computed under no_grad has no gradient for a loss
        if key not in memo:
            if isinstance(self.head, nn.Linear):
                memo[key] = local_logits(self.features, self.head.weight, self.head.bias, *how)
            else:
                with full_precision(self.features) as (features,):
                    memo[key] = local_logits(self.head(features), None, None, *how)
        return memo[key]

    def rows(self, where: slice) -> Scores:
        """Return the scores of some of the images."""
        stages = tuple(stage[where] for stage in self.stages)
        return Scores(self.logits[where], self.features[where], self.head, stages)


class _LogitsOnly(Scores):
    """The scores of a classifier that `score` cannot look into; `head` is the whole model."""

    @property
    def features(self) -> Tensor:
        raise AdaptError(
            f"{type(self.head).__name__} gives logits of whole images only: for losses of regions or "
            "features wrap it with icd.networks.adapt, or use cross_entropy() and whole_image()"
        )

    @property
    def stages(self) -> tuple[Tensor, ...]:
        return (self.features,)

    def rows(self, where: slice) -> Scores:
        return _LogitsOnly(self.logits[where], self[1], self.head)


def score(model: nn.Module, images: Tensor) -> Scores:
    """Send images (B, 3, H, W) once through `model` and return its scores (chapter 3).

    A network of `icd.networks` has a linear `head` over the average of its last map, and `maps(images)` that
    returns that map (B, D, h, w) and a tuple of the stages' maps; an adapted one has its own `score(images)`.
    Of any other module that returns logits (B, C) only whole images can be compared: its `features`, `stages`
    and `local` raise AdaptError.

    Raises:
        TypeError: a module that returns no logits (B, C).
        ValueError: images of another shape or dtype.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}: expected (B, 3, H, W)")
    if not images.is_floating_point():
        raise ValueError(
            f"images have dtype {images.dtype}: normalise them with icd.datasets.cache.normalise"
        )
    own = getattr(type(model), "score", None)
    if own is not None:
        return own(model, images)
    head, maps = getattr(model, "head", None), getattr(model, "maps", None)
    if isinstance(head, nn.Linear) and maps is not None:
        features, stages = maps(images)
        return Scores(head(features.mean((2, 3))), features, head, stages)
    output = model(images)
    logits = getattr(output, "logits", output)  # some models return named outputs
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise TypeError(f"{type(model).__name__} returns no logits of shape (B, C)")
    return _LogitsOnly(logits, logits, model)


@dataclass(frozen=True)
class Batch:
    """One batch of training images."""

    images: Tensor  # (B, 3, H, W), normalised
    target: Tensor  # (B,) int64 labels
    index: Tensor  # (B,) int64, which images of the training set these are

    def rows(self, where: slice) -> Batch:
        """Return some of the images with their labels and numbers."""
        return Batch(self.images[where], self.target[where], self.index[where])


class Scoring(nn.Module):
    """A network whose forward pass returns `Scores`, so that wrappers (compile, DDP) see one forward."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Scores:
        return score(self.network, images)


def local_logits(
    features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scales: Scales = (1, 2, 4),
    pooling: Pooling = "adaptive",
    repeat: bool = False,
) -> Tensor:
    """Return the logits of every region of a feature map (Wei et al. 2024, section 3; chapter 3).

    Scale m cuts the map into m x m regions. The head is affine and pooling is averaging, so they commute: the
    head is applied once, on a grid of cells, and regions are averages of the cells' logits.

    Args:
        features: the last feature map, (B, D, H, W).
        weight: of the head, (C, D); None if the map already holds class scores.
        bias: of the head, (C,), or None.
        scales: positive integers, in the order in which their regions are returned.
        pooling: "adaptive" is the published code: the map is pooled to 4 x 4 cells (to the finest scale if
            that is finer), whose bins overlap where 4 does not divide H or W, and scales that divide this
            grid average it. "area" shares a pixel between regions in proportion to overlap, so that the mean
            over a scale's regions is the image's logits.
        repeat: allow a scale finer than the map, whose regions repeat or blend its cells.

    Returns:
        (B, N, C), N the sum of m * m; regions row-major within a scale. Float32 for half-precision features,
        else the dtype of the features.

    Raises:
        ValueError: shapes that do not fit, a scale that is not a positive integer, or a scale finer than the
            map without `repeat`.
    """
    if features.ndim != 4:
        raise ValueError(f"features have shape {tuple(features.shape)}: expected (B, D, H, W)")
    channels, height, width = features.shape[1:]
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != channels):
        raise ValueError(
            f"the head's weight has shape {tuple(weight.shape)}: expected (C, {channels}), as the map"
        )
    if weight is not None and bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"the head's bias has shape {tuple(bias.shape)}: expected ({len(weight)},), as its weight"
        )
    scales = check_scales(scales)
    check_choice("pooling", pooling, ("adaptive", "area"))
    if max(scales) > min(height, width) and not repeat:
        raise ValueError(
            f"scale {max(scales)} cuts a {height} x {width} map into {max(scales)} x {max(scales)} regions, "
            "more than it has cells: they would only repeat. Use coarser scales, or say repeat=True"
        )
    grids = _grids(height, width, scales, pooling)
    with full_precision(features) as (features,):
        cells, blocks = _plan(features, height, width, scales, grids, pooling)
        # (B, cells, D), in this order in memory, as the head reads them. For one grid over a map that is
        # channels last on a CPU, PyTorch's own pooling takes half the time.
        channels_last = features.is_contiguous(memory_format=torch.channels_last)
        if features.device.type == "cpu" and channels_last and pooling == "adaptive" and len(grids) == 1:
            logits = F.adaptive_avg_pool2d(features, grids[0]).flatten(2).mT
        else:
            logits = for_each(cells, features.flatten(2).mT)
        if weight is not None:
            logits = F.linear(
                logits, weight.to(logits.dtype), None if bias is None else bias.to(logits.dtype)
            )
        return logits if blocks is None else for_each(blocks, logits)


def _grids(height: int, width: int, scales: tuple[int, ...], pooling: Pooling) -> tuple[int, ...]:
    """Return the grids that the map is pooled to: a shared one that scales average, and scales' own."""
    shared, side = max(scales), min(height, width)
    if pooling == "adaptive" and side >= 4:
        shared = max(shared, 4)  # as the published code does, whatever the scales
    elif pooling == "adaptive" and shared <= side:
        return tuple(sorted(set(scales)))  # the map itself is the finest grid
    own = sorted({m for m in scales if shared % m})
    return (shared, *own) if len(own) < len(set(scales)) else tuple(own)


@constants
def _plan(
    dtype: torch.dtype,
    device: torch.device,
    height: int,
    width: int,
    scales: tuple[int, ...],
    grids: tuple[int, ...],
    pooling: Pooling,
) -> tuple[Tensor, Tensor | None]:
    """Return pooling as two matrices: map pixels -> cells (K, HW), and cells -> regions (N, K) or None."""
    cells = torch.cat([torch.kron(_bins(height, m, pooling), _bins(width, m, pooling)) for m in grids])
    if scales == grids:
        return cells.to(dtype=dtype, device=device), None
    first = dict(zip(grids, accumulate((m * m for m in grids), initial=0), strict=False))
    blocks = torch.zeros(sum(m * m for m in scales), len(cells), dtype=torch.float64)
    row = 0
    for m in scales:
        source = m if m in first else grids[0]  # the shared grid
        steps = _bins(source, m, "area")
        blocks[row : row + m * m, first[source] : first[source] + source * source] = torch.kron(steps, steps)
        row += m * m
    return cells.to(dtype=dtype, device=device), blocks.to(dtype=dtype, device=device)


def _bins(length: int, m: int, pooling: Pooling) -> Tensor:
    """Return the averages of `length` pixels in `m` bins as a matrix, (m, length); each row sums to 1."""
    weights = torch.zeros(m, length, dtype=torch.float64)
    for i in range(m):
        start, stop = i * length / m, (i + 1) * length / m
        for pixel in range(math.floor(i * length / m), min(-(-(i + 1) * length // m), length)):
            overlap = min(pixel + 1, stop) - max(pixel, start)
            weights[i, pixel] = 1.0 if pooling == "adaptive" else overlap
    return weights / weights.sum(1, keepdim=True)
