"""The losses: pure functions of tensors that return a scalar."""

from icd.losses.logits import dkd_loss, kd_loss, nkd_loss
from icd.losses.regions import gram, icd_loss, scale_decoupled_loss, scale_weights

__all__ = ["dkd_loss", "gram", "icd_loss", "kd_loss", "nkd_loss", "scale_decoupled_loss", "scale_weights"]
