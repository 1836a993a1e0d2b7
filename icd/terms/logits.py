"""Terms of logits: cross-entropy, the logit losses on the image and on its regions, and clustering."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icd.errors import did_you_mean
from icd.losses import icd_loss, scale_decoupled_loss, standardise
from icd.losses.checks import check_scales
from icd.scores import Batch, Pooling, Scores
from icd.terms.base import Term, call


def cross_entropy(smoothing: float = 0.0) -> Term:
    """Compare the student's logits with the labels (chapter 1).

    The one term of a student that trains without a teacher. `smoothing` spreads that much of the target's
    probability evenly over all classes (label smoothing), a control of distillation.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: give a number from 0 to below 1")

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits.float(), batch.target, label_smoothing=smoothing)

    given = {"smoothing": smoothing} if smoothing else {}
    return Term("cross_entropy", call("cross_entropy", **given), function, needs_teacher=False)


def whole_image(loss: Callable[..., Tensor], *, standardised: bool = False, **arguments: Any) -> Term:
    """Apply a logit loss to the image-level logits of both networks (chapter 2).

    `loss` is `kd_loss`, `dkd_loss`, `nkd_loss`, or any function with their signature; `arguments` go to it.
    `standardised` applies `icd.losses.standardise` to the logits first.
    """

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        pair = student.logits, teacher.logits.detach()
        return loss(*(map(standardise, pair) if standardised else pair), batch.target, **arguments)

    _check_arguments(arguments, loss)
    _check_scalar(loss, torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), **arguments)
    given = {"standardised": True} if standardised else {}
    expression = call("whole_image", loss.__name__, **given, **arguments)
    return Term(short_name(loss), expression, function, same_classes=True)


def scale_decoupled(
    loss: Callable[..., Tensor],
    scales: Sequence[int] = (1, 2, 4),
    *,
    pooling: Pooling = "adaptive",
    repeat: bool = False,
    standardised: bool = False,
    **arguments: Any,
) -> Term:
    """Apply a logit loss to the local logits of both networks, region by region (chapter 3).

    `icd.losses.scale_decoupled_loss`; `arguments` go to it and to `loss`. `standardised` applies
    `icd.losses.standardise` to every region's logits first.
    """
    scales = check_scales(scales)
    _check_arguments(arguments, scale_decoupled_loss, loss)
    one = torch.zeros(1, 1, 2)
    _check_scalar(scale_decoupled_loss, loss, one, one, torch.zeros(1, dtype=torch.int64), **arguments)

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours, theirs = local_pair(student, teacher, scales, pooling, repeat)
        if standardised:
            ours, theirs = standardise(ours), standardise(theirs)
        whole = teacher.logits
        return scale_decoupled_loss(loss, ours, theirs, batch.target, teacher_logits=whole, **arguments)

    given = _changed(scales, pooling, repeat) | ({"standardised": True} if standardised else {})
    expression = call("scale_decoupled", loss.__name__, **given, **arguments)
    return Term(f"sd_{short_name(loss)}", expression, function, same_classes=True)


def clustering(
    scales: Sequence[int] = (1, 2, 4),
    *,
    pooling: Pooling = "adaptive",
    repeat: bool = False,
    **arguments: Any,
) -> Term:
    """Compare the Gram matrices of the local logits of both networks by KL (chapters 4 and 5).

    `icd.losses.icd_loss`; `arguments` go to it. Published weight: 2. Student and teacher need not have the
    same classes.
    """
    scales = check_scales(scales)
    _check_arguments(arguments, icd_loss)
    regions = torch.zeros(1, sum(m * m for m in scales), 2)
    _check_scalar(icd_loss, regions, regions, scales=scales, **arguments)

    def function(student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return icd_loss(*local_pair(student, teacher, scales, pooling, repeat), scales=scales, **arguments)

    expression = call("clustering", **_changed(scales, pooling, repeat), **arguments)
    return Term("clustering", expression, function)


def local_pair(student: Scores, teacher: Scores, *how: Any) -> tuple[Tensor, Tensor]:
    """Return the local logits of both; no gradient reaches the teacher."""
    with torch.no_grad():
        teacher_local = teacher.local(*how)
    return student.local(*how), teacher_local


def _check_scalar(loss: Callable[..., Tensor], *inputs: Any, **arguments: Any) -> None:
    """Call a loss once with zeros, so that what it refuses is raised now and not at the first step."""
    value = loss(*inputs, **arguments)
    if not isinstance(value, Tensor) or value.ndim:
        raise ValueError(
            f"{loss.__name__}({call('', **arguments)[1:-1]}) does not return a scalar: a term needs one"
        )


def _check_arguments(arguments: dict[str, Any], *losses: Callable) -> None:
    """Raise for an argument that none of the losses takes: now, not at the first step."""
    if not hasattr(losses[-1], "__name__"):
        raise TypeError("a term is named after its loss: give a function and then its arguments")
    known = {
        name: parameter.default
        for loss in losses
        for name, parameter in inspect.signature(loss).parameters.items()
        # A reduction that defaults to "mean" can also return one number for each image, which is no scalar.
        if name not in _PASSED_BY_TERM and parameter.default not in (parameter.empty, "mean")
    }
    for name, value in arguments.items():
        if name not in known:
            hint = did_you_mean(name, list(known))
            raise ValueError(f"{losses[-1].__name__} takes no {name!r}:{hint} choose from {', '.join(known)}")
        if isinstance(known[name], float) and isinstance(value, str | tuple | list):
            raise ValueError(f"{name} is {value!r}: give a number")
        if known[name] is None and isinstance(value, str | int | float):
            raise ValueError(f"{name} is {value!r}: give one for each scale, like (1, 2, 3)")


_PASSED_BY_TERM = ("target", "teacher_logits", "scales")


def _changed(scales: tuple[int, ...], pooling: Pooling, repeat: bool) -> dict[str, Any]:
    """Return the options of local logits that differ from their defaults."""
    given = {"scales": scales, "pooling": pooling, "repeat": repeat}
    default = {"scales": (1, 2, 4), "pooling": "adaptive", "repeat": False}
    return {name: value for name, value in given.items() if value != default[name]}


def short_name(loss: Callable) -> str:
    """Return the name of a loss without its suffix."""
    return loss.__name__.removesuffix("_loss")
