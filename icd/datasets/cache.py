"""Photographs decoded once, cached as uint8, and cropped and flipped on the training device.

Decoding JPEG dominates a CPU-bound input pipeline and gives the same pixels every epoch, so it is done once,
into a memory-mapped file; a batch is then a gather.
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
from torch import Tensor
from tqdm import tqdm

from icd.datasets.images import ImageList, quiet_pillow
from icd.errors import DataError
from icd.files import atomic_file, cache_folder, make_folder, write_atomically

Channels = tuple[float, float, float]  # a number for each of red, green and blue

# Of ImageNet's photographs, in [0, 1]: the published runs on birds normalise with these.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 256  # photographs in flight while decoding


@dataclass(frozen=True, eq=False)
class CachedImages:
    """N labelled images as decoded pixels, from which batches are cropped.

    A training batch is a pure function of (seed, epoch, step).

    Raises:
        DataError: images, labels and size that do not fit.
    """

    images: Tensor  # (N, S, S, 3) uint8, memory-mapped on the host or held on a device
    labels: Tensor  # (N,) int64, on the same device
    classes: tuple[str, ...]
    size: int  # pixels a side of what a network sees, at most S
    repairs: dict[str, int]  # what was converted or corrected, in how many files
    fingerprint: str
    mean: Channels = MEAN  # of the normalisation, in [0, 1]
    std: Channels = STD
    padding: int = 0  # black pixels on each side that are not part of the image

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
    def resize_size(self) -> int:
        """Pixels a side of a stored image, without its padding."""
        return self.images.shape[1] - 2 * self.padding

    def to(self, device: torch.device | str) -> CachedImages:
        """Copy the images to `device`: 196 kB each at 256 pixels."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def to_device_if_fits(self, device: torch.device, need: int) -> CachedImages:
        """Copy to a GPU if they fit beside the `need` bytes of a training step; otherwise return self."""
        if device.type != "cuda" or not fits(self.images.nbytes + need, torch.cuda.mem_get_info(device)[0]):
            return self
        return self.to(device)

    def subset(self, rows: np.ndarray) -> CachedImages:
        """Return the images at `rows`, in that order (or of a mask (N,)), with the same classes."""
        where = torch.from_numpy(rows).to(self.labels.device)
        digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes()).hexdigest()[:24]
        return replace(self, images=self.images[where], labels=self.labels[where], fingerprint=digest)

    def steps(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch; the last short one is dropped, as published."""
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
        """Return batch `step` (from 0) of `epoch`: each image randomly cropped, and flipped half the time.

        Args:
            seed, epoch, step: decide the order, the crops and the flips.
            batch_size: over all processes.
            device: of the result.
            share: (i, n): of the batch, take image i and every n-th after it.
            out: the images of an earlier batch, to be overwritten; allocating costs more than the arithmetic.

        Returns:
            Normalised images (B, 3, size, size) float32, channels last; labels (B,); rows in this set (B,).
        """
        rows = _order(seed, epoch, len(self))[step * batch_size : (step + 1) * batch_size]
        chance = np.random.default_rng([seed, epoch, step])
        room = self.images.shape[1] - self.size
        corner = chance.integers(0, room + 1, size=(2, len(rows)))
        flip = chance.random(len(rows)) < 0.5
        crops = np.stack([rows, *corner, flip])[:, share[0] :: share[1]]
        images, target = self._crop(crops, torch.device(device), out)
        return images, target, torch.from_numpy(crops[0]).to(device, non_blocking=True)

    def batches(
        self, batch_size: int = 256, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, centre-cropped, with its label."""
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, min(start + batch_size, len(self)))
            edge = np.full_like(rows, (self.images.shape[1] - self.size) // 2)
            yield self._crop(np.stack([rows, edge, edge, np.zeros_like(rows)]), torch.device(device))

    def _crop(
        self, crops: np.ndarray, device: torch.device, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return crops; `crops` (4, B) holds row, top, left and whether to mirror."""
        here, size = self.images.device, self.size
        where = torch.from_numpy(crops).to(
            here, non_blocking=True
        )  # else the host waits for the GPU's last step
        labels = self.labels[where[0]].to(device, non_blocking=True)
        if here.type == device.type == "cpu":
            rows, out = _rows((crops.shape[1], 3, size, size), device, out)
            shift, scale = _shift_and_scale(rows, size, self.mean, self.std)
            for row, square in zip(rows, self._squares(crops), strict=True):
                row.copy_(square.flatten(-2))  # one image stays in a processor's cache, a batch does not
                torch.addcmul(shift, row, scale, out=row)
            return out, labels
        if here.type == "cpu":  # only what is seen travels to the device, and as bytes
            shape = (crops.shape[1], size, size, 3)
            squares = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            for place, square in enumerate(self._squares(crops)):
                squares[place] = square
        else:
            squares = _gather(self.images, where, size)
        images = squares.to(device, non_blocking=True).permute(0, 3, 1, 2)
        return normalise(images, out, self.mean, self.std), labels

    def _squares(self, crops: np.ndarray) -> Iterator[Tensor]:
        for row, top, left, mirrored in crops.T.tolist():
            square = self.images[row, top : top + self.size, left : left + self.size]
            yield square.flip(1) if mirrored else square


def fits(need: int, free: int) -> bool:
    """Return whether `need` bytes fit into a GPU's free memory, with room for its libraries."""
    return need < 0.9 * free - 5e8


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of the images in an epoch, (count,)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _gather(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Return what `_squares` yields as (B, size, size, 3) in a few kernels, for images on a GPU."""
    row, top, left, mirrored = crops[:, :, None]
    along = torch.arange(size, device=images.device)
    y, x = top + along, left + torch.where(mirrored.bool(), size - 1 - along, along)
    return images[row[:, :, None], y[:, :, None], x[:, None]]


def normalise(
    images: Tensor, out: Tensor | None = None, mean: Channels = MEAN, std: Channels = STD
) -> Tensor:
    """Return pixels 0..255 (..., 3, H, W) normalised by `mean` and `std`, float32, channels last.

    Written into `out` if it has their shape.
    """
    rows, out = _rows(images.shape, images.device, out)
    shift, scale = _shift_and_scale(rows, images.shape[-1], mean, std)
    rows.copy_(images.movedim(-3, -1).flatten(-2))
    torch.addcmul(shift, rows, scale, out=rows)
    return out


def _rows(shape: tuple[int, ...], device: torch.device, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return memory for images, `out` if it fits, as rows (..., H, W * 3) and as images (..., 3, H, W)."""
    if out is None or out.shape != shape:
        *batch, channels, height, width = shape
        out = torch.empty(*batch, height, width, channels, device=device).movedim(-1, -3)
    return out.movedim(-3, -1).flatten(-2), out


def _shift_and_scale(like: Tensor, width: int, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    """Return the shift and the scale of a row of `width` pixels, (width * 3,) each."""
    return _constants(like.dtype, like.device, width, mean, std)


@lru_cache(maxsize=16)
def _constants(
    dtype: torch.dtype, device: torch.device, width: int, mean: Channels, std: Channels
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be used outside of it
        centre, spread = (torch.tensor(values, dtype=dtype, device=device) for values in (mean, std))
        return (-centre / spread).repeat(width), (1 / (255 * spread)).repeat(width)


def stored_size(size: int) -> int:
    """Return the side of the stored image for crops of `size`: 256 for 224, as published."""
    return round(size * 8 / 7)


def load(photos: ImageList, *, folder: Path | None = None, progress: bool = True) -> CachedImages:
    """Decode every photograph once, or open the cache of an earlier call.

    Args:
        photos: their `size` is a network's input; `stored_size(size)` pixels are stored.
        folder: of the cache; default below ICD_CACHE or the user's cache folder.
        progress: show a bar while decoding.

    Raises:
        DataError: an image that is missing or does not decode, by name; nothing is stored then.
    """
    from filelock import FileLock

    if len(photos) == 0:
        raise DataError("there are no images to load")
    stored = replace(photos, size=stored_size(photos.size))
    folder = folder or cache_folder() / "pixels"
    key = stored.key()
    path, notes = folder / f"{key}.npy", folder / f"{key}.json"
    make_folder(folder)
    with FileLock(folder / f"{key}.lock"):  # a second process waits for the first one's result
        opened = _open(path, notes)
        if opened is None:
            write_atomically(notes, json.dumps(_decode(stored, path, progress)))
            opened = _open(path, notes)
    if opened is None:
        raise DataError(f"{path}: the decoded images were written and cannot be read: check the disk")
    return CachedImages(
        images=torch.from_numpy(opened[0]),
        labels=torch.from_numpy(np.asarray(photos.labels, dtype=np.int64)),
        classes=photos.classes,
        size=photos.size,
        repairs=opened[1],
        fingerprint=stored.fingerprint(),
    )


def _open(path: Path, notes: Path) -> tuple[np.ndarray, dict[str, int]] | None:
    """Return cached images and their repairs, or None if they are missing or damaged."""
    try:
        repairs = json.loads(notes.read_bytes())
        if not isinstance(repairs, dict) or not all(isinstance(count, int) for count in repairs.values()):
            return None
        # Copy-on-write: torch needs writable memory.
        return np.load(path, mmap_mode="c", allow_pickle=False), repairs
    except (OSError, ValueError, EOFError, RecursionError):
        return None


def _decode(photos: ImageList, path: Path, progress: bool) -> dict[str, int]:
    """Write all photographs to `path` (N, S, S, 3); return the repairs and their counts."""
    repairs: Counter[str] = Counter()
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
            # Written, not memory-mapped: a full disk then raises instead of crashing.
            for square, notes in pool.map(photos.read, range(start, min(start + CHUNK, len(photos)))):
                file.write(square.tobytes())
                repairs.update(notes)
                bar.update()
    return dict(sorted(repairs.items()))
