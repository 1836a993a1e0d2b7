"""Predictions and accuracy of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd.datasets.cache import CachedImages


@torch.no_grad()
def predictions(model: nn.Module, data: CachedImages, batch_size: int = 64) -> Tensor:
    """Return the logits of every image, (N, C) float32 on the host, in the order of `data`."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = [model(images).float().cpu() for images, _ in data.batches(batch_size, device)]
    model.train(was_training)
    return torch.cat(logits)


def accuracy(model: nn.Module, data: CachedImages) -> float:
    """Return the fraction of images whose highest logit is their class (top-1 accuracy)."""
    return (predictions(model, data).argmax(1) == data.labels.cpu()).double().mean().item()
