"""A trained network in one file, with a card that says how to use it on a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from icd.datasets.cache import MEAN, STD, Channels, normalise, stored_size
from icd.datasets.images import MOST_PIXELS, UPRIGHT, Crop, ImageList, Resize, orientation, quiet_pillow
from icd.errors import DataError, ModelError
from icd.files import write_atomically
from icd.networks.build import network
from icd.networks.pretrained import load_weights


@dataclass(frozen=True)
class ModelCard:
    """The description of a saved network, in its file.

    Attributes:
        network: a name in `icd.networks.NETWORKS`.
        classes: the names of the classes, in the order of the logits.
        size: pixels a side of the input.
        resize: how a picture is made square: "squash", or "shorter" and a centre crop.
        mean, std: of each channel, for normalising pixels in [0, 1].
        note: how the network was trained.
        resize_size: pixels a side to which a picture is resized before the centre crop of `size`; by default
            as for training images.
        crop: "box" if it was trained on birds cropped to their bounding boxes, else "image".
        margin: fraction of a box that was added on each side.

    Raises:
        ModelError: an invalid value.
    """

    network: str
    classes: tuple[str, ...]
    size: int
    resize: Resize = "squash"
    mean: Channels = MEAN
    std: Channels = STD
    note: str = ""
    resize_size: int | None = None
    crop: Crop = "image"
    margin: float = 0.1

    def __post_init__(self) -> None:
        names, resized = self.classes, self.size if self.resize_size is None else self.resize_size
        sizes = isinstance(self.size, int) and isinstance(resized, int)
        fits = {
            "network": isinstance(self.network, str),
            "classes": isinstance(names, tuple) and len(names) > 0 and all(isinstance(n, str) for n in names),
            "size": isinstance(self.size, int) and 1 <= self.size <= MOST_PIXELS,
            "resize": self.resize in ("squash", "shorter"),
            "mean": len(self.mean) == 3 and all(map(math.isfinite, self.mean)),
            "std": len(self.std) == 3 and all(0 < spread < math.inf for spread in self.std),
            "note": isinstance(self.note, str),
            "resize_size": sizes and self.size <= resized <= MOST_PIXELS,
            "crop": self.crop in ("image", "box"),
            "margin": isinstance(self.margin, int | float) and 0 <= self.margin <= 10,
        }
        for name, valid in fits.items():
            if not valid:
                raise ModelError(f"the card's {name} cannot be {getattr(self, name)!r}")


def save_model(path: str | Path, model: nn.Module, card: ModelCard, half: bool = False) -> None:
    """Save the weights and the card to `path`, a safetensors file, atomically.

    `half` saves float16 weights, in half the space; they are loaded as float32.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    write_atomically(Path(path), save(weights, metadata={"icd": json.dumps(asdict(card))}))


def load_model(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """Load a network in evaluation mode and its card from a file or a run's folder (chapter 6).

    Raises:
        ModelError: there is no such file, it was not saved by icd, or the weights do not fit the card.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    try:
        with safe_open(path, framework="pt") as file:
            card = _read_card(path, (file.metadata() or {}).get("icd"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file. Has the run that writes it ended?") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a safetensors file, or it is damaged") from error
    try:
        model = network(card.network, len(card.classes), card.size)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    classes = load_weights(model, weights, card.network, path, len(card.classes))
    if classes != len(card.classes):
        raise ModelError(f"{path}: the weights have {classes} classes and the card {len(card.classes)}")
    return model.eval(), card


def _read_card(path: Path, text: str | None) -> ModelCard:
    if text is None:
        raise ModelError(f"{path} has no card: it was not saved by icd")
    try:
        values: dict[str, Any] = dict(json.loads(text))
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return ModelCard(**values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its card cannot be read") from error


def load_image(path: str | Path, card: ModelCard, box: Sequence[float] | None = None) -> Tensor:
    """Load a picture as the network's input: resized as the training images, centre-cropped, normalised.

    Args:
        path: the file.
        card: of the network.
        box: left, top, width and height of the bird in pixels of the upright picture, to crop to as in
            training.

    Returns:
        (1, 3, size, size).

    Raises:
        DataError: the file is missing or damaged, or the box is invalid or outside the picture.
    """
    path, side = Path(path), card.resize_size or stored_size(card.size)
    photo = ImageList(
        (path,),
        labels=np.zeros(1, dtype=np.int64),
        classes=("?",),
        size=side,
        margin=card.margin,
        resize=card.resize,
    )
    with quiet_pillow():
        square, _ = photo.read(0)
        if box is not None:
            in_file, turned = _in_file(path, box)
            square, _ = replace(photo, crop="box", boxes=np.array([in_file], dtype=np.float64)).read(0)
            if turned:
                square = np.array(Image.fromarray(square).transpose(Image.Transpose(UPRIGHT[turned])))
    edge = (side - card.size) // 2
    middle = square[edge : edge + card.size, edge : edge + card.size]
    return normalise(torch.from_numpy(middle).permute(2, 0, 1)[None], mean=card.mean, std=card.std)


def _in_file(path: Path, box: Sequence[float]) -> tuple[tuple[float, ...], int]:
    """Map a box from EXIF-upright coordinates to the file's; also return the EXIF orientation."""
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or min(box[2:]) <= 0:
        raise DataError(f"the box is {tuple(box)}: give left, top, width and height in pixels")
    with Image.open(path) as image:
        turned, (width, height) = orientation(image), image.size
    if turned >= 5:  # 5 to 8 swap the sides
        width, height = height, width
    x, y, w, h = box
    if not (0 <= x + w / 2 <= width and 0 <= y + h / 2 <= height):
        text = f"({x:g}, {y:g}, {w:g}, {h:g})"
        raise DataError(
            f"{path}: the centre of the box {text} is outside the picture of {width} x {height} pixels"
        )
    x = width - x - w if turned in (2, 3, 6, 7) else x
    y = height - y - h if turned in (3, 4, 7, 8) else y
    return ((y, x, h, w) if turned >= 5 else (x, y, w, h)), turned


@torch.no_grad()
def classify(
    model: nn.Module, card: ModelCard, path: str | Path, top: int = 5, box: Sequence[float] | None = None
) -> list[tuple[str, float]]:
    """Return the `top` most likely classes of a picture with their probabilities, in descending order.

    Pass the bird's `box`, as for `load_image`, to a network that was trained on boxes (`card.crop`).
    """
    if top < 1:
        raise ValueError(f"top is {top}: give 1 or more")
    device = next(model.parameters()).device
    probabilities = model(load_image(path, card, box).to(device)).float().softmax(1)[0].cpu()
    best = probabilities.topk(min(top, len(card.classes)))
    return [(card.classes[int(i)], float(p)) for p, i in zip(best.values, best.indices, strict=True)]
