"""Archives: downloaded, verified, and unpacked atomically."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from icd.errors import DataError
from icd.files import make_folder

# A leading separator or drive, or "..", in the notation of any system.
_LEADS_OUT = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def leads_out(path: str) -> bool:
    """Return whether a relative path, on any system, may lead out of the folder that it is joined to."""
    return _LEADS_OUT.search(path) is not None


def check_md5(file: Path, expected: str) -> None:
    """Raise DataError unless the file's md5 is the expected one."""
    from torchvision.datasets.utils import calculate_md5

    if (md5 := calculate_md5(str(file), 1 << 20)) != expected:
        raise DataError(f"{file}: its md5 is {md5} instead of {expected}: damaged, download it again")


def fetch(url: str, file: Path, md5: str) -> None:
    """Download `url` to `file`, which appears once its md5 is verified.

    Raises:
        DataError: the network fails, with what to do by hand, or the md5 is another.
    """
    from filelock import FileLock
    from torchvision.datasets.utils import download_url

    partial = file.with_name(f"{file.name}.part")
    make_folder(file.parent)
    with FileLock(file.with_name(f".{file.name}.lock")):  # two processes would write the same part
        if file.exists():
            return
        try:
            download_url(url, str(file.parent), partial.name)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
            raise DataError(
                f"{url} could not be downloaded ({error}). Try again, or download it with a browser, save it "
                f"as {file}, and try again"
            ) from error
        try:
            check_md5(partial, md5)
        except DataError:
            partial.unlink()
            raise
        os.replace(partial, file)


def unpack(archive: Path, folder: Path, holding: str, progress: bool = True) -> None:
    """Unpack the folder of that name from a tar archive, so that `folder` is complete or absent.

    Raises:
        DataError: the archive is damaged, holds links, devices or paths that lead out of it, or lacks the
            file `holding` in that folder.
    """
    make_folder(folder.parent)
    # Early releases of Python 3.10 lack the filter; the checks below suffice without it.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        try:
            with tarfile.open(archive) as tar:
                members = tqdm(tar, desc=f"unpacking {archive.name}", unit=" files", disable=not progress)
                for member in members:
                    if leads_out(member.name):
                        raise DataError(f"{archive}: the path {member.name} leads out of the archive")
                    if not (member.isfile() or member.isdir()):
                        raise DataError(f"{archive}: {member.name} is neither a file nor a folder")
                    tar.extract(member, scratch, **options)
                while tar.fileobj and tar.fileobj.read(1 << 20):
                    pass  # to the very end, where gzip has its checksum
        except DataError:
            raise
        except Exception as error:  # tarfile, gzip, bz2 and lzma have exceptions of their own
            reason = str(error).partition("\n")[0].rstrip(":")
            raise DataError(f"{archive}: the archive does not unpack ({reason})") from error
        if not Path(scratch, folder.name, holding).is_file():
            raise DataError(f"{archive}: the archive holds no {folder.name}/{holding}")
        try:
            Path(scratch, folder.name).rename(folder)
        except OSError:
            if not (folder / holding).is_file():  # otherwise another process was first
                raise
