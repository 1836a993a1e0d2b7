"""The README's picture: `python book/images/birdlets.py` draws birdlets.png."""

from pathlib import Path

import numpy as np
from PIL import Image

from icd import birdlets, birds

COLUMNS, SIDE, GAP = 10, 96, 4

photos = birds.CUB200(
    birdlets.folder(size=SIDE, train=1, test=3), "test", size=SIDE
)
first = [
    int(np.flatnonzero(photos.labels == label)[1])
    for label in range(len(photos.classes))
]
rows = len(first) // COLUMNS
sheet = Image.new(
    "RGB", (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white"
)
for place, index in enumerate(first):
    row, column = divmod(place, COLUMNS)
    bird = Image.fromarray(photos.read(index)[0])
    sheet.paste(bird, (column * (SIDE + GAP), row * (SIDE + GAP)))
sheet.quantize(256, dither=Image.Dither.NONE).save(
    Path(__file__).with_suffix(".png"), optimize=True
)
