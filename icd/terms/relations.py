"""Terms of relations: SP, RKD and AT. Student and teacher need no common classes."""

from __future__ import annotations

from torch import Tensor

from icd.losses import at_loss, rkd_loss, sp_loss
from icd.scores import Batch, Scores
from icd.terms.base import Term, call


def sp() -> Term:
    """Compare the images of a batch by their last maps (Tung and Mori 2019). Published weight: 3000.

    `icd.losses.sp_loss`.
    """

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return sp_loss(student.features, teacher.features.detach())

    return Term("sp", "sp()", function)


def rkd(distance: float = 25.0, angle: float = 50.0) -> Term:
    """Compare distances and angles between images (Park et al. 2019). The published weights are inside.

    `icd.losses.rkd_loss` of the last maps averaged over places.
    """
    given = {"distance": (distance, 25.0), "angle": (angle, 50.0)}
    changed = {name: float(value) for name, (value, default) in given.items() if value != default}

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours, theirs = student.features.mean((2, 3)), teacher.features.detach().mean((2, 3))
        return rkd_loss(ours, theirs, distance, angle)

    return Term("rkd", call("rkd", **changed), function)


def at(power: float = 2) -> Term:
    """Compare the attention maps of all stages but the stem (Zagoruyko and Komodakis 2017).

    The sum of `icd.losses.at_loss` over stages, paired from the last. Published weight: 1000.
    """

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        pairs = min(len(student.stages), len(teacher.stages)) - 1
        if pairs < 1:
            raise ValueError("at compares stages, and a network has fewer than two")
        ours, theirs = student.stages[-pairs:], teacher.stages[-pairs:]
        losses = [at_loss(s, t.detach(), power) for s, t in zip(ours, theirs, strict=True)]
        return sum(losses[1:], losses[0])

    return Term("at", call("at", **({} if power == 2 else {"power": float(power)})), function)
