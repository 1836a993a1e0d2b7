"""Knowledge distillation by logits, regions and Gram matrices: the code under the book."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icd.datasets import birdlets, birds
    from icd.experiments.model_file import load_model
    from icd.losses import dkd_loss, gram, icd_loss, kd_loss, nkd_loss, scale_decoupled_loss
    from icd.networks import network
    from icd.objective import METHODS
    from icd.scores import Scores, local_logits, score
    from icd.trainer import Recipe, fit

__version__ = "0.1.0"

# Imported on first use: PyTorch takes a second, and the help of the command line needs none of it.
_LAZY = {
    "METHODS": "icd.objective",
    "Recipe": "icd.trainer",
    "Scores": "icd.scores",
    "birdlets": "icd.datasets",
    "birds": "icd.datasets",
    "dkd_loss": "icd.losses",
    "fit": "icd.trainer",
    "gram": "icd.losses",
    "icd_loss": "icd.losses",
    "kd_loss": "icd.losses",
    "load_model": "icd.experiments.model_file",
    "local_logits": "icd.scores",
    "network": "icd.networks",
    "nkd_loss": "icd.losses",
    "scale_decoupled_loss": "icd.losses",
    "score": "icd.scores",
}

__all__ = [
    "METHODS",
    "Recipe",
    "Scores",
    "birdlets",
    "birds",
    "dkd_loss",
    "fit",
    "gram",
    "icd_loss",
    "kd_loss",
    "load_model",
    "local_logits",
    "network",
    "nkd_loss",
    "scale_decoupled_loss",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
