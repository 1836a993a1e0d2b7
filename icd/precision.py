"""Losses and local logits compute in float32 at least, whatever precision the networks run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Inside, autocast is off; yields the tensors with half precisions raised to float32."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)
