"""Any image classifier, unedited, seen through the protocol of `icd.scores`.

::

    teacher = adapt(torchvision.models.regnet_y_400mf(weights=None))
    score(teacher, images).local((1, 2, 4))

Nothing here knows a network by name. A probe of random images goes through the model once; of what its
modules said, the head is the linear layer whose output is the logits, and the map is the last output
whose average over places is what that head read. Finding it proves that the head is affine after
average pooling. Where nothing is found, the model is refused with what stands in the way.

Forward hooks, on for one pass, bring the maps out. Unlike a traced copy (`create_feature_extractor`)
they leave the model its own code, in either mode, and its own names. DenseNet's last ReLU is a function
and no module, but works in place, so the map that was heard has been through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from icd.errors import AdaptError
from icd.scores import Scores

PROBES = 3  # images; 1 or 2 could be the size of something else
LINEAR = nn.Linear, nn.Conv2d  # a convolution of a map pooled to one cell is linear too
POOLS = nn.AdaptiveAvgPool2d, nn.AvgPool2d


class Drift(NamedTuple):
    """How far the regions' mean is from the logits, in their standard deviations over classes."""

    mean: float
    max: float


class PerPosition(nn.Sequential):
    """All that a model does after its last map, done at every place: (B, D, H, W) -> (B, C, H, W).

    Each place is a map of one cell, which average pooling leaves as it is, and pooling to a fixed grid
    (VGG's 7 x 7, AlexNet's 6 x 6) spreads over the grid: these are the logits of an image whose every
    place looks like this one. The head's cost is paid at every place.
    """

    def forward(self, features: Tensor) -> Tensor:
        images, channels, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        return self.read(cells).view(images, height, width, -1).permute(0, 3, 1, 2)

    def read(self, maps: Tensor) -> Tensor:
        """Whole maps, (B, D, H, W) -> (B, C), as the model itself reads them."""
        for layer in self:
            maps = layer(maps.flatten(1) if isinstance(layer, nn.Linear) else maps)
        return maps.flatten(1)


