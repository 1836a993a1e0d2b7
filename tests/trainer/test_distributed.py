"""Several processes on a CPU: equal to one process to rounding, and stopped together.

Two processes do each of the `JOBS`; the tests look at what they left in a folder.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import QUICK, ROOT, Smooth, interrupt, small, stripes
from PIL import Image
from torch import nn

from icd.errors import RunError
from icd.objective import METHODS
from icd.trainer import Student, fit, fit_together
from icd.trainer.distributed import any_rank, init_distributed

pytestmark = pytest.mark.thorough

PATIENCE = 60.0  # seconds that a process waits for the other
# Gradients are clipped at times: it is the mean over processes that must be.
RECIPE = replace(QUICK, max_grad_norm=0.5)


class Unused(Smooth):
    """A network with a weight that no loss reaches."""

    def __init__(self):
        super().__init__(1)
        self.unused = nn.Linear(1, 1)


def run(folder: Path | None = None) -> tuple[list[dict], dict]:
    """The log and the weights of a student that has no batch statistics."""
    student, validation = Smooth(1), stripes(seed=1)
    options = {"teacher": Smooth(2), "validation": validation, "folder": folder, "progress": False}
    log = fit(student, METHODS["iCD-KD"](), stripes(), RECIPE, **options)
    return log, student.state_dict()


def pair() -> list[dict]:
    """The weights of two students side by side."""
    students = [Student(Smooth(1), METHODS[name](), name) for name in ("KD", "iCD-KD")]
    fit_together(students, stripes(), RECIPE, teacher=Smooth(2), progress=False)
    return [student.network.state_dict() for student in students]


def with_batch_statistics() -> dict:
    """The weights of a student with batch normalisation."""
    student = small(3)
    fit(student, METHODS["alone"](), stripes(), replace(QUICK, epochs=1), progress=False)
    return student.state_dict()


def train_together(folder: Path) -> dict:
    init_distributed(PATIENCE)
    left: dict = {"run": run(folder / "run"), "pair": pair(), "statistics": with_batch_statistics()}
    left["refused"] = []
    for student, recipe in (
        (Smooth(1), replace(QUICK, batch_size=15)),
        (Unused(), QUICK),
        (small(3), replace(QUICK, sync_batch_norm=True)),
    ):
        with pytest.raises(RunError) as error:
            fit(student, METHODS["alone"](), stripes(), recipe, progress=False)
        left["refused"].append(str(error.value))
    return left


def train_with(teacher: nn.Module, folder: Path | None, **options) -> dict:
    """How a run ends, in the view of this process."""
    options = {"timeout_seconds": PATIENCE, "progress": False, **options}
    student = Smooth(1)
    try:
        fit(student, METHODS["KD"](), stripes(), RECIPE, teacher=teacher, folder=folder, **options)
    except (RunError, KeyboardInterrupt) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"weights": student.state_dict()}


def is_killed(folder: Path) -> dict:
    teacher = Smooth(2)
    if os.environ["RANK"] == "0":  # the one that writes
        interrupt(teacher, 9, signal.SIGKILL)
    return train_with(teacher, folder / "run", checkpoint_seconds=0.0)


def is_asked_to_stop(folder: Path) -> dict:
    teacher = Smooth(2)
    if os.environ["RANK"] == "1":
        interrupt(teacher, 9, signal.SIGTERM)
    return train_with(teacher, folder / "run")


def is_silent(folder: Path) -> dict:
    teacher = Smooth(2)
    if os.environ["RANK"] == "1":
        signal.signal(signal.SIGALRM, lambda *_: time.sleep(4))
        interrupt(teacher, 9, signal.SIGALRM)
    return train_with(teacher, folder / "run", timeout_seconds=2.0, checkpoint_seconds=0.0)


def resumes(folder: Path) -> dict:
    """Both processes continue what `is_killed` left, and what `is_asked_to_stop` left."""
    init_distributed(PATIENCE)
    left = {}
    for job in (is_killed, is_asked_to_stop):
        if os.environ["RANK"] == "0":
            shutil.copytree(folder.parent / job.__name__ / "run", folder / job.__name__)
        any_rank(True)  # wait until it is copied
        left[job.__name__] = train_with(Smooth(2), folder / job.__name__)["weights"]
    return left


JOBS = {job.__name__: job for job in (train_together, is_killed, is_asked_to_stop, is_silent, resumes)}


def work(name: str, folder: Path, rank: int, port: int) -> None:
    """What each of two processes does, with the environment variables that a launcher sets."""
    os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
    torch.save(JOBS[name](folder), folder / f"{rank}.pt")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def on_cpu():
    """Environment variables under which every process uses one thread of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "trainer"), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, on_cpu):
    """A folder for each job, in which both processes left what they saw."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("forkserver")  # imports once, and every process is a copy
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    for name in JOBS:
        (folder / name).mkdir()
        port = free_port()
        two = [context.Process(target=work, args=(name, folder / name, rank, port)) for rank in (0, 1)]
        for process in two:
            process.start()
        for process in two:
            process.join(3 * PATIENCE)
            process.kill()
    return folder


def left_by(job, folder: Path, rank: int) -> dict:
    return torch.load(folder / job.__name__ / f"{rank}.pt", weights_only=False)


def far(a: dict, b: dict) -> float:
    """The largest difference between two state dicts, relative to the largest entry of a tensor."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a)


def curves(log: list[dict]) -> np.ndarray:
    return np.array(
        [[value for name, value in row.items() if name not in ("seconds", "peak_mb")] for row in log]
    )


