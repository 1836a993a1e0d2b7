"""Objectives by name (`METHODS`), and by the expression that they print as (`parse`)."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from torch import Tensor

from icd.errors import did_you_mean
from icd.losses import dkd_loss, kd_loss, nkd_loss
from icd.terms import (
    Objective,
    Term,
    at,
    clustering,
    crd,
    cross_entropy,
    fitnet,
    rkd,
    scale_decoupled,
    semckd,
    shuffled_kd,
    shuffled_regions,
    sp,
    whole_image,
)

__all__ = [
    "METHODS",
    "Objective",
    "Term",
    "clustering",
    "cross_entropy",
    "parse",
    "scale_decoupled",
    "whole_image",
]


def _clustered(method: str) -> Callable[[], Objective]:
    return lambda: METHODS[method]() + 2.0 * clustering()


#: Name of a method -> function that makes a fresh objective. Weights, temperatures and warm-ups are the
#: papers'. Beta is 2 in the scale-decoupled forms, as in iCD's configurations, so that SD-DKD and iCD-DKD
#: differ in the clustering term alone. NKD follows its formula; `exclude_target=False` is its published code.
METHODS: dict[str, Callable[[], Objective]] = {
    "alone": lambda: Objective([cross_entropy()]),
    "KD": lambda: 0.1 * cross_entropy() + 0.9 * whole_image(kd_loss, temperature=4),
    "DKD": lambda: cross_entropy() + whole_image(dkd_loss, beta=8, temperature=4).warmed_up(20),
    "NKD": lambda: cross_entropy() + whole_image(nkd_loss, gamma=1.5, temperature=1).warmed_up(20),
    "SD-KD": lambda: 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4),
    "SD-DKD": lambda: cross_entropy() + scale_decoupled(dkd_loss, beta=2, temperature=4).warmed_up(20),
    "SD-NKD": lambda: cross_entropy() + scale_decoupled(nkd_loss, gamma=2, temperature=4).warmed_up(20),
    "iCD-KD": _clustered("SD-KD"),
    "iCD-DKD": _clustered("SD-DKD"),
    "iCD-NKD": _clustered("SD-NKD"),
    "FitNet": lambda: cross_entropy() + 100 * fitnet(),
    "CRD": lambda: cross_entropy() + 0.8 * crd(),
    "SemCKD": lambda: cross_entropy() + whole_image(kd_loss, temperature=4) + 400 * semckd(),
    "SP": lambda: cross_entropy() + 3000 * sp(),
    "RKD": lambda: cross_entropy() + rkd(),
    "AT": lambda: cross_entropy() + 1000 * at(),
}

# The terms of an expression.
_TERMS: tuple[Callable[..., Term], ...] = (
    *(cross_entropy, whole_image, scale_decoupled, clustering, fitnet, crd, semckd, sp, rkd, at),
    *(shuffled_kd, shuffled_regions),
)
#: The words of an expression: terms, and the losses that they take.
TERMS: dict[str, Callable[..., Term]] = {term.__name__: term for term in _TERMS}
LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kd_loss, dkd_loss, nkd_loss)}


def parse(text: str) -> Objective:
    """Return the objective of a method's name, or of an expression as `str(objective)` prints it.

    An expression holds only the words of `TERMS` and `LOSSES`, numbers, tuples, `.warmed_up(...)`,
    `.named(...)`, sums, and products with a number in front. Nothing else in it is evaluated.

    Raises:
        ValueError: anything else; the message offers the nearest name, or quotes where the expression fails.
    """
    if text in METHODS:
        return METHODS[text]()
    if "(" not in text:
        hint = did_you_mean(text, list(METHODS), f"There are {', '.join(METHODS)}")
        raise ValueError(f'there is no method "{text}":{hint}')
    try:
        value = _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise ValueError(f'"{text}" is not an objective: {reason}') from error
    except TypeError as error:
        raise ValueError(f'"{text}" is not an objective: {error}') from error
    if isinstance(value, Term):
        return Objective([value])
    if not isinstance(value, Objective):
        raise ValueError(f'"{text}" is not an objective: it has no term')
    return value


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.UnaryOp(ast.USub(), ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=entries):
            return tuple(map(_evaluate, entries))
        case ast.Name(id=word) if word in LOSSES:
            return LOSSES[word]
        case ast.Call(func=ast.Name(id=word), args=positional, keywords=named) if word in TERMS:
            return TERMS[word](*map(_evaluate, positional), **{str(k.arg): _evaluate(k.value) for k in named})
        case ast.Call(func=ast.Attribute(value=term, attr="warmed_up"), args=[epochs], keywords=[]):
            return _evaluate(term).warmed_up(_evaluate(epochs))
        case ast.Call(func=ast.Attribute(value=term, attr="named"), args=[name], keywords=[]):
            return _evaluate(term).named(_evaluate(name))
        case ast.BinOp(ast.Constant() | ast.UnaryOp() as weight, ast.Mult(), term):
            return _evaluate(weight) * _evaluate(term)
        case ast.BinOp(first, ast.Add(), second):
            return _evaluate(first) + _evaluate(second)
    known = [*TERMS, *LOSSES]
    word = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    hint = (
        f' did you mean "whole_image({word})"?' if word in LOSSES else did_you_mean(word, known, cutoff=0.6)
    )
    raise ValueError(
        f'"{ast.unparse(node)}" cannot be part of an objective:{hint} its words are {", ".join(known)}'
    )
