"""Controls: terms that keep all of a method but the one thing that a claim is about.

Every shuffle is a function of the image's number alone, so it is the same in every epoch, for every student,
and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from icd.losses import kd_loss, scale_decoupled_loss
from icd.losses.checks import check_scales
from icd.scores import Batch, Scores
from icd.terms.base import Term, call
from icd.terms.logits import local_pair, short_name


def shuffled_kd(temperature: float = 4.0) -> Term:
    """Apply `kd_loss` after shuffling the teacher's logits of the other classes.

    The teacher's confidence in the target and the values of its other logits stay; which class has which is
    lost. What this term gains is not what the teacher knows about the other classes ("dark knowledge").
    """

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        logits, target = teacher.logits.detach(), batch.target[:, None]
        classes = logits.shape[1]
        # Both begin with the target, which keeps its place; the others follow shuffled, and in order.
        order = shuffle(batch.index, classes).scatter(1, target, -1).argsort(1)
        places = (
            torch.arange(classes, device=target.device).expand_as(order).scatter(1, target, -1).argsort(1)
        )
        mixed = torch.empty_like(logits).scatter(1, places, logits.gather(1, order))
        return kd_loss(student.logits, mixed, temperature=temperature)

    expression = call("shuffled_kd", temperature=float(temperature))
    return Term("shuffled_kd", expression, function, same_classes=True)


def shuffled_regions(
    loss: Callable[..., Tensor], scales: Sequence[int] = (1, 2, 4), **arguments: Any
) -> Term:
    """Apply a logit loss region by region after shuffling the teacher's regions within each scale.

    `scale_decoupled` without the correspondence of regions: what this term gains is not where the teacher
    sees what.
    """
    scales = check_scales(scales)

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours, theirs = local_pair(student, teacher, scales)
        parts = []
        for number, part in enumerate(theirs.split([m * m for m in scales], dim=1)):
            order = shuffle(batch.index + number * 1_000_003, part.shape[1]).argsort(1)
            parts.append(part.gather(1, order[:, :, None].expand_as(part)))
        mixed = torch.cat(parts, 1)
        return scale_decoupled_loss(
            loss, ours, mixed, batch.target, teacher_logits=teacher.logits, **arguments
        )

    given = {} if scales == (1, 2, 4) else {"scales": scales}
    expression = call("shuffled_regions", loss.__name__, **given, **arguments)
    return Term(f"shuffled_sd_{short_name(loss)}", expression, function, same_classes=True)


def shuffle(index: Tensor, count: int) -> Tensor:
    """Return keys (B, count) whose order is a random permutation for each image, by its number alone."""
    key = index[:, None] * count + torch.arange(count, device=index.device) + 1
    for factor in (0x9E3779B1, 0x85EBCA77):  # the odd constants of xxHash
        key = (key * factor) % 2**32
        key = key ^ (key >> 15)
    return key
