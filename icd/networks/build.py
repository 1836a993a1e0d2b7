"""Build a network by name, untrained or with published weights."""

from __future__ import annotations

from pathlib import Path

from icd.networks.adapt import Adapted
from icd.networks.base import Network
from icd.networks.libraries import published_weights
from icd.networks.pretrained import load_weights, read_weights
from icd.networks.registry import build


def network(
    name: str, classes: int, image_size: int = 32, weights: str | Path | None = None
) -> Network | Adapted:
    """Return a new network by name; untrained weights depend on torch's seed (chapter 2).

    Args:
        name: one of NETWORKS, or "torchvision/NAME", "timm/NAME" or "efficientnet_lite/efficientnet_lite0"
            for a classifier that `adapt` reads exactly. Case does not matter.
        classes: number of classes; the head has as many outputs.
        image_size: pixels a side of the images that it will see. From 128 on, the papers' networks have
            the form in which the papers train them on CUB-200-2011: a stem that halves the image, and
            MobileNetV2's halves it twice. VGG differs at 64 only, and the book's networks never do.
        weights: None, or "DEFAULT" for what the library publishes (downloaded), or the path of a state dict,
            as for `load_published`, or of a safetensors file. If the weights have another number of classes,
            all but the head are loaded, and a printed sentence says so.

    Raises:
        ModelError: a library that is not installed or a model that `adapt` cannot read exactly; weights that
            cannot be fetched or read, or that belong to another network.
        ValueError: no network of this name (the message offers the nearest), fewer than one class or pixel.
    """
    model = build(name, classes, image_size)
    if weights is None:
        return model
    default = str(weights).upper() == "DEFAULT"
    if default and "/" not in name:
        raise ValueError(f"nobody publishes weights of {name} for download: give the path of a file")
    source = f"the published weights of {name}" if default else str(weights)
    tensors = published_weights(name) if default else read_weights(weights)
    loaded = load_weights(model, tensors, name, source, classes)
    if loaded != classes:
        print(f"{source}: skipped the head of {loaded} classes; the head of {classes} classes is untrained")
    return model
