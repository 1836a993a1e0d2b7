"""The opening page's picture: a bird, what its regions are like, and the matrix.

`python book/images/opening.py` draws opening.webp.
"""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from icd import birdlets, birds, figures, gram, score
from icd.datasets.cache import normalise
from icd.experiments.model_file import load_model
from icd.figures import plots
from icd.files import data_path

REGIONS = (6, 15)  # of 4 x 4, row by row: about the head, a corner
BIRD = 48


def main() -> None:
    """Write opening.webp beside this file."""
    figures.use_style()
    teacher, card = load_model(data_path("teachers/birdlets.safetensors"))
    # The same scene in more pixels, for people.
    large = birds.CUB200(
        birdlets.folder(size=224, train=1, test=3), "test", size=224
    )
    picture = large.read(BIRD)[0]
    small = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None].float(),
        size=card.size,
        mode="area",
    )
    with torch.no_grad():
        local = score(teacher, normalise(small)).local((4,))
        cosines = gram(local, centre=True)[0].numpy()

    figure, axes = plt.subplots(1, 4, figsize=(10, 2.5))
    low = cosines.min()
    axes[0].imshow(picture)
    for axis, region in zip(axes[1:], REGIONS, strict=False):
        lit = cosines[region].reshape(4, 4)
        plots.similarity(axis, picture, lit, region, "", low=low)
    axes[3].imshow(cosines, cmap=figures.SIMILARITY, vmin=low, vmax=1)
    for region in REGIONS:
        corner = (-0.5, region - 0.5)
        row = Rectangle(corner, 16, 1, fill=False, edgecolor="white", linewidth=2)
        axes[3].add_patch(row)
    for axis in axes:
        axis.set_axis_off()
    drawn = BytesIO()
    figure.savefig(drawn, dpi=160)
    picture_file = Path(__file__).with_suffix(".webp")
    Image.open(drawn).convert("RGB").save(picture_file, quality=90, method=6)


if __name__ == "__main__":
    main()
