"""Several processes that train as one: each takes an equal part of every batch.

Every stateless loss of this package is a mean over images, so the mean of the processes' gradients, which
DistributedDataParallel takes, is the gradient of the whole batch. Exceptions: batch statistics are over a
part of the batch unless they are synchronised, dropout draws differently, a loss that compares the images of
a batch compares those of a part, and a loss with a memory is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from icd.errors import RunError
from icd.trainer.recipe import Precision


def init_distributed(timeout_seconds: float) -> PartialState:
    """Join the processes that a launcher started, if there are several.

    They communicate by NCCL between GPUs, else by gloo. A process that hears nothing from another for
    `timeout_seconds` gives up; it learns at once of one that ended.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
    # Between GPUs gloo too, for flags of the hosts, so that these need not wait for their devices.
    backend = {"backend": "cuda:nccl,cpu:gloo"} if several and not use_cpu else {}
    return PartialState(cpu=use_cpu, timeout=timedelta(seconds=timeout_seconds), **backend)


def make_accelerator(precision: Precision, timeout_seconds: float = 300.0) -> Accelerator:
    """Return Accelerate's view of this machine: device, processes and precision; "auto" is the native one.

    Raises:
        RunError: fp16 on a CPU.
    """
    device = init_distributed(timeout_seconds).device
    check_precision(precision, device)
    mixed = native_precision(device) if precision == "auto" else precision
    AcceleratorState._reset_state()  # otherwise a second run in this process keeps the first one's precision
    return Accelerator(mixed_precision="no" if mixed == "float32" else mixed)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise RunError for fp16 on a CPU, where Accelerate would silently compute in float32."""
    if precision == "fp16" and device.type == "cpu":
        raise RunError(
            "this device (cpu) does not train in fp16: resume a run that began in fp16 on a GPU, or choose "
            "another precision for a new run"
        )


def native_precision(device: torch.device) -> Precision:
    """Return bf16 where the device computes it natively, fp16 on older GPUs, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "float32"


def best_device() -> torch.device:
    """Return the device that a run will use, known before `init_distributed`."""
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return torch.device("cpu" if use_cpu else "cuda")


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process writes and prints; known before `init_distributed`."""
    return int(os.environ.get("RANK", "0")) == 0


def rank_and_world_size(batch_size: int) -> tuple[int, int]:
    """Return this process's number, from 0, and the number of processes.

    Raises:
        RunError: they cannot share a batch equally.
    """
    if batch_size % world_size():
        raise RunError(
            f"{world_size()} processes cannot share a batch of {batch_size} images equally: "
            "give a batch size that their number divides"
        )
    return (dist.get_rank() if world_size() > 1 else 0), world_size()


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over processes; the host does not wait for a GPU."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process, the same in all of them at the same step."""
    if world_size() > 1:
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(map(bool, values.tolist()))
    return flags


@contextmanager
def fail_together() -> Iterator[None]:
    """Raise RunError when another process ends or times out. A context manager and a decorator."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if "Expected to have finished reduction" in reason:
            raise RunError(
                "some of the student's weights got no gradient, and several processes wait for all of them: "
                "call requires_grad_(False) on weights that the objective does not use, or start one process"
            ) from error
        communication = isinstance(error, dist.DistError) or "gloo" in reason or "pair closure" in reason
        if world_size() == 1 or not communication:
            raise
        timed_out = re.search("timed? ?out", reason, re.IGNORECASE)
        cause = "timed out" if timed_out else "ended (it was killed, or its own message says why)"
        raise RunError(
            f"process {dist.get_rank()} of {world_size()} stops because another one {cause}. "
            "The last checkpoint is intact: start all processes again to resume from it"
        ) from error


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch normalisation by `torch.nn.SyncBatchNorm`, in place where the network has layers.

    Raises:
        RunError: the device is not a GPU.
    """
    if device.type != "cuda":
        raise RunError(f"sync_batch_norm needs GPUs, and this device is {device.type}: set it to false")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)
