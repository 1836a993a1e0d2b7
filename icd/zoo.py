"""The book's networks: plain modules whose `forward(images)` gives logits, built by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from icd.scores import score


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them (He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """A residual network for images of about 64 pixels: 64 in, a last map of 4 x 4 cells by default.

    Args:
        classes: number of classes.
        widths: channels of each stage; every stage after the first halves the map.
        blocks: residual blocks in each stage.
        stem_stride: 1 keeps a map twice as fine, at four times the cost.
    """

    def __init__(
        self,
        classes: int,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 1, 1),
        stem_stride: int = 2,
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(
                f"{len(widths)} widths and {len(blocks)} counts of blocks: give one of each for every stage"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = Block(widths[max(i - 1, 0)], width, 1 if i == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(width, width, 1) for _ in range(count - 1))))
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The map that the head reads, and the maps after each stage."""
        x, after = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            after.append(x)
        return x, tuple(after)

    def forward(self, images: Tensor) -> Tensor:
        return score(self, images).logits


# Name -> how it is built from a number of classes. resnetL-W: L layers, W channels in the first stage.
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet10-8": partial(SmallResNet, widths=(8, 16, 32, 64)),
    "resnet10-16": partial(SmallResNet, widths=(16, 32, 64, 128)),
    "resnet10-32": partial(SmallResNet, widths=(32, 64, 128, 256)),
    "resnet18-16": partial(SmallResNet, widths=(16, 32, 64, 128), blocks=(2, 2, 2, 2)),
    "resnet18-32": partial(SmallResNet, widths=(32, 64, 128, 256), blocks=(2, 2, 2, 2)),
    "resnet18-48": partial(SmallResNet, widths=(48, 96, 192, 384), blocks=(2, 2, 2, 2)),
}


def network(name: str, classes: int) -> nn.Module:
    """A fresh network of NETWORKS for so many classes; its weights come from torch's seed."""
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=1, cutoff=0.3)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise ValueError(f'there is no network "{name}": {hint}There are {", ".join(NETWORKS)}')
    if classes < 1:
        raise ValueError(f"a network for {classes} classes: give 1 or more")
    return NETWORKS[name](classes)


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())
