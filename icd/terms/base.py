"""Terms, each one loss over `Scores` with a weight and a name, and objectives, their sums.

    0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2.0 * clustering()

is an objective. A term is an `nn.Module`, so that it can hold what a method
learns (parameters, which the optimizer trains) or remembers (buffers, which a checkpoint keeps).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icd.losses.checks import is_number
from icd.scores import Batch, Scores

TermFunction = Callable[[Scores, "Scores | None", Batch], Tensor]

#: The columns of a log that are no terms.
LOG_COLUMNS = {"epoch", "train_accuracy", "validation_accuracy", "learning_rate", "seconds", "peak_mb"}


class Term(nn.Module):
    """One loss of an objective.

    A stateless loss is `Term(name, expression, function)`. A loss that learns or remembers is a subclass
    with a `forward` of its own, which creates its parameters and buffers in `build`.

    Attributes:
        name: the column of the log and the label in plots.
        expression: the Python expression that makes this term, without weight; `str(term)` prints it.
        weight: the factor in the objective.
        warmup_epochs: the weight grows linearly over so many epochs; 0 for none.
        needs_teacher: False for a term that compares with labels alone; its `teacher` may be None.
        same_classes: True if the teacher's classes must be the student's.
    """

    def __init__(
        self,
        name: str,
        expression: str,
        function: TermFunction | None = None,
        *,
        needs_teacher: bool = True,
        same_classes: bool = False,
    ):
        super().__init__()
        self.name, self.expression, self.function = name, expression, function
        self.needs_teacher, self.same_classes = needs_teacher, same_classes
        self.weight, self.warmup_epochs = 1.0, 0

    def build(self, student: Scores, teacher: Scores | None, images: int) -> None:
        """Create the parameters and buffers whose shapes depend on the networks.

        `Objective.build` calls it once, before the first step and under `torch.no_grad`; a second call starts
        afresh.

        Args:
            student, teacher: the scores of the first batch, for their shapes.
            images: the number of training images; `batch.index` is below it.
        """

    def forward(self, student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar without the weight."""
        if self.function is None:
            raise NotImplementedError(f"{type(self).__name__} has no forward(student, teacher, batch)")
        return self.function(student, teacher, batch)

    def warmed_up(self, epochs: int) -> Term:
        """Return a copy whose weight grows linearly: e / epochs in epoch e = 1, 2, ..."""
        if epochs < 1:
            raise ValueError(f"a warm-up over {epochs} epochs: give 1 or more")
        return self._copy(warmup_epochs=epochs)

    def named(self, name: str) -> Term:
        """Return a copy with another name, so that an objective can hold two terms of one kind."""
        if not name.isidentifier() or name in LOG_COLUMNS:
            raise ValueError(f"a term cannot be named {name!r}: give a word that is no column of the log")
        return self._copy(name=name, expression=f'{self.expression}.named("{name}")')

    def weight_at(self, epoch: int) -> float:
        """Return the weight in `epoch`, counted from 1."""
        return self.weight * (min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)

    def __rmul__(self, weight: float) -> Term:
        if not (is_number(weight) and 0 <= weight < math.inf):
            raise ValueError(f"the weight of {self.name} is {weight}: give a finite number, not negative")
        return self._copy(weight=weight * self.weight)

    __mul__ = __rmul__

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective([self]) + other

    def _copy(self, **changes: Any) -> Term:
        term = copy.deepcopy(self)
        for name, value in changes.items():
            setattr(term, name, value)
        return term

    def __str__(self) -> str:
        warm = f".warmed_up({self.warmup_epochs})" if self.warmup_epochs else ""
        return f"{'' if self.weight == 1 else f'{digits(self.weight)} * '}{self.expression}{warm}"

    __repr__ = __str__


class Objective(nn.Module):
    """What a student is trained for: a weighted sum of terms (chapter 6).

    It prints as it is written, and `parse` reads that text. Parameters of its terms are trained with the
    student and are not part of it.

    Raises:
        TypeError: something that is no term.
        ValueError: no term, or two terms of one name.
    """

    def __init__(self, terms: Iterable[Term]):
        super().__init__()
        terms = list(terms)
        for term in terms:
            if not isinstance(term, Term):
                raise TypeError(
                    f"{getattr(term, '__name__', repr(term))} is not a term of an objective: give a sum of "
                    'terms, like 0.1 * cross_entropy() + 0.9 * whole_image(kd_loss), or METHODS["KD"]()'
                )
        names = [term.name for term in terms]
        if not names:
            raise ValueError("an objective without terms: give one or more")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two terms are named {twice[0]!r}: rename one of them for the log with "
                f'.named("{twice[0]}_2")'
            )
        self.terms = nn.ModuleList(terms)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms, in order."""
        return tuple(term.name for term in self._terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with a teacher."""
        return any(term.needs_teacher for term in self._terms)

    @property
    def needs_build(self) -> bool:
        """Whether a term has parameters or buffers to create before the first step."""
        return any(type(term).build is not Term.build for term in self._terms)

    @property
    def memory(self) -> str | None:
        """The name of the first term that remembers images (it has buffers), or None."""
        for term in self._terms:
            for module in term.modules():
                # Batch statistics are no memory: each process may have its own.
                if not isinstance(module, nn.modules.batchnorm._BatchNorm) and set(module._buffers):
                    return term.name
        return None

    @property
    def _terms(self) -> list[Term]:
        return list(self.terms)  # type: ignore[arg-type]

    def build(self, student: Scores, teacher: Scores | None, images: int) -> None:
        """Create the parameters and buffers of all terms; see `Term.build`."""
        for term in self._terms:
            term.build(student, teacher, images)

    def forward(
        self, student: Scores, teacher: Scores | None, batch: Batch, epoch: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and its terms' weighted values.

        Args:
            student, teacher: the scores of both networks for the batch.
            batch: images, labels (B,) int64, and the images' numbers in the training set.
            epoch: counted from 1, for terms that warm up.

        Returns:
            The scalar to differentiate, and its parts (number of terms,), detached, in the order of `names`.
            Nothing is copied to the host.

        Raises:
            ValueError: no teacher where a term needs one, and what a loss refuses.
        """
        if teacher is None and self.needs_teacher:
            name = next(term.name for term in self._terms if term.needs_teacher)
            raise ValueError(f"the term {name} compares with a teacher, and there is none: give a teacher")
        parts = torch.stack([t.weight_at(epoch) * t(student, teacher, batch) for t in self._terms])
        return parts.sum(), parts.detach()

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective([*self._terms, *(other._terms if isinstance(other, Objective) else [other])])

    def __rmul__(self, weight: float) -> Objective:
        return Objective(weight * term for term in self._terms)

    __mul__ = __rmul__

    def __str__(self) -> str:
        return " + ".join(map(str, self._terms))

    __repr__ = __str__


def digits(value: float) -> str:
    """Return a number as short text that reads back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def call(function: str, *positional: str, **arguments: Any) -> str:
    """Return the expression of a call."""
    named = (f"{k}={digits(v) if isinstance(v, float) else repr(v)}" for k, v in arguments.items())
    return f"{function}({', '.join([*positional, *named])})"
