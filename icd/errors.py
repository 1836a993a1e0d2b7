"""The exceptions of the package, and the hint for a misspelt name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def did_you_mean(name: str, known: Sequence[str], then: str = "", cutoff: float = 0.3) -> str:
    """Return the end of an error after a colon: " did you mean ...?" if a known name is close, and `then`."""
    folded = {word.lower(): word for word in known}
    prefixed = [word for word in folded if name and word.startswith(name.lower())]
    near = get_close_matches(name.lower(), prefixed or folded, n=1, cutoff=0.0 if prefixed else cutoff)
    if not near:
        return f" {then[0].lower()}{then[1:]}" if then else ""
    return f' did you mean "{folded[near[0]]}"?' + (f" {then}" if then else "")


class RunError(RuntimeError):
    """A run cannot start, resume or be read; the message says what to do."""


class NonFiniteLoss(ArithmeticError):
    """A loss or a weight is NaN or infinite; the message says which, and when."""


class DataError(ValueError):
    """A data set is missing or wrong; the message names the file and, in a text file, the line."""


class ModelError(ValueError):
    """A file is not a saved network, or not the requested one; the message names it."""


class AdaptError(ValueError):
    """Per-region logits cannot be computed for a model; the message says why."""
