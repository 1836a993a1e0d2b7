"""CUB-200-2011: read, verify and download it.

Caltech-UCSD Birds-200-2011 (Wah, Branson, Welinder, Perona and Belongie 2011, CNS-TR-2011-001):
11,788 photographs of 200 species, each with a box around the bird and the places of 15 parts.
The parts are not read: no loss uses them. `icd.datasets.birdlets` draws a data set in the same layout.
"""

from __future__ import annotations

import os
import posixpath
import warnings
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
TABLES = {  # the tables that are read, and their columns
    "images.txt": ("image id", "path"),
    "classes.txt": ("class id", "class"),
    "image_class_labels.txt": ("image id", "class id"),
    "train_test_split.txt": ("image id", "split flag"),
    "bounding_boxes.txt": ("image id", "left", "top", "width", "height"),
}


@dataclass(frozen=True, eq=False)
class Tables:
    """The text files, checked against each other: N images and C classes, by ascending id."""

    folder: Path
    paths: tuple[str, ...]  # N, under `folder / "images"`
    lines: np.ndarray  # (N,) the line of each image in images.txt
    labels: np.ndarray  # (N,) int64, an index into `classes`
    classes: tuple[str, ...]
    train: np.ndarray  # (N,) bool, the official split
    boxes: np.ndarray  # (N, 4) float64: left, top, width, height in pixels of the file
    box_lines: np.ndarray  # (N,) the line of each box in bounding_boxes.txt


def CUB200(
    root: str | Path,
    split: Literal["train", "test", "all"],
    classes: int | None = None,
    crop: Crop = "image",
    size: int = 224,
    margin: float = 0.1,
    resize: Resize = "squash",
) -> ImageList:
    """Return the photographs of one official split, not yet decoded.

    Warns of images on disk that no row names.

    Args:
        root: holds images.txt, or the folder CUB_200_2011 that does.
        split: "train", "test", or "all".
        classes: use only the first so many classes; default all.
        crop, size, margin, resize: those of `ImageList`.

    Raises:
        DataError: what is broken or missing, with file and line.
    """
    if split not in ("train", "test", "all"):
        raise DataError(f'split is {split!r}: choose "train", "test" or "all"')
    tables = read_tables(root)
    count = len(tables.classes)
    if classes is not None and not is_whole(classes):
        raise DataError(f"classes is {classes!r}: give how many, {tables.folder / 'classes.txt'} has {count}")
    if classes is not None and not 1 <= classes <= count:
        raise DataError(f"classes is {classes}: {tables.folder / 'classes.txt'} has {count}")
    names = tables.classes[:classes]
    in_split = np.full(len(tables.paths), True) if split == "all" else tables.train == (split == "train")
    if not in_split.any():
        raise DataError(f"{tables.folder / 'train_test_split.txt'}: no image is in the {split} split")
    rows = np.flatnonzero(in_split & (tables.labels < len(names)))
    labels = tables.labels[rows]
    for index in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0):
        name = names[index]
        where = "at all" if split == "all" else f"in the {split} split"
        raise DataError(f"{tables.folder / 'image_class_labels.txt'}: class {name} has no image {where}")
    _check_images(tables, rows)
    images, image_file = tables.folder / "images", tables.folder / "images.txt"
    box_file = tables.folder / "bounding_boxes.txt"
    return ImageList(
        paths=tuple(images / tables.paths[row] for row in rows),
        labels=labels,
        classes=names,
        size=size,
        crop=crop,
        margin=margin,
        resize=resize,
        boxes=tables.boxes[rows],
        box_sources=tuple(f"{box_file}:{line}" for line in tables.box_lines[rows]),
        sources=tuple(f"{image_file}:{line}" for line in tables.lines[rows]),
    )


def read_tables(root: str | Path) -> Tables:
    """Read the text files and check them against each other; the images need not be there.

    Warns of images in another class's folder.

    Raises:
        DataError: what is broken or missing, with file and line.
    """
    folder = _find(expand(root))

    def read(name: str, words: bool = False) -> Table:
        return Table.read(folder / name, TABLES[name], words)

    images, classes = read("images.txt", True).by_id(), read("classes.txt", True).by_id()
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

    astray = [i for i, path in enumerate(paths) if path.split("/")[0] != classes.words[labels[i]]]
    if astray:  # allowed, as in a relabelled data set, but rarely intended
        first = f"{paths[astray[0]]}, labelled {classes.words[labels[astray[0]]]}"
        warnings.warn(
            f"{images.path}:{images.lines[astray[0]]}: {len(astray)} images are in the folder of a "
            f"class that is not their label, first {first}",
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
    )


def _find(root: Path) -> Path:
    for folder in (root, root / FOLDER):
        if any((folder / name).is_file() for name in TABLES):
            return folder
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; icd.birds.download downloads CUB-200-2011")
    raise DataError(
        f"{root}: neither images.txt nor {FOLDER}/images.txt is here; icd.birds.download downloads them"
    )


def _image_paths(images: Table) -> tuple[str, ...]:
    leaves = np.array([leads_out(path) for path in images.words])
    images.require(~leaves, "the path {path} leads out of the folder of images")
    printable = np.array([path.isprintable() for path in images.words])
    images.require(printable, "the path holds a control character")
    paths = tuple(posixpath.normpath(path) for path in images.words)
    images.unique(paths, "path {path}")
    return paths


def _check_images(tables: Tables, rows: np.ndarray) -> None:
    """Raise for the first of `rows` whose image is missing; warn of images without a row."""
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
    # The walk misses files in linked folders, and names in other capitals on some disks.
    lacking = [i for i in rows if paths[i] not in on_disk and not os.path.isfile(images / paths[i])]
    if lacking:
        first = lacking[0]
        count = f"{len(lacking)} of {len(rows)} images are missing"
        raise DataError(f"{table}:{tables.lines[first]}: {images / paths[first]} is missing ({count})")
    extra = sorted(path for path in on_disk.difference(paths) if path.lower().endswith(SUFFIXES))
    if extra:
        warnings.warn(f"{table}: {len(extra)} images on disk have no row, first {extra[0]}", stacklevel=3)


def download(root: str | Path, progress: bool = True) -> Path:
    """Download CUB-200-2011 (1.1 GB) into `root`, verify its md5, unpack it, and return its folder.

    Does nothing if the data is there, and uses an archive that is there. A download that breaks off starts
    again.

    Raises:
        DataError: the network fails, with what to do by hand, or the archive is damaged.
    """
    root = expand(root)
    if not (root / FOLDER).exists() and not (root / ARCHIVE).exists():
        fetch(URL, root / ARCHIVE, MD5)
    return extract(root / ARCHIVE, root, MD5, progress)


def extract(archive: str | Path, root: str | Path, md5: str | None = MD5, progress: bool = True) -> Path:
    """Unpack CUB_200_2011.tgz into `root` atomically and return `root/CUB_200_2011`.

    Keeps the archive. Does nothing if the data is there.

    Raises:
        DataError: the archive is missing or damaged, has another md5, or holds links or paths that lead out.
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
