"""What a run takes: time, and the memory of a step, estimated without a GPU."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icd.datasets.cache import fits
from icd.errors import RunError
from icd.scores import Batch, score
from icd.terms import Objective
from icd.trainer.recipe import Recipe
from icd.trainer.student import Student

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
ADVICE = (
    "Train in fp16 or bf16, or fewer students side by side; or set the recipe's accumulation_steps to 2, "
    "which changes the statistics of batch normalisation"
)


def time_left(epoch_seconds: float, epochs: int) -> str:
    """Return a sentence for the log after the first epoch."""
    minutes = epoch_seconds * epochs / 60
    rest = f"{minutes:.0f} min" if minutes < 90 else f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
    return f"an epoch takes {epoch_seconds:.3g} s, the other {epochs} about {rest}"


def peak_megabytes() -> int:
    """Return the peak memory of this process on the host (0 on Windows), plus that on its GPU."""
    host = 0.0
    if sys.platform != "win32":
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        host = peak / (2**20 if sys.platform == "darwin" else 2**10)
    return round(host + (torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0))


def describe_memory(need: int, free: int, total: int) -> str:
    """Return a sentence on a step's memory, in bytes, with advice if it may not fit."""
    text = f"a step takes about {need / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB; {free / 1e9:.1f} are free"
    return text if fits(need, free) else f"{text}. That may not fit. {ADVICE}"


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Raise RunError with advice in place of an out-of-memory error of the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full. {ADVICE}. The last checkpoint is intact: a run with the same "
            "settings resumes from it"
        ) from error


def step_bytes(
    students: Sequence[tuple[nn.Module, Objective]],
    teacher: nn.Module | None,
    *,
    images: int,
    size: int,
    classes: int,
    precision: str,
    accumulation_steps: int = 1,
) -> int:
    """Return the peak bytes of tensors while every student makes a step of SGD with momentum.

    The step runs on fake tensors, which have shapes and no data. Counted are weights, gradients, momenta,
    activations and everything computed on the way; not the GPU's driver and libraries, some hundred MB.

    Args:
        students: networks with their objectives, side by side; they are not changed.
        teacher: their teacher, or None.
        images: a process's part of the batch.
        size: pixels a side of an image.
        classes: of the data set.
        precision: "float32", "bf16" or "fp16".
        accumulation_steps: `Recipe.accumulation_steps`.
    """
    recipe = Recipe(accumulation_steps=accumulation_steps)
    hollow = [Student(copy.deepcopy(n).to("meta"), copy.deepcopy(o).to("meta")) for n, o in students]
    hollow_teacher = None if teacher is None else copy.deepcopy(teacher).to("meta").eval()
    with FakeTensorMode(), Peak() as peak:
        backend = _FakeBackend(precision)
        shape = torch.empty(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        batch = Batch(shape, *torch.zeros(2, images, dtype=torch.int64))
        if hollow_teacher is not None:
            _materialise(hollow_teacher)
        for student in hollow:
            _materialise(student.network)
            _materialise(student.objective)
            if student.objective.needs_build:
                with torch.no_grad():
                    scores = None if hollow_teacher is None else score(hollow_teacher, batch.images)
                student.build(batch, scores, images, seed=0)
            student.start(recipe, backend)
        for _ in range(2):  # every tensor of a run exists at the second step
            with backend.autocast(), torch.no_grad():
                teacher_scores = None if hollow_teacher is None else score(hollow_teacher, batch.images)
            for student in hollow:
                student.step(batch, teacher_scores, 1, 0.1)
    return peak.highest


class _FakeBackend:
    """The part of an Accelerator that a `Student` needs, on fake tensors."""

    device = torch.device("cpu")
    num_processes = 1

    def __init__(self, precision: str):
        self.half = HALF.get(precision)

    def prepare(self, *args: Any) -> Any:
        return args

    def unwrap_model(self, model: Any, keep_fp32_wrapper: bool) -> Any:
        return model

    def autocast(self) -> Any:
        return nullcontext() if self.half is None else torch.autocast("cpu", self.half)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unscale_gradients(self, optimizer: Any) -> None:
        pass


def _materialise(network: nn.Module) -> None:
    """Replace weights on the meta device by fake ones, channels last."""

    def weight(like: Tensor) -> Tensor:
        order = torch.channels_last if like.ndim == 4 else torch.contiguous_format
        return torch.empty(like.shape, dtype=like.dtype).contiguous(memory_format=order)

    network._apply(weight)


class Peak(TorchDispatchMode):
    """Count the bytes of the tensors that are alive at a time."""

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
