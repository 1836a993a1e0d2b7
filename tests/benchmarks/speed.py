"""How quick the package is, in ratios: every figure beside a plain way to the same end, taken in turns.

    python tests/benchmarks/speed.py
    python tests/benchmarks/speed.py objective input --photos birds

objective   SD-KD + iCD from feature maps, forward and backward, against plain KD; and the same terms
            written plainly, first for all regions at once, then region by region
operators   how many operators these dispatch, and how often one of them makes a GPU's host wait
input       an epoch from the store of decoded images against decoding it again in two workers
training    a step as the package makes it against one written plainly, in float32, channels first
compare     five methods side by side against five runs of `fit`

A ratio is the median over rounds in which the contenders took turns, "middle half" its quartiles. Memory is
by how much the peak of a fresh process grows when it runs one contender alone, inputs and networks in place.
Nothing here passes or fails: a bar is what was hoped for.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

from icd import birdlets, icd_loss, kd_loss, local_logits, scale_decoupled_loss
from icd.datasets import DataSet
from icd.datasets.cache import MEAN, STD, CachedImages, load
from icd.datasets.folders import class_folders
from icd.datasets.images import ImageList
from icd.networks import network
from icd.objective import METHODS
from icd.scores import Batch
from icd.trainer import Recipe, Student, fit, fit_together
from icd.trainer.distributed import make_accelerator, native_precision
from icd.trainer.memory import peak_megabytes

SCALES, TEMPERATURE, TAU = (1, 2, 4), 4.0, 2.0
FIVE = ("KD", "DKD", "SD-KD", "SD-DKD", "iCD-KD")
# Of what dispatches these, a GPU's host waits for the result: it is a number, or decides a shape.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
SECTIONS = ("objective", "input", "training", "compare", "operators")
Contenders = dict[str, Callable[[], object]]


# The terms written plainly: from the papers' equations, with PyTorch's own losses and no thought of speed.


def plain_local_logits(features: Tensor, head: nn.Linear) -> Tensor:
    """(N, B, C): pooled to the finest grid, that pooled to the others, the head on every region."""
    finest = F.adaptive_avg_pool2d(features, max(SCALES))
    regions = torch.cat([F.adaptive_avg_pool2d(finest, m).flatten(2) for m in SCALES], 2)
    return head(regions.permute(2, 0, 1))


def plain_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """Of every row, (R,)."""
    log_q = F.log_softmax(student / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(log_q, F.softmax(teacher / TEMPERATURE, 1), reduction="none").sum(1)


def plain_sd_kd(student: Tensor, teacher: Tensor, target: Tensor, at_once: int) -> Tensor:
    """Consistent and complementary regions picked out by masks, `at_once` regions at a time."""
    total, whole = student.new_zeros(()), teacher[0].argmax(1) == target
    for said, told in zip(student.split(at_once), teacher.split(at_once), strict=True):
        loss = plain_kd(said.flatten(0, 1), told.flatten(0, 1))
        right = told.flatten(0, 1).argmax(1) == target.repeat(len(told))
        both = whole.repeat(len(told))
        total = total + loss[right & both].sum() + loss[~right & ~both].sum()
        total = total + 2 * loss[right & ~both].sum() + 2 * loss[~right & both].sum()
    return total / (student.shape[0] * student.shape[1])


def plain_icd(student: Tensor, teacher: Tensor) -> Tensor:
    """A Gram matrix for each scale and network, and their divergence."""
    total, first = student.new_zeros(()), 0
    weights = [1 + math.log2(m) for m in SCALES]
    for m, weight in zip(SCALES, weights, strict=True):
        rows = []
        for local in (student, teacher):
            unit = F.normalize(local[first : first + m * m].transpose(0, 1), dim=2)
            rows.append(torch.bmm(unit, unit.transpose(1, 2)) / TAU)
        apart = F.kl_div(F.log_softmax(rows[0], 2), F.softmax(rows[1], 2), reduction="sum")
        total, first = total + weight / sum(weights) * apart / student.shape[1], first + m * m
    return total


# What is measured: each function makes contenders, by name, that do the same or are to be compared.


def objective(layout: str) -> Contenders:
    """64 images, 200 classes, maps of 256 x 14 x 14. Gradients go to the student's map and head."""
    torch.manual_seed(0)
    order = torch.channels_last if layout == "channels last" else torch.contiguous_format
    maps = [torch.randn(64, 256, 14, 14).relu().contiguous(memory_format=order) for _ in range(2)]
    student, teacher = maps[0].requires_grad_(), maps[1]
    head, master = nn.Linear(256, 200), nn.Linear(256, 200)
    target = torch.randint(200, (64,))

    def run(loss_of: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        loss = loss_of()
        return loss.detach(), *torch.autograd.grad(loss, (student, head.weight, head.bias))

    def kd() -> Tensor:
        with torch.no_grad():
            told = master(teacher.mean((2, 3)))
        return plain_kd(head(student.mean((2, 3))), told).mean()

    def package() -> Tensor:
        with torch.no_grad():
            told = local_logits(teacher, master.weight, master.bias, SCALES)
        said = local_logits(student, head.weight, head.bias, SCALES)
        decoupled = scale_decoupled_loss(kd_loss, said, told, target, temperature=TEMPERATURE)
        return decoupled + 2.0 * icd_loss(said, told, SCALES, TAU)

    def plainly(at_once: int) -> Tensor:
        with torch.no_grad():
            told = plain_local_logits(teacher, master)
        said = plain_local_logits(student, head)
        return plain_sd_kd(said, told, target, at_once) + 2.0 * plain_icd(said, told)

    losses = {
        "plain KD": kd,
        "SD-KD + iCD": package,
        "written plainly": partial(plainly, 21),
        "region by region": partial(plainly, 1),
    }
    return {name: partial(run, loss) for name, loss in losses.items()}


def reading(photos_below: str, workspace: Path) -> Contenders:
    """An epoch of training images of 224 pixels, in batches of 64."""
    photos = photographs(photos_below, workspace)
    pixels = load(photos, folder=workspace / "pixels", progress=False)
    loader = torch.utils.data.DataLoader(Decoded(photos), 64, shuffle=True, num_workers=2, drop_last=True)

    images = None

    def stored() -> None:
        nonlocal images  # each batch is written over the one before, as in training
        for step in range(pixels.steps(64)):
            images, *_ = pixels.training_batch(0, 1, step, 64, out=images)

    def decoded() -> None:
        for _ in loader:
            pass

    return {"two-worker DataLoader": decoded, "store of decoded images": stored}


class Decoded(torch.utils.data.Dataset):
    """Images as the published runs prepare them, from the file each time."""

    def __init__(self, photos: ImageList):
        self.photos = photos
        self.prepare = transforms.Compose(
            [
                transforms.Resize((256, 256)),
                transforms.RandomCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.photos.paths[index]) as file:
            return self.prepare(file.convert("RGB")), int(self.photos.labels[index])


def photographs(below: str, workspace: Path) -> ImageList:
    """The training images of a folder, else 640 Birdlets of 256 pixels, saved as JPEG."""
    if below:
        return DataSet(below, size=224).image_list("trainval")
    root = workspace / "birdlets"
    if not (root / "jpeg").exists():
        birdlets.draw(root / "png", species=10, families=5, train=64, test=0, size=256, progress=False)
        for path in sorted((root / "png" / "images").rglob("*.png")):
            place = root / "jpeg" / path.parent.name / f"{path.stem}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(place, quality=90)
    return class_folders(root / "jpeg", size=224)


def training(name: str) -> Contenders:
    """A step on labels alone: 64 images of 32 pixels, 100 classes."""
    recipe = Recipe()
    images, target = torch.randn(64, 3, 32, 32), torch.randint(100, (64,))
    quick = images.contiguous(memory_format=torch.channels_last)
    learner = Student(network(name, 100), METHODS["alone"]())
    learner.start(recipe, make_accelerator("auto"))
    model = network(name, 100)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )

    def plainly() -> None:
        F.cross_entropy(model(images), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return {
        "written plainly": plainly,
        "package": lambda: learner.step(
            Batch(quick, target, torch.arange(len(target))), None, 1, recipe.learning_rate
        ),
    }


def comparing(teacher: str, student: str, size: int) -> Contenders:
    """Two steps of 16 images and 100 classes by each of FIVE."""
    seen = torch.randint(0, 256, (32, size * 8 // 7, size * 8 // 7, 3), dtype=torch.uint8)
    data = CachedImages(seen, torch.randint(100, (32,)), tuple(map(str, range(100))), size, {}, "noise")
    recipe, master = Recipe(epochs=1, batch_size=16), network(teacher, 100, size)
    fixed = {"teacher": master, "progress": False}

    def together() -> None:
        learners = [Student(network(student, 100, size), METHODS[name](), name) for name in FIVE]
        fit_together(learners, data, recipe, **fixed)

    def one_by_one() -> None:
        for name in FIVE:
            fit(network(student, 100, size), METHODS[name](), data, recipe, **fixed)

    def untaught() -> None:
        for _ in FIVE:
            fit(network(student, 100, size), METHODS["alone"](), data, recipe, progress=False)

    return {"side by side": together, "five runs": one_by_one, "without a teacher": untaught}


class Case(NamedTuple):
    name: str
    contenders: Callable[[], Contenders]
    rounds: int
    pairs: tuple[tuple[str, str, str], ...]  # which contender stands to which, and the bar


def cases(section: str, photos: str, workspace: Path) -> list[Case]:
    """What a section holds beside each other."""
    if section == "objective":
        bars = {"SD-KD + iCD": "at most 4", "written plainly": "", "region by region": ""}
        pairs = tuple((name, "plain KD", bar) for name, bar in bars.items())
        return [
            Case(f"maps {layout}", partial(objective, layout), 40, pairs)
            for layout in ("channels last", "channels first")
        ]
    if section == "input":
        pair = ("two-worker DataLoader", "store of decoded images", "at least 20")
        return [Case("an epoch", partial(reading, photos, workspace), 3, (pair,))]
    if section == "training":
        pair = ("written plainly", "package", "at least 1.5 in bf16")
        return [Case(name, partial(training, name), 8, (pair,)) for name in ("resnet8x4", "ShuffleV1")]
    pairs = (("side by side", "five runs", "at most 0.5"), ("without a teacher", "five runs", ""))
    return [
        Case(f"{teacher} teaches {student}", partial(comparing, teacher, student, size), rounds, pairs)
        for teacher, student, size, rounds in (
            ("resnet32x4", "resnet8x4", 32, 2),
            ("ResNet50", "vgg8", 32, 1),
            ("resnet10-32", "resnet10-16", 56, 4),
        )
    ]


# How it is measured.


def take_turns(contenders: Contenders, rounds: int) -> dict[str, np.ndarray]:
    """The seconds that each contender took in each round, on the clock and of all processors, (rounds, 2)."""
    for run in contenders.values():
        run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    gc.disable()
    for _ in range(rounds):
        for name, run in contenders.items():
            clock, before = time.perf_counter(), os.times()
            run()
            clock, after = time.perf_counter() - clock, os.times()
            taken[name].append(
                (clock, sum(after[:4]) - sum(before[:4]))
            )  # with the children's, once they end
            gc.collect()
    return {name: np.array(rows) for name, rows in taken.items()}


def growth(contenders: Contenders, name: str) -> int:
    """By how many megabytes the peak of this process grows when it runs one contender."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # Linux forgets the peak so far, that of loading PyTorch
    before = peak_megabytes()
    for _ in range(2):
        contenders[name]()
    return peak_megabytes() - before


class Count(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if function._schema.name in ("aten::index", "aten::index_put") else ()
        masked = any(m is not None and m.dtype == torch.bool for m in masks)
        self.names["aten::nonzero" if masked else function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def count(run: Callable[[], object]) -> tuple[int, int]:
    """The operators that `run` dispatches, and those of them that make the host wait."""
    run()
    with Count() as seen:
        run()
    return seen.names.total(), sum(seen.names[name] for name in WAITING)


def alone(threads: int, make: Callable[[], Contenders], measure: Callable[..., Any], *arguments: Any) -> Any:
    """`measure(contenders, *arguments)` in a process of its own, where PyTorch has done nothing before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_alone, threads, make, measure, *arguments).result()


def _alone(threads: int, make: Callable[[], Contenders], measure: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc keeps what is freed: what is timed is work, not the handing out of pages
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    return measure(make(), *arguments)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def report(case: Case, threads: int, kinds: tuple[str, ...]) -> None:
    """A row of the table for each pair of a case."""
    taken = alone(threads, case.contenders, take_turns, case.rounds)
    grown = {
        name: alone(threads, case.contenders, growth, name)
        for name in dict.fromkeys(name for pair in case.pairs for name in pair[:2])
    }
    for first, second, bar in case.pairs:
        for column, kind in enumerate(kinds):
            here, there = taken[first][:, column], taken[second][:, column]
            low, middle, high = np.percentile(here / there, (25, 50, 75))
            what = f"{case.name}: {first} / {second}{kind}"
            times = (duration(float(np.median(side))) for side in (here, there))
            ratio = (f"{middle:.2f}", f"{low:.2f} to {high:.2f}", bar)
            print(
                "|",
                " | ".join((what, *times, *ratio, f"{grown[first]} / {grown[second]} MB")),
                "|",
                flush=True,
            )


def report_operators(threads: int) -> None:
    """A row for each way of writing the terms."""
    counts = alone(threads, partial(objective, "channels last"), count_all)
    ours, _ = counts["SD-KD + iCD"]
    print("\n| forward and backward of | operators | that wait | SD-KD + iCD to this | bar |")
    print("|:---|---:|---:|---:|:---|")
    for name, (total, waiting) in counts.items():
        bar = "at most 1/3" if name in ("written plainly", "region by region") else ""
        print(f"| {name} | {total} | {waiting} | {ours / total:.2f} | {bar} |", flush=True)


def count_all(contenders: Contenders) -> dict[str, tuple[int, int]]:
    return {name: count(run) for name, run in contenders.items()}


def describe(threads: int, photos: str) -> str:
    native = native_precision(torch.device("cpu")) == "bf16"
    load_average = os.getloadavg()[0]
    return (
        f"PyTorch {torch.__version__}, {threads} threads of a {platform.machine()} CPU, which "
        f"{'computes bf16 natively' if native else 'does not compute bf16 natively: steps are in float32'}; "
        f"{'photographs' if photos else 'Birdlets'} for `input`"
        f"{f'; busy with other work, load {load_average:.1f}' if load_average > 0.5 else ''}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"{', '.join(SECTIONS)}; all by default"
    )
    parser.add_argument("--photos", default="", help="folder of photographs for `input`; Birdlets by default")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    chosen = [name for name in SECTIONS if name in options.sections] or SECTIONS
    began = time.perf_counter()
    print(describe(options.threads, options.photos), "\n")
    with tempfile.TemporaryDirectory() as workspace:
        timed = [name for name in chosen if name != "operators"]
        if timed:
            print("| what | first | second | ratio | middle half | bar | memory |")
            print("|:---|---:|---:|---:|---:|:---|---:|", flush=True)
        for section in timed:
            for case in cases(section, options.photos, Path(workspace)):
                print(f"{time.perf_counter() - began:4.0f} s  {section}: {case.name}", file=sys.stderr)
                report(case, options.threads, (", clock", ", processors") if section == "input" else ("",))
    if "operators" in chosen:
        report_operators(options.threads)
    print(f"{time.perf_counter() - began:4.0f} s  done", file=sys.stderr)


if __name__ == "__main__":
    main()
