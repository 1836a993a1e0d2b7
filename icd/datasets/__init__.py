"""Any data set that the command line takes: Birdlets, CUB-200-2011, CIFAR-100, or folders of photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from icd.datasets import birdlets, birds, cifar
from icd.datasets.cache import CachedImages, load
from icd.datasets.folders import class_folders
from icd.datasets.images import Crop, ImageList, Resize, check_crop, check_split
from icd.errors import DataError
from icd.files import cache_folder, expand

Split = Literal["train", "fit", "validation", "test"]


@dataclass(frozen=True)
class DataSet:
    """Which images, and how each becomes a square.

    Attributes:
        root: "birdlets" (drawn on first use), "cub200" or "cifar100" (fetched on first use: 1.1 GB and
            169 MB), a folder in the layout of CUB-200-2011 or with CIFAR-100's `cifar-100-python`, or a
            folder with a folder of photographs for each class, perhaps below `train/` and `test/`.
        classes: the first so many classes alone; all of them by default.
        crop: "image", or "box": what the bird's box holds, where the data set has boxes.
        margin: how much of the box is added on each side.
        size: pixels a side of what a network sees; CIFAR-100's images have 32.
        resize: "squash" distorts; "shorter" does not: the shorter side to size, then the middle, and
            around a box a square that holds it.
        hold_out: the share of the training images kept for validation.
        split_seed: which ones.
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

    def pixels(self, split: Split, progress: bool = True) -> CachedImages:
        """The images of a split, decoded: once, if they are files. See `photos` and `icd.pixels.load`."""
        if not self._is_cifar():
            return load(self.photos(split), progress=progress)
        if (self.size, self.crop) != (cifar.SIZE, "image"):
            raise DataError(
                f"CIFAR-100's images have {cifar.SIZE} pixels a side and no boxes: give "
                f'size={cifar.SIZE} and crop="image", not {self.size} and "{self.crop}"'
            )
        root = cache_folder() if self.root == "cifar100" else self.root
        return cifar.pixels(root, split, self.classes, self.hold_out, self.split_seed)

    def photos(self, split: Split) -> ImageList:
        """The photographs of a split. "train" is all training images: "fit" and "validation" together.

        A plain folder without `test/` has a fifth of its images set aside for it, the same every time.

        Raises:
            DataError: with the file and what is wrong in it.
        """
        check_split(split)
        official: Literal["train", "test"] = "test" if split == "test" else "train"
        photos = self._official(official)
        if split in ("train", "test"):
            return photos
        return photos.hold_out(self.hold_out, self.split_seed)[split == "validation"]

    def _is_cifar(self) -> bool:
        return self.root == "cifar100" or (expand(self.root) / cifar.FOLDER).is_dir()

    def _folder(self) -> Path:
        if self.root == "birdlets":
            return birdlets.folder()
        if self.root == "cub200":
            return birds.download(cache_folder())
        root = expand(self.root)
        if not root.is_dir():
            raise DataError(
                f'{root}: there is no such folder. Name one, or "birdlets" for the drawn data set, '
                '"cub200" or "cifar100" for one that is fetched'
            )
        return root

    def _official(self, split: Literal["train", "test"]) -> ImageList:
        if self._is_cifar():
            raise DataError("CIFAR-100 is no folder of photographs: ask for its pixels")
        root = self._folder()
        if any((folder / "images.txt").exists() for folder in (root, root / "CUB_200_2011")):
            return birds.CUB200(
                root,
                split,
                self.classes,
                crop=self.crop,
                size=self.size,
                margin=self.margin,
                resize=self.resize,
            )
        if self.crop == "box":
            raise DataError(f'{root} has no boxes: crop="box" is for data sets in the layout of CUB-200-2011')
        parted = (root / "train").is_dir() and (root / "test").is_dir()
        if not parted:
            photos = class_folders(root, self.classes, size=self.size, resize=self.resize)
            return photos.hold_out(0.2, seed=0)[split == "test"]
        both = {
            name: class_folders(root / name, size=self.size, resize=self.resize).classes
            for name in ("train", "test")
        }
        unshared = sorted(set(both["train"]) ^ set(both["test"]))
        if unshared:
            raise DataError(f"{root}: the class {unshared[0]} is in only one of train/ and test/")
        return class_folders(root / split, self.classes, size=self.size, resize=self.resize)


@dataclass(frozen=True)
class Changes:
    """Which images, where they are others than a run's: whatever is not given stays as the run had it.

    Attributes:
        root: "birdlets", "cub200", "cifar100" or a folder, as a `DataSet` takes it.
        classes: the first so many classes alone.
        crop: "image", or "box": what the bird's box holds.
        margin: how much of the box is added on each side.
        size: pixels a side of what a network sees.
        resize: "squash" distorts; "shorter" does not.
        hold_out: the share of the training images kept for validation.
        split_seed: which ones.
    """

    root: str | None = None
    classes: int | None = None
    crop: Crop | None = None
    margin: float | None = None
    size: int | None = None
    resize: Resize | None = None
    hold_out: float | None = None
    split_seed: int | None = None

    def applied(self, data: DataSet) -> DataSet:
        """`data` with these changes."""
        return replace(data, **{name: value for name, value in vars(self).items() if value is not None})
