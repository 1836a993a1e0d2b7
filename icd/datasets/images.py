"""A list of photographs: where each file lies, what it shows, how it is cut to a square."""

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
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from icd.errors import DataError, did_you_mean

Crop = Literal["image", "box"]
Resize = Literal["squash", "shorter"]
MOST_PIXELS = 16_384  # a side; a larger one is a slip of the keyboard, and would fill the memory


@dataclass(frozen=True, eq=False)
class ImageList:
    """N labelled photographs and one way of cutting each to a square of `size` pixels.

    `photos[i]` is `(image, label)`: a uint8 tensor (3, size, size) and an int. Nothing is
    decoded before it is asked for; `icd.pixels.load` decodes them all once.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray  # (N,) int64, an index into `classes`
    classes: tuple[str, ...]
    size: int = 224
    crop: Crop = "image"  # "box": the box, widened by `margin` of it on each side
    margin: float = 0.1
    # "squash" distorts; "shorter" takes the middle square, and around a box a square that holds all of it.
    resize: Resize = "squash"
    boxes: np.ndarray | None = None  # (N, 4) float64: left, top, width, height in the file's pixels
    box_sources: tuple[str, ...] | None = None  # where each box was read, for error messages
    sources: tuple[str, ...] | None = None  # where each path was read, likewise
    parts: np.ndarray | None = None  # (N, P, 3) float64: x, y in the file's pixels, 1 if visible
    part_names: tuple[str, ...] = ()

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
        """Decode one photograph: uint8 (size, size, 3), and what had to be mended on the way."""
        path = self.paths[index]
        named = f"{self.sources[index]}: {path}" if self.sources else str(path)
        try:
            with Image.open(path) as file:
                image: Image.Image = file
                notes = [] if image.mode == "RGB" else [f"colour mode {image.mode}, made RGB"]
                if self.boxes is not None and self._sticks_out(index, *image.size):
                    notes.append(f"box beyond its image, {'cut' if self.crop == 'box' else 'not used'}")
                # A phone's photo may lie on its side; boxes speak of the file.
                if self.crop == "image" and (turned := orientation(image)):
                    image = image.transpose(UPRIGHT[turned])
                    notes.append("lying on its side or mirrored, turned upright")
                region = self._region(index, *image.size)
                square = three_channels(image).resize((self.size,) * 2, Image.Resampling.BILINEAR, region)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{named}: there is no such image") from None
        except IsADirectoryError:
            raise DataError(f"{named}: this is a folder; name an image in it") from None
        except UnidentifiedImageError:
            raise DataError(
                f"{named}: the image does not decode (it is in no format that is known)"
            ) from None
        except Exception as broken:  # each decoder has its own: OSError, SyntaxError, struct.error, ...
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
            # A box that only sticks out is cut; one whose middle is elsewhere is not this image's.
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

    def parts_in_square(self, index: int) -> np.ndarray:
        """Part locations (P, 3) in pixels of the cut square; the third column is 1 if visible in it."""
        if self.parts is None:
            raise DataError("this data set has no part locations")
        x, y, visible = self.parts[index].T
        with Image.open(self.paths[index]) as image:
            turned, (width, height) = orientation(image) if self.crop == "image" else 0, image.size
        if turned >= 5:  # 5 to 8 swap the sides; the others mirror one or both of them
            x, y, width, height = y, x, height, width
        x = width - x if turned in (2, 3, 6, 7) else x
        y = height - y if turned in (3, 4, 7, 8) else y
        left, top, right, bottom = self._region(index, width, height)
        x, y = (x - left) * self.size / (right - left), (y - top) * self.size / (bottom - top)
        inside = (x >= 0) & (x <= self.size) & (y >= 0) & (y <= self.size)
        return np.stack([x, y, visible * inside], axis=1)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageList:
        """The photographs at `indices`, in that order (or of a mask (N,)), with the same classes."""
        where = np.arange(len(self))[list(indices)]

        def pick(value: Any) -> Any:  # every per-image field has N rows
            if isinstance(value, np.ndarray):
                return value[where]
            return tuple(value[i] for i in where)

        rows = ("paths", "labels", "boxes", "box_sources", "sources", "parts")
        return replace(self, **{name: pick(v) for name in rows if (v := getattr(self, name)) is not None})

    def folds(self, k: int, seed: int = 0) -> list[tuple[ImageList, ImageList]]:
        """`k` pairs (fit, held out), every class spread evenly, every image held out once."""
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
            fold[rows] = (dealt + np.arange(len(rows))) % k  # dealt on, so that folds are of one size
            dealt += len(rows)
        return [
            (self.subset(np.flatnonzero(fold != i)), self.subset(np.flatnonzero(fold == i))) for i in range(k)
        ]

    def hold_out(self, share: float = 0.2, seed: int = 0) -> tuple[ImageList, ImageList]:
        """(fit, validation): about `share` of each class, at least one image, drawn by `seed`."""
        held = held_out(self.labels, self.classes, share, seed, self.paths)
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def fingerprint(self) -> str:
        """A digest of which images these are, and how they are cut: the same wherever their folder lies.

        A file counts by its name below the folder that holds all of them, and by its bytes' number.
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
        """A digest of these very files: another where one was written again, or lies elsewhere.

        And of their boxes, even where the pixels do not depend on them: those beyond an image are counted.
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
    """Inside, Pillow's warnings of damaged metadata are not shown: they name no file, and the image is there.

    For the thread that decodes, or starts those that do: filters of warnings belong to all threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def check_split(split: str) -> None:
    """Raise unless a data set can have a split of that name."""
    known = ("train", "fit", "validation", "test")
    if split not in known:
        hint = did_you_mean(split, known, f"There are {', '.join(known)}")
        raise DataError(f'there is no split "{split}":{hint}')


