"""Birdlets: birds drawn by program, in the file layout of CUB-200-2011, with a mask of the parts.

The embedded data set. `draw` writes one, `folder` gives the default one from a cache, and
`icd.birds.CUB200` reads either. How a species looks is in `icd.plumage`, how a scene is painted in
`icd.scenes`.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from icd.datasets.birdlets.canvas import PARTS, THROWS
from icd.datasets.birdlets.plumage import FORMS, Species, species_table
from icd.datasets.birdlets.scenes import render
from icd.datasets.images import is_whole
from icd.files import cache_folder, make_folder

__all__ = ["PARTS", "Species", "draw", "families", "folder", "masks", "species_table"]

MOST_PIXELS = 2048  # a side; a scene of so many takes 430 MB while it is drawn, and each core draws one
FORMAT = 1  # goes up when the same settings no longer give the same files
SPLITS = ("train", "test")
PALETTE = [  # one colour a part, in the order of PARTS
    (0, 0, 0), (140, 86, 75), (255, 187, 120), (199, 199, 199), (31, 119, 180), (214, 39, 40),
    (255, 152, 150), (44, 160, 44), (148, 103, 189), (23, 190, 207), (188, 189, 34), (255, 127, 14),
    (255, 255, 255),
]  # fmt: skip


class _Picture(NamedTuple):
    """One image to draw: `name` is its path below images/, without the suffix."""

    name: str
    label: int
    split: int  # an index into SPLITS
    number: int


def draw(
    root: str | Path,
    species: int = 30,
    families: int = 6,
    train: int = 30,
    test: int = 30,
    size: int = 64,
    seed: int = 1,
    progress: bool = True,
) -> Path:
    """Write `train` + `test` images of each species, `size` pixels square, below `root`; returns `root`.

    Image k of a species' split is decided by (seed, species, split, k) alone: raise `test` for more
    of the same, raise `size` for the same scenes in more pixels. How far species differ was set by the
    accuracy of students on seed 0, so the default is another. Where the same data set already lies
    at `root`, nothing is done. The files appear all at once: a draw that is killed leaves nothing at
    `root`, and a second draw at the same time waits for the first. Raises `ValueError` for settings
    that make no data set and `FileExistsError` where something else lies at `root`.
    """
    settings = {"species": species, "families": families, "train": train, "test": test}
    settings |= {"size": size, "seed": seed}
    for name, value in settings.items():
        if not is_whole(value):
            raise ValueError(f"{name} is {value!r}: give a whole number")
        settings[name] = int(value)  # NumPy's are none for JSON
    table = species_table(species, families)
    for name, least in (("train", 0), ("test", 0), ("size", 16), ("seed", 0)):
        if settings[name] < least:
            raise ValueError(f"{name} is {settings[name]}: it must be at least {least}")
    if size > MOST_PIXELS:
        raise ValueError(f"size is {size}: it must be at most {MOST_PIXELS} pixels a side")
    if train + test == 0:
        raise ValueError("train and test are both 0: there is nothing to draw")
    root = Path(root).absolute()
    if _is_drawn(root, settings):
        return root
    make_folder(root.parent)
    unfinished = root.with_name(f".{root.name}.unfinished")
    lock = root.with_name(f".{root.name}.lock")
    with FileLock(lock):
        try:
            if _is_drawn(root, settings):  # by another process, while this one waited
                return root
            shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process left
            _write(unfinished, table, settings, progress)
            if root.is_dir():
                root.rmdir()  # an empty folder may be in the way; `_is_drawn` refuses any other
            unfinished.rename(root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()
    return root


def folder(progress: bool = True, **settings: int) -> Path:
    """The data set of these settings of `draw` (by default, the default one), drawn on first use.

    It lies in the folder that the environment variable ICD_CACHE names, else in the user's cache, under
    a name made of all its settings.
    """
    parameters = inspect.signature(draw).parameters
    defaults = {name: parameters[name].default for name in parameters if name not in ("root", "progress")}
    values = "-".join(f"{name}{value}" for name, value in (defaults | settings).items())
    return draw(cache_folder() / f"birdlets-v{FORMAT}-{values}", progress=progress, **settings)


def families(root: str | Path) -> np.ndarray:
    """The family of each class, (C,) int64: 0 for the first, in the order of the classes."""
    return np.array([row["family_index"] for row in _card(Path(root))["classes"]], dtype=np.int64)


def masks(root: str | Path, paths: Sequence[str | Path]) -> np.ndarray:
    """The part of every pixel, (N, H, W) uint8, an index into PARTS, for images of `root` by their paths.

    An occluded part is background where something hides it.
    """
    drawn = []
    for path in map(Path, paths):
        file = Path(root, "segmentations", path.parent.name, path.stem + ".png")
        try:
            with Image.open(file) as image:
                drawn.append(np.asarray(image, dtype=np.uint8))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: there is no part mask for the image {path}") from None
    return np.stack(drawn) if drawn else np.zeros((0, 0, 0), np.uint8)


def _card(root: Path) -> dict[str, Any]:
    path = root / "birdlets.json"
    try:
        card = json.loads(path.read_bytes())
        wanted = {"format": int, "settings": dict, "classes": list}
        if any(not isinstance(card[name], kind) for name, kind in wanted.items()):
            raise TypeError
    except FileNotFoundError:
        raise FileNotFoundError(f"{root}: this is no Birdlets data set, it has no birdlets.json") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: this file is damaged; draw the data set again in a new folder") from error
    return card


def _is_drawn(root: Path, settings: dict[str, int]) -> bool:
    """True where this data set lies at `root`, False where nothing does; raises where something else does."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "birdlets.json").is_file():
        raise FileExistsError(f"{root}: something other than Birdlets lies here; choose a new folder")
    card = _card(root)
    found = {"format": card["format"], **card["settings"]}
    wanted = {"format": FORMAT, **settings}
    differs = ", ".join(f"{k} is {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v)
    if differs:
        raise FileExistsError(f"{root}: other Birdlets lie here ({differs}); choose a new folder")
    count = settings["species"] * (settings["train"] + settings["test"])
    for kind in ("images", "segmentations"):
        present = sum(1 for _ in (root / kind).glob("*/*.png"))
        if present != count:
            raise FileExistsError(f"{root}: it has {present} of {count} {kind}; delete it and draw again")
    return True


def _write(root: Path, table: Sequence[Species], settings: dict[str, int], progress: bool) -> None:
    classes = [f"{number:03d}.{species.name}" for number, species in enumerate(table, 1)]
    pictures = [
        _Picture(f"{name}/{species.name}_{split}_{number:05d}", label, which, number)
        for label, (name, species) in enumerate(zip(classes, table, strict=True))
        for which, split in enumerate(SPLITS)
        for number in range(settings[split])
    ]
    for kind in ("images", "segmentations"):
        for name in classes:
            (root / kind / name).mkdir(parents=True)
    (root / "parts").mkdir()
    (root / "attributes").mkdir()
    located = _write_images(root, table, pictures, settings["size"], settings["seed"], progress)
    _write_lists(root, classes, pictures, located)
    _write_attributes(root, table)
    names = list(dict.fromkeys(species.family for species in table))
    card = {
        "format": FORMAT,
        "settings": settings,
        "parts": PARTS,
        "families": names,
        "classes": [{**asdict(species), "family_index": names.index(species.family)} for species in table],
    }
    (root / "birdlets.json").write_text(json.dumps(card, indent=1) + "\n")


def _write_images(
    root: Path, table: Sequence[Species], pictures: Sequence[_Picture], size: int, seed: int, progress: bool
) -> np.ndarray:
    """Draw and save every image and mask; returns `_places` of each, (N, parts, 4)."""
    at_once = max(1, 2**16 // size**2)  # so that a layer of the batch stays in a core's cache
    batches = [pictures[i : i + at_once] for i in range(0, len(pictures), at_once)]

    def one(batch: Sequence[_Picture]) -> list[np.ndarray]:
        streams = [np.random.default_rng([seed, p.label, p.split, p.number]) for p in batch]
        uniforms = np.stack([stream.random(THROWS, dtype=np.float32) for stream in streams])
        pixels, parts = render([table[p.label] for p in batch], uniforms, size)
        for picture, image, mask in zip(batch, pixels, parts, strict=True):
            Image.fromarray(image).save(root / "images" / f"{picture.name}.png", compress_level=3)
            indexed = Image.fromarray(mask, mode="L").convert("P")
            indexed.putpalette([value for colour in PALETTE for value in colour])
            indexed.save(root / "segmentations" / f"{picture.name}.png", compress_level=3)
        return [_places(mask) for mask in parts]

    located: list[np.ndarray] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with tqdm(total=len(pictures), desc="drawing", unit=" birds", disable=not progress, delay=2) as bar:
            for places in pool.map(one, batches):
                located += places
                bar.update(len(places))
    finally:
        pool.shutdown(cancel_futures=True)
    return np.stack(located)


def _places(mask: np.ndarray) -> np.ndarray:
    """Where the parts of a mask (H, W) lie, (parts, 4): x, y of the pixel nearest its middle, 1 if seen, 0.

    Row 0, the background's, is the whole bird's box instead: left, top, width, height.
    """
    places = np.zeros((len(PARTS), 4))
    rows, columns = np.nonzero(mask)
    if len(rows):
        left, top = columns.min(), rows.min()
        places[0] = left, top, columns.max() + 1 - left, rows.max() + 1 - top
    indices = mask[rows, columns]
    for part in range(1, len(PARTS)):
        y, x = rows[indices == part], columns[indices == part]
        if len(y):
            nearest = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
            places[part] = x[nearest] + 0.5, y[nearest] + 0.5, 1, 0
    return places


def _write_lists(
    root: Path, classes: Sequence[str], pictures: Sequence[_Picture], located: np.ndarray
) -> None:
    """The text files that CUB-200-2011 has: every row begins with an image's or a class's number, from 1."""

    def lines(path: str, rows: Sequence[str]) -> None:
        (root / path).write_text("".join(row + "\n" for row in rows))

    numbered = list(enumerate(pictures, 1))
    boxes = (" ".join(f"{value:.1f}" for value in box) for box in located[:, 0])
    lines("classes.txt", [f"{i} {name}" for i, name in enumerate(classes, 1)])
    lines("images.txt", [f"{i} {p.name}.png" for i, p in numbered])
    lines("image_class_labels.txt", [f"{i} {p.label + 1}" for i, p in numbered])
    lines("train_test_split.txt", [f"{i} {int(SPLITS[p.split] == 'train')}" for i, p in numbered])
    lines("bounding_boxes.txt", [f"{i} {box}" for i, box in enumerate(boxes, 1)])
    lines("parts/parts.txt", [f"{part} {name}" for part, name in enumerate(PARTS) if part])
    rows = [
        f"{i} {part} {x:.1f} {y:.1f} {visible:.0f}"
        for i, places in enumerate(located, 1)
        for part, (x, y, visible, _) in enumerate(places[1:], 1)
    ]
    lines("parts/part_locs.txt", rows)


def _write_attributes(root: Path, table: Sequence[Species]) -> None:
    """Every form of every mark, and for each species 100 (per cent of its images show it) or 0."""
    forms = [(mark, form) for mark in FORMS for form in FORMS[mark]]
    text = "".join(f"{i} has_{mark}::{form}\n" for i, (mark, form) in enumerate(forms, 1))
    (root / "attributes.txt").write_text(text)
    rows = (" ".join("100.0" if s.marks[mark] == form else "0.0" for mark, form in forms) for s in table)
    path = root / "attributes" / "class_attribute_labels_continuous.txt"
    path.write_text("".join(row + "\n" for row in rows))
