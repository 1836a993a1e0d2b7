"""Residual networks (He et al. 2016): the book's small ones, and the papers' basic and bottleneck ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from icd.networks.base import Network, Staged, conv, initialise_convolutions, stem, through


def shortcut(width_in: int, width: int, stride: int) -> nn.Module:
    """Return the shortcut of a block: the identity, or a 1 x 1 convolution if the block changes the shape."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(conv(width_in, width, 1, stride), nn.BatchNorm2d(width))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    shortcut_name = "shortcut"  # published weights use different names
    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(width_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.add_module(self.shortcut_name, shortcut(width_in, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.get_submodule(self.shortcut_name)(x), inplace=True)


class CifarBlock(Block):
    """A `Block` with the parameter names of the CIFAR networks."""

    shortcut_name = "downsample"


class Bottleneck(nn.Module):
    """A 1 x 1 convolution to a quarter of the channels, a 3 x 3 and a 1 x 1 back, and a shortcut."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(width_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.shortcut = shortcut(width_in, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


def stage(
    block: type[Block] | type[Bottleneck], width_in: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """Return `count` blocks; the first changes width and stride."""
    first = block(width_in, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(count - 1)))


class SmallResNet(Network):
    """A residual network for images of about 64 pixels; by default the last map is then 4 x 4.

    Args:
        classes: number of classes.
        image_size: has no effect; every network takes it.
        widths: channels of each stage; every stage after the first halves the map.
        blocks: number of residual blocks in each stage.
    """

    def __init__(
        self,
        classes: int,
        image_size: int = 64,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 1, 1),
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(
                f"{len(widths)} widths and {len(blocks)} numbers of blocks: give one of each for every stage"
            )
        self.stem = nn.Sequential(conv(3, widths[0], 3, 2), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.stages.append(stage(Block, widths[max(i - 1, 0)], width, count, 1 if i == 0 else 2))
        self.head = nn.Linear(widths[-1], classes)
        initialise_convolutions(self)

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the feature map that the head reads, and the maps after each stage but the stem."""
        _, *after = through(self.stem(images), *self.stages)
        return after[-1], tuple(after)


class CifarResNet(Staged):
    """Three stages of `CifarBlock`: 6 n + 2 layers for n blocks a stage (He et al. 2016, section 4.2).

    A network named "x4" has four times the paper's 16, 32, 64 channels, and 32 in the stem (Tian et al.
    2020). The last map is 8 x 8 for images of 32 pixels and 28 x 28 for 224.
    """

    def __init__(self, classes: int, image_size: int = 32, *, widths: Sequence[int], blocks: int):
        super().__init__()
        self.conv1 = stem(widths[0], image_size)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = stage(CifarBlock, widths[0], widths[1], blocks, 1)
        self.layer2 = stage(CifarBlock, widths[1], widths[2], blocks, 2)
        self.layer3 = stage(CifarBlock, widths[2], widths[3], blocks, 2)
        self.fc = nn.Linear(widths[3], classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        return self.fc


class ResNet50(Staged):
    """Four stages of `Bottleneck`, with a stem that does not pool (He et al. 2016; Tian et al. 2020).

    The last map is 4 x 4 for images of 32 pixels and 14 x 14 for 224.
    """

    depth = 4

    def __init__(self, classes: int, image_size: int = 32):
        super().__init__()
        self.conv1 = stem(64, image_size)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 64, 3, 1)
        self.layer2 = stage(Bottleneck, 256, 128, 4, 2)
        self.layer3 = stage(Bottleneck, 512, 256, 6, 2)
        self.layer4 = stage(Bottleneck, 1024, 512, 3, 2)
        self.linear = nn.Linear(2048, classes)
        initialise_convolutions(self)

    @property
    def head(self) -> nn.Linear:
        return self.linear
