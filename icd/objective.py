"""What a student is trained for: terms over `Scores`, and their weighted sum.

    objective = 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2.0 * clustering()

is an expression: it prints as it is written, `icd.spelling` reads it, and each term is logged by its name.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icd.errors import did_you_mean
from icd.losses.checks import check_scales, is_number
from icd.losses.logits import dkd_loss, kd_loss, nkd_loss
from icd.losses.regions import icd_loss, scale_decoupled_loss
from icd.scores import Pooling, Scores

TermFunction = Callable[[Scores, "Scores | None", Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss over `Scores`, with its weight and its name in logs and plots.

    `function(student, teacher, target)` returns a scalar; it is handed no teacher where
    `needs_teacher` is False. A new loss is a function that returns such a Term.
    """

    name: str
    spelling: str  # the expression that makes it, for printing
    function: TermFunction
    weight: float = 1.0
    warmup_epochs: int = 0
    needs_teacher: bool = True
    same_classes: bool = False  # whether the teacher's classes must be the student's

    def warmed_up(self, epochs: int) -> Term:
        """The same term, its weight growing linearly: e / epochs in epoch e = 1, 2, ..."""
        if epochs < 1:
            raise ValueError(f"a warm-up over {epochs} epochs: give 1 or more")
        return replace(self, warmup_epochs=epochs)

    def named(self, name: str) -> Term:
        """The same term under another name, so that an objective may hold two of a kind."""
        if not name.isidentifier() or name in _COLUMNS:
            raise ValueError(f"a term cannot be named {name!r}: give a word that is no column of the log")
        return replace(self, name=name, spelling=f'{self.spelling}.named("{name}")')

    def weight_at(self, epoch: int) -> float:
        return self.weight * (min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)

    def __rmul__(self, weight: float) -> Term:
        if not (is_number(weight) and 0 <= weight < math.inf):
            raise ValueError(f"the weight of {self.name} is {weight}: give a finite number, not negative")
        return replace(self, weight=weight * self.weight)

    __mul__ = __rmul__

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective((self,)) + other

    def __str__(self) -> str:
        warm = f".warmed_up({self.warmup_epochs})" if self.warmup_epochs else ""
        return f"{'' if self.weight == 1 else f'{_digits(self.weight)} * '}{self.spelling}{warm}"


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms (chapter 6)."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        given: tuple[object, ...] = self.terms
        for term in given:
            if not isinstance(term, Term):
                said = getattr(term, "__name__", repr(term))
                raise TypeError(
                    f"{said} is no term of an objective: give a sum of terms, like "
                    "0.1 * cross_entropy() + 0.9 * whole_image(kd_loss), or one of METHODS"
                )
        names = [term.name for term in self.terms]
        if not names:
            raise ValueError("an objective of no terms: give one or more")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two terms are named {twice[0]!r}: give one of them another name, for the log, by "
                f'.named("{twice[0]}_2")'
            )

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(self.terms + (other.terms if isinstance(other, Objective) else (other,)))

    def __rmul__(self, weight: float) -> Objective:
        return Objective(tuple(weight * term for term in self.terms))

    __mul__ = __rmul__

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    def __call__(
        self, student: Scores, teacher: Scores | None, target: Tensor, epoch: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The loss, and its terms' weighted values.

        Args:
            student, teacher: what both networks say of the batch.
            target: labels (B,), int64.
            epoch: counted from 1, for terms that warm up.

        Returns:
            The scalar to differentiate, and its parts (number of terms,), detached, in the order
            of `names`. Nothing is copied to the host: whoever logs decides when to wait for it.

        Raises:
            ValueError: no teacher where a term needs one, and what a loss refuses.
        """
        if teacher is None and self.needs_teacher:
            needing = next(term.name for term in self.terms if term.needs_teacher)
            raise ValueError(f"the term {needing} compares with a teacher, and there is none")
        parts = torch.stack([t.weight_at(epoch) * t.function(student, teacher, target) for t in self.terms])
        return parts.sum(), parts.detach()


#: What a log says besides its terms.
_COLUMNS = {"epoch", "train_accuracy", "validation_accuracy", "learning_rate", "seconds", "peak_mb"}


def cross_entropy() -> Term:
    """The student's logits against the labels (chapter 1).

    It is what a student is trained for without a teacher.
    """

    def function(student: Scores, teacher: Scores | None, target: Tensor) -> Tensor:
        return F.cross_entropy(student.logits.float(), target)

    return Term("cross_entropy", "cross_entropy()", function, needs_teacher=False)


def whole_image(loss: Callable[..., Tensor], **arguments: Any) -> Term:
    """A logit loss between the image-level logits of both (chapter 2).

    `loss` is `kd_loss`, `dkd_loss`, `nkd_loss`, or any with their signature.
    """

    def function(student: Scores, teacher: Scores | None, target: Tensor) -> Tensor:
        assert teacher is not None
        return loss(student.logits, teacher.logits.detach(), target, **arguments)

    _check_names(arguments, loss)
    _try(loss, torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), **arguments)
    spelling = _spell("whole_image", loss.__name__, **arguments)
    return Term(_short(loss), spelling, function, same_classes=True)


def scale_decoupled(
    loss: Callable[..., Tensor],
    scales: Sequence[int] = (1, 2, 4),
    *,
    pooling: Pooling = "adaptive",
    repeat: bool = False,
    **arguments: Any,
) -> Term:
    """A logit loss between the local logits of both, region by region (chapter 3).

    It is `icd.losses.scale_decoupled_loss`.
    """
    scales = check_scales(scales)
    _check_names(arguments, scale_decoupled_loss, loss)
    one = torch.zeros(1, 1, 2)
    _try(scale_decoupled_loss, loss, one, one, torch.zeros(1, dtype=torch.int64), **arguments)

    def function(student: Scores, teacher: Scores | None, target: Tensor) -> Tensor:
        assert teacher is not None
        regions = _regions(student, teacher, scales, pooling, repeat)
        return scale_decoupled_loss(loss, *regions, target, teacher_logits=teacher.logits, **arguments)

    spelling = _spell("scale_decoupled", loss.__name__, **_changed(scales, pooling, repeat), **arguments)
    return Term(f"sd_{_short(loss)}", spelling, function, same_classes=True)


def clustering(
    scales: Sequence[int] = (1, 2, 4),
    *,
    pooling: Pooling = "adaptive",
    repeat: bool = False,
    **arguments: Any,
) -> Term:
    """Gram matrices of local logits compared by KL (chapters 4 and 5).

    It is `icd.losses.icd_loss`. Published weight: 2. Student and teacher need not have the
    same classes.
    """
    scales = check_scales(scales)
    _check_names(arguments, icd_loss)
    every = torch.zeros(1, sum(m * m for m in scales), 2)
    _try(icd_loss, every, every, scales=scales, **arguments)

    def function(student: Scores, teacher: Scores | None, target: Tensor) -> Tensor:
        assert teacher is not None
        regions = _regions(student, teacher, scales, pooling, repeat)
        return icd_loss(*regions, scales=scales, **arguments)

    return Term(
        "clustering", _spell("clustering", **_changed(scales, pooling, repeat), **arguments), function
    )


def _regions(student: Scores, teacher: Scores, *how: Any) -> tuple[Tensor, Tensor]:
    """Local logits of both; nothing flows back into the teacher."""
    with torch.no_grad():
        told = teacher.local(*how)
    return student.local(*how), told


def _try(loss: Callable[..., Tensor], *given: Any, **arguments: Any) -> None:
    """Ask a loss once, of zeros: what it refuses is said now, not at the first step."""
    value = loss(*given, **arguments)
    if not isinstance(value, Tensor) or value.ndim:
        raise ValueError(
            f"{loss.__name__}({_spell('', **arguments)[1:-1]}) gives no scalar: a term needs one"
        )


def _check_names(arguments: dict[str, Any], *losses: Callable) -> None:
    """Raise for an argument that none of the losses takes: now, not at the first step."""
    if not hasattr(losses[-1], "__name__"):
        raise TypeError("a term is named after its loss: give a function and then its arguments")
    known = {
        name: parameter.default
        for loss in losses
        for name, parameter in inspect.signature(loss).parameters.items()
        # A reduction whose default is "mean" has another choice that leaves a number for each image.
        if name not in _NOT_SPELLED and parameter.default not in (parameter.empty, "mean")
    }
    for name, value in arguments.items():
        if name not in known:
            hint = did_you_mean(name, list(known))
            raise ValueError(f"{losses[-1].__name__} takes no {name!r}:{hint} choose from {', '.join(known)}")
        if isinstance(known[name], float) and isinstance(value, str | tuple | list):
            raise ValueError(f"{name} is {value!r}: give a number")
        if known[name] is None and isinstance(value, str | int | float):
            raise ValueError(f"{name} is {value!r}: give one for each scale, like (1, 2, 3)")


# Tensors, which a term hands over itself, and what makes a loss no scalar, or another.
_NOT_SPELLED = ("target", "teacher_logits", "scales")


def _changed(scales: tuple[int, ...], pooling: Pooling, repeat: bool) -> dict:
    given = {"scales": scales, "pooling": pooling, "repeat": repeat}
    default = {"scales": (1, 2, 4), "pooling": "adaptive", "repeat": False}
    return {name: value for name, value in given.items() if value != default[name]}


def _short(loss: Callable) -> str:
    return loss.__name__.removesuffix("_loss")


def _spell(term: str, *positional: str, **arguments: Any) -> str:
    named = (
        f"{name}={_digits(value) if isinstance(value, float) else repr(value)}"
        for name, value in arguments.items()
    )
    return f"{term}({', '.join([*positional, *named])})"


def _digits(value: float) -> str:
    """As short as can be, and the same number when it is read again."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


#: The command line's names. Weights, temperatures and warm-ups are the papers'. Beta is 2 once regions are
#: compared, as iCD's authors have it, for SD-DKD too: it shall differ from iCD-DKD in the clustering term
#: alone. NKD follows its formula, and takes `exclude_target=False` for what its published code does.
METHODS: dict[str, Objective] = {
    "alone": Objective((cross_entropy(),)),
    "KD": 0.1 * cross_entropy() + 0.9 * whole_image(kd_loss, temperature=4),
    "DKD": cross_entropy() + whole_image(dkd_loss, beta=8, temperature=4).warmed_up(20),
    "NKD": cross_entropy() + whole_image(nkd_loss, gamma=1.5, temperature=1).warmed_up(20),
    "SD-KD": 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4),
    "SD-DKD": cross_entropy() + scale_decoupled(dkd_loss, beta=2, temperature=4).warmed_up(20),
    "SD-NKD": cross_entropy() + scale_decoupled(nkd_loss, gamma=2, temperature=4).warmed_up(20),
}
METHODS |= {f"iCD-{base}": METHODS[f"SD-{base}"] + 2.0 * clustering() for base in ("KD", "DKD", "NKD")}


