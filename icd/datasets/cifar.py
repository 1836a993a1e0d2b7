"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 pixels, 100 classes.

torchvision downloads and verifies it. As in the published runs, a training image is a random crop of 32
pixels of the image padded by 4 black pixels, flipped half the time, and a test image is the image.
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
SIZE, PADDING = 32, 4
# Of CIFAR-100's pixels in [0, 1]; the published teachers were trained with this normalisation.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def is_cifar(name: str, root: Path) -> bool:
    """Return whether a data set is CIFAR-100: by its name, or by what its folder holds."""
    return name == "cifar100" or (root / FOLDER).is_dir()


def load(
    root: str | Path,
    split: Literal["train", "validation", "trainval", "test"],
    classes: int | None = None,
    hold_out: float = 0.2,
    seed: int = 0,
) -> CachedImages:
    """Return the images of a split, downloaded into `root` (169 MB) if they are not there.

    Args:
        root: the folder for, or with, `cifar-100-python`.
        split: "trainval" is "train" and "validation" together.
        classes: use only the first so many classes; default all.
        hold_out: fraction of each class's training images kept for validation.
        seed: which ones.

    Raises:
        DataError: the archive cannot be downloaded or is damaged, or there are not so many classes.
    """
    from torchvision.datasets import CIFAR100  # takes seconds to import

    check_split(split)
    root = expand(root)
    try:
        images = CIFAR100(root, train=split != "test", download=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a wrong md5
        raise DataError(
            f"CIFAR-100 could not be downloaded into {root} ({error}). Try again, or download {CIFAR100.url} "
            f"with a browser, save it as {root / CIFAR100.filename}, and try again"
        ) from error
    if classes is not None and not 1 <= classes <= len(images.classes):
        raise DataError(f"classes is {classes}: CIFAR-100 has {len(images.classes)}")
    names = tuple(images.classes[:classes])
    labels = np.array(images.targets, dtype=np.int64)
    around = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    everything = CachedImages(
        images=torch.from_numpy(np.pad(images.data, around)),
        labels=torch.from_numpy(labels),
        classes=names,
        size=SIZE,
        repairs={},
        fingerprint=f"cifar100-{'test' if split == 'test' else 'train'}",
        mean=MEAN,
        std=STD,
        padding=PADDING,
    )
    rows = np.flatnonzero(labels < len(names))
    if split in ("train", "validation"):
        rows = rows[held_out(labels[rows], names, hold_out, seed) == (split == "validation")]
    return everything if len(rows) == len(labels) else everything.subset(rows)
