"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from icd.networks.base import Network, conv, initialise_convolutions, stem, through


class PreActivationBlock(nn.Module):
    """A residual block with batch normalisation and ReLU before each of its two convolutions."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = conv(width_in, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.convShortcut = None if width_in == width else conv(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        # The shortcut starts after the activation only if the width changes.
        shortcut = x if self.convShortcut is None else self.convShortcut(y)
        y = F.relu(self.bn2(self.conv1(y)), inplace=True)
        return self.conv2(y) + shortcut


class WideResNet(Network):
    """A stem and three stages, `widen` times as wide as 16, 32, 64; 6 n + 4 layers.

    The features are the last stage's map after batch normalisation and ReLU; the stages' maps are those
    before. No paper trains these on CUB-200-2011; for LARGE images the stem is that of the other residual
    networks.
    """

    def __init__(self, classes: int, image_size: int = 32, *, layers: int, widen: int):
        super().__init__()
        widths, count = [16, 16 * widen, 32 * widen, 64 * widen], (layers - 4) // 6

        def stage(width_in: int, width: int, stride: int) -> nn.Sequential:
            rest = (PreActivationBlock(width, width, 1) for _ in range(count - 1))
            blocks = nn.Sequential(PreActivationBlock(width_in, width, stride), *rest)
            return nn.Sequential(OrderedDict(layer=blocks))  # published weights are named block1.layer.0...

        self.conv1 = stem(widths[0], image_size)
        self.block1 = stage(widths[0], widths[1], 1)
        self.block2 = stage(widths[1], widths[2], 2)
        self.block3 = stage(widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        stages = through(self.conv1(images), self.block1, self.block2, self.block3)
        return F.relu(self.bn1(stages[-1]), inplace=True), stages
