"""The book's figures: one style, sliders over stored pictures, plots that several chapters share."""

from icd.figures.slider import flipbook
from icd.figures.style import (
    AMOUNT,
    INK,
    NEUTRAL,
    PALETTE,
    PAPER,
    SIGNED,
    SIMILARITY,
    banner,
    colour,
    contact_sheet,
    line_style,
    source,
    use_style,
)

__all__ = [
    "AMOUNT",
    "INK",
    "NEUTRAL",
    "PALETTE",
    "PAPER",
    "SIGNED",
    "SIMILARITY",
    "banner",
    "colour",
    "contact_sheet",
    "flipbook",
    "line_style",
    "source",
    "use_style",
]
