"""Terms: losses over `Scores`, with the parameters that they learn and the memory that they keep."""

from icd.terms.base import LOG_COLUMNS, Objective, Term
from icd.terms.logits import clustering, cross_entropy, scale_decoupled, whole_image

__all__ = [
    "LOG_COLUMNS",
    "Objective",
    "Term",
    "clustering",
    "cross_entropy",
    "scale_decoupled",
    "whole_image",
]
