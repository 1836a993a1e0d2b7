"""Lists of photographs: the path and label of each, and how it is cropped to a square."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from icd.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

Crop = Literal["image", "box"]
Resize = Literal["squash", "shorter"]
MOST_PIXELS = 16_384  # a side; a larger size is a typing error, and would fill the memory


@dataclass(frozen=True, eq=False)
class ImageList:
    """N labelled photographs, and how each is cropped to a square of `size` pixels.

    `images[i]` is `(image, label)`: a uint8 tensor (3, size, size) and an int, decoded on access.
    `icd.datasets.cache.load` decodes all of them once.

    Raises:
        DataError: labels, boxes or options that do not fit.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray  # (N,) int64, an index into `classes`
    classes: tuple[str, ...]
    size: int = 224
    crop: Crop = "image"  # "box": the box, widened by `margin` of it on each side
    margin: float = 0.1
    # "squash" distorts; "shorter" takes the middle square, and around a box a square that holds it.
    resize: Resize = "squash"
    boxes: np.ndarray | None = None  # (N, 4) float64: left, top, width, height in the file's pixels
    box_sources: tuple[str, ...] | None = None  # where each box was read, for error messages
    sources: tuple[str, ...] | None = None  # where each path was read, likewise

    def __post_init__(self) -> None:
        check_crop(self.size, self.crop, self.margin, self.resize)
        if len(self.labels) != len(self.paths):
            raise DataError(f"{len(self.paths)} paths and {len(self.labels)} labels: give one for each")
        labels, classes = np.asarray(self.labels), len(self.classes)
        if (astray := (labels < 0) | (labels >= classes)).any():
            raise DataError(f"a label is {labels[astray][0]}: the {classes} classes are counted from 0")
        if self.crop == "box" and self.boxes is None:
            raise DataError('crop="box" needs boxes, and this data set has none: use crop="image"')

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, _ = self.read(index)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))

    def read(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Decode one photograph: return uint8 (size, size, 3) and what was converted or corrected.

        Raises:
            DataError: a file that is missing or does not decode, or a box outside its image.
        """
        from PIL import Image, UnidentifiedImageError

        path = self.paths[index]
        named = f"{self.sources[index]}: {path}" if self.sources else str(path)
        try:
            with Image.open(path) as file:
                image: Image.Image = file
                notes = [] if image.mode == "RGB" else [f"colour mode {image.mode}, made RGB"]
                if self.boxes is not None and self._sticks_out(index, *image.size):
                    notes.append(f"box beyond its image, {'clipped' if self.crop == 'box' else 'not used'}")
                # Boxes are in the file's coordinates, before its EXIF rotation.
                if self.crop == "image" and (turned := orientation(image)):
                    image = image.transpose(Image.Transpose(UPRIGHT[turned]))
                    notes.append("rotated or mirrored by EXIF, made upright")
                region = self._region(index, *image.size)
                square = three_channels(image).resize((self.size,) * 2, Image.Resampling.BILINEAR, region)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{named}: there is no such image") from None
        except IsADirectoryError:
            raise DataError(f"{named}: this is a folder; name an image in it") from None
        except UnidentifiedImageError:
            raise DataError(f"{named}: the image does not decode (unknown format)") from None
        except Exception as broken:  # decoders raise OSError, SyntaxError, struct.error, ...
            raise DataError(f"{named}: the image does not decode ({broken})") from broken
        return np.array(square), notes

    def _sticks_out(self, index: int, width: int, height: int) -> bool:
        assert self.boxes is not None
        x, y, w, h = self.boxes[index]
        return not (x >= 0 and y >= 0 and x + w <= width and y + h <= height)

    def _region(self, index: int, width: int, height: int) -> tuple[float, float, float, float]:
        left, top, right, bottom = 0.0, 0.0, float(width), float(height)
        if self.crop == "box":
            assert self.boxes is not None
            x, y, w, h = self.boxes[index]
            # A box that extends beyond its image is clipped; one centred outside is another image's.
            if not (0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height):
                source = self.box_sources[index] if self.box_sources else str(self.paths[index])
                box = f"({x:g}, {y:g}, {w:g}, {h:g})"
                size = f"{width} x {height} pixels"
                raise DataError(f"{source}: the middle of the box {box} is not in its image, {size}")
            wide, high = (max(length * (1 + 2 * self.margin), 1.0) for length in (w, h))
            if self.resize == "shorter":  # undistorted: a square that holds the whole box
                wide = high = max(wide, high)
            left, right = _slide(x + w / 2, wide, width)
            top, bottom = _slide(y + h / 2, high, height)
        if self.resize == "shorter":
            side = min(right - left, bottom - top)
            left, top = (left + right - side) / 2, (top + bottom - side) / 2
            right, bottom = left + side, top + side
        return left, top, right, bottom

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageList:
        """Return the photographs at `indices`, in that order (or of a mask (N,)), with the same classes."""
        where = np.arange(len(self))[list(indices)]

        def pick(value: Any) -> Any:  # every per-image field has N rows
            if isinstance(value, np.ndarray):
                return value[where]
            return tuple(value[i] for i in where)

        rows = ("paths", "labels", "boxes", "box_sources", "sources")
        return replace(self, **{name: pick(v) for name in rows if (v := getattr(self, name)) is not None})

    def folds(self, k: int, seed: int = 0) -> list[tuple[ImageList, ImageList]]:
        """Return `k` pairs (train, held out): classes spread evenly, every image held out once."""
        if not is_whole(k):
            raise DataError(f"{k!r} folds: give a whole number")
        smallest = np.bincount(self.labels, minlength=len(self.classes))
        smallest = smallest[smallest > 0]
        if len(smallest) == 0:
            raise DataError("there are no images to split")
        if not 2 <= k <= smallest.min():
            raise DataError(f"{k} folds: choose from 2 to {smallest.min()}, the images of the smallest class")
        fold, dealt = np.empty(len(self), dtype=np.int64), 0
        for rows in _shuffled_classes(self.labels, seed):
            fold[rows] = (dealt + np.arange(len(rows))) % k  # continued, for folds of one size
            dealt += len(rows)
        return [
            (self.subset(np.flatnonzero(fold != i)), self.subset(np.flatnonzero(fold == i))) for i in range(k)
        ]

    def hold_out(self, share: float = 0.2, seed: int = 0) -> tuple[ImageList, ImageList]:
        """Return (train, validation); `held_out` chooses the latter."""
        held = held_out(self.labels, self.classes, share, seed, self.paths)
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def fingerprint(self) -> str:
        """Return a digest of the images and their crop that does not depend on where the folder is.

        A file counts by its name below the folder that holds all of them, and by its size in bytes.
        """
        digest = hashlib.sha256()
        for field in fields(self):
            if field.name in ("size", "crop", "resize") or (field.name == "margin" and self.crop == "box"):
                digest.update(f"{field.name}={getattr(self, field.name)}\n".encode())
        if self.crop == "box" and self.boxes is not None:
            digest.update(np.ascontiguousarray(self.boxes).tobytes())
        root = Path(os.path.commonpath([path.parent for path in self.paths])) if self.paths else Path()
        for path in self.paths:
            digest.update(f"{path.relative_to(root).as_posix()}|{_stat(path).st_size}\n".encode())
        return digest.hexdigest()[:24]

    def key(self) -> str:
        """Return a digest of these files that changes when one is modified or moved.

        It includes boxes even with crop="image", since those beyond an image are counted.
        """
        digest = hashlib.sha256(self.fingerprint().encode())
        if self.crop == "image" and self.boxes is not None:
            digest.update(np.ascontiguousarray(self.boxes).tobytes())
        for path in self.paths:
            digest.update(f"{path.resolve()}|{_stat(path).st_mtime_ns}\n".encode())
        return digest.hexdigest()[:24]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image") from None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Suppress Pillow's warnings about damaged metadata.

    Warning filters are global to all threads, so enter this in the thread that starts the decoders.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def check_split(split: str) -> None:
    """Raise DataError for an unknown split."""
    known = ("train", "validation", "trainval", "test")
    if split not in known:
        hint = did_you_mean(split, known, f"There are {', '.join(known)}")
        raise DataError(f'there is no split "{split}":{hint}')


def is_whole(value: object) -> bool:
    """Return whether a value is an integer of Python or NumPy; True and 64.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value can be compared with numbers."""
    return isinstance(value, Real)


def check_crop(size: int, crop: Crop, margin: float, resize: Resize) -> None:
    """Raise DataError for an impossible crop."""
    if not is_whole(size):
        raise DataError(f"size is {size!r}: give a whole number")
    if size < 1:
        raise DataError(f"size is {size}: an image needs at least one pixel a side")
    if size > MOST_PIXELS:
        raise DataError(f"size is {size}: give at most {MOST_PIXELS} pixels a side")
    if crop not in ("image", "box"):
        raise DataError(f'crop is {crop!r}: choose "image" or "box"')
    if resize not in ("squash", "shorter"):
        raise DataError(f'resize is {resize!r}: choose "squash" or "shorter"')
    if not (is_number(margin) and 0 <= margin <= 10):
        raise DataError(f"margin is {margin!r}: give a fraction of the box between 0 and 10")


def held_out(
    labels: np.ndarray, classes: Sequence[str], share: float, seed: int, paths: Sequence[Path] | None = None
) -> np.ndarray:
    """Return which images to hold out, (N,) bool: about `share` of each class, at least one, by `seed`."""
    if not (is_number(share) and 0 < share < 1):
        raise DataError(f"hold_out is {share!r}: give a number between 0 and 1")
    held = np.zeros(len(labels), dtype=bool)
    for rows in _shuffled_classes(labels, seed):
        if len(rows) < 2:
            name, one = classes[labels[rows[0]]], f", {paths[rows[0]]}" if paths else ""
            raise DataError(
                f"class {name} has one image to split{one}: holding it out would leave none to learn from"
            )
        held[rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]] = True
    return held


def _shuffled_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return the rows of each class that has any, in a random order."""
    if not is_whole(seed):
        raise DataError(f"the seed is {seed!r}: give a whole number")
    if seed < 0:
        raise DataError(f"the seed is {seed}: give 0 or more")
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _slide(centre: float, side: float, limit: float) -> tuple[float, float]:
    """Return the interval of length `side` about `centre`, moved or clipped to lie inside [0, limit]."""
    if side >= limit:
        return 0.0, limit
    start = min(max(centre - side / 2, 0.0), limit - side)
    return start, start + side


# EXIF's orientations, and the transposition (PIL.Image.Transpose) that undoes each.
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 2 to 8, or 0 for an upright photograph."""
    from PIL import ExifTags

    try:
        if image.getexif().get(ExifTags.Base.Orientation) in UPRIGHT:
            image.load()  # Pillow rotates a TIFF here, and removes its orientation
            return image.getexif().get(ExifTags.Base.Orientation, 0)
    except (SyntaxError, ValueError, TypeError, struct.error):
        pass
    return 0


def three_channels(image: Image.Image) -> Image.Image:
    """Convert any mode (grey, palette, 16-bit, alpha) to three channels of eight bits.

    Raises:
        ValueError: floating-point pixels, whose range is unknown.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: `convert` would clip instead of scale
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # converting to RGB directly warns
    return image.convert("RGB")
