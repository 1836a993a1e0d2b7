"""The opening page's picture: a bird, what its regions are like, and the matrix.

`python book/images/opening.py` draws opening.png.
"""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from icd import birdlets, birds, figures, gram, plots, score
from icd.files import data_path
from icd.pixels import normalise
from icd.saved import load_model

REGIONS = (6, 8, 15)  # of 4 x 4, row by row: about the head, the tail, a corner
BIRD = 48


def main() -> None:
    """Write opening.png beside this file."""
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

    figure, axes = plt.subplots(1, 5, figsize=(10, 2.25))
    axes[0].imshow(picture)
    axes[0].set_title("what the eye sees", loc="center", fontsize=11)
    axes[0].set_axis_off()
    for axis, region in zip(axes[1:4], REGIONS, strict=True):
        plots.likeness(
            axis,
            picture,
            cosines[region].reshape(4, 4),
            region,
            "",
            low=cosines.min(),
        )
    axes[2].set_title("what the teacher finds alike", loc="center", fontsize=11)
    axes[4].imshow(cosines, cmap=figures.SIMILARITY, vmin=cosines.min(), vmax=1)
    axes[4].set_title("its Gram matrix", loc="center", fontsize=11)
    axes[4].set_axis_off()
    for region in REGIONS:
        row = Rectangle(
            (-0.5, region - 0.5),
            16,
            1,
            fill=False,
            edgecolor="white",
            linewidth=1.5,
        )
        axes[4].add_patch(row)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=160)
    small = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
