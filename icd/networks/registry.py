"""The networks that have a name: the book's, those of the papers, and those of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from icd.errors import did_you_mean
from icd.networks.adapt import Adapted
from icd.networks.base import Network
from icd.networks.libraries import LIBRARIES, build_from_library
from icd.networks.mobilenet import MobileNetV2
from icd.networks.resnet import CifarResNet, ResNet50, SmallResNet
from icd.networks.shufflenet import ShuffleV1, ShuffleV2
from icd.networks.vgg import VGG
from icd.networks.wide_resnet import WideResNet

#: Name -> a function of the number of classes and the image size.
NETWORKS: dict[str, Callable[[int, int], Network]] = {
    # The book's networks, for images of about 64 pixels. resnetL-W has L layers and W channels in stage 1.
    "resnet10-8": partial(SmallResNet, widths=(8, 16, 32, 64)),
    "resnet10-16": partial(SmallResNet, widths=(16, 32, 64, 128)),
    "resnet10-32": partial(SmallResNet, widths=(32, 64, 128, 256)),
    "resnet18-16": partial(SmallResNet, widths=(16, 32, 64, 128), blocks=(2, 2, 2, 2)),
    "resnet18-32": partial(SmallResNet, widths=(32, 64, 128, 256), blocks=(2, 2, 2, 2)),
    "resnet18-48": partial(SmallResNet, widths=(48, 96, 192, 384), blocks=(2, 2, 2, 2)),
    # The papers' networks, for CIFAR-100 at 32 pixels and CUB-200-2011 at 224.
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


def build(name: str, classes: int, image_size: int) -> Network | Adapted:
    """Return an untrained network by name; see `icd.networks.network`."""
    if classes < 1:
        raise ValueError(f"a network for {classes} classes: give 1 or more")
    if image_size < 1:
        raise ValueError(f"a network for images of {image_size} pixels a side: give 1 or more")
    if "/" in name:
        return build_from_library(name, classes, image_size)
    spelling = {known.lower(): known for known in NETWORKS}
    if name.lower() not in spelling:
        known = ", ".join([*NETWORKS, *(f"{library}/NAME" for library in LIBRARIES)])
        hint = did_you_mean(name, list(NETWORKS), f"There are {known}")
        raise ValueError(f'there is no network "{name}":{hint}')
    return NETWORKS[spelling[name.lower()]](classes, image_size)
