"""CUB-200-2011's file layout: read it, verify it, download it.

Caltech-UCSD Birds-200-2011 (Wah, Branson, Welinder, Perona and Belongie 2011, CNS-TR-2011-001):
11,788 photographs of 200 species, each with a box around the bird and the places of 15 parts.
`icd.birdlets` draws a data set in the same layout.
"""

from __future__ import annotations

import difflib
import operator
import os
import posixpath
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from icd.datasets.fetch import check_md5, fetch, leads_out, unpack
from icd.datasets.folders import SUFFIXES
from icd.datasets.images import Crop, ImageList, Resize, is_whole
from icd.datasets.tables import Table
from icd.errors import DataError
from icd.files import expand

FOLDER = "CUB_200_2011"
ARCHIVE = "CUB_200_2011.tgz"
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
MD5 = "97eceeb196236b17998738112f37df78"
TABLES = {  # every table of the layout that is read here, and its columns
    "images.txt": ("image id", "path"),
    "classes.txt": ("class id", "class"),
    "image_class_labels.txt": ("image id", "class id"),
    "train_test_split.txt": ("image id", "split flag"),
    "bounding_boxes.txt": ("image id", "left", "top", "width", "height"),
    "parts/parts.txt": ("part id", "part"),
    "parts/part_locs.txt": ("image id", "part id", "x", "y", "visible flag"),
}


@dataclass(frozen=True, eq=False)
class Tables:
    """The text files of the layout, checked against each other. N images and C classes, by ascending id."""

    folder: Path
    paths: tuple[str, ...]  # N, under `folder / "images"`
    lines: np.ndarray  # (N,) the line of each image in images.txt
    labels: np.ndarray  # (N,) int64, an index into `classes`
    classes: tuple[str, ...]
    train: np.ndarray  # (N,) bool, the official split
    boxes: np.ndarray  # (N, 4) float64: left, top, width, height in pixels of the file
    box_lines: np.ndarray  # (N,) the line of each box in bounding_boxes.txt
    parts: np.ndarray  # (N, P, 3) float64: x, y in pixels of the file, 1 if visible
    part_names: tuple[str, ...]


def CUB200(
    root: str | Path,
    split: Literal["train", "test", "all"],
    classes: int | str | Sequence[int | str] | None = None,
    crop: Crop = "image",
    size: int = 224,
    margin: float = 0.1,
    resize: Resize = "squash",
) -> ImageList:
    """The photographs of one official split; nothing is decoded yet.

    `root` holds images.txt, or the folder CUB_200_2011 that does. `classes` takes a number n (the
    first n classes), names (with or without their "001."), or indices from 0; labels then count
    from 0 in the order given. `crop`, `size` (pixels), `margin` (share of the box) and `resize` are
    those of `ImageList`. Raises `DataError`, naming file and line, for whatever is broken or missing;
    warns of images on disk that no row names.
    """
    if split not in ("train", "test", "all"):
        raise DataError(f'split is {split!r}: choose "train", "test" or "all"')
    tables = read_tables(root)
    chosen = _chosen_classes(tables, classes)
    renumbered = np.full(len(tables.classes), -1, dtype=np.int64)
    renumbered[chosen] = np.arange(len(chosen))
    in_split = np.full(len(tables.paths), True) if split == "all" else tables.train == (split == "train")
    if not in_split.any():
        raise DataError(f"{tables.folder / 'train_test_split.txt'}: no image is in the {split} split")
    rows = np.flatnonzero(in_split & (renumbered[tables.labels] >= 0))
    labels = renumbered[tables.labels[rows]]
    for index in np.flatnonzero(np.bincount(labels, minlength=len(chosen)) == 0):
        name = tables.classes[chosen[index]]
        where = "at all" if split == "all" else f"in the {split} split"
        raise DataError(f"{tables.folder / 'image_class_labels.txt'}: class {name} has no image {where}")
    _check_images(tables, rows)
    images, image_file = tables.folder / "images", tables.folder / "images.txt"
    box_file = tables.folder / "bounding_boxes.txt"
    return ImageList(
        paths=tuple(images / tables.paths[row] for row in rows),
        labels=labels,
        classes=tuple(tables.classes[index] for index in chosen),
        size=size,
        crop=crop,
        margin=margin,
        resize=resize,
        boxes=tables.boxes[rows],
        box_sources=tuple(f"{box_file}:{line}" for line in tables.box_lines[rows]),
        sources=tuple(f"{image_file}:{line}" for line in tables.lines[rows]),
        parts=tables.parts[rows],
        part_names=tables.part_names,
    )