class Adapted(nn.Module):
    """A classifier, and where to listen in it; made by `adapt`. Its `forward` is the model's own.

    Attributes:
        model: the classifier, the same object, whose state dict keeps its names.
        places: names of the modules that say the stages' maps, finest first, the head's map last;
            True for those that put channels last.
        layers: the head's modules.
        exact: whether the mean over regions is the image's logits, dropout aside.
        drift: how far it is from them, in evaluation mode, on the probe, with the weights of that time.
    """

    def __init__(self, model: nn.Module, places: dict[str, bool], layers: tuple[str, ...], exact: bool):
        super().__init__()
        self.model, self.places, self.layers, self.exact = model, places, layers, exact
        self.drift = Drift(0.0, 0.0)

    @property
    def head(self) -> nn.Module:
        """The model's own linear layer, or its last layers as `PerPosition`, without dropout. Looked up
        and not registered, so that a state dict holds every weight once."""
        layers = [self.model.get_submodule(name) for name in self.layers]
        return layers[0] if [isinstance(m, nn.Linear) for m in layers] == [True] else PerPosition(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return _logits(self.model(images))

    def score(self, images: Tensor) -> Scores:
        """What one pass of the model says. `logits` are the model's own: while it trains, the dropout
        before its head is in them, and not in the local logits."""
        with _listening(self.model, self.places) as heard:
            logits = self(images)
        said = ((heard[name][1], last) for name, last in self.places.items())
        stages = tuple(m.permute(0, 3, 1, 2) if last else m for m, last in said)
        return Scores(logits, stages[-1], self.head, stages)

    def extra_repr(self) -> str:
        where = f"{'exact' if self.exact else 'at every position'}, on {[*self.places][-1]}"
        drift = f"drift {self.drift.mean:.2g} on average, {self.drift.max:.2g} at most"
        return f"head: {' > '.join(self.layers) or 'none'}, {where}; {drift}"


def adapt(
    model: nn.Module, head: Literal["exact", "per-position"] = "exact", *, probe_size: int = 224
) -> Adapted:
    """Wrap any classifier of images, unedited, for `icd.scores.score` and every objective.

    The stages are the last map of each size, of the model's children and the items of its sequences.
    Heads that only run while training (GoogLeNet's and Inception's auxiliary ones) get no gradient:
    build the model without them where several processes wait for every gradient.

    Args:
        model: takes (B, 3, size, size) and returns logits (B, C), or a tuple that names its `logits`.
            Weights, buffers, modes and hooks are left as they are.
        head: "exact" takes a model whose logits are linear in the average of its last map. For any
            other "per-position" does what follows the map at every place (`PerPosition`); the mean
            over regions then is not the image's logits, and `drift` says how far off it is.
        probe_size: pixels a side of the random images that it is examined with; best what it will see.

    Raises AdaptError, which says why, for a model that cannot be read like this.
    """
    if head not in ("exact", "per-position"):
        raise ValueError(f"head is {head!r}: choose 'exact' or 'per-position'")
    if probe_size < 1:
        raise ValueError(f"probe_size is {probe_size}: give a number of pixels, 1 or more")
    with _resting(model), torch.no_grad():
        probe = _Probe(model, probe_size)
        adapted = probe.exact() or probe.per_position()
    if not adapted.exact and head == "exact":
        raise AdaptError(
            f'{probe.obstacle()}; with head="per-position" the mean over regions would drift from the '
            f"logits by {adapted.drift.mean:.2g} of their spread"
        )
    return adapted


class _Probe:
    """What a model in evaluation mode says of a few random images, module by module."""

    def __init__(self, model: nn.Module, size: int):
        self.model, self.name, self.size = model, type(model).__name__, f"{size} x {size} pixels"
        like = next(model.parameters(), torch.empty(0))
        images = torch.rand(PROBES, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.images = images.to(like.device, like.dtype)
        # Rounding of sums over places: half precisions have little more than two digits.
        self.tolerance = max(1e-4, 4 * torch.finfo(like.dtype).eps)
        try:
            with _listening(model, [name for name, _ in model.named_modules() if name]) as self.heard:
                self.logits = _logits(model(self.images))
        except Exception as error:
            why = f"does not take images of {self.size} ({error}): choose probe_size"
            raise AdaptError(f"{self.name} {why}") from error
        if getattr(self.logits, "ndim", 0) != 2 or not self.logits.isfinite().all():
            raise AdaptError(f"{self.name} returns no finite logits (B, C) for random images")
        self.modules = {name: model.get_submodule(name) for name in self.heard}
        maps = {name: said for name, (_, said) in self.heard.items() if _is_map(said)}
        # Channels are last, unless there are just as many of them as rows in a model that has them first.
        sure = any(said.shape[1] == said.shape[2] != said.shape[3] for said in maps.values())
        self.last = {name: sure and said.shape[1] == said.shape[2] for name, said in maps.items()}
        self.maps = {name: m.permute(0, 3, 1, 2) if self.last[name] else m for name, m in maps.items()}
        linear = [name for name, module in self.modules.items() if isinstance(module, LINEAR)]
        heads = [name for name in linear if self.near(self.heard[name][1].flatten(1), self.logits)]
        self.head = heads[-1] if heads else ""
        self.read = self.heard[self.head][0].flatten(1) if heads else self.logits  # what is to be an average

    def near(self, said: Tensor, other: Tensor) -> bool:
        """Equal to rounding."""
        close = self.tolerance * other.abs().max()
        return said.shape == other.shape and bool((said - other).abs().max() <= close)

    def exact(self) -> Adapted | None:
        """The linear head over the average of a map; without a head the logits may be that average."""
        if not self.read.any():
            raise AdaptError(f"{self.name}: what its logits are made of is all zero on random images")
        names, layers = list(self.heard), (self.head,) if self.head else ()
        for place, features in reversed(self.maps.items()):
            if self.near(features.mean((2, 3)), self.read):
                between = names[names.index(place) + 1 : names.index(self.head) if self.head else None]
                if any(self.modules[name]._parameters for name in between):
                    return None  # a norm that is not trained yet changes nothing, and will
                adapted = self.measured(Adapted(self.model, self.stages(place), layers, exact=True))
                return adapted if adapted.drift.max <= self.tolerance else None
        return None

    def per_position(self) -> Adapted:
        """All that follows the last map, provided that it makes the model's logits of that map."""
        self.refuse_class_token()
        place, layers = self.tail()
        adapted = Adapted(self.model, self.stages(place), layers, exact=False)
        try:
            again = PerPosition(*(self.modules[name] for name in layers)).read(self.maps[place])
            if any(isinstance(self.modules[name], nn.modules.batchnorm._BatchNorm) for name in layers):
                raise ValueError("batch statistics are not those of a place")
            if not self.near(again, self.logits):
                raise ValueError("these modules alone do not make its logits")
            return self.measured(adapted)
        except Exception as error:
            raise AdaptError(f"{self.obstacle()}, which cannot be done place by place ({error})") from error

    def refuse_class_token(self) -> None:
        for name, (_, said) in self.heard.items():
            if getattr(said, "ndim", 0) == 3 and said.shape[1] > 1 and self.near(said[:, 0], self.read):
                why = f"reads the class token, the first of {said.shape[1]} that {name} says, and no average"
                raise AdaptError(f"{self.name}: its head {self.head} {why} over places: they have no logits")

    def tail(self) -> tuple[str, tuple[str, ...]]:
        """The last map before any pooling, and the modules that run after it: leaves, without dropout."""
        names = list(self.heard)
        unpooled = [name for name in self.maps if not isinstance(self.modules[name], POOLS)]
        after = names[names.index(unpooled[-1]) + 1 :] if unpooled else []
        spatial = [m for m in map(self.modules.get, after) if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
        if not unpooled or any(m.padding not in (0, (0, 0)) or isinstance(m, nn.MaxPool2d) for m in spatial):
            why = f"ends in a map of one cell for images of {self.size}: choose a larger probe_size"
            raise AdaptError(f"{self.name} {why}")
        leaves = [name for name in after if not any(self.modules[name].children())]
        return unpooled[-1], tuple(n for n in leaves if not isinstance(self.modules[n], nn.Dropout))

    def obstacle(self) -> str:
        """Why the logits are not affine in the average of the last map; the beginning of a sentence."""
        place, layers = self.tail()
        width = self.maps[place].shape[1]
        idle = *POOLS, nn.Flatten, nn.Identity
        working = [name for name in layers if not isinstance(self.modules[name], idle)]
        told = [f"{name} ({type(self.modules[name]).__name__})" for name in working]
        first = self.modules[working[0]] if working else None
        if isinstance(first, nn.Linear) and first.in_features != width:
            why = f"{told[0]} reads the last map {place} flattened, {first.in_features} numbers with a "
            why += f"weight for every place, where the map's average has {width}"
        elif len(working) < 2:
            why = f"{', '.join(told)} reads no average of the last map {place}"
        else:
            why = f"more than a linear layer lies between the average of the last map {place} and the "
            why += "logits: " + ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")
        return f"{self.name}: {why}"

    def stages(self, place: str) -> dict[str, bool]:
        """Where the last map of each size is said, up to the map at `place`."""
        sizes = {name: said.shape[2] for name, said in self.maps.items()}
        before = list(sizes)[: list(sizes).index(place)]
        latest = {sizes[n]: n for n in before if sizes[n] > sizes[place] and _is_step(self.model, n)}
        names = [latest[size] for size in sorted(latest, reverse=True)]
        return {name: self.last[name] for name in [*names, place]}

    def measured(self, adapted: Adapted) -> Adapted:
        scores = adapted.score(self.images)
        off = (scores.local((1,), "area")[:, 0] - scores.logits).abs()
        spread = scores.logits.float().std(1, correction=0).mean().clamp_min(torch.finfo(torch.float32).tiny)
        adapted.drift = Drift(float(off.mean() / spread), float(off.max() / spread))
        return adapted


def _logits(said: Any) -> Tensor:
    return getattr(said, "logits", said)  # some models return auxiliary logits too while they train


def _is_map(said: Any) -> bool:
    """Several cells in a square for every image of the probe, with channels first or last."""
    shape = said.shape if isinstance(said, Tensor) else ()
    return len(shape) == 4 and shape[0] == PROBES and 1 < shape[2] in (shape[1], shape[3])


def _is_step(model: nn.Module, name: str) -> bool:
    """Whether a module is a child of the model, or of a plain sequence that is: no part of a block."""
    parent = name.rpartition(".")[0]
    plain = isinstance(model.get_submodule(parent), (nn.Sequential, nn.ModuleList))
    return not parent or ("." not in parent and plain)


@contextmanager
def _listening(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Fills a dict with what went into modules and came out, in the order in which they last ended."""
    heard: dict[str, tuple[Any, Any]] = {}
    handles = [_listen(model.get_submodule(name), name, heard) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@torch.compiler.disable  # else compiled for every name
def _listen(module: nn.Module, name: str, heard: dict[str, tuple[Any, Any]]) -> RemovableHandle:
    def hook(module: nn.Module, given: tuple, said: Any) -> None:
        heard.pop(name, None)
        heard[name] = (given[0] if given else None, said)

    return module.register_forward_hook(hook)


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then each module's own again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
