"""The papers' networks have the parameter names, shapes and maps of published weights."""

import argparse
import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, batch_of
from torch import nn
from torch._subclasses import FakeTensorMode

from icd import Scores, local_logits, score
from icd.errors import ModelError
from icd.experiments.model_file import ModelCard, load_model, save_model
from icd.losses import dkd_loss, kd_loss, nkd_loss
from icd.networks import NETWORKS, Network, load_published, network
from icd.objective import METHODS, clustering, scale_decoupled

pytestmark = pytest.mark.thorough

# For every network: number of parameters, digest of names and shapes, shapes of the stages' maps.
EXPECTED = json.loads((ROOT / "tests" / "vectors" / "networks.json").read_text())
COMPLETE = ROOT.parent / "shared" / "vectors" / "networks.json"
PUBLISHED = list(EXPECTED)
OURS = [name for name in NETWORKS if name not in EXPECTED]
LAST_MAP = {  # cells a side for images of 32, 64 and 224 pixels
    **dict.fromkeys(("resnet20", "resnet56", "resnet8x4", "resnet32x4", "wrn_16_2", "wrn_40_2"), (8, 16, 28)),
    **dict.fromkeys(("ResNet50", "ShuffleV1", "ShuffleV2"), (4, 8, 14)),
    **dict.fromkeys(("vgg8", "vgg13"), (4, 4, 28)),
    "MobileNetV2": (2, 4, 7),
}


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def digest(of: dict[str, list[int]]) -> str:
    return hashlib.sha256("\n".join(f"{name} {shape}" for name, shape in of.items()).encode()).hexdigest()


def built(name: str, classes: int = 100, image_size: int = 32) -> Network:
    torch.manual_seed(0)
    return network(name, classes, image_size)