def read_tables(root: str | Path) -> Tables:
    """Read the seven text files and check them against each other; no image needs to be there.

    Raises `DataError`, naming file and line; warns where an image's folder is not its class.
    """
    folder = _find(expand(root))

    def read(name: str, words: Literal["none", "one", "many"] = "none") -> Table:
        return Table.read(folder / name, TABLES[name], words)

    images, classes = read("images.txt", "one").by_id(), read("classes.txt", "one").by_id()
    parts = read("parts/parts.txt", "many").by_id()  # "7 left eye"
    paths = _image_paths(images)
    classes.unique(classes.words, "class {class}")

    table = read("image_class_labels.txt")
    labels = np.empty(len(paths), dtype=np.int64)
    labels[table.positions(images)] = table.found_in(classes)

    table = read("train_test_split.txt")
    flags = table.values[:, 1]
    table.require(np.isin(flags, (0, 1)), "the split flag is {split flag}: 1 is train, 0 is test")
    train = np.empty(len(paths), dtype=bool)
    train[table.positions(images)] = flags == 1

    table = read("bounding_boxes.txt")
    box = table.values[:, 1:]
    table.require(np.isfinite(box).all(1), "the box ({left}, {top}, {width}, {height}) is not finite")
    table.require((box[:, 2:] > 0).all(1), "the box is {width} x {height} pixels: both must be positive")
    boxes, box_lines = np.empty((len(paths), 4)), np.empty(len(paths), dtype=np.int64)
    where = table.positions(images)
    boxes[where], box_lines[where] = box, table.lines

    table = read("parts/part_locs.txt")
    place = table.values[:, 2:]
    table.require(np.isfinite(place).all(1), "the part's place ({x}, {y}) is not finite")
    table.require(np.isin(place[:, 2], (0, 1)), "the visible flag is {visible flag}: 1 is visible, 0 is not")
    places = np.empty((len(paths) * len(parts.words), 3))
    places[table.positions(images, parts)] = place

    astray = [i for i, path in enumerate(paths) if path.split("/")[0] != classes.words[labels[i]]]
    if astray:  # labels decide, so a relabelled data set reads; but it is rarely meant
        first = f"{paths[astray[0]]}, labelled {classes.words[labels[astray[0]]]}"
        warnings.warn(
            f"{images.path}:{images.lines[astray[0]]}: {len(astray)} images lie in the folder of another "
            f"class than their label's, first {first}",
            stacklevel=2,
        )
    return Tables(
        folder=folder,
        paths=paths,
        lines=images.lines,
        labels=labels,
        classes=classes.words,
        train=train,
        boxes=boxes,
        box_lines=box_lines,
        parts=places.reshape(len(paths), -1, 3),
        part_names=parts.words,
    )


def _find(root: Path) -> Path:
    for folder in (root, root / FOLDER):
        if any((folder / name).is_file() for name in TABLES):
            return folder
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; icd.birds.download fetches CUB-200-2011")
    raise DataError(
        f"{root}: neither images.txt nor {FOLDER}/images.txt is here; icd.birds.download fetches them"
    )


def _image_paths(images: Table) -> tuple[str, ...]:
    leaves = np.array([leads_out(path) for path in images.words])
    images.require(~leaves, "the path {path} leaves the folder of images")
    printable = np.array([path.isprintable() for path in images.words])
    images.require(printable, "the path holds a control character")
    paths = tuple(posixpath.normpath(path) for path in images.words)
    images.unique(paths, "path {path}")
    return paths


