"""Terms: losses over `Scores`, with the parameters that they learn and the memory that they keep."""

from icd.terms.base import LOG_COLUMNS, Objective, Term
from icd.terms.controls import shuffled_kd, shuffled_regions
from icd.terms.features import crd, fitnet, semckd
from icd.terms.logits import clustering, cross_entropy, scale_decoupled, whole_image
from icd.terms.relations import at, rkd, sp

__all__ = [
    "LOG_COLUMNS",
    "Objective",
    "Term",
    "at",
    "clustering",
    "crd",
    "cross_entropy",
    "fitnet",
    "rkd",
    "scale_decoupled",
    "semckd",
    "shuffled_kd",
    "shuffled_regions",
    "sp",
    "whole_image",
]
