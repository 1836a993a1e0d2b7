"""The networks by name, those of the papers by the names and with the parameters that the field shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from icd.errors import did_you_mean
from icd.networks.base import Network
from icd.networks.mobilenet import MobileNetV2
from icd.networks.resnet import CifarResNet, ResNet50, SmallResNet
from icd.networks.shufflenet import ShuffleV1, ShuffleV2
from icd.networks.vgg import VGG
from icd.networks.wide_resnet import WideResNet

#: Name -> how it is built from a number of classes and an image's size.
NETWORKS: dict[str, Callable[[int, int], Network]] = {
    # The book's, for images of about 64 pixels: resnetL-W has L layers, and W channels in the first stage.
    "resnet10-8": partial(SmallResNet, widths=(8, 16, 32, 64)),
    "resnet10-16": partial(SmallResNet, widths=(16, 32, 64, 128)),
    "resnet10-32": partial(SmallResNet, widths=(32, 64, 128, 256)),
    "resnet18-16": partial(SmallResNet, widths=(16, 32, 64, 128), blocks=(2, 2, 2, 2)),
    "resnet18-32": partial(SmallResNet, widths=(32, 64, 128, 256), blocks=(2, 2, 2, 2)),
    "resnet18-48": partial(SmallResNet, widths=(48, 96, 192, 384), blocks=(2, 2, 2, 2)),
    # The papers', for CIFAR-100 at 32 pixels and CUB-200-2011 at 224.
    "resnet20": partial(CifarResNet, widths=(16, 16, 32, 64), blocks=3),
    "resnet56": partial(CifarResNet, widths=(16, 16, 32, 64), blocks=9),
    "resnet8x4": partial(CifarResNet, widths=(32, 64, 128, 256), blocks=1),
    "resnet32x4": partial(CifarResNet, widths=(32, 64, 128, 256), blocks=5),
    "ResNet50": ResNet50,
    "wrn_16_2": partial(WideResNet, layers=16, widen=2),
    "wrn_40_2": partial(WideResNet, layers=40, widen=2),
    "vgg8": partial(VGG, convolutions=1),
    "vgg13": partial(VGG, convolutions=2),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}


def network(name: str, classes: int, image_size: int = 32) -> Network:
    """A fresh network of NETWORKS; its weights come from torch's seed.

    Args:
        name: of NETWORKS; capitals do not matter.
        classes: number of classes.
        image_size: pixels a side of the images that it will see. From 128 on, the papers' networks have
            the form in which the papers train them on CUB-200-2011: a stem that halves the image, and
            MobileNetV2's halves it twice. VGG differs at 64 alone, and the book's networks nowhere.

    Raises:
        ValueError: no such name (the message offers the nearest), no class, or no pixel.
    """
    spelling = {known.lower(): known for known in NETWORKS}
    if name.lower() not in spelling:
        hint = did_you_mean(name, list(NETWORKS), f"There are {', '.join(NETWORKS)}")
        raise ValueError(f'there is no network "{name}":{hint}')
    if classes < 1:
        raise ValueError(f"a network for {classes} classes: give 1 or more")
    if image_size < 1:
        raise ValueError(f"a network for images of {image_size} pixels a side: give 1 or more")
    return NETWORKS[spelling[name.lower()]](classes, image_size)


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())
