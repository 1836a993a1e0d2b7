"""A run that survives being stopped: what it needs to go on, in one file that is whole or not there."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from icd.errors import RunError
from icd.files import atomic_file, load_tensors, make_folder, write_atomically
from icd.trainer.provenance import commit, describe, device_name, digest

if TYPE_CHECKING:
    from icd.datasets.cache import CachedImages
    from icd.trainer.recipe import Recipe
    from icd.trainer.student import Student


# What Accelerate calls float32 is "no" mixed precision.
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}
#: Of a recipe, how its steps are computed, not what they are. A run goes on by what these come to.
HOW = ("precision", "sync_batch_norm", "compile")
NAME = "checkpoint.pt"


class Checkpoint:
    """The state of a run in `folder/checkpoint.pt`, and its log in `folder/log.jsonl`."""

    def __init__(
        self,
        folder: str | Path | None,
        learners: Sequence[Student],
        recipe: Recipe,
        data: CachedImages,
        teacher: nn.Module | None,
        accelerator: Accelerator,
        every: float,
    ):
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            try:
                make_folder(self.folder)
            except OSError as error:
                raise RunError(
                    f"{error.filename}: {error.strerror}. Name another folder for the run"
                ) from error
        self.learners, self.accelerator, self.every = learners, accelerator, every
        self.device = accelerator.device
        self.began = self.saved = time.monotonic()
        steps = json.loads(json.dumps(asdict(recipe)))
        # A run goes on only if all of this is as it was.
        self.settings = {
            "recipe": {k: v for k, v in steps.items() if k not in ("precision", "sync_batch_norm")},
            "precision": PRECISIONS[accelerator.mixed_precision],  # what "auto" came to
            # What synchronising comes to: it changes nothing in a single process.
            "number of images behind a batch statistic": recipe.batch_size
            // (1 if recipe.sync_batch_norm else accelerator.num_processes),
            "objectives": {learner.name: str(learner.objective) for learner in learners},
            "networks": {learner.name: describe(learner.network) for learner in learners},
            "images": f"{len(data)} of {len(data.classes)} classes, {data.size} pixels, {data.fingerprint}",
            "teacher": None if teacher is None else digest(teacher),
        }

    def seconds(self) -> float:
        """Wall time of the run so far, over all its sessions."""
        return round(time.monotonic() - self.began, 2)

    def due(self) -> bool:
        """Whether it is time to save; of several processes the one that writes knows."""
        writes = self.folder is not None and self.accelerator.is_main_process
        return writes and time.monotonic() - self.saved > self.every

    def save(self, epoch: int, step: int) -> None:
        """Keep the run as it is before step `step` (from 0) of epoch `epoch` (from 0)."""
        if step:  # nothing is kept before the steps behind it are known to be finite
            for learner in self.learners:
                learner.read(epoch + 1, step)
        if self.folder is None or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": self.settings,
            "epoch": epoch,
            "step": step,
            "seconds": self.seconds(),
            "learners": {learner.name: learner.state() for learner in self.learners},
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        with self._room(f"the checkpoint of epoch {epoch + 1}, step {step}"), atomic_file(self.path) as file:
            torch.save(state, file)
        self.write_log()
        self.saved = time.monotonic()

    def write_log(self) -> None:
        """Keep what is known of the run so far: a line of settings, then one an epoch and student."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        first = {**self.settings, "provenance": self.learners[0].provenance}
        rows = [{"student": learner.name, **row} for learner in self.learners for row in learner.history]
        with self._room("the log"):
            text = "".join(json.dumps(line) + "\n" for line in [first, *rows])
            write_atomically(self.folder / "log.jsonl", text)

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """A full disk, or one that is gone, as a RunError."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder}: {what} could not be written ({error.strerror or error}). "
                "The checkpoint before it is kept: make room and start the run again"
            ) from error

    def restore(self) -> tuple[int, int]:
        """Put the learners where the last checkpoint left them; returns (epoch, step), (0, 0) without one."""
        state = None if self.folder is None else load_state(self.folder)
        if state is None:
            self._sign(1)
            return 0, 0
        there, here = flat(state["settings"]), flat(self.settings)
        # Nothing more is computed in a run that has ended: it may be read on any device.
        free = {"precision", "recipe.compile"} if state["epoch"] == here["recipe.epochs"] else set()
        for name, now in here.items():
            if there.get(name) != now and name not in free:
                raise RunError(
                    f"{self.folder} holds a run with another {name}: there {there.get(name)}, here {now}. "
                    "Give the same settings to go on, or name another folder"
                )
        try:
            epoch, step = self._put_back(state)
        except Exception as error:
            raise _damaged(self.path) from error
        if epoch < here["recipe.epochs"]:
            self._sign(epoch + 1)
        return epoch, step

    def _sign(self, epoch: int) -> None:
        """Note what the students learn on from `epoch` (from 1) on, where that is news."""
        here = {
            "device": device_name(self.device, self.accelerator.num_processes),
            "commit": commit(),
            "torch": str(torch.__version__),
            "precision": self.settings["precision"],
            "teacher": self.settings["teacher"],
        }
        for learner in self.learners:
            if not learner.provenance or {**learner.provenance[-1], **here} != learner.provenance[-1]:
                learner.provenance.append({"epoch": epoch, **here})

    def _put_back(self, state: dict[str, Any]) -> tuple[int, int]:
        for learner in self.learners:
            learner.restore(state["learners"][learner.name])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        self.began -= state["seconds"]
        return int(state["epoch"]), int(state["step"])

    @property
    def path(self) -> Path:
        assert self.folder is not None
        return self.folder / NAME


def load_state(folder: str | Path) -> dict[str, Any] | None:
    """What the checkpoint in a folder holds, None where there is none."""
    path = Path(folder) / NAME
    if not os.path.exists(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums in it
            if member := archive.testzip():
                raise ValueError(f"the checksum of {member} is another")
        state = load_tensors(path)
        return {**state, "settings": dict(state["settings"]), "epoch": int(state["epoch"])}
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror or error}): mend that, or name another folder"
        ) from error
    except Exception as error:  # its bytes lead unpickling astray in any way
        raise _damaged(path) from error


def _damaged(path: Path) -> RunError:
    return RunError(
        f"{path} is not a checkpoint of this program, or it is damaged. "
        "Delete it to start again, or name another folder"
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings within settings by names like "recipe.epochs"."""
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows
