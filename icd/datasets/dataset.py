"""`DataSet`: which images, and how each becomes a square; `DATASETS`: the data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icd.datasets import birdlets, birds, cifar
from icd.datasets.cache import CachedImages, load
from icd.datasets.folders import class_folders
from icd.datasets.images import Crop, ImageList, Resize, check_crop, check_split
from icd.errors import DataError
from icd.files import cache_folder, expand

Split = Literal["train", "validation", "trainval", "test"]

#: Name of a data set -> function that returns its folder, drawing or downloading it on first use.
DATASETS: dict[str, Callable[[], Path]] = {
    "birdlets": birdlets.folder,
    "cub200": lambda: birds.download(cache_folder()),
    "cifar100": cache_folder,
}


@dataclass(frozen=True)
class DataSet:
    """Which images, and how each becomes a square.

    Attributes:
        root: "birdlets" (drawn on first use), "cub200" or "cifar100" (downloaded on first use: 1.1 GB and
            169 MB), a folder in the layout of CUB-200-2011 or with CIFAR-100's `cifar-100-python`, or a
            folder with one folder of photographs per class, optionally below `train/` and `test/`.
        classes: use only the first so many classes; default all.
        crop: "image", or "box" for the bird's bounding box, if the data set has boxes.
        margin: fraction of the box added on each side.
        size: pixels a side of a network's input; CIFAR-100's images have 32.
        resize: "squash" distorts; "shorter" resizes the shorter side and takes the middle, and around a box
            takes a square that holds it.
        hold_out: fraction of the training images kept for validation.
        split_seed: which ones.

    Raises:
        DataError: a value of the wrong kind.
    """

    root: str = "birdlets"
    classes: int | None = None
    crop: Crop = "image"
    margin: float = 0.1
    size: int = 64
    resize: Resize = "squash"
    hold_out: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, wanted in (
            ("root", str | Path, "the name of a folder"),
            ("classes", int | None, "how many"),
            ("margin", int | float, "a number"),
            ("size", int, "a whole number"),
            ("hold_out", int | float, "a number"),
            ("split_seed", int, "a whole number"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DataError(f"{name} is {value!r}: give {wanted}")
        check_crop(self.size, self.crop, self.margin, self.resize)

    def load(self, split: Split, progress: bool = True) -> CachedImages:
        """Return the images of a split, decoded once and cached.

        Raises:
            DataError: a split, an option or an image that cannot be used.
        """
        check_split(split)
        root = self._folder()
        if not cifar.is_cifar(self.root, root):
            return load(self.image_list(split), progress=progress)
        if (self.size, self.crop) != (cifar.SIZE, "image"):
            raise DataError(
                f"CIFAR-100's images have {cifar.SIZE} pixels a side and no boxes: give "
                f'size={cifar.SIZE} and crop="image", not {self.size} and "{self.crop}"'
            )
        return cifar.load(root, split, self.classes, self.hold_out, self.split_seed)

    def image_list(self, split: Split) -> ImageList:
        """Return the photographs of a split, not yet decoded; "trainval" is "train" and "validation".

        A plain folder without `test/` keeps a fifth of its images for it, the same ones every time.

        Raises:
            DataError: with the file and what is wrong in it.
        """
        check_split(split)
        root = self._folder()
        if cifar.is_cifar(self.root, root):
            raise DataError("CIFAR-100 has no photographs in files: use load")
        images = self._official(root, "test" if split == "test" else "train")
        if split in ("trainval", "test"):
            return images
        return images.hold_out(self.hold_out, self.split_seed)[split == "validation"]

    def _folder(self) -> Path:
        if self.root in DATASETS:
            return DATASETS[self.root]()
        root = expand(self.root)
        if not root.is_dir():
            raise DataError(
                f"{root}: there is no such folder. Give a folder, or one of {', '.join(DATASETS)}"
            )
        return root

    def _official(self, root: Path, split: Literal["train", "test"]) -> ImageList:
        if any((folder / "images.txt").exists() for folder in (root, root / birds.FOLDER)):
            options = {"crop": self.crop, "size": self.size, "margin": self.margin, "resize": self.resize}
            return birds.CUB200(root, split, self.classes, **options)  # type: ignore[arg-type]
        if self.crop == "box":
            raise DataError(f'{root} has no boxes: crop="box" is for data sets in the layout of CUB-200-2011')
        if not ((root / "train").is_dir() and (root / "test").is_dir()):
            images = class_folders(root, self.classes, size=self.size, resize=self.resize)
            return images.hold_out(0.2, seed=0)[split == "test"]
        train, test = (
            class_folders(root / name, size=self.size, resize=self.resize).classes
            for name in ("train", "test")
        )
        if unshared := sorted(set(train) ^ set(test)):
            raise DataError(f"{root}: the class {unshared[0]} is in only one of train/ and test/")
        return class_folders(root / split, self.classes, size=self.size, resize=self.resize)
