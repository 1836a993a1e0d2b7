"""Shared parts of the networks: the interface that `icd.scores.score` needs, stems, initial weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from icd.scores import score

# From this image size (pixels a side) on, networks have the form that the papers use for CUB-200-2011.
LARGE = 128


class Network(nn.Module):
    """Base class of networks that `icd.scores.score` can read.

    A subclass has a linear `head` and a method `maps`; its logits are `head(features.mean((2, 3)))` for the
    features that `maps` returns.
    """

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the feature map (B, D, H, W) that the head reads, and the maps after each stage."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return score(self, images).logits


class Staged(Network):
    """A network of `conv1`, `bn1`, then `layer1`, `layer2`, ..., as most published ones are."""

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    depth = 3  # number of stages

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        layers = (self.get_submodule(f"layer{i + 1}") for i in range(self.depth))
        stages = through(F.relu(self.bn1(self.conv1(images)), inplace=True), *layers)
        return stages[-1], stages


def through(x: Tensor, *layers: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Return `x` and the output of each layer in turn."""
    return tuple(accumulate(layers, lambda y, layer: layer(y), initial=x))


def conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a padded convolution without a bias, which the batch normalisation after it has."""
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)


def stem(width: int, image_size: int, kernel: int = 3) -> nn.Conv2d:
    """Return the first convolution: stride 1 for small images, stride 2 for images of LARGE pixels or more.

    The authors of SDD (Wei et al. 2024) and iCD (Xue et al. 2025) replace `conv1` by a 7 x 7 convolution with
    stride 2 and no pooling for CUB-200-2011.
    """
    return conv(3, width, 7, 2) if image_size >= LARGE else conv(3, width, kernel)


def initialise_convolutions(model: nn.Module) -> None:
    """Draw weights from a normal distribution of variance 2 / (kernel area * output channels); zero biases.

    He et al. 2015, "Delving deep into rectifiers".
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_head(head: nn.Linear) -> None:
    """Draw small weights and zero the bias, as VGG and MobileNetV2 do."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
