"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 pixels, 100 classes.

torchvision fetches and checks it. As in the published runs, a training image is a square of 32 pixels cut
at random from the image with a black border of 4, flipped half the time, and a test image is the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from icd.datasets.cache import CachedImages
from icd.datasets.images import check_split, held_out
from icd.errors import DataError
from icd.files import expand

FOLDER = "cifar-100-python"
SIZE, BORDER = 32, 4
# Of CIFAR-100's pixels in [0, 1]: the teachers that the field shares were trained on images centred by these.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def pixels(
    root: str | Path,
    split: Literal["train", "fit", "validation", "test"],
    classes: int | None = None,
    hold_out: float = 0.2,
    seed: int = 0,
) -> CachedImages:
    """The images of a split, fetched into `root` (169 MB) unless they are there.

    Args:
        root: the folder for, or with, `cifar-100-python`.
        split: "train" is "fit" and "validation" together.
        classes: the first so many classes alone; all of them by default.
        hold_out: the share of each class's training images that is kept for validation.
        seed: which ones.

    Raises:
        DataError: the archive can not be fetched or is damaged, or a number of classes that there is not.
    """
    # Seconds that nobody shall wait for who has other images.
    from torchvision.datasets import CIFAR100

    check_split(split)
    root = expand(root)
    try:
        images = CIFAR100(root, train=split != "test", download=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: of another md5
        raise DataError(
            f"CIFAR-100 could not be fetched into {root} ({error}). Call this again, or fetch {CIFAR100.url} "
            f"with a browser, save it as {root / CIFAR100.filename}, and then call this again"
        ) from error
    if classes is not None and not 1 <= classes <= len(images.classes):
        raise DataError(f"classes is {classes}: CIFAR-100 has {len(images.classes)}")
    names = tuple(images.classes[:classes])
    labels = np.array(images.targets, dtype=np.int64)
    border = ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))
    everything = CachedImages(
        images=torch.from_numpy(np.pad(images.data, border)),
        labels=torch.from_numpy(labels),
        classes=names,
        size=SIZE,
        mended={},
        fingerprint=f"cifar100-{'test' if split == 'test' else 'train'}",
        mean=MEAN,
        std=STD,
        border=BORDER,
    )
    rows = np.flatnonzero(labels < len(names))
    if split in ("fit", "validation"):
        rows = rows[held_out(labels[rows], names, hold_out, seed) == (split == "validation")]
    return everything if len(rows) == len(labels) else everything.subset(rows)
