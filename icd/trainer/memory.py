"""What a run will take: time, and a GPU's memory, which is found without one by a step with empty tensors."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icd.datasets.cache import CachedImages, fits
from icd.errors import RunError
from icd.objective import Objective
from icd.scores import score

# What stays after autocast is asked for a type; float32 is no autocast at all.
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


ADVICE = (
    "Train in fp16 or bf16, or fewer students side by side; or let the recipe's pieces be 2, which changes "
    "the statistics of batch normalisation"
)


def time_left(epoch_seconds: float, epochs: int) -> str:
    """A sentence for the log, once the first epoch is done."""
    minutes = epoch_seconds * epochs / 60
    rest = f"{minutes:.0f} min" if minutes < 90 else f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
    return f"an epoch takes {epoch_seconds:.3g} s, the other {epochs} about {rest}"


def peak_megabytes() -> int:
    """The most memory that this process has held, on the host, and on a GPU where it uses one.

    Windows does not tell: there the host counts for 0.
    """
    host = 0.0
    if sys.platform != "win32":
        import resource  # which Windows has not

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        host = peak / (2**20 if sys.platform == "darwin" else 2**10)
    return round(host + (torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0))


def memory_needed(
    students: Sequence[tuple[nn.Module, Objective]],
    teacher: nn.Module | None,
    data: CachedImages,
    images: int,
    pieces: int,
    accelerator: Accelerator,
) -> int:
    """`step_bytes` of a run on `images` of `data` in a batch: what this process's GPU will be given."""
    return step_bytes(
        students,
        teacher,
        images=images,
        size=data.size,
        classes=len(data.classes),
        precision=accelerator.mixed_precision,
        pieces=pieces,
    )


def say_memory(need: int, free: int, total: int) -> str:
    """Bytes in a sentence, before the first step; with advice where a GPU's memory may not do."""
    text = f"a step takes about {need / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB; {free / 1e9:.1f} are free"
    return text if fits(need, free) else f"{text}. That may not do. {ADVICE}"


@contextmanager
def memory_to_spare() -> Iterator[None]:
    """Inside, a GPU whose memory is full ends the run with a RunError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full. {ADVICE}. The last checkpoint is whole: a run with the same settings "
            "goes on from it"
        ) from error


def step_bytes(
    students: Sequence[tuple[nn.Module, Objective]],
    teacher: nn.Module | None,
    *,
    images: int,
    size: int,
    classes: int,
    precision: str,
    pieces: int = 1,
) -> int:
    """The most bytes that tensors take at a time while every student makes a step of SGD with momentum.

    Counted are weights, their gradients and momenta, what autograd keeps, and all that is computed on the
    way. Not counted: what a GPU's driver and libraries take for themselves, some hundred megabytes.

    Args:
        students: networks with their objectives, that learn side by side; they are left as they are.
        teacher: the network that they learn from, if any.
        images: how many a process has in a batch.
        size: pixels a side of an image.
        classes: of the data set.
        precision: "float32", "bf16" or "fp16".
        pieces: in how many the batch is split, one after the other (`Recipe.pieces`).
    """

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", HALVES.get(precision), enabled=precision in HALVES)

    hollow = [copy.deepcopy(student).to("meta") for student, _ in students]
    hollow_teacher = None if teacher is None else copy.deepcopy(teacher).to("meta")
    with FakeTensorMode(), Peak() as peak:
        master = None if hollow_teacher is None else _settle(hollow_teacher).eval()
        learners = [(_settle(s).train(), o) for s, (_, o) in zip(hollow, students, strict=True)]
        optimizers = [torch.optim.SGD(student.parameters(), 0.1, momentum=0.9) for student, _ in learners]
        batch = torch.empty(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        target = torch.zeros(images, dtype=torch.int64)
        for _ in range(2):  # at the second, momenta are there
            with autocast(), torch.no_grad():
                told = None if master is None else score(master, batch)
            for (student, objective), optimizer in zip(learners, optimizers, strict=True):
                for first in range(0, images, images // pieces):
                    rows = slice(first, first + images // pieces)
                    with autocast():
                        said = score(student, batch[rows])
                    told_part = None if told is None else told.rows(rows)
                    objective(said, told_part, target[rows])[0].backward()
                optimizer.step()
                optimizer.zero_grad()
    return peak.highest


def _settle(network: nn.Module) -> nn.Module:
    """Gives a network that has only the shapes of its weights some of no content, channels last."""

    def weight(like: Tensor) -> Tensor:
        order = torch.channels_last if like.ndim == 4 else torch.contiguous_format
        return torch.empty(like.shape, dtype=like.dtype).contiguous(memory_format=order)

    return network._apply(weight)


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that live at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.known:
                    self.known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
        self.highest = max(self.highest, self.now)
        return result

    def _freed(self, count: int) -> None:
        self.now -= count
