"""ShuffleNetV1 (Zhang et al. 2018) and V2 (Ma et al. 2018), with the stem of Tian et al. (2020).

The stem is a 1 x 1 convolution with stride 1 (7 x 7 with stride 2 for LARGE images), so the last map is 4 x 4
for images of 32 pixels and 14 x 14 for 224. Weights have PyTorch's default initialisation, as published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd.networks.base import Staged, conv, stem

STEM = 24


class GroupedUnit(nn.Module):
    """ShuffleNetV1's unit: grouped 1 x 1, channel shuffle, depthwise 3 x 3, grouped 1 x 1.

    With stride 2 its pooled input is concatenated to its output; `width` excludes those channels.
    """

    groups = 3

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        middle, self.halves = width // 4, stride == 2
        self.first_groups = 1 if width_in == STEM else self.groups  # too few channels to group
        self.conv1 = conv(width_in, middle, 1, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, width, 1, groups=self.groups)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.first_groups)
        # The paper has no ReLU here; the published code does.
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.halves:
            return F.relu(torch.cat((y, F.avg_pool2d(x, 3, 2, 1)), 1), inplace=True)
        return F.relu(y + x, inplace=True)


class ShuffleV1(Staged):
    """ShuffleNetV1 with 3 groups: stages of 4, 8 and 4 units, 240, 480 and 960 channels."""

    def __init__(self, classes: int, image_size: int = 32):
        super().__init__()
        self.conv1 = stem(STEM, image_size, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 240, 4)
        self.layer2 = self._stage(240, 480, 8)
        self.layer3 = self._stage(480, 960, 4)
        self.linear = nn.Linear(960, classes)

    @staticmethod
    def _stage(width_in: int, width: int, count: int) -> nn.Sequential:
        rest = (GroupedUnit(width, width, 1) for _ in range(count - 1))
        return nn.Sequential(GroupedUnit(width_in, width - width_in, 2), *rest)

    @property
    def head(self) -> nn.Linear:
        return self.linear


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass three convolutions; then a channel shuffle."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv(half, half, 1), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(y)))), inplace=True)
        return F.channel_shuffle(torch.cat((kept, y), 1), 2)


class DownUnit(nn.Module):
    """ShuffleNetV2's unit with stride 2: both branches read all channels, each gives half of `width`."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv(width_in, width_in, 3, 2, groups=width_in), nn.BatchNorm2d(width_in)
        self.conv2, self.bn2 = conv(width_in, half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(width_in, half, 1), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv(half, half, 3, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))), inplace=True)
        return F.channel_shuffle(torch.cat((left, right), 1), 2)


class ShuffleV2(Staged):
    """ShuffleNetV2 1x: stages of 4, 8 and 4 units, 116, 232 and 464 channels, then 1 x 1 to 1024."""

    def __init__(self, classes: int, image_size: int = 32):
        super().__init__()
        self.conv1 = stem(STEM, image_size, kernel=1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 116, 4)
        self.layer2 = self._stage(116, 232, 8)
        self.layer3 = self._stage(232, 464, 4)
        self.conv2 = conv(464, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    @staticmethod
    def _stage(width_in: int, width: int, count: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(width_in, width), *(SplitUnit(width) for _ in range(count - 1)))

    @property
    def head(self) -> nn.Linear:
        return self.linear

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        last, stages = super().maps(images)
        return F.relu(self.bn2(self.conv2(last)), inplace=True), stages
