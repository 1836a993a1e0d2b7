"""MobileNetV2 (Sandler et al. 2018) at half its width, as in the tables of Tian et al. (2020)."""

from __future__ import annotations

from torch import Tensor, nn

from icd.networks.base import LARGE, Network, conv, initialise_convolutions, initialise_head, through

# For each group of blocks: expansion, output channels (half of the paper's), number of blocks, first stride.
# The paper's second group halves the map; the published code for CIFAR does not.
GROUPS = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
STAGES = (1, 2, 4, 6)  # feature losses compare the maps after these groups


def convolution(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution, batch normalisation and ReLU (ReLU6 in the paper, not in the published code)."""
    return [
        conv(width_in, width, kernel, stride, groups),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


class InvertedResidual(nn.Module):
    """A 1 x 1 expansion, a depthwise 3 x 3 and a linear 1 x 1 projection."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int):
        super().__init__()
        wide = width_in * expansion
        self.conv = nn.Sequential(
            *convolution(width_in, wide, 1),
            *convolution(wide, wide, 3, stride, groups=wide),
            conv(wide, width, 1),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Network):
    """Half-width MobileNetV2; the head reads 1280 channels after a last 1 x 1 convolution and ReLU.

    The stem has stride 2 (last map 2 x 2 for 32 pixels). For LARGE images it is a 7 x 7 convolution with
    stride 2 and max pooling over 2 x 2 (last map 7 x 7 for 224), as in the code of SDD and iCD.
    """

    def __init__(self, classes: int, image_size: int = 32):
        super().__init__()
        large = image_size >= LARGE
        first = convolution(3, 16, 7 if large else 3, 2)
        self.conv1 = nn.Sequential(*first, *([nn.MaxPool2d(2)] if large else []))
        self.blocks = nn.ModuleList()
        width_in = 16
        for expansion, width, count, stride in GROUPS:
            group = nn.Sequential(InvertedResidual(width_in, width, stride, expansion))
            group.extend(InvertedResidual(width, width, 1, expansion) for _ in range(count - 1))
            self.blocks.append(group)
            width_in = width
        self.conv2 = nn.Sequential(*convolution(width_in, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))
        initialise_convolutions(self)
        initialise_head(self.head)

    @property
    def head(self) -> nn.Linear:
        head = self.classifier[0]
        assert isinstance(head, nn.Linear)
        return head

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, *after = through(self.conv1(images), *self.blocks)
        return self.conv2(after[-1]), (first, *(after[i] for i in STAGES))