def named(text: str) -> Objective:
    """The objective of METHODS that has this name, or the one that an expression spells (`parse`).

    Raises:
        ValueError: neither; the message offers the nearest name, or says where the expression goes wrong.
    """
    if text in METHODS:
        return METHODS[text]
    if "(" not in text:
        hint = did_you_mean(text, list(METHODS), f"There are {', '.join(METHODS)}")
        raise ValueError(f'there is no method "{text}":{hint}')
    return parse(text)


def parse(text: str) -> Objective:
    """The objective that an expression spells, written as `str(objective)` prints it.

    Nothing in it is run but these words of `icd.objective`: `cross_entropy()`, `whole_image(...)`,
    `scale_decoupled(...)` and `clustering(...)` with the names of losses, numbers and tuples, their
    `.warmed_up(...)` and `.named(...)`, sums, and products with a number in front.

    Raises:
        ValueError: anything else, quoted.
    """
    try:
        value = _read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is too deep"
        raise ValueError(f'"{text}" is no objective: {reason}') from error
    except TypeError as error:
        raise ValueError(f'"{text}" is no objective: {error}') from error
    if isinstance(value, Term):
        return Objective((value,))
    if not isinstance(value, Objective):
        raise ValueError(f'"{text}" is no objective: it has no term')
    return value


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.UnaryOp(ast.USub(), ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=entries):
            return tuple(map(_read, entries))
        case ast.Name(id=word) if word in _LOSSES:
            return _LOSSES[word]
        case ast.Call(func=ast.Name(id=word), args=positional, keywords=named) if word in _TERMS:
            return _TERMS[word](*map(_read, positional), **{str(k.arg): _read(k.value) for k in named})
        case ast.Call(func=ast.Attribute(value=term, attr="warmed_up"), args=[epochs], keywords=[]):
            return _read(term).warmed_up(_read(epochs))
        case ast.Call(func=ast.Attribute(value=term, attr="named"), args=[name], keywords=[]):
            return _read(term).named(_read(name))
        case ast.BinOp(ast.Constant() | ast.UnaryOp() as weight, ast.Mult(), term):
            return _read(weight) * _read(term)
        case ast.BinOp(first, ast.Add(), second):
            return _read(first) + _read(second)
    known = [*_TERMS, *_LOSSES]
    word = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    hint = (
        f' did you mean "whole_image({word})"?' if word in _LOSSES else did_you_mean(word, known, cutoff=0.6)
    )
    raise ValueError(
        f'"{ast.unparse(node)}" cannot stand in an objective:{hint} its words are {", ".join(known)}'
    )


_TERMS: dict[str, Callable[..., Term]] = {
    term.__name__: term for term in (cross_entropy, whole_image, scale_decoupled, clustering)
}


_LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kd_loss, dkd_loss, nkd_loss)}
