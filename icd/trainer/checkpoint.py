"""Checkpoints: the state of a run in one file, written atomically, and its log beside it."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from icd.errors import RunError
from icd.files import atomic_file, load_tensors, make_folder, write_atomically

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


class Checkpoint:
    """The folder of a run: `checkpoint.pt` and `log.jsonl`.

    Args:
        folder: None saves nothing.
        writes: False in all processes but one.
        every: seconds between two checkpoints.

    Raises:
        RunError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path | None, writes: bool, every: float):
        self.folder = None if folder is None else Path(folder)
        self.writes, self.every = writes and self.folder is not None, every
        self.started = self.saved = time.monotonic()
        if self.folder is not None:
            try:
                make_folder(self.folder)
            except OSError as error:
                raise RunError(
                    f"{error.filename}: {error.strerror}. Choose another folder for the run"
                ) from error

    def seconds(self) -> float:
        """Return the wall time of the run so far, over all its sessions."""
        return round(time.monotonic() - self.started, 2)

    def should_save(self) -> bool:
        """Return whether the time between two checkpoints has passed, in the process that writes."""
        return self.writes and time.monotonic() - self.saved > self.every

    def save(self, state: Mapping[str, Any], where: str) -> None:
        """Write the state of a run; `where` names its epoch and step in errors.

        Raises:
            RunError: the disk is full or gone; the previous checkpoint is kept.
        """
        if self.writes:
            with self._disk(f"the checkpoint of {where}"), atomic_file(self._path(CHECKPOINT)) as file:
                torch.save(dict(state), file)
        self.saved = time.monotonic()

    def write_log(self, first: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the log: a line of settings, then one for each epoch and student."""
        if self.writes:
            with self._disk("the log"):
                text = "".join(json.dumps(line) + "\n" for line in [first, *rows])
                write_atomically(self._path(LOG), text)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    @contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder}: {what} could not be written ({error.strerror or error}). "
                "The previous checkpoint is kept: free some space and start the run again"
            ) from error


def load_checkpoint(folder: str | Path | None) -> dict[str, Any] | None:
    """Return the state in a folder's checkpoint, or None where there is none.

    Raises:
        RunError: the file cannot be read, is damaged, or is not a checkpoint.
    """
    path = None if folder is None else Path(folder) / CHECKPOINT
    if path is None or not os.path.exists(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums in it
            if member := archive.testzip():
                raise ValueError(f"the checksum of {member} is wrong")
        state = load_tensors(path)
        return {**state, "settings": dict(state["settings"]), "epoch": int(state["epoch"])}
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror or error}): fix that, or choose another folder"
        ) from error
    except Exception as error:  # damaged bytes can raise anything in unpickling
        raise damaged(folder) from error


def damaged(folder: str | Path | None) -> RunError:
    """Return the error for a checkpoint that cannot be used."""
    return RunError(
        f"{Path(folder or '') / CHECKPOINT} is not a checkpoint of icd, or it is damaged. "
        "Delete it to start again, or choose another folder"
    )


def check_same_run(
    folder: str | Path | None, saved: Mapping[str, Any], given: Mapping[str, Any], ignore: set[str]
) -> None:
    """Raise a RunError if a setting (not in `ignore`) differs from the saved run's."""
    there = flatten(saved)
    for name, value in flatten(given).items():
        if there.get(name) != value and name not in ignore:
            raise RunError(
                f"{folder} holds a run with a different {name}: there {there.get(name)}, here {value}. "
                "Give the same settings to resume it, or choose another folder"
            )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by names like "recipe.epochs"."""
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        rows |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows
