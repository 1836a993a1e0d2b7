"""The losses: pure functions of tensors that return a scalar."""

from icd.losses.features import crd_loss, fitnet_loss, semckd_loss
from icd.losses.logits import dkd_loss, kd_loss, nkd_loss, standardise
from icd.losses.regions import gram, icd_loss, scale_decoupled_loss, scale_weights
from icd.losses.relations import at_loss, rkd_loss, sp_loss

__all__ = [
    "at_loss",
    "crd_loss",
    "dkd_loss",
    "fitnet_loss",
    "gram",
    "icd_loss",
    "kd_loss",
    "nkd_loss",
    "rkd_loss",
    "scale_decoupled_loss",
    "scale_weights",
    "semckd_loss",
    "sp_loss",
    "standardise",
]
