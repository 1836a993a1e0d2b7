"""Losses of image-level logits: KD, DKD and NKD, in float32 or better and finite for any finite input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from icd.losses.checks import (
    check_against_others,
    check_choice,
    check_logits,
    check_positive,
    check_weights,
)
from icd.losses.numerics import (
    full_precision,
    kl_divergence,
    log_softmax,
    mask_out,
    soften,
)

SMALLEST_SPREAD = 1e-7  # as in the published code of standardisation


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 4.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Return the loss of knowledge distillation (Hinton et al. 2015, section 2; chapter 2).

    `T^2 KL(softmax(teacher / T) || softmax(student / T))`; the factor keeps the size of its gradient when T
    changes.

    Args:
        student, teacher: logits (B, C).
        target: not used; every logit loss has this signature.
        temperature: T > 0.
        reduction: "mean" over the batch, or "none" for the loss of each image.

    Returns:
        A scalar, or (B,) with `reduction="none"`.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.
    """
    check_logits("kd_loss", student, teacher)
    check_positive("temperature", temperature)
    with full_precision(student, teacher) as (student, teacher):
        apart = kl_divergence(log_softmax(teacher, temperature), log_softmax(student, temperature))
        return _reduce(temperature**2 * apart, reduction)


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Return the loss of decoupled knowledge distillation (Zhao et al. 2022, equation 7; chapter 2).

    `T^2 (alpha TCKD + beta NCKD)`: TCKD compares the probability of the target with that of all other classes
    together, NCKD the distributions over the other classes. With alpha 1 and beta equal to the teacher's
    probability of "another class", this is `kd_loss` exactly.

    Args:
        student, teacher: logits (B, C), C at least 2.
        target: labels (B,), int64.
        alpha, beta: weights of the two parts. The paper's beta is 8; iCD's runs have 2.
        temperature: T > 0.
        reduction: "mean" or "none".

    Returns:
        A scalar, or (B,) with `reduction="none"`.

    Raises:
        ValueError: shapes that differ, fewer than two classes, a temperature that is not
            positive, a negative weight.
    """
    check_logits("dkd_loss", student, teacher)
    check_against_others("dkd_loss", target, student)
    check_positive("temperature", temperature)
    check_weights(alpha=alpha, beta=beta)
    with full_precision(student, teacher) as (student, teacher):
        label = _one_hot(target, student.shape[1])
        tckd = kl_divergence(
            _target_or_not(teacher, target, label, temperature),
            _target_or_not(student, target, label, temperature),
        )
        nckd = kl_divergence(
            log_softmax(teacher, temperature, label),
            log_softmax(student, temperature, label),
        )
        return _reduce(temperature**2 * (alpha * tckd + beta * nckd), reduction)


def nkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
    exclude_target: bool = True,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Return the loss of normalised knowledge distillation (Yang et al. 2023, equation 7; chapter 2).

    `-p_t[y] log p_s[y] - gamma T^2 sum_{i != y} q_t[i] log q_s[i]`, with p at temperature 1 and q the softmax
    at T over the classes other than the target y.

    Args:
        student, teacher: logits (B, C), C at least 2.
        target: labels (B,), int64.
        temperature: T > 0 of the non-target part.
        gamma: weight of the non-target part.
        exclude_target: True is the formula. False is what the published code computes: its mask removes no
            class, so q is the softmax over all of them.
        reduction: "mean" or "none".

    Returns:
        A scalar, or (B,) with `reduction="none"`. A cross-entropy, so not zero if both agree.

    Raises:
        ValueError: shapes that differ, fewer than two classes, a temperature that is not
            positive, a negative weight.
    """
    check_logits("nkd_loss", student, teacher)
    check_against_others("nkd_loss", target, student)
    check_positive("temperature", temperature)
    check_weights(gamma=gamma)
    with full_precision(student, teacher) as (student, teacher):
        y = target[:, None]
        sure = log_softmax(teacher).gather(1, y).exp() * log_softmax(student).gather(1, y)
        label = _one_hot(target, student.shape[1]) if exclude_target else None
        q_teacher = log_softmax(teacher, temperature, label).exp()
        spread = (q_teacher * log_softmax(student, temperature, label)).sum(1)
        return _reduce(-sure.squeeze(1) - gamma * temperature**2 * spread, reduction)


def standardise(logits: Tensor) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 over the classes (Sun et al. 2024, equation 12).

    A loss of standardised logits ignores their shift and scale, as a label does.

    Args:
        logits: (..., C), C at least 2.
    """
    with full_precision(logits) as (logits,):
        return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + SMALLEST_SPREAD)


def _target_or_not(scores: Tensor, target: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities (B, 2) of the target and of all other classes together."""
    softened = soften(scores, temperature)
    rest = mask_out(softened, label).logsumexp(1)
    return torch.stack([softened.gather(1, target[:, None]).squeeze(1), rest], 1).log_softmax(1)


def _one_hot(target: Tensor, classes: int) -> Tensor:
    """Return a mask (B, C) that is True for the target."""
    return torch.arange(classes, device=target.device) == target[:, None]


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    check_choice("reduction", reduction, ("mean", "none"))
    return losses.mean() if reduction == "mean" else losses
