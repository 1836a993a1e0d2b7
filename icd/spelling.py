"""Objectives by name, and by the expressions that they print as."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from torch import Tensor

from icd.checks import nearest
from icd.losses import dkd_loss, kd_loss, nkd_loss
from icd.objective import METHODS, Objective, Term, clustering, cross_entropy, scale_decoupled, whole_image


def named(text: str) -> Objective:
    """The objective of METHODS that has this name, or the one that an expression spells (`parse`).

    Raises:
        ValueError: neither; the message offers the nearest name, or says where the expression goes wrong.
    """
    if text in METHODS:
        return METHODS[text]
    if "(" not in text:
        hint = nearest(text, list(METHODS), f"There are {', '.join(METHODS)}")
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
    hint = f' did you mean "whole_image({word})"?' if word in _LOSSES else nearest(word, known, cutoff=0.6)
    raise ValueError(
        f'"{ast.unparse(node)}" cannot stand in an objective:{hint} its words are {", ".join(known)}'
    )


_TERMS: dict[str, Callable[..., Term]] = {
    term.__name__: term for term in (cross_entropy, whole_image, scale_decoupled, clustering)
}
_LOSSES: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (kd_loss, dkd_loss, nkd_loss)}