def test_two_processes_give_the_curve_and_the_weights_of_one(folder):
    log, weights = run()
    two = [left_by(train_together, folder, rank)["run"] for rank in (0, 1)]
    assert far(two[0][1], two[1][1]) == 0
    np.testing.assert_array_equal(curves(two[0][0]), curves(two[1][0]))
    np.testing.assert_allclose(curves(two[0][0]), curves(log), rtol=1e-5)
    assert far(weights, two[0][1]) < 1e-5


def test_batch_statistics_are_over_a_part_of_the_batch(folder):
    assert far(with_batch_statistics(), left_by(train_together, folder, 0)["statistics"]) > 0.01


def test_students_side_by_side_are_what_they_are_in_one_process(folder):
    for one, two in zip(pair(), left_by(train_together, folder, 0)["pair"], strict=True):
        assert far(one, two) < 1e-5


def test_the_log_is_written_once_and_names_the_number_of_processes(folder):
    lines = (folder / train_together.__name__ / "run" / "log.jsonl").read_text().splitlines()
    first, *rows = map(json.loads, lines)
    assert [on["device"] for on in first["provenance"]] == ["2 x cpu, 1 threads"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not list((folder / train_together.__name__).rglob("*.part"))


def test_what_processes_cannot_share_is_refused(folder):
    batch, unused, synchronised = left_by(train_together, folder, 1)["refused"]
    assert batch.startswith("2 processes cannot share a batch of 15 images equally: give a batch size")
    assert unused.startswith("some of the student's weights got no gradient")
    assert synchronised.startswith("sync_batch_norm needs GPUs, and this device is cpu: set it to false")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "seen_by", "error", "message", "at"),
    [
        (is_killed, 1, "RunError", "process 1 of 2 stops because another one ended (it was killed,", (1, 2)),
        (is_asked_to_stop, 0, "KeyboardInterrupt", "", (1, 3)),
        (is_asked_to_stop, 1, "KeyboardInterrupt", "", (1, 3)),
        (is_silent, 0, "RunError", "process 0 of 2 stops because another one timed out.", (1, 2)),
    ],
)
def test_a_process_that_leaves_stops_the_other_behind_a_checkpoint(job, seen_by, error, message, at, folder):
    left = left_by(job, folder, seen_by)
    assert left["error"] == error
    assert left["message"].startswith(message)
    kept = torch.load(folder / job.__name__ / "run" / "checkpoint.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == at


@pytest.mark.parametrize("job", [is_killed, is_asked_to_stop])
def test_two_processes_resume_what_two_began(job, folder):
    weights = left_by(resumes, folder, 0)[job.__name__]
    assert far(train_with(Smooth(2), None)["weights"], weights) < 1e-5


def test_one_process_does_not_resume_what_two_began(folder, tmp_path):
    place = shutil.copytree(folder / is_killed.__name__ / "run", tmp_path / "run")
    left = train_with(Smooth(2), place)
    assert left["error"] == "RunError"
    assert "a different number of images behind a batch statistic: there 8, here 16" in left["message"]


@pytest.mark.slow
def test_the_notebook_of_the_book_starts_two_processes(tmp_path, on_cpu):
    text = (ROOT / "book" / "running.md").read_text(encoding="utf8")
    (cell,) = re.findall(r"```python\n(from accelerate import notebook_launcher.*?)```", text, re.DOTALL)
    options = f"--network resnet10-8 --data.root {small_birds(tmp_path)} --data.size 32 --recipe.epochs 2"
    options = f"{options} --recipe.batch_size 8 --recipe.precision float32"
    together = f"teach {tmp_path / 'two'} {options}".split()
    cell = re.sub(r"main\(\[.*?\]\)", f"main({together})", cell)  # and once more, when it has ended
    cell = cell.replace("num_processes=2", f"num_processes=2, use_port='{free_port()}'")
    ran = subprocess.run(
        [sys.executable, "-c", cell], check=True, timeout=3 * PATIENCE, stdout=subprocess.PIPE, text=True
    )
    assert ran.stdout.count("resnet10-8 for cross_entropy() on") == 2  # one of them speaks
    first, *rows = map(json.loads, (tmp_path / "two" / "log.jsonl").read_text().splitlines())
    assert [on["device"] for on in first["provenance"]] == ["2 x cpu, 1 threads"]
    assert [row["epoch"] for row in rows] == [1, 2]


def small_birds(folder: Path) -> Path:
    """A folder with two classes of pictures of noise."""
    generator = np.random.default_rng(0)
    for name in ("crow", "gull"):
        (folder / "birds" / name).mkdir(parents=True)
        for i in range(20):
            picture = Image.fromarray(generator.integers(0, 255, (36, 36, 3), dtype=np.uint8))
            picture.save(folder / "birds" / name / f"{i}.png")
    return folder / "birds"


@pytest.mark.slow
def test_a_launched_command_loses_a_process_and_goes_on(tmp_path, on_cpu):
    run = tmp_path / "run"
    options = f"--network resnet10-8 --data.root {small_birds(tmp_path)} --data.size 32 --recipe.epochs 30"
    options = f"{options} --recipe.batch_size 8 --checkpoint_seconds 0"
    command = f"teach {run} {options}".split()
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m icd"
    launch = [sys.executable, *launch.split(), *command]
    launcher = subprocess.Popen(launch, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoint.pt").exists():
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)
    second = next(p for p in psutil.Process(launcher.pid).children() if p.environ()["RANK"] == "1")
    second.kill()
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 1
    assert said.count("icd teach: process 0 of 2 stops because another one ended") == 1
    assert not (run / "model.safetensors").exists()
    subprocess.run(launch, check=True, timeout=3 * PATIENCE)
    assert len((run / "log.jsonl").read_text().splitlines()) == 31
