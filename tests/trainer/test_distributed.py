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
from helpers import QUICK, ROOT, interrupt, small, stripes
from PIL import Image
from torch import nn

from icd.cli.main import main
from icd.errors import RunError
from icd.networks import Network
from icd.objective import METHODS
from icd.trainer import Student, fit, fit_together
from icd.trainer.distributed import SynchronisedBatchNorm, average, count, join, synchronise

pytestmark = pytest.mark.slow
PATIENCE = 60.0  # seconds that a process waits for the other
SYNCHRONISED = replace(QUICK, sync_batch_norm=True)


class Plain(Network):
    """A small network without batch normalisation."""

    def __init__(self, unused: bool = False):
        torch.manual_seed(3)
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(4))
        self.head = nn.Linear(8, 4)
        if unused:
            self.unused = nn.Linear(1, 1)

    def maps(self, images):
        features = self.body(images)
        return features, (features,)


def layer(kind: type[nn.Module]) -> nn.Module:
    """A layer of batch normalisation in float64 that has seen something already."""
    torch.manual_seed(5)
    module = kind(3).double()
    for value in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
        value.uniform_(0.5, 2)
    return module


LAYERS = {
    "maps": (nn.BatchNorm2d, (8, 3, 5, 4), torch.channels_last),
    "vectors": (nn.BatchNorm1d, (8, 3), torch.contiguous_format),
}


