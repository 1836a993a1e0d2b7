"""Files that are whole or not there, and where the package keeps and finds them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_dir


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears as `path` when the block ends well, and never before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
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
