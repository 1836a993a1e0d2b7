"""VGG with batch normalisation and one linear layer (Simonyan and Zisserman 2015; Tian et al. 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from icd.networks.base import Network, initialise_convolutions, initialise_head

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Network):
    """Five blocks of 3 x 3 convolutions; the map is halved before the second, third and fourth.

    As published, only image size 64 differs: the map is also halved before the fifth block. So the last map
    is 4 x 4 for images of 32 and of 64 pixels, and 28 x 28 for 224.

    Args:
        classes: number of classes.
        image_size: pixels a side.
        convolutions: number of convolutions in each block: 1 in VGG8, 2 in VGG13.
    """

    def __init__(self, classes: int, image_size: int = 32, *, convolutions: int):
        super().__init__()
        if image_size < 8:
            raise ValueError(
                f"VGG halves an image three times: give 8 pixels a side or more, not {image_size}"
            )
        self.halved = (1, 2, 3, 4) if image_size == 64 else (1, 2, 3)
        for i, width in enumerate(WIDTHS):
            width_in, layers = WIDTHS[i - 1] if i else 3, list[nn.Module]()
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(width_in, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                width_in = width
            self.add_module(f"block{i}", nn.Sequential(*layers))
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        initialise_convolutions(self)
        initialise_head(self.classifier)

    @property
    def head(self) -> nn.Linear:
        return self.classifier

    def maps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, stages = images, []
        for i in range(len(WIDTHS)):
            x = F.max_pool2d(x, 2) if i in self.halved else x
            x = self.get_submodule(f"block{i}")(x)
            stages.append(x)
        return x, tuple(stages)
