"""Losses of relations between the images of a batch, and of attention maps: SP, RKD and AT."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from icd.losses.checks import check_maps, check_positive, check_vectors, check_weights
from icd.losses.numerics import full_precision, smaller_size

# Squared distances below this are rounding; their root has no finite gradient at 0.
CLOSEST = 1e-12


def sp_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Return the loss of similarity-preserving distillation (Tung and Mori 2019, equation 4).

    `||N(A_t) - N(A_s)||^2 / B^2`, A the (B, B) inner products of the images' flattened maps, N the division
    of each row by its length. The clustering term compares regions of an image where this compares images.

    Args:
        student_maps, teacher_maps: feature maps (B, D, H, W), D, H and W of each network.

    Returns:
        A scalar, without the published weight 3000.

    Raises:
        ValueError: maps of other shapes.
    """
    check_maps("sp_loss", student_maps, teacher_maps)
    with full_precision(student_maps, teacher_maps) as maps:
        rows = [m.flatten(1) for m in maps]
        # A scale of all maps cancels in N; dividing by it first keeps inner products finite.
        rows = [r / r.detach().abs().amax().clamp_min(CLOSEST) for r in rows]
        student, teacher = (F.normalize(r @ r.mT) for r in rows)
        return (teacher - student).square().sum() / len(student) ** 2


def rkd_loss(
    student_vectors: Tensor, teacher_vectors: Tensor, distance: float = 25.0, angle: float = 50.0
) -> Tensor:
    """Return the loss of relational knowledge distillation (Park et al. 2019, equations 4 to 9).

    `distance` times the smooth L1 loss between distances of images, divided by the batch's mean distance,
    plus `angle` times that between the cosines of the angles that every three images form.

    Args:
        student_vectors, teacher_vectors: features (B, D), averaged over places; D of each network.
        distance, angle: weights of the two parts, 25 and 50 as published.

    Returns:
        A scalar.

    Raises:
        ValueError: vectors of other shapes, or a negative weight.
    """
    check_vectors("rkd_loss", student_vectors, teacher_vectors)
    check_weights(distance=distance, angle=angle)
    with full_precision(student_vectors, teacher_vectors) as vectors:
        # Both parts ignore scale; dividing by it first keeps squares finite.
        student, teacher = (v / v.detach().abs().amax().clamp_min(CLOSEST) for v in vectors)
        distances = F.smooth_l1_loss(_distances(student), _distances(teacher))
        angles = F.smooth_l1_loss(_angles(student), _angles(teacher))
        return distance * distances + angle * angles


def at_loss(student_maps: Tensor, teacher_maps: Tensor, power: float = 2) -> Tensor:
    """Return the loss of attention transfer between two stages (Zagoruyko and Komodakis 2017, equation 2).

    The mean squared difference of attention maps: `|F|^power` averaged over channels, flattened and divided
    by its length. The larger map is pooled to the size of the smaller one.

    Args:
        student_maps, teacher_maps: feature maps (B, D, H, W), D, H and W of each network.
        power: p > 0, 2 as published.

    Returns:
        A scalar, without the published weight 1000.

    Raises:
        ValueError: maps of other shapes, or a power that is not positive.
    """
    check_maps("at_loss", student_maps, teacher_maps)
    check_positive("power", power)
    size = smaller_size(student_maps, teacher_maps)
    with full_precision(student_maps, teacher_maps) as maps:
        student, teacher = (_attention(F.adaptive_avg_pool2d(m, size), power) for m in maps)
        return (student - teacher).square().mean()


def _attention(maps: Tensor, power: float) -> Tensor:
    """Return attention maps (B, H * W) of length 1."""
    largest = maps.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(CLOSEST)
    return F.normalize((maps / largest).abs().pow(power).mean(1).flatten(1))


def _distances(vectors: Tensor) -> Tensor:
    """Return the distances (B, B) divided by the mean of those between different images."""
    squares = vectors.square().sum(1)
    between = (squares[:, None] + squares - 2 * vectors @ vectors.mT).clamp_min(CLOSEST).sqrt()
    count = len(vectors)
    between = between * (1 - between.new_ones(count).diag())
    return between * (count * (count - 1)) / between.sum().clamp_min(CLOSEST)


def _angles(vectors: Tensor) -> Tensor:
    """Return the cosines (B, B, B) of the angles at each image between every two others."""
    directions = F.normalize(vectors - vectors[:, None], dim=2)
    return directions @ directions.mT
