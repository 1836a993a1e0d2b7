"""Files that are whole or not there, and where the package keeps and finds them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_dir


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears as `path` when the block ends well, and never before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or leave what was there."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def cache_folder() -> Path:
    """Where drawn and decoded images are kept: ICD_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ICD_CACHE") or user_cache_dir("icd"))


def data_path(name: str) -> Path:
    """A file that ships with the book: in the installed package, or in `data/` of a checkout."""
    here = Path(__file__).parent
    for folder in (here / "data", here.parent / "data"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} does not ship with this installation of icd")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
