"""Knowledge distillation by logits, regions and Gram matrices: the code under the book."""

from icd import birdlets, birds
from icd.losses import dkd_loss, gram, icd_loss, kd_loss, nkd_loss, scale_decoupled_loss
from icd.scores import Scores, local_logits, score

__version__ = "0.1.0"
__all__ = [
    "Scores",
    "birdlets",
    "birds",
    "dkd_loss",
    "gram",
    "icd_loss",
    "kd_loss",
    "local_logits",
    "nkd_loss",
    "scale_decoupled_loss",
    "score",
]