def test_every_published_network_has_a_name():
    assert set(PUBLISHED) == set(LAST_MAP) <= set(NETWORKS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_counts_and_stages_are_the_published_ones(name):
    model, expected = built(name).eval(), EXPECTED[name]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    assert digest(shapes(model)) == expected["names_and_shapes"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        scores = score(model, images)
        assert torch.equal(model(images), scores.logits)
    assert [list(stage.shape[1:]) for stage in scores.stages] == expected["stages_at_32"]
    assert scores.logits.shape == (2, 100)
    torch.testing.assert_close(scores.logits, model.head(scores.features.mean((2, 3))))


@pytest.mark.skipif(not COMPLETE.exists(), reason="the complete lists are not available")
def test_the_digests_match_the_complete_lists():
    for name, complete in json.loads(COMPLETE.read_text()).items():
        assert shapes(built(name)) == complete["parameters_and_buffers"]
        assert EXPECTED[name] == {
            "parameters": complete["parameter_count"],
            "names_and_shapes": digest(complete["parameters_and_buffers"]),
            "stages_at_32": complete["stage_shapes_at_32px"],
        }


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_last_map_has_the_published_size_at_every_image_size(name):
    for image_size, side in zip((32, 64, 224), LAST_MAP[name], strict=True):
        with torch.device("meta"):
            model = network(name, 200, image_size)
            features, _ = model.maps(torch.empty(1, 3, image_size, image_size))
        assert features.shape == (1, model.head.in_features, side, side)


def test_image_size_changes_only_the_stem():
    for name in PUBLISHED:
        with torch.device("meta"):
            small, large = shapes(network(name, 10)), shapes(network(name, 10, 224))
        other = [key for key in small if small[key] != large[key]]
        assert small.keys() == large.keys()
        if name.startswith("vgg"):
            assert other == []
        else:
            assert other == ["conv1.0.weight" if name == "MobileNetV2" else "conv1.weight"]
            assert large[other[0]][1:] == [3, 7, 7]


@pytest.mark.parametrize("name", PUBLISHED)
def test_regions_average_to_the_image_and_a_map_of_2_x_2_refuses_4_x_4(name):
    model = built(name, 7).eval()
    with torch.no_grad():
        scores = score(model, torch.randn(2, 3, 32, 32))
    head = scores.head.weight, scores.head.bias
    if name == "MobileNetV2":
        with pytest.raises(ValueError, match="scale 4 cuts a 2 x 2 map"):
            scores.local()
    regions = local_logits(scores.features, *head, repeat=name == "MobileNetV2")
    for of_scale in regions.split([1, 4, 16], 1):
        torch.testing.assert_close(of_scale.mean(1), scores.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_gradient_reaches_every_parameter(name):
    model = built(name, 10)
    scores = score(model, torch.randn(4, 3, 32, 32))
    (scores.logits.square().sum() + sum(stage.square().mean() for stage in scores.stages)).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        # Batch normalisation cancels the bias of the convolution before it.
        if not (name.startswith("vgg") and key.startswith("block") and key.endswith(("0.bias", "3.bias"))):
            assert value.grad.any(), key


SIDES = {1, 2, 4, 7, 8, 14, 16, 28}  # cells a side of the last maps, which are all that objectives see


@pytest.mark.parametrize("image_size", [32, 224])
@pytest.mark.parametrize("name", [*OURS, *PUBLISHED])
def test_every_network_stays_on_a_cuda_device(name, image_size):
    with FakeTensorMode():
        with torch.device("cuda"):
            model = network(name, 50, image_size)
            scores = score(model, torch.rand(2, 3, image_size, image_size))
        tensors = scores.logits, *scores.stages, scores.local((1, 2), repeat=True)
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert scores.features.shape[2] in SIDES


@pytest.mark.parametrize("side", sorted(SIDES))
def test_every_objective_stays_on_a_cuda_device(side):
    with FakeTensorMode():
        with torch.device("cuda"):
            features, head = torch.rand(2, 16, side, side), nn.Linear(16, 50)
            stages = (torch.rand(2, 4, 2 * side, 2 * side), torch.rand(2, 8, 2 * side, 2 * side), features)
            batch = batch_of(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
        student, teacher = (Scores(head(features.mean((2, 3))), features, head, stages) for _ in range(2))
        coarse = side < 4
        for objective in (make() for make in METHODS.values()):
            with torch.device("cuda"):
                objective.build(student, teacher, images=2)
            if coarse and any(name == "clustering" or name.startswith("sd_") for name in objective.names):
                with pytest.raises(ValueError, match="repeat=True"):
                    objective(student, teacher, batch)
                continue
            assert_a_scalar_on_cuda(*objective(student, teacher, batch))
        if coarse:
            for loss in (kd_loss, dkd_loss, nkd_loss):
                objective = scale_decoupled(loss, repeat=True) + clustering(repeat=True)
                assert_a_scalar_on_cuda(*objective(student, teacher, batch))


def assert_a_scalar_on_cuda(loss: torch.Tensor, parts: torch.Tensor) -> None:
    assert loss.shape == ()
    assert loss.requires_grad
    assert loss.dtype == torch.float32
    assert loss.device.type == parts.device.type == "cuda"


def test_names_ignore_case_and_an_unknown_one_gets_a_suggestion():
    assert type(network("resnet50", 3)) is type(network("ResNet50", 3))
    with pytest.raises(ValueError, match='no network "shufflenetv2": did you mean "ShuffleV2"'):
        network("shufflenetv2", 10)
    with pytest.raises(ValueError, match="0 classes"):
        network("vgg8", 0)
    with pytest.raises(ValueError, match="0 pixels"):
        network("vgg8", 10, 0)


def test_a_saved_network_is_rebuilt_for_its_image_size(tmp_path):
    model = built("shufflev1", 3, 224).eval()
    save_model(tmp_path / "model.safetensors", model, ModelCard("shufflev1", ("a", "b", "c"), 224))
    again, card = load_model(tmp_path)
    assert card.size == 224
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))


def in_parallel(weights: dict) -> dict:
    return {f"module.{name}": value for name, value in weights.items()}


def uncounted(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if "num_batches" not in name}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 240, "accuracy": torch.tensor(79.42), "model": weights},
        lambda weights: {"state_dict": in_parallel(weights)},
        lambda weights: {f"model.{name}": value for name, value in weights.items()},
        lambda weights: {"net": uncounted(weights)},
    ],
)
def test_published_weights_load_however_they_are_wrapped(wrapped, tmp_path):
    model = built("resnet8x4").eval()
    torch.save(wrapped(model.state_dict()), tmp_path / "ckpt_epoch_240.pth")
    again = load_published("resnet8x4", tmp_path / "ckpt_epoch_240.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert not again.training


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_published_weights_of_every_family_load_in_both_forms(name, tmp_path):
    for image_size, classes in ((32, 100), (224, 200)):
        model = built(name, classes, image_size)
        torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
        again = load_published(name, tmp_path / "weights.pth", classes, image_size).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_a_numpy_scalar_beside_published_weights_is_ignored(core, tmp_path):
    """CRD's authors saved with PyTorch before 1.6, and the accuracy as a NumPy scalar."""
    model, path = built("resnet8x4").eval(), tmp_path / "ckpt_epoch_240.pth"
    state = {"epoch": 240, "model": model.state_dict(), "accuracy": np.float64(79.42)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(re.sub(rb"numpy\._?core", core, path.read_bytes()))
    with pytest.raises(pickle.UnpicklingError, match=r"multiarray\.scalar"):
        torch.load(path, weights_only=True)
    again = load_published("resnet8x4", path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(ModelError, match=r"weights\.pth: there is no such file"):
        load_published("vgg8", path)
    torch.save({"model": built("resnet20").state_dict()}, path)
    complete = path.read_bytes()
    for content in (b"", b"<html>404</html>", b"hello", complete[: len(complete) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"weights\.pth is not a checkpoint"):
            load_published("resnet20", path)
    with pytest.raises(ModelError, match="is not a checkpoint"):
        load_published("resnet20", tmp_path)
    for content in ({}, [1, 2], {"model": {"epoch": 3}}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"weights\.pth contains no weights"):
            load_published("resnet20", path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("beside", "asked"), [(Trap(), "mkdir"), (argparse.Namespace(lr=0.05), "argparse.Namespace")]
)
def test_code_in_a_file_is_not_executed(beside, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"opt": beside, "model": built("resnet20").state_dict()}, "weights.pth")
    with pytest.raises(
        ModelError, match=r"weights\.pth contains more than weights: it refers to \S+, which"
    ) as no:
        load_published("resnet20", "weights.pth")
    assert asked in str(no.value)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("inside", "asked", "message"),
    [
        (("resnet8x4", 100, 32), "vgg8", "does not fit vgg8: it has no block0.0.weight. It fits resnet8x4"),
        (
            ("resnet8x4", 100, 32),
            "resnet32x4",
            "does not fit resnet32x4: it has no layer1.1.conv1.weight. It fits resnet8x4",
        ),
        (
            ("resnet56", 10, 32),
            "resnet20",
            "does not fit resnet20: it has layer1.3.conv1.weight, which the network lacks. It fits resnet56",
        ),
        (
            ("resnet10-8", 9, 64),
            "resnet10-16",
            "does not fit resnet10-16: its stem.0.weight has shape (8, 3, 3, 3), the network's has "
            "shape (16, 3, 3, 3). It fits resnet10-8",
        ),
        (
            ("resnet8x4", 200, 224),
            "resnet8x4",
            "does not fit resnet8x4: its conv1.weight has shape (32, 3, 7, 7), the network's has "
            "shape (32, 3, 3, 3). It fits resnet8x4 with image_size=128 or more",
        ),
        (("vgg8", 200, 32), "vgg8", "has 200 classes, not 100: give classes=200"),
        (("MobileNetV2", 10, 32), "MobileNetV2", "has 10 classes, not 100: give classes=10"),
    ],
)
def test_weights_of_another_network_are_refused_with_its_name(inside, asked, message, tmp_path):
    torch.save(built(*inside).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError) as error:
        load_published(asked, tmp_path / "weights.pth")
    assert str(error.value) == f"{tmp_path / 'weights.pth'} {message}"


def test_weights_that_fit_no_network_are_refused_without_a_suggestion(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"does not fit vgg8: it has no block0\.0\.weight$"):
        load_published("vgg8", tmp_path / "weights.pth")
