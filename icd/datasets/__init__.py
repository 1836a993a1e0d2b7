"""Data sets: CUB-200-2011, CIFAR-100, the drawn Birdlets, and folders of photographs.

Imported on first use: a trainer that is given decoded images needs none of their libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icd.datasets import birdlets, birds, cache, cifar
    from icd.datasets.dataset import DATASETS, DataSet

__all__ = ["DATASETS", "DataSet", "birdlets", "birds", "cache", "cifar"]


def __getattr__(name: str) -> Any:
    if name in ("DATASETS", "DataSet"):
        return getattr(import_module("icd.datasets.dataset"), name)
    if name in __all__:
        return import_module(f"icd.datasets.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
