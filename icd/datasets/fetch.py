"""Archives: fetched with resume, checked before they are opened, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from icd.errors import DataError
from icd.files import make_folder

# A leading separator or drive, or "..", in the spelling of any system.
_LEADS_OUT = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")


def leads_out(path: str) -> bool:
    """Whether a relative path, on any system, may lead out of the folder that it is joined to."""
    return _LEADS_OUT.search(path) is not None


def check_md5(file: Path, expected: str) -> None:
    """Raise `DataError` unless the file's md5 is the expected one."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{file}: its md5 is {digest.hexdigest()} instead of {expected}: damaged, fetch it again"
        )


def fetch(url: str, file: Path, md5: str, progress: bool = True) -> None:
    """Write what lies at `url` to `file`, which appears once its md5 is right.

    What a broken connection leaves, `file` with ".part" added, is where the next call goes on if
    the server can. Raises `DataError`, saying what to do by hand where the network fails.
    """
    partial = file.with_name(f"{file.name}.part")
    make_folder(file.parent)
    with FileLock(file.with_name(f".{file.name}.lock")):  # two processes would write into each other's part
        if file.exists():
            return
        try:
            _resume(url, partial, progress)
        except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
            raise DataError(
                f"{url} could not be fetched ({error}); call this again, or fetch it with a browser, "
                f"save it as {file}, and then call this again"
            ) from error
        try:
            check_md5(partial, md5)
        except DataError:
            partial.unlink()  # else every later call would build on it
            raise
        os.replace(partial, file)


def _resume(url: str, partial: Path, progress: bool) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "icd", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing follows what is there: whole, or the md5 will tell
            return
        raise
    with reply:
        have = have if reply.status == 206 else 0  # any other answer sends the file from its start
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(partial, "ab" if have else "wb") as out,
            tqdm.wrapattr(
                out, "write", desc=partial.stem, initial=have, total=total, disable=not progress
            ) as bar,
        ):
            shutil.copyfileobj(reply, bar, 1 << 20)
    if total is not None and partial.stat().st_size < total:
        raise OSError(f"the connection broke off at {partial.stat().st_size:,} of {total:,} bytes")


def unpack(archive: Path, folder: Path, holding: str, progress: bool = True) -> None:
    """Unpack the folder of that name from a tar archive, so that `folder` is whole or not there.

    Raises `DataError` if the archive is damaged, holds links, devices or paths that lead out of it,
    or lacks the file `holding` in that folder.
    """
    make_folder(folder.parent)
    # The filter came to Python 3.10 late; what is checked below is safe without one.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {"set_attrs": False}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        try:
            with tarfile.open(archive) as tar:
                for member in tqdm(
                    tar, desc=f"unpacking {archive.name}", unit=" files", disable=not progress
                ):
                    if leads_out(member.name):
                        raise DataError(f"{archive}: the path {member.name} leads out of the archive")
                    if not (member.isfile() or member.isdir()):
                        raise DataError(f"{archive}: {member.name} is neither a file nor a folder")
                    tar.extract(member, scratch, **options)
                while tar.fileobj and tar.fileobj.read(1 << 20):
                    pass  # to the very end, where gzip keeps its checksum
        except DataError:
            raise
        except (
            Exception
        ) as error:  # a damaged one raises anything: tarfile, gzip, bz2 and lzma have their own
            reason = str(error).partition("\n")[0].rstrip(":")
            raise DataError(f"{archive}: the archive does not unpack ({reason})") from error
        if not Path(scratch, folder.name, holding).is_file():
            raise DataError(f"{archive}: the archive holds no {folder.name}/{holding}")
        try:
            Path(scratch, folder.name).rename(folder)
        except OSError:
            if not (folder / holding).is_file():  # else another process was first
                raise
