"""The trainer: a recipe, one loop, and students that train side by side with one teacher."""

from icd.trainer.loop import fit, fit_together
from icd.trainer.recipe import Recipe
from icd.trainer.student import Student

__all__ = ["Recipe", "Student", "fit", "fit_together"]
