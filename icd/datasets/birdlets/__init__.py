"""Birdlets: birds drawn by program, deterministic from a seed, in the file layout of CUB-200-2011."""

from icd.datasets.birdlets.canvas import PARTS
from icd.datasets.birdlets.dataset import draw, families, folder, masks
from icd.datasets.birdlets.plumage import Species, species_table

__all__ = ["PARTS", "Species", "draw", "families", "folder", "masks", "species_table"]
