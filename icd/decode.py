"""What a photograph's file holds, as it is meant to be seen: upright, in three channels of eight bits."""

from __future__ import annotations

import struct

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = {  # EXIF's orientations, and what undoes each
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 2 to 8, or 0 where the photograph stands upright or does not say."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation) in UPRIGHT:
            image.load()  # a TIFF turns itself upright here, and forgets that it was not
            return image.getexif().get(ExifTags.Base.Orientation, 0)
    except (SyntaxError, ValueError, TypeError, struct.error):  # broken advice is no advice
        pass
    return 0


def three_channels(image: Image.Image) -> Image.Image:
    """Three channels of eight bits, whatever the file holds (grey, palette, 16-bit, alpha)."""
    if image.mode.startswith("I"):  # 16-bit grey: `convert` would clip instead of scale
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its numbers are floats, and nothing says which is white")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # at once to RGB is a warning
    return image.convert("RGB")
