"""A training process killed at random moments: does it always end in the bits of one never stopped?

    python tests/benchmarks/kills.py --kills 50

A small student learns from a teacher by iCD-KD, with a checkpoint after every step. Its process is killed
(SIGKILL) and started again in the same folder, over and over. Half of the kills come at any moment after the
process began; the other half wait until a checkpoint is being written. A kill counts as inside a write where
the half-written file lies in the folder afterwards. A round is one run from nothing to its end; there are as
many rounds as the kills take.

Every process tells which checkpoints it loaded and wrote, with a digest of the weights there. They must be
the weights that the run which nobody killed had at that step, and no checkpoint that was written may be lost.
What a round leaves, its last checkpoint and its log, must be the same to the bit, wall times and memory
aside. Where anything comes out otherwise, the script ends with a sentence and status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from icd.datasets.cache import CachedImages
from icd.files import load_tensors
from icd.networks import SmallResNet
from icd.objective import METHODS
from icd.trainer import Recipe, fit, loop
from icd.trainer.checkpoint import Checkpoint
from icd.trainer.provenance import digest

EPOCHS, STEPS, BATCH = 8, 8, 8
LIFE = 1 / 6  # of a whole run's time: no process waits longer for its kill, so that a round has several
WRITE = 0.004  # seconds: about what it takes to write a checkpoint
Place = tuple[int, int]  # whole epochs, and steps of the next one, that lie behind


class Broken(Exception):
    """A killed run did not go on as it should; the message says how."""


def train(folder: Path, tell: Connection) -> None:
    """Train to the end from the checkpoint in `folder`; tell of every checkpoint loaded or written."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own one, between processes, outlives a process that is killed
    torch.manual_seed(0)
    images = torch.randint(256, (STEPS * BATCH, 20, 20, 3), dtype=torch.uint8)
    data = CachedImages(images, torch.arange(len(images)) % 4, tuple("abcd"), 16, {}, "noise")
    student, teacher = (SmallResNet(4, widths=(8, 16), blocks=(1, 1)) for _ in range(2))
    student.stages.append(nn.Dropout(0.1))  # without it nothing would depend on the random state

    restore, save = loop.restore, Checkpoint.save

    def reported_restore(*arguments: Any) -> Place:
        place = restore(*arguments)
        tell.send(("restore", place, digest(student)))
        return place

    def reported_save(checkpoint: Checkpoint, state: dict[str, Any], where: str) -> None:
        save(checkpoint, state, where)
        tell.send(("save", (state["epoch"], state["step"]), digest(student)))

    loop.restore, Checkpoint.save = reported_restore, reported_save
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, precision="float32")
    where = {"folder": folder, "checkpoint_seconds": 0.0}
    fit(student, METHODS["iCD-KD"](), data, recipe, teacher=teacher, progress=False, **where)


