"""Sliders over stored pictures, in plain HTML."""

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

from icd.figures.style import _picture


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
    """A slider over pictures drawn beforehand: moves by mouse and keyboard, with no kernel and no network.

    It is one piece of plain HTML, a range input over images held in the page, as that works alike in the
    published page, opened as a file, in JupyterLab and in Colab; a widget would need its manager in each, and
    a live kernel in two. Without JavaScript the picture at `start` stands there.

    Args:
        frames: matplotlib figures (closed once drawn), arrays as `contact_sheet` takes them, or PNG bytes.
        labels: what the slider says at each frame, "T = 4" say.
        alt: what is seen; one text for all frames (the label is added), or one for each frame.
        name: what the slider changes, "Temperature" say.
        start: the frame that is shown at first.
        dpi: of figures, at most; twice the 96 of a page's pixels, for screens of high density.
        max_bytes: of the whole slider. Frames are stored without loss where that fits, else with little loss,
            and figures are drawn at fewer dots where that does not fit either.

    Raises:
        ValueError: no frames, labels or texts that are not one for each frame, a frame that is no picture,
            frames that do not fit.
    """
    texts = [f"{alt} ({name}: {label})" for label in labels] if isinstance(alt, str) else list(alt)
    if not 0 < len(frames) == len(labels) == len(texts):
        raise ValueError(f"{len(frames)} frames, {len(labels)} labels, {len(texts)} alternative texts")
    if not all(text.strip() for text in ([alt] if isinstance(alt, str) else alt)):
        raise ValueError("alt must say what is seen")
    if not 0 <= start < len(frames):
        raise ValueError(f"start is {start}: {len(frames)} frames are counted from 0 to {len(frames) - 1}")
    first = frames[0]
    width = round(first.get_figwidth() * 96) if isinstance(first, Figure) else _frame(first, dpi).width
    images = "".join(
        f'<img src="data:image/webp;base64,{b64encode(data).decode()}" alt="{html.escape(text)}"'
        f' width="{width}"{"" if index == start else " hidden"}>'
        for index, (data, text) in enumerate(zip(_fit(frames, dpi, max_bytes), texts, strict=True))
    )
    said = html.escape("|".join(label.replace("|", "/") for label in labels))
    return HTML(
        f"{_FLIPBOOK_CSS}"
        f'<figure class="icd-flipbook" data-labels="{said}"><div>{images}</div>'
        f'<div class="icd-turn"><label>{html.escape(name)}'
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}"'
        f' aria-valuetext="{html.escape(labels[start])}" autocomplete="off" oninput="{_FLIPBOOK_JS}"'
        # JupyterLab would take the arrow keys for walking through the cells.
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
    """One frame of a flipbook, drawn."""
    if isinstance(frame, Figure):
        buffer = BytesIO()
        # No tight box: every frame must have the same size, or the picture jumps under the slider.
        with mpl.rc_context({"savefig.bbox": None}):
            frame.savefig(buffer, format="png", dpi=dpi)
        # Laid out once: a second layout of the same figure differs by some pixels.
        frame.set_layout_engine("none")
        plt.close(frame)
        return Image.open(buffer).convert("RGB")
    if isinstance(frame, bytes):
        return Image.open(BytesIO(frame)).convert("RGB")
    array = _picture(frame)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def _fit(frames: Sequence[Any], dpi: int, max_bytes: int) -> list[bytes]:
    """The frames as WebP that fit together: with as many dots, then as little loss, as the room allows."""
    room = max_bytes * 3 // 4 - 1_000 * len(frames)  # base64 makes four bytes of three; texts take some too
    drawn = all(isinstance(frame, Figure) for frame in frames)
    steps = [*range(dpi, 95, -16)] if drawn and dpi > 96 else [dpi]
    for step in steps:
        pictures = [_frame(frame, step) for frame in frames]
        for quality in (None, 85, 65) if step > steps[-1] else (None, 85, 65, 50):
            if encoded := _webp(pictures, quality, room):
                return encoded
    raise ValueError(f"{len(frames)} frames do not fit {max_bytes:,} bytes: draw fewer or smaller ones")


def _webp(pictures: Sequence[Image.Image], quality: int | None, room: int) -> list[bytes]:
    """Each picture as WebP of a quality, or without loss; none where they do not fit together."""
    # Without loss method 6 is the smallest and, on pictures with few colours, the quickest by far.
    options: dict[str, Any] = {"lossless": True, "method": 6} if quality is None else {"quality": quality}
    encoded: list[bytes] = []
    for picture in pictures:
        buffer = BytesIO()
        picture.save(buffer, format="webp", **options)
        encoded.append(buffer.getvalue())
        done = len(encoded) / len(pictures)
        # Most that will not fit show it after two or three. The margin is for frames that differ.
        if sum(map(len, encoded)) > done * room * (1 + (1 - done) / len(encoded)):
            return []
    return encoded
