"""Weights that others share, such as the CIFAR-100 teachers of CRD's authors (Tian et al. 2020)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icd.errors import ModelError
from icd.files import load_tensors
from icd.networks.base import LARGE, Network
from icd.networks.build import NETWORKS, network

Shapes = dict[str, tuple[int, ...]]


class _Aside:
    """Stands for a NumPy number beside the weights, as in CRD's own files. Nothing of it is read."""

    def __init__(self, *_: object):
        pass

    __setstate__ = __init__


_NUMBERS: list[Any] = [
    type(name, (_Aside,), {"__module__": module})
    for module, name in (
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),  # as NumPy 2 names it
        ("numpy", "dtype"),
    )
]


def load_published(name: str, path: str | Path, classes: int = 100, image_size: int = 32) -> Network:
    """A network of the zoo with weights that others shared, in evaluation mode.

    Args:
        name: of NETWORKS.
        path: what `torch.save` wrote: a state dict, or a dict that holds one under "model", "state_dict" or
            "net". Names may begin with "module.", as `nn.DataParallel` leaves them. Nothing in it is run.
        classes: how many classes the weights tell apart; CIFAR-100's by default.
        image_size: pixels a side of the images that they were trained on, as for `network`.

    Raises:
        ModelError: no such file, no checkpoint, one that holds code or no weights, weights of another
            network (which one, if the zoo has it), or for another number of classes.
        ValueError: no network of this name.
    """
    model = network(name, classes, image_size)
    told = fill(model, _read(path), name, path)
    if told != classes:
        raise ModelError(f"{path} tells {told} classes apart, not {classes}: give classes={told}")
    return model.eval()


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = load_tensors(Path(path))
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except Exception as error:  # a damaged file raises anything, as its bytes lead unpickling astray
        refused = (
            re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        )
        if refused is None:
            raise ModelError(f"{path} is not a checkpoint of torch.save, or it is damaged") from error
        raise ModelError(
            f"{path} holds more than weights: it asks for {refused[1]}, which might run code. If you trust "
            "its source, save its state dict alone and load that"
        ) from error
    for key in ("model", "state_dict", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise ModelError(
            f'{path} holds no weights: neither a state dict nor one under "model", "state_dict" or "net"'
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def fill(model: Network, weights: dict[str, Tensor], name: str, path: str | Path) -> int:
    """Give a network `name` of the zoo the weights that were read from `path`.

    Returns for how many classes they are; where the network has another number, it is left as it was.

    Raises:
        ModelError: they are not finite numbers, or those of another network.
    """
    for key, value in weights.items():
        plain = value.layout is torch.strided and not (value.is_complex() or value.is_quantized)
        if not plain or value.is_meta or not value.float().isfinite().all():
            raise ModelError(f"{path}: its {key} holds something else than finite numbers")
    there, here, head = _shapes(weights), _shapes(model.state_dict()), _head(model)
    if not _same(there, here, head):
        raise ModelError(f"{path} does not fit {name}: {_difference(there, here)}")
    if there[head] == here[head]:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:  # a counter of batches without its norm, or with a shape
            raise ModelError(f"{path} does not fit {name}: its counters of batches are others") from error
    return there[head][0]


def _difference(there: Shapes, here: Shapes) -> str:
    missing, unexpected = [k for k in here if k not in there], [k for k in there if k not in here]
    if missing:
        what = f"it has no {missing[0]}"
    elif unexpected:
        what = f"it has {unexpected[0]}, and the network has not"
    else:
        other = next(k for k in here if here[k] != there[k])
        what = f"its {other} has shape {there[other]}, and the network's {here[other]}"
    fits = _fitting(there)
    return f"{what}. It fits {fits}" if fits else what


def _shapes(weights: dict[str, Tensor]) -> Shapes:
    """Shapes by name, without the counters of batches, which files of old PyTorch versions lack."""
    return {k: tuple(v.shape) for k, v in weights.items() if not k.endswith("num_batches_tracked")}


def _head(model: Network) -> str:
    """What the head's weight is named."""
    return next(key for key, module in model.named_modules() if module is model.head) + ".weight"


def _same(there: Shapes, here: Shapes, head: str) -> bool:
    """The same names and shapes, but for the number of classes."""
    if there.keys() != here.keys() or len(there[head]) != 2:
        return False
    classes = there[head][0]
    expected = here | {head: (classes, here[head][1]), head.removesuffix("weight") + "bias": (classes,)}
    return there == expected


def _fitting(there: Shapes) -> str | None:
    """Which network of the zoo has these names and shapes, and in which form."""
    for image_size, form in ((32, ""), (LARGE, f" with image_size={LARGE} or more")):
        for name in NETWORKS:
            with torch.device("meta"):
                model = network(name, 1, image_size)
            if _same(there, _shapes(model.state_dict()), _head(model)):
                return f"{name}{form}"
    return None
