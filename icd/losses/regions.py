"""Losses of region logits: the scale-decoupled form of a logit loss, and implicit clustering distillation.

Every loss computes in float32 or better, and is finite for any finite input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from icd.losses.checks import (
    as_tuple,
    check_choice,
    check_positive,
    check_regions,
    check_same_classes,
    check_scales,
    check_shape,
    check_target,
    check_weights,
    is_number,
)
from icd.losses.numerics import (
    SHORTEST,
    SHORTEST_OF,
    constants,
    cosines,
    full_precision,
    kl_divergence,
    log_softmax,
)


def scale_decoupled_loss(
    base: Callable[..., Tensor],
    student_local: Tensor,
    teacher_local: Tensor,
    target: Tensor,
    *,
    complementary: float = 2.0,
    teacher_logits: Tensor | None = None,
    **base_arguments: Any,
) -> Tensor:
    """Apply a logit loss to every region: scale-decoupled distillation (Wei et al. 2024; chapter 3).

    A region is consistent, with weight 1, if the teacher is right about it and about the whole image, or
    wrong about both; otherwise it is complementary, with weight `complementary`.

    Args:
        base: `kd_loss`, `dkd_loss`, `nkd_loss`, or any loss with their signature.
        student_local, teacher_local: region logits (B, N, C).
        target: labels of the images, (B,), int64.
        complementary: weight of complementary regions.
        teacher_logits: the teacher's logits of the whole image, (B, C). Without them the first region must be
            the whole image: scales begin with 1.
        base_arguments: passed to `base`, such as `temperature=4.0`.

    Returns:
        A scalar: the weighted sum over regions, divided by B N.

    Raises:
        ValueError: shapes that differ, and what `base` raises.
    """
    check_regions("scale_decoupled_loss", student_local, teacher_local)
    check_same_classes("scale_decoupled_loss", student_local.shape[2], teacher_local.shape[2])
    images, regions, classes = student_local.shape
    check_target("scale_decoupled_loss", target, images)
    check_weights(complementary=complementary)
    if teacher_logits is not None:
        check_shape("scale_decoupled_loss", "teacher_logits", teacher_logits, (images, classes))
    whole = teacher_local[:, 0] if teacher_logits is None else teacher_logits
    image_right = whole.argmax(1) == target
    region_right = teacher_local.argmax(2) == target[:, None]
    every = target[:, None].expand(images, regions).reshape(-1)
    loss = base(
        student_local.reshape(-1, classes),
        teacher_local.reshape(-1, classes),
        every,
        reduction="none",
        **base_arguments,
    )
    check_shape(
        "scale_decoupled_loss",
        f'{getattr(base, "__name__", base)} with reduction="none"',
        loss,
        (images * regions,),
    )
    loss = loss.view(images, regions)
    return torch.where(region_right == image_right[:, None], loss, complementary * loss).mean()


def gram(local: Tensor, centre: bool = False) -> Tensor:
    """Return the cosines between the regions of each image at one scale (chapter 4).

    Args:
        local: region logits (B, n, C).
        centre: subtract each region's mean over classes first, so that shifting all logits of a region
            changes nothing.

    Returns:
        (B, n, n), symmetric, ones on the diagonal; zeros for a region whose logits are all zero.

    Raises:
        ValueError: logits of another shape.
    """
    if local.ndim != 3:
        raise ValueError(f"gram: region logits have shape {tuple(local.shape)}: expected (B, n, C)")
    shortest = SHORTEST_OF.get(local.dtype, SHORTEST)
    with full_precision(local) as (local,):
        return cosines(local, centre, shortest)


def icd_loss(
    student_local: Tensor,
    teacher_local: Tensor,
    scales: Sequence[int] = (1, 2, 4),
    temperature: float = 2.0,
    weights: Sequence[float] | None = None,
    centre: bool = False,
    diagonal: bool = True,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the clustering loss of iCD (Xue et al. 2025; chapters 4 and 5).

    `sum_m w_m (1/B) sum_rows KL(softmax(G_t / tau) || softmax(G_s / tau))`, G the Gram matrix of a scale;
    the factor gamma is the term's weight. A Gram matrix has no class axis, so student and teacher may have
    different classes. The defaults are the published loss; `centre`, `diagonal` and `reduction` correct it.

    Args:
        student_local: region logits (B, N, C_s), regions in the order of `scales`.
        teacher_local: the teacher's, (B, N, C_t).
        scales: positive integers; N is the sum of their squares. A 1 adds nothing: its Gram matrix is the
            number 1.
        temperature: tau > 0. Cosines lie in [-1, 1], so 2 makes nearly flat rows.
        weights: one for each scale; default `scale_weights(scales)`.
        centre: subtract each region's mean over classes first: shifting all logits of a region, which no
            softmax can see, then no longer changes the cosines.
        diagonal: False masks out the cosine of each region with itself, always 1.
        reduction: "sum" adds the rows of a scale, as published, so that a fine scale counts more; "mean"
            averages them.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes, scales, weights or a temperature that do not fit.
    """
    check_regions("icd_loss", student_local, teacher_local)
    check_positive("temperature", temperature)
    check_choice("reduction", reduction, ("sum", "mean"))
    scales = check_scales(scales)
    regions = sum(m * m for m in scales)
    if student_local.shape[1] != regions:
        raise ValueError(
            f"icd_loss: scales {scales} have {regions} regions, the logits {student_local.shape[1]}"
        )
    given, weights = weights, scale_weights(scales) if weights is None else as_tuple(weights)
    if len(weights) != len(scales) or not all(is_number(w) and 0 <= w < math.inf for w in weights):
        raise ValueError(
            f"icd_loss: weights are {given}: give {len(scales)} numbers, none negative, one for each scale"
        )
    # One Gram matrix of all regions, in whose rows the regions of other scales are masked out.
    grams = gram(student_local, centre), gram(teacher_local, centre)
    with full_precision(*grams) as (student_gram, teacher_gram):
        others, shares = _rows(student_gram, scales, weights, diagonal, reduction)
        rows = kl_divergence(
            log_softmax(teacher_gram, temperature, others), log_softmax(student_gram, temperature, others)
        )
        return (rows @ shares).mean()


def scale_weights(scales: Sequence[int]) -> tuple[float, ...]:
    """Return the weight of each scale, proportional to 1 + log2(m) and summing to 1 (chapter 5).

    Published for scales 1, 2 and 4 (weights 1, 2, 3); for any other scale it is our extrapolation.
    """
    raw = [1 + math.log2(m) for m in check_scales(scales)]
    return tuple(w / sum(raw) for w in raw)


@constants
def _rows(
    dtype: torch.dtype,
    device: torch.device,
    scales: tuple[int, ...],
    weights: tuple[float, ...],
    diagonal: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Return which entries the row of each region masks out, (N, N) bool, and its weight, (N,)."""
    number = [i for i, m in enumerate(scales) for _ in range(m * m)]
    scale = torch.tensor(number, device=device)
    others = scale != scale[:, None]
    if not diagonal:
        others.fill_diagonal_(True)
    counts = [w if reduction == "sum" else w / m**2 for w, m in zip(weights, scales, strict=True)]
    return others, torch.tensor([counts[i] for i in number], dtype=dtype, device=device)