def normalised(kind: type[nn.Module], shape: tuple[int, ...], form: torch.memory_format) -> dict:
    """What a synchronised layer makes of this process's share of a batch, and its gradients."""
    model = nn.Sequential(layer(kind))
    synchronise(model)
    assert isinstance(model[0], SynchronisedBatchNorm)
    x, target = torch.randn(2, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    rank, processes = int(os.environ.get("RANK", "0")), count()
    mine = x[rank::processes].clone(memory_format=form).requires_grad_()
    out = model(mine)
    (out - target[rank::processes]).square().mean().backward()
    slopes = [average(parameter.grad) for parameter in model.parameters()]
    return {"out": out.detach(), "x": mine.grad / processes, "slopes": slopes, "state": model[0].state_dict()}


def train_together(folder: Path) -> dict:
    join(PATIENCE)
    left: dict = {"layers": {name: normalised(*how) for name, how in LAYERS.items()}}
    left["runs"] = {name: run(name, folder / name) for name in RUNS}
    pair = [Student(small(3), METHODS[name](), name) for name in ("KD", "iCD-KD")]
    fit_together(pair, stripes(), SYNCHRONISED, teacher=small(1), progress=False)
    left["pair"] = [learner.network.state_dict() for learner in pair]
    left["refused"] = []
    for student, recipe in (
        (small(3), replace(QUICK, batch_size=15)),
        (Plain(unused=True), QUICK),
        (nn.Sequential(Louder(4)), SYNCHRONISED),
    ):
        with pytest.raises(RunError) as error:
            fit(student, METHODS["alone"](), stripes(), recipe, progress=False)
        left["refused"].append(str(error.value))
    return left


class Louder(nn.BatchNorm1d):
    """Does more than normalise, as timm's layers do."""


# A gradient is longer than .5 at times: what is cut must be the mean over processes.
RUNS = {
    "plain": (Plain, replace(QUICK, max_grad_norm=0.5)),
    "synchronised": (lambda: small(3), replace(SYNCHRONISED, max_grad_norm=0.5)),
    "shares": (lambda: small(3), QUICK),
}


def run(name: str, folder: Path | None = None) -> tuple[list[dict], dict]:
    """The log and the weights of a student trained by its recipe in `RUNS`."""
    (make, recipe), teacher = RUNS[name], small(1)
    student, held = make(), stripes(seed=1)
    log = fit(
        student, METHODS["iCD-KD"](), stripes(), recipe, teacher=teacher, validation=held, folder=folder
    )
    return log, student.state_dict()


def train_with(teacher: nn.Module, folder: Path, **options) -> dict:
    """How a run ends that one process leaves, in the view of this one."""
    options = {"patience_seconds": PATIENCE, "progress": False, **options}
    try:
        fit(small(3), METHODS["KD"](), stripes(), SYNCHRONISED, teacher=teacher, folder=folder, **options)
    except (RunError, KeyboardInterrupt) as error:
        return {"error": type(error).__name__, "said": str(error)}
    return {}


def is_killed(folder: Path) -> dict:
    teacher = small(1)
    if os.environ["RANK"] == "0":  # the one that writes
        interrupt(teacher, 9, signal.SIGKILL)
    return train_with(teacher, folder / "run", checkpoint_seconds=0.0)


def is_asked_to_stop(folder: Path) -> dict:
    teacher = small(1)
    if os.environ["RANK"] == "1":
        interrupt(teacher, 9, signal.SIGTERM)
    return train_with(teacher, folder / "run")


def is_silent(folder: Path) -> dict:
    teacher = small(1)
    if os.environ["RANK"] == "1":
        signal.signal(signal.SIGALRM, lambda *_: time.sleep(4))
        interrupt(teacher, 9, signal.SIGALRM)
    return train_with(teacher, folder / "run", patience_seconds=2.0, checkpoint_seconds=0.0)


JOBS = {job.__name__: job for job in (train_together, is_killed, is_asked_to_stop, is_silent)}


def work(name: str, folder: Path, rank: int, port: int) -> None:
    """What each of two processes does, in the surroundings that a launcher gives it."""
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


@pytest.mark.parametrize("name", LAYERS)
def test_a_synchronised_layer_gives_what_one_process_gives(name, folder):
    kind, shape, form = LAYERS[name]
    one = normalised(kind, shape, form)
    two = [left_by(train_together, folder, rank)["layers"][name] for rank in (0, 1)]
    for key in ("out", "x"):
        together = torch.empty_like(one[key])
        for rank in (0, 1):
            together[rank::2] = two[rank][key]
        torch.testing.assert_close(together, one[key], rtol=1e-12, atol=1e-12)
    for each in two:
        torch.testing.assert_close(each["slopes"], one["slopes"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(each["state"], one["state"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_curve_and_the_weights_of_one(name, folder):
    log, weights = run(name)
    two = [left_by(train_together, folder, rank)["runs"][name] for rank in (0, 1)]
    if name == "shares":  # statistics of 8 images are not those of 16, and the first process's are kept
        assert far(weights, two[0][1]) > 0.01
        return
    assert far(two[0][1], two[1][1]) == 0
    np.testing.assert_allclose(curves(two[0][0]), curves(log), rtol=1e-4)
    np.testing.assert_array_equal(curves(two[0][0]), curves(two[1][0]))
    assert far(weights, two[0][1]) < 1e-3


def test_students_side_by_side_are_what_they_are_in_one_process(folder):
    pair = [Student(small(3), METHODS[name](), name) for name in ("KD", "iCD-KD")]
    fit_together(pair, stripes(), SYNCHRONISED, teacher=small(1), progress=False)
    for learner, weights in zip(pair, left_by(train_together, folder, 0)["pair"], strict=True):
        assert far(learner.network.state_dict(), weights) < 1e-3


def test_the_log_is_written_once_and_says_how_many_processes(folder):
    lines = (folder / train_together.__name__ / "synchronised" / "log.jsonl").read_text().splitlines()
    first, *rows = map(json.loads, lines)
    assert [on["device"] for on in first["provenance"]] == ["2 x cpu, 1 threads"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not list((folder / train_together.__name__).rglob("*.part"))


def test_what_processes_cannot_share_is_refused(folder):
    batch, unused, louder = left_by(train_together, folder, 1)["refused"]
    assert batch.startswith("a batch of 15 images cannot be shared equally by 2 processes: give a batch size")
    assert unused.startswith("some of the student's weights got no gradient")
    assert louder.startswith("0 is a Louder, which cannot be synchronised")


def test_statistics_of_shares_go_on_with_as_many_processes_only(folder):
    place = folder / train_together.__name__ / "shares"
    with pytest.raises(RunError, match="another number of images behind a batch statistic: there 8, here 16"):
        run("shares", place)


def test_what_two_synchronised_processes_made_is_read_by_one_that_does_not_ask_for_it(folder):
    place = folder / train_together.__name__ / "synchronised"
    before = (place / "checkpoint.pt").read_bytes()
    student, recipe = small(9), replace(RUNS["synchronised"][1], sync_batch_norm=False)
    fit(student, METHODS["iCD-KD"](), stripes(), recipe, teacher=small(1), folder=place, progress=False)
    assert far(student.state_dict(), left_by(train_together, folder, 0)["runs"]["synchronised"][1]) == 0
    assert (place / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("job", "seen_by", "error", "said", "at"),
    [
        (is_killed, 1, "RunError", "process 1 of 2 stops, because another one ended: it was killed,", (1, 2)),
        (is_asked_to_stop, 0, "KeyboardInterrupt", "", (1, 3)),
        (is_asked_to_stop, 1, "KeyboardInterrupt", "", (1, 3)),
        (is_silent, 0, "RunError", "process 0 of 2 stops, because another one was silent for too", (1, 2)),
    ],
)
def test_a_process_that_leaves_stops_the_other_and_one_process_goes_on(
    job, seen_by, error, said, at, folder, tmp_path
):
    left = left_by(job, folder, seen_by)
    assert left["error"] == error
    assert left["said"].startswith(said)
    place = shutil.copytree(folder / job.__name__ / "run", tmp_path / "run")
    kept = torch.load(place / "checkpoint.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == at
    went_on, never_stopped = small(9), small(3)
    # One process may leave the synchronising out.
    fit(went_on, METHODS["KD"](), stripes(), QUICK, teacher=small(1), folder=place, progress=False)
    fit(never_stopped, METHODS["KD"](), stripes(), SYNCHRONISED, teacher=small(1), progress=False)
    assert far(never_stopped.state_dict(), went_on.state_dict()) < 1e-3


def test_the_notebook_of_the_book_starts_two_processes(tmp_path, on_cpu):
    text = (ROOT / "book" / "running.md").read_text(encoding="utf8")
    (cell,) = re.findall(r"```python\n(from accelerate import notebook_launcher.*?)```", text, re.DOTALL)
    options = f"--network resnet10-8 --data.root {small_birds(tmp_path)} --data.size 32 --recipe.epochs 2"
    options = f"{options} --recipe.batch_size 8 --recipe.precision float32"
    together = f"teach {tmp_path / 'two'} {options} --recipe.sync_batch_norm true".split()
    cell = re.sub(r"main\(\[.*?\]\)", f"main({together})", cell)  # and once more, when it has ended
    cell = cell.replace("num_processes=2", f"num_processes=2, use_port='{free_port()}'")
    ran = subprocess.run(
        [sys.executable, "-c", cell], check=True, timeout=3 * PATIENCE, stdout=subprocess.PIPE, text=True
    )
    assert ran.stdout.count("resnet10-8 for cross_entropy() on") == 2  # one of them speaks
    assert main(f"teach {tmp_path / 'one'} {options}".split()) == 0
    logs = {}
    for name in ("one", "two"):
        first, *rows = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs[name] = [row["cross_entropy"] for row in rows]
    assert [on["device"] for on in first["provenance"]] == ["2 x cpu, 1 threads"]
    assert logs["two"] == pytest.approx(logs["one"], rel=1e-3)


def small_birds(folder: Path) -> Path:
    """A folder with two classes of pictures of noise."""
    generator = np.random.default_rng(0)
    for name in ("crow", "gull"):
        (folder / "birds" / name).mkdir(parents=True)
        for i in range(20):
            picture = Image.fromarray(generator.integers(0, 255, (36, 36, 3), dtype=np.uint8))
            picture.save(folder / "birds" / name / f"{i}.png")
    return folder / "birds"


def test_a_launched_command_loses_a_process_and_goes_on(tmp_path, on_cpu):
    run = tmp_path / "run"
    options = f"--network resnet10-8 --data.root {small_birds(tmp_path)} --data.size 32 --recipe.epochs 30"
    options = f"{options} --recipe.batch_size 8 --recipe.sync_batch_norm true --checkpoint_seconds 0"
    command = f"teach {run} {options}".split()
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m icd"
    launcher = subprocess.Popen(
        [sys.executable, *launch.split(), *command], stderr=subprocess.PIPE, text=True
    )
    while not (run / "checkpoint.pt").exists():
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)
    second = next(p for p in psutil.Process(launcher.pid).children() if p.environ()["RANK"] == "1")
    second.kill()
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 1
    assert said.count("icd teach: process 0 of 2 stops, because another one ended") == 1
    assert not (run / "model.safetensors").exists()
    assert main(command) == 0
    assert len((run / "log.jsonl").read_text().splitlines()) == 31
