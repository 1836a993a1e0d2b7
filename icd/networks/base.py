"""What the networks share: the protocol of `icd.scores.score`, the first convolution, initial weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from icd.scores import score

# From this many pixels a side on, a network has the form in which the papers train it on CUB-200-2011.
LARGE = 128


class Network(nn.Module):
    """A network that `icd.scores.score` can read: `head` is its linear classifier, `maps` what comes before.

    `logits == head(features.mean((2, 3)))` for the features that `maps` returns.
    """

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The map (B, D, H, W) that the head reads, and the maps after each stage."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return score(self, images).logits


class Staged(Network):
    """The pattern of most published networks: `conv1`, `bn1`, then `layer1`, `layer2`, ..."""

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    depth = 3  # layers

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        layers = (self.get_submodule(f"layer{i + 1}") for i in range(self.depth))
        stages = through(F.relu(self.bn1(self.conv1(images)), inplace=True), *layers)
        return stages[-1], stages


def through(x: Tensor, *layers: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """`x`, and what it becomes after each layer in turn."""
    return tuple(accumulate(layers, lambda y, layer: layer(y), initial=x))


def conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of a map but for its stride; batch normalisation brings the bias."""
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)


def stem(width: int, image_size: int, kernel: int = 3) -> nn.Conv2d:
    """The first convolution: it keeps a small image's size, and halves that of a LARGE one.

    7 x 7 with stride 2 and no pooling is what the authors of SDD (Wei et al. 2024) and iCD (Xue et al.
    2025) put in the place of `conv1` for CUB-200-2011.
    """
    return conv(3, width, 7, 2) if image_size >= LARGE else conv(3, width, kernel)


def initialise_convolutions(model: nn.Module) -> None:
    """Weights normal with variance 2 / (kernel area * channels out), biases 0 (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_head(head: nn.Linear) -> None:
    """Small weights and no bias, as VGG and MobileNetV2 begin."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
