"""Photographs decoded once, kept as uint8, cut and flipped on the device that trains.

Decoding JPEG is most of the work of a CPU-bound input pipeline, and it gives the same pixels
every epoch. So it is done once, into a memory-mapped file; a batch is then a gather.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from icd.datasets.images import ImageList, quiet_pillow
from icd.errors import DataError
from icd.files import atomic_file, cache_folder, make_folder, write_atomically
from icd.losses.numerics import constants

Channels = tuple[float, float, float]  # a number for each of red, green and blue

# Of ImageNet's photographs, in [0, 1]: the published runs on birds normalise with these.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 256  # photographs in flight while decoding


@dataclass(frozen=True, eq=False)
class CachedImages:
    """N labelled images as pixels, from which batches are cut.

    A training batch is a pure function of (seed, epoch, step): any step of a run can be made again.
    """

    images: Tensor  # (N, S, S, 3) uint8, memory-mapped on the host or held on a device
    labels: Tensor  # (N,) int64, on the same device
    classes: tuple[str, ...]
    size: int  # pixels a side of what a network sees, at most S
    mended: dict[str, int]  # what had to be mended in how many files
    fingerprint: str
    mean: Channels = MEAN  # what networks see is centred by these and scaled by those, in [0, 1]
    std: Channels = STD
    border: int = 0  # how many pixels on each side are black and no part of the image

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise DataError(f"images are {self.images.dtype}, {shape}: give torch.uint8, (N, S, S, 3)")
        if len(self.labels) != len(self.images):
            raise DataError(f"{len(self.images)} images and {len(self.labels)} labels: give one for each")
        if not 1 <= self.size <= shape[1]:
            raise DataError(
                f"size is {self.size}: squares of 1 to {shape[1]} pixels can be cut from these images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def whole(self) -> int:
        """Pixels a side of a stored image, without its padding."""
        return self.images.shape[1] - 2 * self.border

    def to(self, device: torch.device | str) -> CachedImages:
        """The same images, held on `device`: 196 kB each at 256 pixels."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def to_device_if_fits(self, device: torch.device, need: int) -> CachedImages:
        """These images, on a GPU with room for them beside `need` bytes for a step, else where they lie."""
        if device.type != "cuda" or not fits(self.images.nbytes + need, torch.cuda.mem_get_info(device)[0]):
            return self
        return self.to(device)

    def subset(self, rows: np.ndarray) -> CachedImages:
        """The images at `rows`, in that order (or of a mask (N,)), with the same classes."""
        where = torch.from_numpy(rows).to(self.labels.device)
        digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes()).hexdigest()[:24]
        return replace(self, images=self.images[where], labels=self.labels[where], fingerprint=digest)

    def steps(self, batch_size: int) -> int:
        """Full batches in an epoch; the last short one is dropped, as the published runs do on CUB-200."""
        return max(len(self) // batch_size, 1)

    def training_batch(
        self,
        seed: int,
        epoch: int,
        step: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Batch `step` (from 0) of `epoch`: each image cut at random and flipped half the time.

        Of it, a process with `share` (i, n) gets image i and every n-th after it. Returns normalised images
        (B, 3, size, size) float32, channels last, labels (B,), and their rows in this set
        (B,). `out`, the images of an earlier batch, is written over: new memory costs more than arithmetic.
        """
        rows = _order(seed, epoch, len(self))[step * batch_size : (step + 1) * batch_size]
        chance = np.random.default_rng([seed, epoch, step])
        room = self.images.shape[1] - self.size
        corner = chance.integers(0, room + 1, size=(2, len(rows)))
        flip = chance.random(len(rows)) < 0.5
        cuts = np.stack([rows, *corner, flip])[:, share[0] :: share[1]]
        images, target = self._cut(cuts, torch.device(device), out)
        return images, target, torch.from_numpy(cuts[0]).to(device, non_blocking=True)

    def batches(
        self, batch_size: int = 256, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, its centre cut out."""
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, min(start + batch_size, len(self)))
            edge = np.full_like(rows, (self.images.shape[1] - self.size) // 2)
            yield self._cut(np.stack([rows, edge, edge, np.zeros_like(rows)]), torch.device(device))

    def _cut(
        self, cuts: np.ndarray, device: torch.device, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Squares of images; `cuts` (4, B) says of which row, from which top and left, whether mirrored."""
        here, size = self.images.device, self.size
        where = torch.from_numpy(cuts).to(
            here, non_blocking=True
        )  # else the host waits for the GPU's last step
        labels = self.labels[where[0]].to(device, non_blocking=True)
        if here.type == device.type == "cpu":
            rows, out = _rows((cuts.shape[1], 3, size, size), device, out)
            shift, scale = _shift_and_scale(rows, size, self.mean, self.std)
            for row, square in zip(rows, self._squares(cuts), strict=True):
                row.copy_(square.flatten(-2))  # one image stays in a processor's cache, a batch does not
                torch.addcmul(shift, row, scale, out=row)
            return out, labels
        if here.type == "cpu":  # only what is seen travels to the device, and as bytes
            shape = (cuts.shape[1], size, size, 3)
            squares = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            for place, square in enumerate(self._squares(cuts)):
                squares[place] = square
        else:
            squares = _gather(self.images, where, size)
        images = squares.to(device, non_blocking=True).permute(0, 3, 1, 2)
        return normalise(images, out, self.mean, self.std), labels

    def _squares(self, cuts: np.ndarray) -> Iterator[Tensor]:
        for row, top, left, mirrored in cuts.T.tolist():
            square = self.images[row, top : top + self.size, left : left + self.size]
            yield square.flip(1) if mirrored else square


def fits(need: int, free: int) -> bool:
    """Whether so many bytes go into what a GPU has free, of which its libraries take some as well."""
    return need < 0.9 * free - 5e8


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """In which order an epoch takes its images, (count,)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _gather(images: Tensor, cuts: Tensor, size: int) -> Tensor:
    """Return what `_squares` yields as (B, size, size, 3) in a few kernels, for images on a GPU."""
    row, top, left, mirrored = cuts[:, :, None]
    along = torch.arange(size, device=images.device)
    y, x = top + along, left + torch.where(mirrored.bool(), size - 1 - along, along)
    return images[row[:, :, None], y[:, :, None], x[:, None]]


def normalise(
    images: Tensor, out: Tensor | None = None, mean: Channels = MEAN, std: Channels = STD
) -> Tensor:
    """Pixels 0..255 (..., 3, H, W) as a network sees them: float32, centred by `mean`, scaled by `std`.

    Channels last. They are written into `out` where it is given and has their shape.
    """
    rows, out = _rows(images.shape, images.device, out)
    shift, scale = _shift_and_scale(rows, images.shape[-1], mean, std)
    rows.copy_(images.movedim(-3, -1).flatten(-2))
    torch.addcmul(shift, rows, scale, out=rows)
    return out


def _rows(shape: tuple[int, ...], device: torch.device, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Memory for images (..., 3, H, W), that of `out` if it fits: as it lies (..., H, W * 3), and as such."""
    if out is None or out.shape != shape:
        *batch, channels, height, width = shape
        out = torch.empty(*batch, height, width, channels, device=device).movedim(-1, -3)
    return out.movedim(-3, -1).flatten(-2), out


@constants
def _shift_and_scale(
    dtype: torch.dtype, device: torch.device, width: int, mean: Channels, std: Channels
) -> tuple[Tensor, Tensor]:
    """What a row of `width` pixels is shifted and scaled by, (width * 3,) each."""
    centre, spread = (torch.tensor(values, dtype=dtype, device=device) for values in (mean, std))
    return (-centre / spread).repeat(width), (1 / (255 * spread)).repeat(width)


def stored_size(size: int) -> int:
    """How large an image is kept from which squares of `size` are cut: 256 for 224, as published."""
    return round(size * 8 / 7)


def load(photos: ImageList, *, folder: Path | None = None, progress: bool = True) -> CachedImages:
    """Decode every photograph once, or open what was decoded before.

    Args:
        photos: their `size` is what networks see; `stored_size(size)` pixels are kept.
        folder: where decoded images lie; by default below ICD_CACHE or the user's cache folder.
        progress: show a bar while decoding.

    Raises:
        DataError: an image that is not there or does not decode, by name; nothing is kept then.
    """
    if len(photos) == 0:
        raise DataError("there are no images to load")
    stored = replace(photos, size=stored_size(photos.size))
    folder = folder or cache_folder() / "pixels"
    key = stored.key()
    path, notes = folder / f"{key}.npy", folder / f"{key}.json"
    make_folder(folder)
    with FileLock(folder / f"{key}.lock"):  # a second process waits, then finds the work done
        opened = _open(path, notes)
        if opened is None:
            write_atomically(notes, json.dumps(_decode(stored, path, progress)))
            opened = _open(path, notes)
    if opened is None:
        raise DataError(f"{path}: the images were written and cannot be read again: is the disk sound?")
    return CachedImages(
        images=torch.from_numpy(opened[0]),
        labels=torch.from_numpy(np.asarray(photos.labels, dtype=np.int64)),
        classes=photos.classes,
        size=photos.size,
        mended=opened[1],
        fingerprint=stored.fingerprint(),
    )


def _open(path: Path, notes: Path) -> tuple[np.ndarray, dict[str, int]] | None:
    """Images that were decoded before and what was mended, or None where they are not there, or damaged."""
    try:
        mended = json.loads(notes.read_bytes())
        if not isinstance(mended, dict) or not all(isinstance(count, int) for count in mended.values()):
            return None
        # Copy-on-write: torch wants it writable.
        return np.load(path, mmap_mode="c", allow_pickle=False), mended
    except (OSError, ValueError, EOFError, RecursionError):
        return None


def _decode(photos: ImageList, path: Path, progress: bool) -> dict[str, int]:
    """Write all photographs to `path` (N, S, S, 3); returns what was mended how often."""
    mended: Counter[str] = Counter()
    shape = (len(photos), photos.size, photos.size, 3)
    need, free = math.prod(shape) / 1e9, shutil.disk_usage(path.parent).free / 1e9
    if need > free:
        raise DataError(
            f"{len(photos)} images of {photos.size} x {photos.size} pixels take {need:.1f} GB, and "
            f"{path.parent} has {free:.1f} GB free: choose a smaller size, or another folder by the "
            "environment variable ICD_CACHE"
        )
    bar = tqdm(total=len(photos), desc="decoding", unit="image", delay=1, disable=not progress, leave=False)
    with atomic_file(path) as file, quiet_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for start in range(0, len(photos), CHUNK):
            # Written, not mapped: a full disk is then an error with a name, not a crash.
            for square, notes in pool.map(photos.read, range(start, min(start + CHUNK, len(photos)))):
                file.write(square.tobytes())
                mended.update(notes)
                bar.update()
    return dict(sorted(mended.items()))
