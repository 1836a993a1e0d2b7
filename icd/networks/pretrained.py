"""Load weights from files that others share, such as CRD's CIFAR-100 teachers (Tian et al. 2020)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from icd.errors import ModelError
from icd.files import load_tensors
from icd.networks.adapt import Adapted
from icd.networks.base import LARGE, Network
from icd.networks.registry import NETWORKS, build

Shapes = dict[str, tuple[int, ...]]


class _Ignored:
    """Replaces a NumPy scalar stored beside the weights, as in CRD's files. Its value is not read."""

    def __init__(self, *_: object):
        pass

    __setstate__ = __init__


_NUMPY_SCALARS: list[Any] = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),  # NumPy 2
        ("numpy", "dtype"),
    )
]


def load_published(
    name: str, path: str | Path, classes: int = 100, image_size: int = 32
) -> Network | Adapted:
    """Return a network with the weights of a file, in evaluation mode.

    Args:
        name: as for `network`.
        path: a file that `torch.save` wrote: a state dict, or a dict that has one under "model",
            "state_dict" or "net". All names may begin with "module." or "model.", as wrappers leave them.
            Code in the file is not run. Or a safetensors file.
        classes: number of classes of the weights; CIFAR-100's by default.
        image_size: pixels a side of the images that they were trained on, as for `network`.

    Raises:
        ModelError: no such file, a file that is damaged or contains code or no weights, weights of another
            network (the message names it if it is one of NETWORKS), or of another number of classes.
        ValueError: no network of this name.
    """
    model = build(name, classes, image_size)
    loaded = load_weights(model, read_weights(path), name, path, classes)
    if loaded != classes:
        raise ModelError(f"{path} has {loaded} classes, not {classes}: give classes={loaded}")
    return model.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a file; see `load_published`."""
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except Exception as error:  # unpickling damaged bytes can raise anything
        unsafe = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if unsafe is None:
            raise ModelError(f"{path} is not a checkpoint of torch.save, or it is damaged") from error
        raise ModelError(
            f"{path} contains more than weights: it refers to {unsafe[1]}, which might run code. If you "
            "trust its source, save its state dict alone and load that"
        ) from error
    for key in ("model", "state_dict", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise ModelError(
            f'{path} contains no weights: expected a state dict, or one under "model", "state_dict" or "net"'
        )
    return {str(key): value for key, value in content.items()}


def load_weights(
    model: Network | Adapted, weights: Mapping[str, Tensor], name: str, source: str | Path, classes: int
) -> int:
    """Load a state dict into `model`, the network `name` for `classes` classes.

    If the weights have another number of classes, the head is skipped.

    Returns the number of classes of the weights.

    Raises:
        ModelError: weights that are not finite numbers, or of another network. `source` is their origin.
    """
    target = model.model if isinstance(model, Adapted) else model
    for prefix in ("module.", "model."):
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    # GoogLeNet and Inception are built without the auxiliary heads that some files have.
    weights = {key: value for key, value in weights.items() if not key.lower().startswith("aux")}
    for key, value in weights.items():
        plain = value.layout is torch.strided and not (value.is_complex() or value.is_quantized)
        if not plain or value.is_meta or not value.float().isfinite().all():
            raise ModelError(f"{source}: its {key} has values that are not finite numbers")
    theirs, ours = _shapes(weights), _shapes(target.state_dict())
    head = _different_head(theirs, ours, classes)
    if head is None:
        raise ModelError(f"{source} does not fit {name}: {_difference(theirs, ours)}")
    try:
        target.load_state_dict({k: v for k, v in weights.items() if k not in head}, strict=not head)
    except RuntimeError as error:  # shapes are equal, so it is a counter
        raise ModelError(f"{source} does not fit {name}: num_batches_tracked does not match") from error
    return theirs[head[0]][0] if head else classes


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Return shapes by name, without num_batches_tracked, which files of old PyTorch versions lack."""
    return {k: tuple(v.shape) for k, v in weights.items() if not k.endswith("num_batches_tracked")}


def _different_head(theirs: Shapes, ours: Shapes, classes: int) -> list[str] | None:
    """Return the names of the head's weights if its number of classes is all that differs.

    An empty list if nothing differs, None if anything else does. The head is one module with `classes` rows.
    """
    if theirs.keys() != ours.keys():
        return None
    different = [key for key in ours if theirs[key] != ours[key]]
    if not different:
        return []
    module = different[0].rpartition(".")[0]
    counts = {theirs[key][:1] for key in different}
    resized = all(
        ours[key][0] == classes and len(theirs[key]) == len(ours[key]) and theirs[key][1:] == ours[key][1:]
        for key in different
    )
    complete = different == [key for key in ours if key.rpartition(".")[0] == module]
    return different if resized and complete and len(counts) == 1 else None


def _difference(theirs: Shapes, ours: Shapes) -> str:
    """Say what differs first, and which of NETWORKS the weights fit."""
    missing, unexpected = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    if missing:
        what = f"it has no {missing[0]}"
    elif unexpected:
        what = f"it has {unexpected[0]}, which the network lacks"
    else:
        key = next(k for k in ours if ours[k] != theirs[k])
        what = f"its {key} has shape {theirs[key]}, the network's has shape {ours[key]}"
    match = _matching_network(theirs)
    return f"{what}. It fits {match}" if match else what


def _matching_network(shapes: Shapes) -> str | None:
    """Return which of NETWORKS has these names and shapes, and at which image size."""
    for image_size, form in ((32, ""), (LARGE, f" with image_size={LARGE} or more")):
        for name in NETWORKS:
            with torch.device("meta"):
                model = build(name, 1, image_size)
            if _different_head(shapes, _shapes(model.state_dict()), 1) is not None:
                return f"{name}{form}"
    return None