def _chosen_classes(tables: Tables, classes: int | str | Sequence[int | str] | None) -> list[int]:
    names, file = tables.classes, tables.folder / "classes.txt"
    if classes is None:
        return list(range(len(names)))
    if isinstance(classes, str):
        classes = [classes]
    if isinstance(classes, int | np.integer) and is_whole(classes):
        if not 1 <= classes <= len(names):
            raise DataError(f"classes is {classes}: {file} has {len(names)}")
        return list(range(classes))
    if not isinstance(classes, Iterable):
        raise DataError(f"classes is {classes!r}: give how many, or a list of names or numbers")
    chosen = [_class_index(names, file, wanted) for wanted in classes]
    if not chosen:
        raise DataError("classes is empty: give at least one")
    for index in chosen:
        if chosen.count(index) > 1:
            raise DataError(f"classes names {names[index]} twice")
    return chosen


def _class_index(names: Sequence[str], file: Path, wanted: int | str) -> int:
    if not isinstance(wanted, str):
        if not is_whole(wanted):
            raise DataError(f"class {wanted!r}: give a name, or a whole number, counted from 0")
        if not 0 <= wanted < len(names):
            raise DataError(f"class {wanted}: {file} has {len(names)}, counted from 0")
        return operator.index(wanted)
    bare = [re.sub(r"^\d+\.", "", name) for name in names]
    found = [i for i, name in enumerate(names) if wanted in (name, bare[i])]
    if len(found) > 1:
        raise DataError(f"class {wanted}: {file} has several, write {' or '.join(names[i] for i in found)}")
    if not found:
        folded = {name.lower(): name for name in (*names, *bare)}
        near = difflib.get_close_matches(wanted.lower().replace(" ", "_"), folded, n=1, cutoff=0)
        raise DataError(f"class {wanted}: not in {file}; the nearest is {folded[near[0]]}")
    return found[0]


def _check_images(tables: Tables, rows: np.ndarray) -> None:
    """Raise for the first of `rows` whose image is missing; warn of images that no row names."""
    images = tables.folder / "images"
    if not images.is_dir():
        raise DataError(
            f"{images}: there is no such folder; icd.birds.read_tables reads the text files without images"
        )
    on_disk = set()
    for folder, _, files in os.walk(images):
        inside = "" if folder == str(images) else Path(folder).relative_to(images).as_posix() + "/"
        on_disk |= {inside + name for name in files if not name.startswith(".")}
    table, paths = tables.folder / "images.txt", tables.paths
    # A file may be reached otherwise than by the walk: a linked folder, a disk that ignores case.
    lacking = [i for i in rows if paths[i] not in on_disk and not os.path.isfile(images / paths[i])]
    if lacking:
        first = lacking[0]
        count = f"{len(lacking)} of {len(rows)} images are missing"
        raise DataError(f"{table}:{tables.lines[first]}: {images / paths[first]} is missing ({count})")
    extra = sorted(path for path in on_disk.difference(paths) if path.lower().endswith(SUFFIXES))
    if extra:
        warnings.warn(f"{table}: {len(extra)} images on disk have no row, first {extra[0]}", stacklevel=3)


def download(root: str | Path, progress: bool = True) -> Path:
    """Fetch CUB-200-2011 (1.1 GB) into `root`, check its md5, unpack it, and return its folder.

    Does nothing where the data is already. A download that was cut off goes on where it stopped,
    and an archive that the reader has put there is used. Raises `DataError`, saying what to do by
    hand where the network fails.
    """
    root = expand(root)
    if not (root / FOLDER).exists() and not (root / ARCHIVE).exists():
        fetch(URL, root / ARCHIVE, MD5, progress)
    return extract(root / ARCHIVE, root, MD5, progress)


def extract(archive: str | Path, root: str | Path, md5: str | None = MD5, progress: bool = True) -> Path:
    """Unpack CUB_200_2011.tgz into `root` and return `root/CUB_200_2011`: whole, or not at all.

    The archive stays. Does nothing where the data is already. Raises `DataError` if the archive is
    missing or damaged, its md5 is another, or it holds links or paths that lead out of it.
    """
    archive, folder = expand(archive), expand(root) / FOLDER
    if (folder / "images.txt").is_file():
        return folder
    if folder.exists():
        raise DataError(f"{folder}: this folder has no images.txt; remove it to unpack {archive.name} there")
    if not archive.is_file():
        raise DataError(f"{archive}: there is no such archive")
    if md5 is not None:
        check_md5(archive, md5)
    unpack(archive, folder, "images.txt", progress)
    return folder
