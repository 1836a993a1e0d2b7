"""A run that survives being stopped: what it needs to go on, in one file that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from icd.checks import Precision
from icd.files import atomic_file, load_tensors, make_folder, write_atomically
from icd.origin import commit, device_name
from icd.photos import Photos

if TYPE_CHECKING:
    from icd.pixels import Pixels
    from icd.training import Learner, Recipe


# What Accelerate calls float32 is "no" mixed precision.
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}
#: Of a recipe, how its steps are computed, not what they are. A run goes on by what these come to.
HOW = ("precision", "sync_batch_norm", "compile")
NAME = "checkpoint.pt"


class RunError(RuntimeError):
    """A run cannot start, go on or be read; the message says what to do."""


class NonFiniteLoss(ArithmeticError):
    """A loss or a weight stopped being a number; the message says when, and which."""


def check_run(
    learners: Sequence[Learner], data: Pixels, validation: Pixels | None, teacher: nn.Module | None
) -> None:
    """Raise a RunError for what cannot be trained together, before anything runs."""
    names = [learner.name for learner in learners]
    if not names:
        raise RunError("there is no student: give one learner or more")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RunError(
            f'two students are named "{twice}": give one of them another name, as the log needs one'
        )
    for what, images in (("training", data), ("validation", validation)):
        if isinstance(images, Photos):
            raise RunError(f"the {what} images are not decoded: hand them to icd.pixels.load first")
    if validation is not None:
        named = ([f'"{name}"' for name in images.classes] for images in (data, validation))
        for index, (one, other) in enumerate(zip_longest(*named, fillvalue="missing")):
            if one != other:
                raise RunError(
                    f"class {index} is {one} in the training images and {other} in the validation images: "
                    "give both the same classes, in one order"
                )
    if teacher is None and any(learner.objective.needs_teacher for learner in learners):
        raise RunError(
            "the objective compares with a teacher and none was given: hand one over with teacher="
        )
    for learner in learners:
        head = getattr(learner.network, "head", None)
        if isinstance(head, nn.Linear) and head.out_features < len(data.classes):
            raise RunError(
                f"{learner.name} tells {head.out_features} classes apart, and the training images are of "
                f"{len(data.classes)}: build it for as many"
            )


class Checkpoint:
    """The state of a run in `folder/checkpoint.pt`, and its log in `folder/log.jsonl`."""

    def __init__(
        self,
        folder: str | Path | None,
        learners: Sequence[Learner],
        recipe: Recipe,
        data: Pixels,
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
        first = {**self.settings, "made_on": self.learners[0].made_on}
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
            if not learner.made_on or {**learner.made_on[-1], **here} != learner.made_on[-1]:
                learner.made_on.append({"epoch": epoch, **here})

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


def precision_of(recipe: Recipe, folder: str | Path | None) -> Precision:
    """The precision that a recipe asks for; of a run that was stopped, "auto" is the one it began in.

    For a run that has ended any will do: there is nothing left to compute.
    """
    state = None if folder is None else load_state(folder)
    if state is None:
        return recipe.precision
    if state["epoch"] == recipe.epochs:
        return "auto"
    begun: Precision = state["settings"].get("precision", "auto")
    return begun if recipe.precision == "auto" else recipe.precision


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings within settings by names like "recipe.epochs"."""
    rows: dict[str, Any] = {}
    for name, value in settings.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows


class Stop:
    """Whether somebody asked a run to stop."""

    requested = False


@contextmanager
def stop_politely() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM only set `requested`: a step is never cut in half. Twice means now."""
    stop = Stop()

    def ask(signum: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(network: nn.Module) -> str:
    """A network's class and the number of its weights."""
    return f"{type(network).__name__}, {sum(p.numel() for p in network.parameters())} weights"


def digest(network: nn.Module) -> str:
    """A digest of a network's weights."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]
