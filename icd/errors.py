"""The exceptions of the package, and the hint for a misspelt name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def did_you_mean(name: str, known: Sequence[str], then: str = "", cutoff: float = 0.3) -> str:
    """What follows a colon: " did you mean ...?" where something known is near, and the sentence `then`."""
    folded = {word.lower(): word for word in known}
    near = get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)
    if not near:
        return f" {then[0].lower()}{then[1:]}" if then else ""
    return f' did you mean "{folded[near[0]]}"?' + (f" {then}" if then else "")


class RunError(RuntimeError):
    """A run cannot start, go on or be read; the message says what to do."""


class NonFiniteLoss(ArithmeticError):
    """A loss or a weight stopped being a number; the message says when, and which."""


class DataError(ValueError):
    """A data set is not what it should be; the message names the file and, in a text file, the line."""


class ModelError(ValueError):
    """A file is not a saved network, or not the one that was asked for; the message names it."""


class AdaptError(ValueError):
    """A model whose logits cannot be told place by place; the message says why."""
