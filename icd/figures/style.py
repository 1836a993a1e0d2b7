"""How the book's figures look: one style, one palette, and sliders that need no kernel.

Everything here draws arrays and knows no model. Figures stand on a light card of their own, on light and on
dark pages: only a known ground lets colours be chosen for contrast.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.core.getipython import get_ipython
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from icd.errors import did_you_mean

PAPER = "#fdfcf8"
INK = "#1b1d21"

#: Fixed meanings, 3 : 1 or more on `PAPER` and told apart with any colour vision (a test measures both).
#: A family shares a colour: blue for losses of whole images, green for scale-decoupled ones, orange for iCD.
PALETTE = {
    "teacher": INK,
    "student": "#8a8a8a",
    "KD": "#468fce",
    "DKD": "#468fce",
    "NKD": "#468fce",
    "SD-KD": "#196033",
    "SD-DKD": "#196033",
    "SD-NKD": "#196033",
    "iCD-KD": "#e86304",
    "iCD-DKD": "#e86304",
    "iCD-NKD": "#e86304",
    "FitNet": "#602b76",
    "CRD": "#602b76",
    "SemCKD": "#602b76",
}
#: For what is no method: as clear of `PAPER`, and told apart from each other and from all of `PALETTE`, with
#: any colour vision too. Lines that nobody gave a colour take these in turn, so that none poses as a method.
NEUTRAL = {"wine": "#923161", "olive": "#55550c", "sand": "#b68661"}
#: What sets the members of a family apart.
_DASHES = {"DKD": "--", "NKD": ":", "CRD": "--", "SemCKD": ":"}

#: Colour maps by meaning: an amount from zero up, a value to either side of zero, and a cosine.
AMOUNT, SIGNED, SIMILARITY = "cividis", "RdBu_r", "magma"

_STYLE: Any = {
    "figure.facecolor": PAPER,
    "figure.figsize": (6.8, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=list(NEUTRAL.values())),
    "grid.color": "#dcd9cf",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 11,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "image.cmap": AMOUNT,
    "image.interpolation": "nearest",
    "svg.fonttype": "path",
    "svg.hashsalt": "icd",
}


def use_style() -> None:
    """Make every figure from here on look like the book's; in a notebook also crisp on any screen (SVG)."""
    mpl.rcParams.update(_STYLE)
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def colour(name: str) -> str:
    """The colour of a method, teacher or student. Raises ValueError for a name that has none."""
    if name not in PALETTE:
        hint = did_you_mean(name, list(PALETTE), f"There are {', '.join(PALETTE)}")
        raise ValueError(f'"{name}" has no colour:{hint}')
    return PALETTE[name]


def line_style(name: str) -> dict[str, Any]:
    """Keyword arguments for `Axes.plot` that say which method, teacher or student a line is."""
    return {"color": colour(name), "linestyle": _DASHES.get(name.rpartition("-")[2], "-"), "label": name}


def contact_sheet(
    images: Sequence[Any] | np.ndarray,
    labels: Sequence[str] | None = None,
    *,
    columns: int = 6,
    size: float = 1.2,
) -> Figure:
    """Pictures side by side, `size` inches each, with a label under each.

    `images` are uint8 or float arrays, (H, W), (H, W, 3) or (3, H, W); tensors are taken as they are.
    """
    pictures = [_picture(image) for image in images]
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} images and {len(labels)} labels")
    if not pictures:
        raise ValueError("a contact sheet of no images")
    if columns < 1:
        raise ValueError(f"a contact sheet of {columns} columns: give 1 or more")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height = size + (0.25 if labels is not None else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, picture) in enumerate(zip(axes.flat, pictures, strict=False)):
        axis.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
        if labels is not None:
            axis.set_title(labels[index], fontsize=8, fontweight="normal", loc="center", y=-0.06, va="top")
    return figure


def banner(title: str, text: str) -> HTML:
    """A box that nobody overlooks, in the book, in Colab and in JupyterLab. `text` may hold HTML."""
    return HTML(
        '<div class="admonition warning" style="border-left:.3rem solid #e86304;padding:.4em 1em">'
        f'<p class="admonition-title"><b>{html.escape(title)}</b></p><p>{text}</p></div>'
    )


def _picture(image: Any) -> np.ndarray:
    """Any image as (H, W) or (H, W, 3) that matplotlib and Pillow take."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"an image has shape (H, W), (H, W, 3) or (3, H, W), not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("an image holds numbers that are not finite")
    return array
