"""Folders of photographs, one folder per class."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from icd.datasets.images import ImageList, Resize, is_whole
from icd.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def class_folders(
    root: str | Path, classes: int | None = None, *, size: int = 224, resize: Resize = "squash"
) -> ImageList:
    """Read `root/CLASS/photo.jpg`: the first `classes` folders, by name, each a class.

    Warns of files that are skipped: unknown formats, or files outside the class folders.

    Raises:
        DataError: no such folder, no class, a class without images, or fewer classes than asked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: expected one folder of photographs for each class, and found no folder")
    if classes is not None and not is_whole(classes):
        raise DataError(f"classes is {classes!r}: give how many, {root} has {len(folders)}")
    if classes is not None and not 1 <= classes <= len(folders):
        raise DataError(f"classes is {classes}: {root} has {len(folders)}")
    folders = folders[:classes]
    inside = [sorted(folder.rglob("[!.]*")) for folder in folders]
    found = [[path for path in paths if path.suffix.lower() in SUFFIXES] for paths in inside]
    for folder, paths in zip(folders, found, strict=True):
        if not paths:
            raise DataError(f"{folder}: this class has no image ({', '.join(SUFFIXES)})")
    others = {*root.glob("[!.]*"), *(path for paths in inside for path in paths)}.difference(*found)
    if skipped := sorted(path for path in others if path.is_file()):
        first, known = skipped[0].relative_to(root).as_posix(), ", ".join(SUFFIXES)
        text = f"{root}: skipped {len(skipped)} files, first {first}; read are {known} in class folders"
        warnings.warn(text, stacklevel=1)  # at one place, so that it is shown once for all splits
    return ImageList(
        paths=tuple(path for paths in found for path in paths),
        labels=np.repeat(np.arange(len(found), dtype=np.int64), [len(paths) for paths in found]),
        classes=tuple(folder.name for folder in folders),
        size=size,
        resize=resize,
    )
