"""Checks of the losses' arguments: each raises ValueError with what is wrong and what to give instead."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def check_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Return `scales` as a tuple of positive integers."""
    given = as_tuple(scales)
    kept = tuple(operator.index(m) for m in given if hasattr(m, "__index__") and not isinstance(m, bool))
    if not kept or len(kept) < len(given) or min(kept) < 1:
        raise ValueError(f"scales are {given or scales}: give one or more positive integers, like (1, 2, 4)")
    return kept


def as_tuple(values: Any) -> tuple[Any, ...]:
    """Return the items of an iterable, or () for anything else."""
    return tuple(values) if isinstance(values, Iterable) else ()


def is_number(value: Any) -> bool:
    """Return whether a value is a real number of Python or NumPy, or a tensor."""
    return isinstance(value, numbers.Real | Tensor)


def check_positive(name: str, value: float) -> None:
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}: give a positive number")


def check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not (is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"{name} is {value!r}: give a finite number, not negative")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: choose {' or '.join(repr(choice) for choice in choices)}")


def check_same_classes(loss: str, student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(
            f"{loss} compares class with class: the student has {student} classes and the teacher {teacher}. "
            "Only losses of Gram matrices and features accept a teacher of other classes"
        )


def check_logits(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Check logits (B, C) of both networks."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f"{loss}: logits have shapes {_both(student, teacher)}: expected (B, C) for both")
    check_same_classes(loss, student.shape[1], teacher.shape[1])


def check_against_others(loss: str, target: Tensor, student: Tensor) -> None:
    """Check labels that a loss compares with the other classes."""
    check_target(loss, target, len(student))
    if student.shape[1] < 2:
        raise ValueError(f"{loss} compares the target with the other classes: it needs two classes or more")


def check_target(loss: str, target: Tensor, images: int) -> None:
    """Check that labels are one integer an image."""
    if not isinstance(target, Tensor):
        raise ValueError(f"{loss}: target is {target!r}: it needs labels (B,), int64")
    check_shape(loss, "target", target, (images,))
    if target.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{loss}: target has dtype {target.dtype}: expected labels, int64")


def check_regions(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Check region logits (B, N, C) of both networks, B and N the same."""
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{loss}: region logits have shapes {_both(student, teacher)}: expected (B, N, C), "
            "the same B and N for both"
        )


def check_maps(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Check feature maps (B, D, H, W) of both networks, B the same."""
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            f"{loss}: maps have shapes {_both(student, teacher)}: expected (B, D, H, W), the same B for both"
        )


def check_vectors(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Check vectors (B, D) of both networks, B the same."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"{loss}: vectors have shapes {_both(student, teacher)}: expected (B, D), the same B for both"
        )


def check_shape(loss: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{loss}: {name} has shape {tuple(tensor.shape)}: expected {shape}")


def _both(student: Tensor, teacher: Tensor) -> str:
    return f"{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)"
