"""Measure training on one GPU, and check what only a GPU can show. `make gpu` runs it.

    python tests/benchmarks/gpu.py                       one CUDA card, at most eight minutes
    python tests/benchmarks/gpu.py --device cpu --tiny   the same path on a CPU, with tiny sizes

It needs torch, accelerate, safetensors, pandas and tqdm, and no network: photographs are noise in the form of
the decoded cache, and teachers have random weights, which change no time. It writes one row for each pair,
objective and precision to `data/results/gpu.csv`, with the card's name:

    step_ms         milliseconds of a training step, median over the timed steps
    teacher_ms      of them, the teacher's forward pass
    waits           host waits in a step of the trainer, as CUDA's synchronisation debug mode reports them
    peak_gb         memory that PyTorch allocated at most; estimate_gb is what `step_bytes` foretold
    hours           of the published run: steps times epochs at this speed

A row with a note ran another way: `compile`, or images from host memory. The checks raise on failure.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from icd.datasets.cache import CachedImages
from icd.files import write_atomically
from icd.networks import network
from icd.objective import METHODS
from icd.scores import Batch, Scoring
from icd.trainer import Recipe, Student, fit, fit_together
from icd.trainer.distributed import make_accelerator
from icd.trainer.memory import step_bytes
from icd.trainer.provenance import commit, device_name
from icd.trainer.student import to_channels_last

RESULTS = Path(__file__).parents[2] / "data" / "results" / "gpu.csv"
# Data, teacher, student; the data's classes, pixels a side and training images.
PAIRS = [
    ("cub200", "resnet32x4", "MobileNetV2"),
    ("cub200", "resnet32x4", "ShuffleV1"),
    ("cub200", "vgg13", "MobileNetV2"),
    ("cub200", "vgg13", "vgg8"),
    ("cub200", "ResNet50", "ShuffleV1"),
    ("cifar100", "resnet32x4", "ShuffleV2"),
    ("cifar100", "wrn_40_2", "vgg8"),
]
DATA = {"cub200": (200, 224, 5994), "cifar100": (100, 32, 50_000)}
OBJECTIVES = ("alone", "KD", "SD-KD", "iCD-KD")


@dataclass(frozen=True)
class Plan:
    """What is measured where."""

    device: torch.device
    precisions: tuple[str, ...]
    batch: int = 64
    steps: int = 12  # timed, after as many as `warm`
    warm: int = 5
    images: int = 640
    pairs: tuple[tuple[str, str, str], ...] = tuple(PAIRS)
    tiny: bool = False

    def size(self, data: str) -> int:
        return min(DATA[data][1], 128) if self.tiny else DATA[data][1]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def photographs(count: int, size: int, classes: int) -> CachedImages:
    """Return noise in the form of decoded photographs."""
    generator = torch.Generator().manual_seed(0)
    side = round(size * 8 / 7)
    images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    names = tuple(f"class {i}" for i in range(classes))
    return CachedImages(images, torch.arange(count) % classes, names, size, {}, f"noise {count} {size}")


def measure(plan: Plan, pair: tuple[str, str, str], method: str, precision: str, **changes: Any) -> dict:
    """Return a row of the table: time, waits and memory of the steps of one student."""
    data, teacher_name, student_name = pair
    classes, _, training_images = DATA[data]
    size = plan.size(data)
    images = photographs(plan.images, size, classes)
    torch.manual_seed(0)
    model = network(student_name, classes, size)
    teacher = network(teacher_name, classes, size) if method != "alone" else None
    objective = METHODS[method]()
    estimate = step_bytes(
        [(model, objective)], teacher, images=plan.batch, size=size, classes=classes, precision=precision
    )
    accelerator = make_accelerator(precision)  # type: ignore[arg-type]
    recipe = Recipe(batch_size=plan.batch, precision=precision, **changes)  # type: ignore[arg-type]
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        images = images.to(plan.device)
    before = torch.cuda.memory_allocated() if plan.device.type == "cuda" else 0
    student = Student(model, objective)
    student.move(plan.device)
    student.start(recipe, accelerator)
    scoring = None if teacher is None else Scoring(to_channels_last(teacher, plan.device).eval())
    if recipe.compile and scoring is not None:
        scoring.compile()
    # The resident images count neither in the estimate nor in the peak.
    times: dict[str, list[float]] = {"step": [], "teacher": []}
    for number in range(plan.warm + plan.steps):
        plan.wait()
        began = time.perf_counter()
        scores, batch = ask(plan, images, scoring, accelerator, number)
        plan.wait()
        asked = time.perf_counter()
        student.step(batch, scores, 1, 0.01)
        plan.wait()
        if number >= plan.warm:
            times["teacher"].append(asked - began)
            times["step"].append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - before if plan.device.type == "cuda" else 0
    step = statistics.median(times["step"])
    student.read(1, plan.warm + plan.steps)  # raises where a loss is not finite
    return {
        "data": data,
        "teacher": teacher_name if teacher is not None else "",
        "student": student_name,
        "method": method,
        "precision": precision,
        "batch_size": plan.batch,
        "step_ms": round(1000 * step, 2),
        "teacher_ms": round(1000 * statistics.median(times["teacher"]), 2) if teacher is not None else 0.0,
        "waits": host_waits(plan, lambda: student.step(batch, scores, 1, 0.01)),
        "peak_gb": round(peak / 1e9, 2),
        "estimate_gb": round(estimate / 1e9, 2),
        "hours": round(step * (training_images // plan.batch) * 240 / 3600, 2),
        "note": "",
    }


def ask(plan: Plan, images: CachedImages, scoring: nn.Module | None, accelerator: Any, number: int) -> Any:
    """Return the teacher's scores of a batch, and the batch."""
    steps = images.steps(plan.batch)
    batch = Batch(*images.training_batch(0, number // steps, number % steps, plan.batch, plan.device))
    if scoring is None:
        return None, batch
    with torch.no_grad(), accelerator.autocast():
        return scoring(batch.images), batch


def host_waits(plan: Plan, step: Any) -> int:
    """Return how often the host waits for the GPU in a step, 0 on a CPU."""
    if plan.device.type != "cuda":
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def input_rates(plan: Plan) -> Iterator[dict]:
    """Yield how many images a second a batch of the cache brings, from host memory and from the GPU's."""
    for place in dict.fromkeys(("cpu", plan.device.type)):
        images = photographs(plan.images, plan.size("cub200"), 200).to(place)
        for number in range(plan.warm):
            images.training_batch(0, number, 0, plan.batch, plan.device)
        plan.wait()
        began = time.perf_counter()
        for number in range(plan.steps):
            images.training_batch(0, number, 1, plan.batch, plan.device)
        plan.wait()
        rate = plan.steps * plan.batch / (time.perf_counter() - began)
        yield {
            "data": "cub200",
            "batch_size": plan.batch,
            "note": f"input alone, images in the memory of {place}: {rate:.0f} images/s",
        }


def check_resume(plan: Plan) -> None:
    """Raise unless a run that is stopped and resumed ends with the weights of an unbroken one."""
    precision = plan.precisions[0]
    size = 64
    data = photographs(plan.batch * 3, size, 4)
    recipe = Recipe(epochs=3, batch_size=plan.batch, precision=precision, schedule="one-cycle")  # type: ignore[arg-type]

    def pair() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(1)
        return network("resnet10-8", 4, size), network("resnet10-16", 4, size)

    with tempfile.TemporaryDirectory() as folder:
        student, teacher = pair()
        fit(student, METHODS["iCD-KD"](), data, recipe, teacher=teacher, progress=False)
        stopped, teacher = pair()
        calls, maps = 0, teacher.maps

        def stopping(images: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return maps(images)

        teacher.maps = stopping  # type: ignore[assignment]
        try:
            fit(stopped, METHODS["iCD-KD"](), data, recipe, teacher=teacher, folder=folder, progress=False)
            raise AssertionError("the run was not stopped")
        except KeyboardInterrupt:
            pass
        resumed, teacher = pair()
        log = fit(resumed, METHODS["iCD-KD"](), data, recipe, teacher=teacher, folder=folder, progress=False)
    assert len(log) == 3
    for a, b in zip(student.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


def check_side_by_side(plan: Plan) -> None:
    """Raise unless every method trains on the device, with finite losses, without waiting for it."""
    data = photographs(plan.batch * 2, 64, 4)
    for precision in plan.precisions:
        torch.manual_seed(0)
        students = [Student(network("resnet10-8", 4, 64), make(), name) for name, make in METHODS.items()]
        recipe = Recipe(epochs=1, batch_size=plan.batch, precision=precision)  # type: ignore[arg-type]
        fit_together(students, data, recipe, teacher=network("resnet10-16", 4, 64), progress=False)
        for student in students:
            assert next(student.network.parameters()).device.type == plan.device.type, student.name
            assert all(value == value for value in student.history[-1].values()), (student.name, precision)


def check_losses_agree(plan: Plan) -> None:
    """Raise unless losses and gradients on the device equal the CPU's in float64."""
    from icd.losses import dkd_loss, icd_loss, kd_loss, nkd_loss, scale_decoupled_loss

    generator = torch.Generator().manual_seed(0)
    local = torch.randn(2, 8, 21, 30, dtype=torch.float64, generator=generator) * 5
    target = torch.arange(8)

    def values(device: torch.device) -> list[torch.Tensor]:
        student = local[0].to(device).requires_grad_()
        teacher, y = local[1].to(device), target.to(device)
        losses = [
            kd_loss(student[:, 0], teacher[:, 0]),
            dkd_loss(student[:, 0], teacher[:, 0], y),
            nkd_loss(student[:, 0], teacher[:, 0], y),
            scale_decoupled_loss(kd_loss, student, teacher, y),
            icd_loss(student, teacher),
        ]
        return [part.cpu() for loss in losses for part in (loss, torch.autograd.grad(loss, student)[0])]

    for here, there in zip(values(plan.device), values(torch.device("cpu")), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)


CHECKS = (check_losses_agree, check_side_by_side, check_resume)


def plan_for(device: torch.device, tiny: bool) -> Plan:
    """Return what is measured on a device; `tiny` only shows that it runs."""
    precisions = ("float32",) if device.type == "cpu" else ("fp16", "float32")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        precisions = ("fp16", "bf16", "float32")
    plan = Plan(device, precisions)
    if tiny:
        plan = replace(plan, batch=4, steps=1, warm=1, images=8, pairs=(PAIRS[0], PAIRS[6]), tiny=True)
    return plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="show that it runs; measures nothing")
    parser.add_argument("--file", type=Path, default=None, help=f"default {RESULTS}; none with --tiny")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no measurement after so long")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "there is no CUDA card here: --device cpu --tiny runs the same path on the CPU", file=sys.stderr
        )
        return 1
    began, plan = time.monotonic(), plan_for(torch.device(options.device), options.tiny)
    card = device_name(plan.device) if plan.device.type == "cuda" else f"CPU ({platform.machine()})"
    print(f"{card}, torch {torch.__version__}, commit {commit()}")
    for check in CHECKS:
        check(plan)
        print(f"{time.monotonic() - began:5.0f} s  {check.__name__}: passed", flush=True)
    rows, skipped = [], 0
    for precision, pair, method in itertools.product(plan.precisions, plan.pairs, OBJECTIVES):
        if time.monotonic() - began > 60 * options.minutes:
            skipped += 1
            continue
        rows.append(measure(plan, pair, method, precision))
        name = "{data} {teacher} -> {student} {method} {precision}".format(**rows[-1])
        text = "{step_ms} ms a step, {teacher_ms} of the teacher, {waits} waits, {peak_gb} GB".format(
            **rows[-1]
        )
        print(f"{time.monotonic() - began:5.0f} s  {name}: {text}", flush=True)
    rows += list(input_rates(plan))
    if not options.tiny and plan.device.type == "cuda":
        compiled = measure(plan, PAIRS[1], "iCD-KD", plan.precisions[0], compile=True)
        rows.append({**compiled, "note": "compile"})
    if skipped:
        print(f"{skipped} measurements were not started within {options.minutes:g} minutes")
    table = pd.DataFrame(rows)
    for name, value in {"device": card, "torch": str(torch.__version__), "commit": commit()}.items():
        table[name] = value
    table["command"] = "make gpu"
    table["seconds"] = round(time.monotonic() - began)
    file = options.file or (None if options.tiny else RESULTS)
    if file is not None:
        write_atomically(file, table.to_csv(index=False))
        print(f"wrote {file}")
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
