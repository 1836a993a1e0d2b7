"""Losses of features, with the parts that learn or remember left to their terms: FitNet, CRD and SemCKD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icd.losses.checks import check_positive, check_shape, check_vectors
from icd.losses.numerics import full_precision

SMALLEST = 1e-7  # as in the published code of CRD


def fitnet_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the mean squared error between a regressed student map and a teacher map (Romero et al. 2015).

    Args:
        student_map: the student's stage after the regressor, (B, D, H, W).
        teacher_map: the teacher's stage, the same shape.

    Returns:
        A scalar, without the published weight 100.

    Raises:
        ValueError: maps of different shapes.
    """
    check_shape("fitnet_loss", "the student's map", student_map, tuple(teacher_map.shape))
    with full_precision(student_map, teacher_map) as (student, teacher):
        return F.mse_loss(student, teacher)


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    index: Tensor,
    negatives: Tensor | None = None,
    constants: Tensor | None = None,
    temperature: float = 0.07,
) -> tuple[Tensor, Tensor]:
    """Return the loss of contrastive representation distillation (Tian et al. 2020, equation 18).

    Each network's embedding of an image is contrasted with the other network's memory: the memory of the same
    image is the positive, that of others the negatives. With P = exp(embedding . memory / T) / Z and
    m negatives of N images, the loss is the mean over images of
    `-log(P+ / (P+ + m/N)) - sum log((m/N) / (P- + m/N))`, for both networks.

    Args:
        student, teacher: embeddings of length 1, (B, E).
        student_memory, teacher_memory: embeddings of all images, (N, E).
        index: which images the batch holds, (B,) int64.
        negatives: which images each one is contrasted with, (B, m) int64; None for all others.
        constants: Z of the student's and the teacher's memory, (2,); where not positive, N times the mean of
            exp(...) in this batch, as in the first step of the published code.
        temperature: T > 0.

    Returns:
        The loss, without the published weight .8, and the constants that it used, (2,).

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.
    """
    check_vectors("crd_loss", student, teacher)
    check_positive("temperature", temperature)
    for name, memory in (("student_memory", student_memory), ("teacher_memory", teacher_memory)):
        check_shape("crd_loss", name, memory, (len(student_memory), student.shape[1]))
    check_shape("crd_loss", "teacher", teacher, tuple(student.shape))
    check_shape("crd_loss", "index", index, (len(student),))
    images = len(student_memory)
    with full_precision(student, teacher) as (student, teacher):
        losses, used = [], []
        for number, (embedding, memory) in enumerate(((teacher, student_memory), (student, teacher_memory))):
            scores = (embedding @ memory.to(embedding.dtype).mT / temperature).exp()
            positive = scores.gather(1, index[:, None])
            others = scores if negatives is None else scores.gather(1, negatives)
            drawn = others if negatives is None else torch.cat([positive, others], 1)
            constant = drawn.detach().mean() * images
            if constants is not None:
                constant = torch.where(constants[number] > 0, constants[number], constant)
            share = (others.shape[1] - (negatives is None)) / images
            positive, others = positive / constant, others / constant
            attraction = (positive / (positive + share + SMALLEST)).log()
            repulsion = (share / (others + share + SMALLEST)).log()
            if negatives is None:  # every image but the image itself
                repulsion = repulsion.scatter(1, index[:, None], 0.0)
            losses.append(-(attraction.sum() + repulsion.sum()) / len(embedding))
            used.append(constant)
        return losses[0] + losses[1], torch.stack(used)


def semckd_loss(
    attention: Tensor, student_maps: Sequence[Sequence[Tensor]], teacher_maps: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Return the loss of semantic calibration (Chen et al. 2021, equation 7).

    The mean squared error of every pair of stages, weighted by an image's attention, averaged over images and
    student stages.

    Args:
        attention: how much each student stage attends to each teacher stage, (B, S, T), rows summing to 1.
        student_maps: `student_maps[i][j]` is the student's stage i projected for the teacher's stage j.
        teacher_maps: `teacher_maps[i][j]` is the teacher's stage j in the size of the student's stage i.

    Returns:
        A scalar, without the published weight 400.

    Raises:
        ValueError: stages that do not fit the attention, or maps of different shapes.
    """
    images, students, teachers = attention.shape
    if len(student_maps) != students or any(len(row) != teachers for row in student_maps):
        raise ValueError(
            f"semckd_loss: attention is over {students} x {teachers} stages, the maps are others"
        )
    rows = []
    for i in range(students):
        for j in range(teachers):
            student, teacher = student_maps[i][j], teacher_maps[i][j]
            check_shape("semckd_loss", f"the student's map {i}, {j}", student, tuple(teacher.shape))
            with full_precision(student, teacher) as (student, teacher):
                rows.append((student - teacher).square().flatten(1).mean(1))
    errors = torch.stack(rows, 1).view(images, students, teachers)
    return (attention.to(errors.dtype) * errors).sum() / (images * students)
