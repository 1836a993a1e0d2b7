"""Make any image classifier readable for `icd.scores.score`, without editing it.

::

    teacher = adapt(torchvision.models.regnet_y_400mf(weights=None))
    score(teacher, images).local((1, 2, 4))

The code knows no network by name. Random images pass through the model once. Among the outputs of its
modules, the head is the linear layer whose output is the logits, and the map is the last output whose
average over positions is the input of that head. This shows that the logits are affine in the average of
the map. If there is no such map, the error says what lies between.

Forward hooks, registered for one pass, collect the maps. Unlike a traced copy (`create_feature_extractor`)
they keep the model's own code, in both modes, and its parameter names. DenseNet's last ReLU is a function
and not a module, but it works in place, so the recorded map has passed it.
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

PROBES = 3  # images; a size of 1 or 2 could be another dimension
LINEAR = nn.Linear, nn.Conv2d  # a convolution over one cell is linear too
POOLS = nn.AdaptiveAvgPool2d, nn.AvgPool2d


class Drift(NamedTuple):
    """Distance of the regions' mean from the logits, in standard deviations of the logits over classes."""

    mean: float
    max: float


class PerPosition(nn.Sequential):
    """The layers of a model after its last map, applied at every position: (B, D, H, W) -> (B, C, H, W).

    Each position is a map of one cell. Average pooling does not change it, and pooling to a fixed grid (VGG's
    7 x 7, AlexNet's 6 x 6) repeats it: these are the logits of an image that looks like this everywhere. The
    cost is that of the head times the number of positions.
    """

    def forward(self, features: Tensor) -> Tensor:
        images, channels, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        return self.read(cells).view(images, height, width, -1).permute(0, 3, 1, 2)

    def read(self, maps: Tensor) -> Tensor:
        """Return the logits of whole maps, (B, D, H, W) -> (B, C), as the model computes them."""
        for layer in self:
            maps = layer(maps.flatten(1) if isinstance(layer, nn.Linear) else maps)
        return maps.flatten(1)