def is_whole(value: object) -> bool:
    """Whether it is a whole number, Python's or NumPy's; True and 64.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it can be compared with others."""
    return isinstance(value, Real)


def check_crop(size: int, crop: Crop, margin: float, resize: Resize) -> None:
    """Raise for a way of cutting a photograph that means nothing."""
    if not is_whole(size):
        raise DataError(f"size is {size!r}: give a whole number")
    if size < 1:
        raise DataError(f"size is {size}: an image needs at least one pixel a side")
    if size > MOST_PIXELS:
        raise DataError(f"size is {size}: give {MOST_PIXELS} pixels a side at most")
    if crop not in ("image", "box"):
        raise DataError(f'crop is {crop!r}: choose "image" or "box"')
    if resize not in ("squash", "shorter"):
        raise DataError(f'resize is {resize!r}: choose "squash" or "shorter"')
    if not (is_number(margin) and 0 <= margin <= 10):
        raise DataError(f"margin is {margin!r}: give a share of the box between 0 and 10")


def held_out(
    labels: np.ndarray, classes: Sequence[str], share: float, seed: int, paths: Sequence[Path] | None = None
) -> np.ndarray:
    """Which images to hold out, (N,) bool: about `share` of each class, at least one, drawn by `seed`."""
    if not (is_number(share) and 0 < share < 1):
        raise DataError(f"the share held out is {share!r}: give a number between 0 and 1")
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
    """The images of each class that has any, in a random order."""
    if not is_whole(seed):
        raise DataError(f"the seed is {seed!r}: give a whole number")
    if seed < 0:
        raise DataError(f"the seed is {seed}: give 0 or more")
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _slide(centre: float, side: float, limit: float) -> tuple[float, float]:
    """The interval of length `side` about `centre`, moved inside [0, limit], cut where it cannot fit."""
    if side >= limit:
        return 0.0, limit
    start = min(max(centre - side / 2, 0.0), limit - side)
    return start, start + side


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
