"""Photographs decoded once, kept as uint8, cut and flipped on the device that trains.

Decoding JPEG is most of the work of a CPU-bound input pipeline, and it gives the same pixels
every epoch. So it is done once, into a memory-mapped file; a batch is then a gather.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from icd.files import atomic_file, cache_folder, write_atomically
from icd.numerics import constants
from icd.photos import DataError, Photos

# Of ImageNet's photographs, in [0, 1]: the published runs normalise with these.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 256  # photographs in flight while decoding


@dataclass(frozen=True, eq=False)
class Pixels:
    """N labelled images as pixels, from which batches are cut.

    A training batch is a pure function of (seed, epoch, step): any step of a run can be made again.
    """

    images: Tensor  # (N, S, S, 3) uint8, memory-mapped on the host or held on a device
    labels: Tensor  # (N,) int64, on the same device
    classes: tuple[str, ...]
    size: int  # pixels a side of what a network sees, at most S
    mended: dict[str, int]  # what had to be mended in how many files
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Pixels:
        """The same images, held on `device`: 196 kB each at 256 pixels."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def steps(self, batch_size: int) -> int:
        """Full batches in an epoch; the last short one is dropped, as published."""
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
    ) -> tuple[Tensor, Tensor]:
        """Batch `step` (from 0) of `epoch`: each image cut at random and flipped half the time.

        Of it, a process with `share` (i, n) gets image i and every n-th after it. Returns normalised images
        (B, 3, size, size) float32, channels last, and labels (B,). `out`, the images of an earlier batch
        that nobody needs any more, is written over: new memory costs more than the arithmetic.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        rows = order[step * batch_size : (step + 1) * batch_size]
        chance = np.random.default_rng([seed, epoch, step])
        room = self.images.shape[1] - self.size
        corner = chance.integers(0, room + 1, size=(2, len(rows)))
        flip = chance.random(len(rows)) < 0.5
        mine = slice(share[0], None, share[1])
        return self._cut(rows[mine], corner[:, mine], flip[mine], device, out)

    def batches(
        self, batch_size: int = 256, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, its centre cut out."""
        for start in range(0, len(self), batch_size):
            rows = np.arange(start, min(start + batch_size, len(self)))
            corner = np.full((2, len(rows)), (self.images.shape[1] - self.size) // 2)
            yield self._cut(rows, corner, np.zeros(len(rows), dtype=bool), device)

    def _cut(
        self,
        rows: np.ndarray,
        corner: np.ndarray,
        flip: np.ndarray,
        device: torch.device | str,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Squares of the images `rows`, upper left corners at `corner` (2, B), mirrored where `flip`."""
        here, size = self.images.device, self.size
        cut = torch.empty(len(rows), size, size, 3, dtype=torch.uint8, device=here)
        for place, (row, top, left, mirrored) in enumerate(
            zip(rows.tolist(), *corner.tolist(), flip.tolist(), strict=True)
        ):
            square = self.images[row, top : top + size, left : left + size]
            cut[place] = square.flip(1) if mirrored else square
        # Only what is seen travels to the device, and as bytes.
        images = cut.to(device, non_blocking=True).permute(0, 3, 1, 2)
        labels = self.labels[torch.from_numpy(rows).to(here)].to(device, non_blocking=True)
        return normalise(images, out), labels


def normalise(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Pixels 0..255 (..., 3, H, W) as a network sees them: float32, centred by MEAN, scaled by STD.

    Channels last. They are written into `out` where it is given and has their shape.
    """
    if out is None or out.shape != images.shape:
        shape = images.movedim(-3, -1).shape
        out = torch.empty(shape, dtype=torch.float32, device=images.device).movedim(-1, -3)
    rows = out.movedim(-3, -1).view(*out.shape[:-3], out.shape[-2], -1)  # (..., H, W * 3), as they lie
    rows.copy_(images.movedim(-3, -1).flatten(-2))
    shift, scale = _shift_and_scale(rows, images.shape[-1])
    torch.addcmul(shift, rows, scale, out=rows)
    return out


@constants
def _shift_and_scale(dtype: torch.dtype, device: torch.device, width: int) -> tuple[Tensor, Tensor]:
    """What a row of `width` pixels is shifted and scaled by, (width * 3,) each."""
    mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (MEAN, STD))
    return (-mean / std).repeat(width), (1 / (255 * std)).repeat(width)


def stored_size(size: int) -> int:
    """How large an image is kept from which squares of `size` are cut: 256 for 224, as published."""
    return round(size * 8 / 7)


def load(photos: Photos, *, folder: Path | None = None, progress: bool = True) -> Pixels:
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
    key = stored.fingerprint()
    path, notes = folder / f"{key}.npy", folder / f"{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):  # a second process waits, then finds the work done
        if not (path.exists() and notes.exists()):
            write_atomically(notes, json.dumps(_decode(stored, path, progress)))
    return Pixels(
        images=torch.from_numpy(np.load(path, mmap_mode="c")),  # copy-on-write: torch wants it writable
        labels=torch.from_numpy(np.asarray(photos.labels, dtype=np.int64)),
        classes=photos.classes,
        size=photos.size,
        mended=json.loads(notes.read_text()),
        fingerprint=key,
    )


def _decode(photos: Photos, path: Path, progress: bool) -> dict[str, int]:
    """Write all photographs to `path` (N, S, S, 3); returns what was mended how often."""
    mended: Counter[str] = Counter()
    shape = (len(photos), photos.size, photos.size, 3)
    bar = tqdm(total=len(photos), desc="decoding", unit="image", delay=1, disable=not progress, leave=False)
    with atomic_file(path) as file, ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for start in range(0, len(photos), CHUNK):
            # Written, not mapped: a full disk is then an error with a name, not a crash.
            for square, notes in pool.map(photos.read, range(start, min(start + CHUNK, len(photos)))):
                file.write(square.tobytes())
                mended.update(notes)
                bar.update()
    return dict(sorted(mended.items()))
