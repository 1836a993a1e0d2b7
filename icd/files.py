"""Files that are whole or not there, and where the package keeps and finds them."""

from __future__ import annotations

import errno
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

if sys.platform != "win32":
    import fcntl

_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears as `path` when the block ends well, and never before.

    Until then it is a hidden file beside it. What killed processes left of theirs in the folder is removed
    first. An OSError names `path`.
    """
    part = path
    try:
        make_folder(path.parent)
        _sweep(path.parent)
        part, file = _open_part(path)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                os.replace(part, path)  # while it is locked, else it could be taken for abandoned
        if sys.platform == "win32":
            os.replace(part, path)  # Windows moves no open file
    except BaseException as error:
        if part != path:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and _PART.fullmatch(Path(error.filename or part).name):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """A new hidden file beside `path`. The lock on it ends with the process, however that ends."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        file = open(part, "xb")  # noqa: SIM115  (the caller closes it)
        if sys.platform != "win32":
            with suppress(OSError):  # of a file system without locks, which `_sweep` leaves alone
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # another process swept it before it was locked


def _sweep(folder: Path) -> None:
    """Remove the parts in a folder whose writers are gone."""
    if sys.platform != "win32":
        for part in folder.glob(".*.part"):
            if _PART.fullmatch(part.name):
                with suppress(OSError), open(part, "rb") as file:  # being written, or another user's
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote, on the host. No code in it is run; what is wrong with it raises anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that torch itself would not have written
        return torch.load(path, map_location="cpu", weights_only=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if path.exists())
        reason = "there is a file where a folder should be"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(file)) from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or leave what was there."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def expand(path: str | Path) -> Path:
    """A path whose ~ is the user's home; one that begins with the ~ of nobody stays as it is."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def cache_folder() -> Path:
    """Return the folder for drawn and decoded images: ICD_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ICD_CACHE") or user_cache_dir("icd"))


def data_path(name: str) -> Path:
    """A file that ships with the book: in the installed package, or in `data/` of a checkout."""
    here = Path(__file__).parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} does not ship with this installation of icd")