class Run:
    """`train` in a process of its own, and what it told so far: ("restore" or "save", place, digest)."""

    def __init__(self, folder: Path):
        context = multiprocessing.get_context("forkserver")  # imports once, and every process is a copy
        context.set_forkserver_preload(["icd.trainer.loop", "icd.networks", "torch._dynamo"])
        self.folder = folder
        self.told: list[tuple[str, Place, str]] = []
        self.before = self.parts()
        self.ear, tell = context.Pipe(duplex=False)
        self.process = context.Process(target=train, args=(folder, tell), daemon=True)
        self.process.start()
        tell.close()

    def parts(self) -> set[Path]:
        """The half-written checkpoints in the folder."""
        return set(self.folder.glob(".checkpoint.pt.*.part"))

    def writes(self) -> bool:
        """Whether a checkpoint of this process is half-written."""
        return bool(self.parts() - self.before)

    def wait(self, seconds: float = math.inf, until: Callable[[], Any] = lambda: False) -> None:
        """Listen to it for so long, until something is so, or until it has ended."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end and not until():
            self.listen(0.0005)
        self.listen(0)

    def listen(self, seconds: float) -> None:
        try:
            while self.ear.poll(seconds):
                self.told.append(self.ear.recv())
        except EOFError:  # it has ended
            self.process.join()

    def kill(self, chance: random.Random, life: float) -> bool:
        """Kill it at a random moment; whether that was inside a write."""
        if chance.random() < 0.5:
            self.wait(chance.uniform(0, life))
        else:
            self.wait(until=lambda: self.told)  # it has loaded what there was
            self.wait(chance.uniform(0, life))
            self.wait(until=self.writes)
            time.sleep(chance.uniform(0, WRITE))
        self.process.kill()
        self.process.join()
        self.listen(0)
        return self.writes()


@dataclass
class Whole:
    """The run that nobody killed: its weights at every place, what it left, and how many seconds it took."""

    weights: dict[Place, str]
    left: Any
    seconds: float


@dataclass
class Tally:
    """What the kills came to."""

    rounds: int = 0
    kills: int = 0
    inside: int = 0  # a write
    loaded: int = 0  # checkpoints, by processes that went on from one


def survive(
    folder: Path, enough: Callable[[Tally], bool], chance: random.Random, bar: tqdm | None = None
) -> Tally:
    """Runs in folders within `folder`, killed until there were `enough` kills and then left to end.

    `bar` is moved on by every kill. Raises Broken where a run does not end in the bits of one never killed.
    """
    run, tally = Run(folder / "whole"), Tally()
    run.wait(until=lambda: run.told)  # it has imported all that it needs
    began = time.monotonic()
    run.wait()
    if run.process.exitcode:
        raise Broken(f"the run that nobody killed ended with status {run.process.exitcode}")
    weights = {place: weights for _, place, weights in run.told}
    whole = Whole(weights, left_in(folder / "whole"), time.monotonic() - began)
    while not enough(tally):
        one_round(folder / f"round {tally.rounds + 1}", whole, tally, enough, chance, bar)
        tally.rounds += 1
    return tally


def one_round(
    folder: Path,
    whole: Whole,
    tally: Tally,
    enough: Callable[[Tally], bool],
    chance: random.Random,
    bar: tqdm | None,
) -> None:
    """One run to its end, through as many kills as it takes; adds them to `tally`."""
    place, status = (0, 0), -SIGKILL
    while status:
        run = Run(folder)
        inside = False
        if enough(tally):
            run.wait()
        else:
            inside = run.kill(chance, LIFE * whole.seconds)
        status = run.process.exitcode
        place = follow(run, whole, place, f"after kill {tally.kills}")
        tally.loaded += any(act == "restore" and there > (0, 0) for act, there, _ in run.told)
        if status == -SIGKILL:
            tally.kills += 1
            tally.inside += inside
            if bar is not None:
                bar.update()
        elif status:
            raise Broken(f"after kill {tally.kills} the run could not go on: status {status}")
    if left_in(folder) != whole.left:
        raise Broken(f"after kill {tally.kills} the run ended with other weights, or another log")


def follow(run: Run, whole: Whole, place: Place, when: str) -> Place:
    """Hold what `run` told against the whole one, from the last checkpoint's place on; returns the next."""
    for act, there, weights in run.told:
        if there < place:
            raise Broken(f"{when} {spoken(place)} were lost: the run went on from {spoken(there)}")
        if weights != whole.weights.get(there):
            raise Broken(f"{when} the weights of the checkpoint after {spoken(there)} are others ({act})")
        place = there
    return place


def spoken(place: Place) -> str:
    return f"{place[0]} epochs and {place[1]} steps"


def left_in(folder: Path) -> Any:
    """The checkpoint and the log of a run that has ended, without wall times and peaks of memory."""
    state = load_tensors(folder / "checkpoint.pt")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf8").splitlines()]
    for row in (state, *state["students"]["student"]["history"], *log):
        for name in ("seconds", "peak_mb"):  # what no two runs share
            row.pop(name, None)
    return bits([state, log])


def bits(value: Any) -> Any:
    """The same with the bytes of every tensor in its place, so that == compares all of it."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items()}
    return [bits(entry) for entry in value] if isinstance(value, list | tuple) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=options.kills, unit="kill") as bar:
        try:
            tally = survive(
                Path(folder), lambda tally: tally.kills >= options.kills, random.Random(options.seed), bar
            )
        except Broken as error:
            sys.exit(f"kills.py: {error}")
    print(
        f"{tally.kills} kills, {tally.inside} of them inside a checkpoint's write, in {tally.rounds} rounds "
        f"of {EPOCHS * STEPS} steps. {tally.loaded} checkpoints were loaded, each with the weights of its "
        "step. Every round ended with the weights and the log of the run that nobody killed, to the bit "
        f"({time.monotonic() - began:.0f} s)."
    )


if __name__ == "__main__":
    main()
