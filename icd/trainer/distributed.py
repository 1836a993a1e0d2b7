"""Several processes that train as one: each takes an equal share of every batch.

Every loss of this package is a mean over images, so the mean of the shares' losses is the batch's, and the
mean of their gradients, which DistributedDataParallel takes, is the batch's gradient. What is no such mean
differs from a run of one process: the statistics of batch normalisation, which are over a share unless they
are synchronised, the places that dropout draws, and a loss with a memory, which each process fills alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from icd.errors import RunError
from icd.losses.numerics import full_precision
from icd.trainer.recipe import Precision


def join(seconds: float) -> PartialState:
    """Take a place among the processes that were started together, if there are several.

    They talk by NCCL between GPUs, else by gloo. A process that hears nothing from another for `seconds`
    gives up; from one that ended it hears at once.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
    # Between GPUs gloo as well, for what the hosts agree on: they need not wait for their devices then.
    backend = {"backend": "cuda:nccl,cpu:gloo"} if several and not use_cpu else {}
    return PartialState(cpu=use_cpu, timeout=timedelta(seconds=seconds), **backend)


def make_accelerator(precision: Precision, patience_seconds: float = 300.0) -> Accelerator:
    """Accelerate's view of this machine: device, processes and a precision, "auto" a native one.

    Raises:
        RunError: fp16 on a CPU.
    """
    device = join(patience_seconds).device
    mixed = native_precision(device) if precision == "auto" else precision
    AcceleratorState._reset_state()  # else a second run of this process could not have another precision
    if mixed == "fp16" and device.type == "cpu":  # Accelerate would compute in float32, and not say so
        raise RunError(
            "this device (cpu) does not train in fp16: a run that began in it goes on where there is a GPU, "
            "and a new one may have another precision"
        )
    return Accelerator(mixed_precision="no" if mixed == "float32" else mixed)


def native_precision(device: torch.device) -> Precision:
    """bf16 where the device computes it natively, fp16 on older GPUs, else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "float32"


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints; known before any has joined."""
    return int(os.environ.get("RANK", "0")) == 0


def share(batch_size: int) -> tuple[int, int]:
    """This process's number (from 0) among those that share a batch, and how many they are.

    Raises:
        RunError: the shares would not be equal.
    """
    if batch_size % count():
        raise RunError(
            f"a batch of {batch_size} images cannot be shared equally by {count()} processes: "
            "give a batch size that their number divides"
        )
    return (dist.get_rank() if count() > 1 else 0), count()


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over processes; the host does not wait for a GPU's."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= count()
    return values


def agreed(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process: the same answer in all of them, at the same step."""
    if count() > 1:
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return tuple(map(bool, said.tolist()))
    return flags


@contextmanager
def all_or_none() -> Iterator[None]:
    """Inside, or in a function decorated by it, a process that loses another one ends with a RunError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if "Expected to have finished reduction" in reason:
            raise RunError(
                "some of the student's weights got no gradient, and several processes wait for all of them: "
                "call requires_grad_(False) on weights that the objective does not use, or start one process"
            ) from error
        of_talk = isinstance(error, dist.DistError) or "gloo" in reason or "pair closure" in reason
        if count() == 1 or not of_talk:
            raise
        silent = re.search("timed? ?out", reason, re.IGNORECASE)
        did = (
            "was silent for too long: see what holds it up" if silent else "ended: it was killed, or says why"
        )
        raise RunError(
            f"process {dist.get_rank()} of {count()} stops, because another one {did}. "
            "The last checkpoint is whole: start all of them again to go on from it"
        ) from error


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that trains on the statistics of all processes' images, an equal number in each.

    torch's own SyncBatchNorm needs a GPU, and makes the host wait for it in every layer.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(input)
        with torch.no_grad(), full_precision(input) as (values,):
            dims = _all_but_channels(values)
            centre = values.mean(dims)
            own = torch.stack([centre, (values - _wide(centre, values)).square().mean(dims)])
            each = [torch.empty_like(own) for _ in range(count())]
            dist.all_gather(each, own)
            means, variances = torch.stack(each, 1)  # (processes, C) each
            mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
            tracked, number = self.num_batches_tracked, count() * input.numel() // input.shape[1]
            if self.running_mean is not None and self.running_var is not None and tracked is not None:
                tracked += 1
                pace = 1 / tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, pace)
                self.running_var.lerp_(variance * number / (number - 1), pace)
        weight = torch.ones_like(mean) if self.weight is None else self.weight
        bias = torch.zeros_like(mean) if self.bias is None else self.bias
        return _Normalise.apply(input, mean, variance, weight, bias, self.eps)


class _Normalise(torch.autograd.Function):
    """`F.batch_norm` with a mean and a variance that depend on the images of every process."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, mean, (variance + eps).rsqrt(), weight)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        dims = _all_but_channels(x)
        with full_precision(x, slope) as (values, slope):
            centred = values - _wide(mean, x)
            # Of bias and weight, (2, C): DistributedDataParallel averages these.
            sums = torch.stack([slope.sum(dims), (slope * centred).sum(dims) * scale])
            constant, linear = average(sums) * x.shape[1] / x.numel()
            back = slope - centred.mul_(_wide(linear * scale, x)).add_(_wide(constant, x))
            back *= _wide(scale * weight, x)
        return back.to(x.dtype), None, None, sums[1], sums[0], None


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """A number for each channel (C,), to be combined with x (B, C, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 2))


def synchronise(network: nn.Module) -> None:
    """Let every batch normalisation of `network` be a `SynchronisedBatchNorm`, in place.

    Its weights, statistics, hooks and place stay as they are.

    Raises:
        RunError: a layer that does more than torch's own.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SynchronisedBatchNorm)
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in plain:
                raise RunError(
                    f"{name} is a {type(module).__name__}, which cannot be synchronised: "
                    "set the recipe's sync_batch_norm to false"
                )
            module.__class__ = SynchronisedBatchNorm