class Adapted(nn.Module):
    """A classifier and the names of its maps and head; made by `adapt`. `forward` is the model's own.

    Attributes:
        model: the classifier itself; in the state dict its names begin with "model.".
        places: names of the modules whose outputs are the stages' maps, from fine to coarse, the head's map
            last; True if the channels are the last dimension.
        layers: names of the head's modules.
        exact: whether the mean over regions is the image's logits, apart from dropout.
        drift: distance of the two in evaluation mode, on the random images, with the weights at that time.
    """

    def __init__(self, model: nn.Module, places: dict[str, bool], layers: tuple[str, ...], exact: bool):
        super().__init__()
        self.model, self.places, self.layers, self.exact = model, places, layers, exact
        self.drift = Drift(0.0, 0.0)

    @property
    def head(self) -> nn.Module:
        """The model's linear layer, or its last layers without dropout as `PerPosition`.

        A property and not a submodule, so that a state dict has every weight once.
        """
        layers = [self.model.get_submodule(name) for name in self.layers]
        return layers[0] if [isinstance(m, nn.Linear) for m in layers] == [True] else PerPosition(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return _logits(self.model(images))

    def score(self, images: Tensor) -> Scores:
        """Return the scores of one pass. In training mode the logits include the dropout before the head, and
        the local logits do not."""
        with _recording(self.model, self.places) as recorded:
            logits = self(images)
        output = ((recorded[name][1], last) for name, last in self.places.items())
        stages = tuple(m.permute(0, 3, 1, 2) if last else m for m, last in output)
        return Scores(logits, stages[-1], self.head, stages)

    def extra_repr(self) -> str:
        where = f"{'exact' if self.exact else 'at every position'}, on {[*self.places][-1]}"
        drift = f"drift {self.drift.mean:.2g} on average, {self.drift.max:.2g} at most"
        return f"head: {' > '.join(self.layers) or 'none'}, {where}; {drift}"


def adapt(
    model: nn.Module, head: Literal["exact", "per-position"] = "exact", *, probe_size: int = 224
) -> Adapted:
    """Wrap an image classifier so that `icd.scores.score` and every objective can use it.

    The stages are the last map of each size among the model's children and the items of its sequences.
    Heads that only run in training mode (GoogLeNet's and Inception's auxiliary ones) get no gradient; build
    the model without them for training with several processes.

    Args:
        model: takes (B, 3, size, size) and returns logits (B, C), or a tuple with a field `logits`. Its
            weights, buffers, modes and hooks are not changed.
        head: "exact" requires logits that are linear in the average of the last map. "per-position" accepts
            other models and applies the layers after the map at every position (`PerPosition`); the mean over
            regions is then not the image's logits, and `drift` is the distance.
        probe_size: pixels a side of the random images; use the size that the model will see.

    Raises:
        AdaptError: the model cannot be read in this way; the message says why.
        ValueError: another `head`, or a `probe_size` below 1.
    """
    if head not in ("exact", "per-position"):
        raise ValueError(f"head is {head!r}: choose 'exact' or 'per-position'")
    if probe_size < 1:
        raise ValueError(f"probe_size is {probe_size}: give a number of pixels, 1 or more")
    with _evaluating(model), torch.no_grad():
        probe = _Probe(model, probe_size)
        adapted = probe.exact() or probe.per_position()
    if not adapted.exact and head == "exact":
        raise AdaptError(
            f'{probe.obstacle()}; with head="per-position" the mean over regions would drift from the '
            f"logits by {adapted.drift.mean:.2g} of their spread"
        )
    return adapted


class _Probe:
    """The inputs and outputs of a model's modules for a few random images, in evaluation mode."""

    def __init__(self, model: nn.Module, size: int):
        self.model, self.name, self.size = model, type(model).__name__, f"{size} x {size} pixels"
        like = next(model.parameters(), torch.empty(0))
        images = torch.rand(PROBES, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.images = images.to(like.device, like.dtype)
        # Rounding error of sums over positions; half precision has little more than two digits.
        self.tolerance = max(1e-4, 4 * torch.finfo(like.dtype).eps)
        try:
            with _recording(model, [name for name, _ in model.named_modules() if name]) as self.recorded:
                self.logits = _logits(model(self.images))
        except Exception as error:
            why = f"does not accept images of {self.size} ({error}): choose probe_size"
            raise AdaptError(f"{self.name} {why}") from error
        if getattr(self.logits, "ndim", 0) != 2 or not self.logits.isfinite().all():
            raise AdaptError(f"{self.name} returns no finite logits (B, C) for random images")
        self.modules = {name: model.get_submodule(name) for name in self.recorded}
        maps = {name: output for name, (_, output) in self.recorded.items() if _is_map(output)}
        # Channels are last if dimensions 1 and 2 are equal, and some map shows that this is no coincidence.
        sure = any(output.shape[1] == output.shape[2] != output.shape[3] for output in maps.values())
        self.last = {name: sure and output.shape[1] == output.shape[2] for name, output in maps.items()}
        self.maps = {name: m.permute(0, 3, 1, 2) if self.last[name] else m for name, m in maps.items()}
        linear = [name for name, module in self.modules.items() if isinstance(module, LINEAR)]
        heads = [name for name in linear if self.is_close(self.recorded[name][1].flatten(1), self.logits)]
        self.head = heads[-1] if heads else ""
        self.read = self.recorded[self.head][0].flatten(1) if heads else self.logits  # the head's input

    def is_close(self, output: Tensor, other: Tensor) -> bool:
        """Return whether two tensors are equal up to rounding."""
        close = self.tolerance * other.abs().max()
        return output.shape == other.shape and bool((output - other).abs().max() <= close)

    def exact(self) -> Adapted | None:
        """Find the map whose average the linear head reads, or whose average is the logits."""
        if not self.read.any():
            raise AdaptError(f"{self.name}: the input of its head is all zero for random images")
        names, layers = list(self.recorded), (self.head,) if self.head else ()
        for place, features in reversed(self.maps.items()):
            if self.is_close(features.mean((2, 3)), self.read):
                between = names[names.index(place) + 1 : names.index(self.head) if self.head else None]
                if any(self.modules[name]._parameters for name in between):
                    return None  # an untrained norm changes nothing yet, but it will
                adapted = self.measured(Adapted(self.model, self.stages(place), layers, exact=True))
                return adapted if adapted.drift.max <= self.tolerance else None
        return None

    def per_position(self) -> Adapted:
        """Find the layers after the last map, and check that they compute the model's logits from it."""
        self.refuse_class_token()
        place, layers = self.tail()
        adapted = Adapted(self.model, self.stages(place), layers, exact=False)
        try:
            again = PerPosition(*(self.modules[name] for name in layers)).read(self.maps[place])
            if any(isinstance(self.modules[name], nn.modules.batchnorm._BatchNorm) for name in layers):
                raise ValueError("batch statistics differ at a single position")
            if not self.is_close(again, self.logits):
                raise ValueError("these modules alone do not give its logits")
            return self.measured(adapted)
        except Exception as error:
            why = f"which cannot be applied position by position ({error})"
            raise AdaptError(f"{self.obstacle()}, {why}") from error

    def refuse_class_token(self) -> None:
        for name, (_, output) in self.recorded.items():
            tokens = output.shape[1] if getattr(output, "ndim", 0) == 3 else 0
            if tokens > 1 and self.is_close(output[:, 0], self.read):
                why = f"reads the class token, the first of {tokens} tokens of {name}, and not an average"
                raise AdaptError(f"{self.name}: its head {self.head} {why}: positions have no logits")

    def tail(self) -> tuple[str, tuple[str, ...]]:
        """Return the last map before pooling, and the leaf modules after it without dropout."""
        names = list(self.recorded)
        unpooled = [name for name in self.maps if not isinstance(self.modules[name], POOLS)]
        after = names[names.index(unpooled[-1]) + 1 :] if unpooled else []
        spatial = [m for m in map(self.modules.get, after) if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
        if not unpooled or any(m.padding not in (0, (0, 0)) or isinstance(m, nn.MaxPool2d) for m in spatial):
            why = f"ends in a map of one cell for images of {self.size}: choose a larger probe_size"
            raise AdaptError(f"{self.name} {why}")
        leaves = [name for name in after if not any(self.modules[name].children())]
        return unpooled[-1], tuple(n for n in leaves if not isinstance(self.modules[n], nn.Dropout))

    def obstacle(self) -> str:
        """Say why the logits are not affine in the average of the last map."""
        place, layers = self.tail()
        width = self.maps[place].shape[1]
        idle = *POOLS, nn.Flatten, nn.Identity
        working = [name for name in layers if not isinstance(self.modules[name], idle)]
        names = [f"{name} ({type(self.modules[name]).__name__})" for name in working]
        first = self.modules[working[0]] if working else None
        if isinstance(first, nn.Linear) and first.in_features != width:
            why = f"{names[0]} reads the last map {place} flattened, {first.in_features} numbers with a "
            why += f"weight for every position, but the map's average has {width}"
        elif len(working) < 2:
            why = f"{', '.join(names)} reads no average of the last map {place}"
        else:
            why = f"more than a linear layer lies between the average of the last map {place} and the "
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            why += f"logits: {', '.join(names[:4])}{more}"
        return f"{self.name}: {why}"

    def stages(self, place: str) -> dict[str, bool]:
        """Return the module of the last map of each size, up to the map at `place`."""
        sizes = {name: output.shape[2] for name, output in self.maps.items()}
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


def _logits(output: Any) -> Tensor:
    return getattr(output, "logits", output)  # some models also return auxiliary logits in training mode


def _is_map(output: Any) -> bool:
    """Return whether an output is a square map of several cells, with channels first or last."""
    shape = output.shape if isinstance(output, Tensor) else ()
    return len(shape) == 4 and shape[0] == PROBES and 1 < shape[2] in (shape[1], shape[3])


def _is_step(model: nn.Module, name: str) -> bool:
    """Return whether a module is a child of the model or of a sequence in it, not a part of a block."""
    parent = name.rpartition(".")[0]
    plain = isinstance(model.get_submodule(parent), (nn.Sequential, nn.ModuleList))
    return not parent or ("." not in parent and plain)


@contextmanager
def _recording(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Record inputs and outputs of modules with forward hooks, in order of completion."""
    recorded: dict[str, tuple[Any, Any]] = {}
    handles = [_record(model.get_submodule(name), name, recorded) for name in names]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@torch.compiler.disable  # else it is compiled again for every name
def _record(module: nn.Module, name: str, recorded: dict[str, tuple[Any, Any]]) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        recorded.pop(name, None)
        recorded[name] = (inputs[0] if inputs else None, output)

    return module.register_forward_hook(hook)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore each module's mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
