"""The style and palette of the book's figures, and pictures side by side.

Functions take arrays, not models. Figures have a light background on light and on dark pages, because colours
can only be chosen for contrast with a known background.
"""

from __future__ import annotations

import ast
import html
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.core.getipython import get_ipython
from IPython.display import HTML, Code
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

PAPER = "#fdfcf8"
INK = "#1b1d21"

#: Colours with a fixed meaning: contrast of 3 : 1 or more on `PAPER`, distinct with any colour vision (a test
#: measures both). A family shares a colour: blue for losses of whole images, green for scale-decoupled ones,
#: orange for iCD, purple for features, violet for relations.
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
    "SP": "#5436b4",
    "RKD": "#5436b4",
    "AT": "#5436b4",
}
#: Colours for anything else, with the same contrast, and distinct from each other and from `PALETTE`. Lines
#: without a colour of their own take these in turn, so that none looks like a method of `PALETTE`.
NEUTRAL = {"wine": "#923161", "olive": "#55550c", "sand": "#b68661"}
#: Line styles that distinguish the members of a family.
_DASHES = {"DKD": "--", "NKD": ":", "CRD": "--", "SemCKD": ":", "RKD": "--", "AT": ":"}

#: Colour maps by meaning: an amount from zero up, a value with a sign, and a cosine.
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
    """Apply the book's style to all later figures; in a notebook also draw them as SVG."""
    mpl.rcParams.update(_STYLE)
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def colour(name: str) -> str:
    """Return the colour of a method, a teacher or a student; any other name always gets one of `NEUTRAL`."""
    if name in PALETTE:
        return PALETTE[name]
    return list(NEUTRAL.values())[sum(name.encode()) % len(NEUTRAL)]


def line_style(name: str) -> dict[str, Any]:
    """Return keyword arguments for `Axes.plot`: colour, line style and label of a method or network."""
    return {"color": colour(name), "linestyle": _DASHES.get(name.rpartition("-")[2], "-"), "label": name}


def contact_sheet(
    images: Sequence[Any] | np.ndarray,
    labels: Sequence[str] | None = None,
    *,
    columns: int = 6,
    size: float = 1.2,
) -> Figure:
    """Draw pictures side by side, `size` inches each, with a label under each.

    `images` are uint8 or float arrays or tensors of shape (H, W), (H, W, 3) or (3, H, W). Raises ValueError
    for other shapes, values that are not finite, no images, or labels that do not match them.
    """
    pictures = [to_picture(image) for image in images]
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} images and {len(labels)} labels")
    if not pictures:
        raise ValueError("a contact sheet needs at least one image")
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
    """Return a warning box for the book, Colab and JupyterLab; `text` may contain HTML."""
    return HTML(
        '<div class="admonition warning" style="border-left:.3rem solid #e86304;padding:.4em 1em">'
        f'<p class="admonition-title"><b>{html.escape(title)}</b></p><p>{text}</p></div>'
    )


def source(*functions: Callable, start: str = "") -> Code:
    """Return the source of functions for display, each without its docstring.

    Args:
        functions: Python functions whose source is at hand.
        start: show each signature, and its body from the first line that begins with this text.

    Raises:
        ValueError: no line of a body begins with `start`.
    """
    return Code(
        "\n\n\n".join(_without_docstring(function, start) for function in functions), language="python"
    )


def _without_docstring(function: Callable, start: str) -> str:
    text = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    lines, body = text.splitlines(), definition.body
    signature = lines[definition.lineno - 1 : body[0].lineno - 1]
    first = int(body[0].end_lineno or 0) if ast.get_docstring(definition) else body[0].lineno - 1
    for number, line in enumerate(lines[first:], first):
        if line.strip().startswith(start):
            left_out = [" " * body[0].col_offset + "..."] if number > first else []
            return "\n".join([*signature, *left_out, *lines[number:]])
    raise ValueError(f"no line of {function.__name__} begins with {start!r}")


def to_picture(image: Any) -> np.ndarray:
    """Return an image as an array (H, W) or (H, W, 3), as matplotlib and Pillow expect it."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"an image has shape {array.shape}: expected (H, W), (H, W, 3) or (3, H, W)")
    if not np.isfinite(array).all():
        raise ValueError("an image has values that are not finite")
    return array
