"""Sliders over stored pictures in plain HTML."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from icd.figures.style import to_picture


def flipbook(
    frames: Sequence[Any],
    labels: Sequence[str],
    *,
    alt: str | Sequence[str],
    name: str = "Frame",
    start: int = 0,
    dpi: int = 192,
    max_bytes: int = 300_000,
) -> HTML:
    """Return a slider over pictures that needs no kernel and no network; it works by mouse and keyboard.

    It is plain HTML, a range input over images stored in the page. So it works in the published page, in a
    file, in JupyterLab and in Colab; a widget would need its manager in each. Without JavaScript the page
    shows the picture at `start`.

    Args:
        frames: matplotlib figures (closed once drawn), arrays as for `contact_sheet`, or PNG bytes.
        labels: the text beside the slider at each frame, such as "T = 4".
        alt: alternative text: one for all frames (the label is added), or one for each frame.
        name: what the slider changes, such as "Temperature".
        start: index of the frame shown first.
        dpi: resolution of figures, at most; by default twice a page's 96, for high-density screens.
        max_bytes: size limit of the slider. Frames are stored without loss if they fit, else with little
            loss, and figures are drawn at a lower resolution if they still do not fit.

    Raises:
        ValueError: no frames; labels or texts that do not match the frames; a frame that is not a picture;
            frames that do not fit into `max_bytes`.
    """
    texts = [f"{alt} ({name}: {label})" for label in labels] if isinstance(alt, str) else list(alt)
    if not 0 < len(frames) == len(labels) == len(texts):
        raise ValueError(f"{len(frames)} frames, {len(labels)} labels, {len(texts)} alternative texts")
    if not all(text.strip() for text in ([alt] if isinstance(alt, str) else alt)):
        raise ValueError("alt is empty: describe the picture")
    if not 0 <= start < len(frames):
        raise ValueError(f"start is {start}: give the index of a frame, 0 to {len(frames) - 1}")
    first = frames[0]
    width = round(first.get_figwidth() * 96) if isinstance(first, Figure) else _frame(first, dpi).width
    images = "".join(
        f'<img src="data:image/webp;base64,{b64encode(data).decode()}" alt="{html.escape(text)}"'
        f' width="{width}"{"" if index == start else " hidden"}>'
        for index, (data, text) in enumerate(zip(_fit(frames, dpi, max_bytes), texts, strict=True))
    )
    joined = html.escape("|".join(label.replace("|", "/") for label in labels))
    return HTML(
        f"{_FLIPBOOK_CSS}"
        f'<figure class="icd-flipbook" data-labels="{joined}"><div>{images}</div>'
        f'<div class="icd-turn"><label>{html.escape(name)}'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}"'
        f' aria-valuetext="{html.escape(labels[start])}" autocomplete="off" oninput="{_FLIPBOOK_JS}"'
        # Else JupyterLab moves from cell to cell on arrow keys.
        ' onkeydown="event.stopPropagation()"></label>'
        f"<output>{html.escape(labels[start])}</output></div></figure>"
    )


_FLIPBOOK_JS = html.escape(
    "const f=this.closest('figure'),t=f.dataset.labels.split('|')[this.value];"
    "f.querySelectorAll('img').forEach((g,i)=>{g.hidden=i!=this.value});"
    "this.setAttribute('aria-valuetext',t);f.querySelector('output').textContent=t"
)


_FLIPBOOK_CSS = (
    "<style>.icd-flipbook{margin:1em 0;max-width:100%}"
    ".icd-flipbook img{display:block;max-width:100%;height:auto}.icd-flipbook img[hidden]{display:none}"
    ".icd-turn{display:flex;flex-wrap:wrap;gap:.2em .8em;margin-top:.5em}"
    ".icd-turn label{display:flex;align-items:center;gap:.8em;margin:0}"
    ".icd-turn input{width:18em;max-width:50vw;min-height:24px}"
    ".icd-turn output{font-variant-numeric:tabular-nums;font-weight:600}</style>"
)


def _frame(frame: Any, dpi: int) -> Image.Image:
    """Return one frame as an RGB picture."""
    if isinstance(frame, Figure):
        buffer = BytesIO()
        # A tight box would give frames different sizes, and the picture would jump.
        with mpl.rc_context({"savefig.bbox": None}):
            frame.savefig(buffer, format="png", dpi=dpi)
        # A second layout of the same figure would differ by some pixels.
        frame.set_layout_engine("none")
        plt.close(frame)
        return Image.open(buffer).convert("RGB")
    if isinstance(frame, bytes):
        return Image.open(BytesIO(frame)).convert("RGB")
    array = to_picture(frame)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def _fit(frames: Sequence[Any], dpi: int, max_bytes: int) -> list[bytes]:
    """Return the frames as WebP files within `max_bytes`, at the best resolution, then quality, that fits."""
    room = max_bytes * 3 // 4 - 1_000 * len(frames)  # base64 makes four bytes of three; texts take some
    drawn = all(isinstance(frame, Figure) for frame in frames)
    steps = [*range(dpi, 95, -16)] if drawn and dpi > 96 else [dpi]
    for step in steps:
        pictures = [_frame(frame, step) for frame in frames]
        for quality in (None, 85, 65) if step > steps[-1] else (None, 85, 65, 50):
            if encoded := _webp(pictures, quality, room):
                return encoded
    raise ValueError(f"{len(frames)} frames do not fit {max_bytes:,} bytes: draw fewer or smaller ones")


def _webp(pictures: Sequence[Image.Image], quality: int | None, room: int) -> list[bytes]:
    """Encode each picture as WebP, lossless if `quality` is None; return an empty list if they do not fit."""
    # Lossless method 6 is the smallest and, for pictures with few colours, by far the fastest.
    options: dict[str, Any] = {"lossless": True, "method": 6} if quality is None else {"quality": quality}
    encoded: list[bytes] = []
    for picture in pictures:
        buffer = BytesIO()
        picture.save(buffer, format="webp", **options)
        encoded.append(buffer.getvalue())
        done = len(encoded) / len(pictures)
        # Stop early if the first frames predict a total that is too large; the margin allows for variation.
        if sum(map(len, encoded)) > done * room * (1 + (1 - done) / len(encoded)):
            return []
    return encoded
