"""`adapt` reads classifiers of torchvision and timm, or says why it cannot."""

import copy
import pickle
import re

import pytest
import timm
import torch
import torchvision.models as tv
from helpers import batch_of
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from icd import score
from icd.errors import AdaptError
from icd.losses import kd_loss
from icd.networks import SmallResNet, adapt
from icd.networks.adapt import PerPosition
from icd.objective import METHODS, clustering, cross_entropy, scale_decoupled
from icd.scores import Scoring

pytestmark = pytest.mark.thorough

CLASSES, SIZE = 7, 96  # most networks end in a map of 3 x 3 cells, which 2 x 2 regions must share
AREA = {"scales": (1, 2, 3), "pooling": "area"}
ICD_KD = (
    0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4, **AREA) + 2.0 * clustering(**AREA)
)


def bottlenecks(**arguments) -> ResNet:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, **arguments)


def swin(version: int) -> SwinTransformer:
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if version == 2 else {}
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]}
    return SwinTransformer(**sizes, window_size=[3, 3], num_classes=CLASSES, **second)


def torchvision_model(name: str, **arguments):
    return lambda: tv.get_model(name, weights=None, num_classes=CLASSES, **arguments)


def timm_model(name: str):
    return lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES)


# The other families run in CI only.
QUICK = {
    "resnet", "regnet_y", "shufflenet_v2", "densenet", "mobilenet_v2", "swin", "squeezenet",
    "timm resnet_v2, whose head is a convolution",
}  # fmt: skip


def families(names, quick=QUICK):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Name -> builder, name of the head, name of the map. Deep families are built shallow.
EXACT = {
    "resnet": (torchvision_model("resnet18"), "fc", "layer4"),
    "resnext": (lambda: bottlenecks(groups=32, width_per_group=4), "fc", "layer4"),
    "wide_resnet": (lambda: bottlenecks(width_per_group=128), "fc", "layer4"),
    "regnet_x": (torchvision_model("regnet_x_400mf"), "fc", "trunk_output"),
    "regnet_y": (torchvision_model("regnet_y_400mf"), "fc", "trunk_output"),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), "classifier.1", "features"),
    "shufflenet_v2": (torchvision_model("shufflenet_v2_x0_5"), "fc", "conv5"),
    "efficientnet": (torchvision_model("efficientnet_b0"), "classifier.1", "features"),
    "efficientnet_v2": (torchvision_model("efficientnet_v2_s"), "classifier.1", "features"),
    "densenet": (
        lambda: tv.DenseNet(8, (2, 3, 4, 3), 16, num_classes=CLASSES),
        "classifier",
        "features",
    ),
    "googlenet": (torchvision_model("googlenet", init_weights=False), "fc", "inception5b"),
    "mnasnet": (torchvision_model("mnasnet0_5"), "classifier.1", "layers"),
    "swin": (lambda: swin(1), "head", "permute"),
    "swin_v2": (lambda: swin(2), "head", "permute"),
    "squeezenet": (torchvision_model("squeezenet1_1"), None, "classifier.2"),
    "timm resnet": (timm_model("resnet10t"), "fc", "layer4"),
    "timm regnet": (timm_model("regnetx_002"), "head.fc", "final_conv"),
    "timm efficientnet": (timm_model("efficientnet_lite0"), "classifier", "bn2"),
    "timm resnet_v2, whose head is a convolution": (timm_model("resnetv2_18"), "head.fc", "norm"),
}


def images(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def built(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def main_logits(scores):
    return getattr(scores, "logits", scores)


def settled(model: nn.Module) -> nn.Module:
    """Set the batch statistics, without which the logits of an untrained deep network hardly vary."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        if norms:
            model.train()(images(8))
    return model.eval()


@pytest.mark.parametrize("family", families(EXACT))
def test_a_linear_head_after_average_pooling_is_exact_and_learns(family):
    make, head, place = EXACT[family]
    model = built(make)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = adapt(model, probe_size=SIZE)

    # It is the same model, left as it was.
    assert adapted.model is model
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert {id(p) for p in adapted.parameters()} == {id(p) for p in model.parameters()}
    assert len(adapted.state_dict()) == len(before)
    assert adapted.exact
    assert adapted.layers == ((head,) if head else ())
    assert [*adapted.places][-1] == place
    assert adapted.drift.max < 1e-4

    # In evaluation mode the regions' mean is the model's own logits, at every scale.
    adapted.eval()
    with torch.no_grad():
        own, scores = model(images()), score(adapted, images())
    assert torch.equal(adapted(images()), own)
    assert torch.equal(scores.logits, own)
    for regions in scores.local(**AREA).split([1, 4, 9], 1):
        torch.testing.assert_close(regions.mean(1), own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))
    sides = [stage.shape[2] for stage in scores.stages]
    assert sides == sorted(set(sides), reverse=True)
    assert len(sides) >= 4
    assert all(stage.shape[2] == stage.shape[3] for stage in scores.stages)
    assert scores.stages[-1] is scores.features

    # In training mode too, dropout and all; every batch statistic is updated once.
    adapted.train()
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    teacher_scores = main_logits(twin(images()))
    torch.manual_seed(3)
    scores = score(adapted, images())
    assert torch.equal(scores.logits, teacher_scores)
    for (name, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, other), name

    # As a student: one step, which reaches every weight that has a part in the logits.
    teacher = SmallResNet(CLASSES).eval()
    with torch.no_grad():
        teacher_scores = score(teacher, images())
    loss, _ = ICD_KD(scores, teacher_scores, batch_of(images(), torch.tensor([1, 2])))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith("aux") for name in without)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    torch.optim.SGD(adapted.parameters(), 0.1).step()
    assert not torch.equal(next(model.parameters()), before[next(iter(dict(model.named_parameters())))])


@pytest.mark.parametrize("family", families(["shufflenet_v2", "squeezenet", "timm efficientnet"]))
def test_gradients_reach_the_student_and_not_the_adapted_teacher(family):
    teacher, student = adapt(built(EXACT[family][0]), probe_size=SIZE).eval(), SmallResNet(CLASSES)
    loss, parts = ICD_KD(
        score(student, images()), score(teacher, images()), batch_of(images(), torch.tensor([1, 2]))
    )
    loss.backward()
    assert parts.isfinite().all()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_dropout_before_the_head_is_in_the_logits_and_not_in_the_local_ones():
    adapted = adapt(built(EXACT["mobilenet_v2"][0]), probe_size=SIZE).train()
    scores = score(adapted, images())
    whole = scores.local((1,))[:, 0]
    torch.testing.assert_close(whole, adapted.head(scores.features.mean((2, 3))))
    assert not torch.allclose(whole, scores.logits)


@pytest.mark.slow
def test_auxiliary_heads_of_inception_run_in_training_mode_but_are_not_the_head():
    model = built(torchvision_model("inception_v3", init_weights=False))
    adapted = adapt(model, probe_size=160)
    assert adapted.layers == ("fc",)
    assert [*adapted.places][-3:] == ["Mixed_5d", "Mixed_6e", "Mixed_7c"]
    scores = score(adapted.train(), images(2, 299))
    assert scores.logits.shape == (2, CLASSES)
    assert scores.features.shape == (2, 2048, 8, 8)
    assert model.AuxLogits.conv0.bn.num_batches_tracked == 1


def test_an_adapted_network_copies_pickles_and_loads():
    adapted = adapt(built(EXACT["shufflenet_v2"][0]), probe_size=SIZE).eval()
    expected = score(adapted, images()).local(**AREA)
    for other in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert other.head is other.model.fc is not adapted.model.fc
        torch.testing.assert_close(score(other, images()).local(**AREA), expected)
    fresh = EXACT["shufflenet_v2"][0]()
    fresh.load_state_dict(adapted.model.state_dict())
    torch.testing.assert_close(fresh.eval()(images()), adapted(images()))
    fresh = adapt(EXACT["shufflenet_v2"][0](), probe_size=SIZE).eval()
    fresh.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(score(fresh, images()).local(**AREA), expected)


def test_images_may_have_another_shape_than_the_probe():
    adapted = adapt(built(lambda: swin(1)), probe_size=SIZE).eval()
    scores = score(adapted, torch.randn(1, 3, 64, 128))
    assert [tuple(stage.shape[1:]) for stage in scores.stages] == [
        (24, 16, 32),
        (48, 8, 16),
        (96, 4, 8),
        (192, 2, 4),
    ]
    torch.testing.assert_close(scores.local((1,), "area")[:, 0], scores.logits)


def test_double_and_half_precision():
    model = built(EXACT["shufflenet_v2"][0])
    with torch.no_grad():
        for dtype, drift in ((torch.float64, 1e-12), (torch.bfloat16, 0.05)):
            adapted = adapt(model.to(dtype), probe_size=SIZE).eval()
            assert adapted.drift.max < drift
            assert score(adapted, images().to(dtype)).logits.dtype == dtype


@pytest.mark.slow
def test_a_compiled_pass_gives_the_same_scores_without_recompilation():
    adapted = adapt(built(EXACT["shufflenet_v2"][0]), probe_size=SIZE).eval()
    compiled = torch.compile(Scoring(adapted), backend="eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            batch = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
            scores, expected = compiled(batch), score(adapted, batch)
            torch.testing.assert_close(scores.logits, expected.logits)
            torch.testing.assert_close(scores.features, expected.features)


# What cannot be exact.


def convnext() -> ConvNeXt:
    return ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=CLASSES
    )


def maxvit() -> MaxVit:
    return MaxVit(
        (SIZE, SIZE), 8, partition_size=3, block_channels=[8, 16], block_layers=[1, 1], head_dim=4,
        stochastic_depth_prob=0.0, num_classes=CLASSES,
    )  # fmt: skip


def narrow(model: nn.Module, pooled: int) -> nn.Module:
    """Give VGG or AlexNet a few narrow layers; its pooling and forward pass stay."""
    model.features = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(True), nn.MaxPool2d(2)
    )
    first = [nn.Dropout()] if isinstance(model, tv.AlexNet) else []
    model.classifier = nn.Sequential(
        *first, nn.Linear(16 * pooled * pooled, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)
    )
    return model


def vgg() -> nn.Module:
    with torch.device("meta"):
        model = tv.VGG(nn.Sequential(), init_weights=False)
    return narrow(model, 7)


def alexnet() -> nn.Module:
    with torch.device("meta"):
        model = tv.AlexNet()
    return narrow(model, 6)


def vit() -> tv.VisionTransformer:
    return tv.VisionTransformer(SIZE, 16, 1, 2, 16, 32, num_classes=CLASSES)


class ThroughMaximum(nn.Module):
    """A linear head, but over the largest of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).amax((2, 3)))


def flat(normalised: bool = False) -> nn.Sequential:
    """A map flattened by a head made for 12 x 12 cells, or normalised over the batch after it is pooled."""
    body = nn.Conv2d(3, 4, 3, 8, 1)
    if normalised:
        return nn.Sequential(
            body, nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, CLASSES)
        )
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 12 * 12, CLASSES))


BETWEEN = "more than a linear layer lies between the average of the last map {} and the logits: {}"
FLAT = (
    "{} (Linear) reads the last map {} flattened, {} numbers with a weight for every position, "
    "but the map's average has {}"
)
# Name -> builder, and the reason of the refusal.
REFUSED = {
    "mobilenet_v3": (
        torchvision_model("mobilenet_v3_small"),
        "MobileNetV3: "
        + BETWEEN.format(
            "features", "classifier.0 (Linear), classifier.1 (Hardswish), classifier.3 (Linear)"
        ),
    ),
    "convnext": (
        convnext,
        "ConvNeXt: " + BETWEEN.format("features", "classifier.0 (LayerNorm2d), classifier.2 (Linear)"),
    ),
    "maxvit": (
        maxvit,
        "MaxVit: "
        + BETWEEN.format(
            "blocks.1",
            "classifier.2 (LayerNorm), classifier.3 (Linear), classifier.4 (Tanh), classifier.5 (Linear)",
        ),
    ),
    "vgg": (vgg, "VGG: " + FLAT.format("classifier.0", "features", 784, 16)),
    "alexnet": (alexnet, "AlexNet: " + FLAT.format("classifier.1", "features", 576, 16)),
    "timm mobilenet_v3": (
        timm_model("mobilenetv3_small_050"),
        "MobileNetV3: "
        + BETWEEN.format("blocks", "conv_head (Conv2d), act2 (Hardswish), classifier (Linear)"),
    ),
}
IMPOSSIBLE = {
    "vit": (
        vit,
        "VisionTransformer: its head heads.head reads the class token, the first of 37 tokens of encoder.ln, "
        "and not an average: positions have no logits",
    ),
    "maximum": (
        ThroughMaximum,
        "ThroughMaximum: head (Linear) reads no average of the last map body, "
        "which cannot be applied position by position "
        "(mat1 and mat2 shapes cannot be multiplied (3x1152 and 8x7))",
    ),
    "flat": (
        flat,
        "Sequential: " + FLAT.format("2", "0", 576, 4) + ", which cannot be applied position by position "
        "(mat1 and mat2 shapes cannot be multiplied (432x4 and 576x7))",
    ),
    "batch norm": (
        lambda: flat(normalised=True),
        "Sequential: "
        + BETWEEN.format("0", "2 (BatchNorm2d), 4 (Linear)")
        + ", which cannot be applied position by position (batch statistics differ at a single position)",
    ),
    "one cell": (
        torchvision_model("resnet18"),
        "ResNet ends in a map of one cell for images of 32 x 32 pixels: choose a larger probe_size",
    ),
    "another size": (
        vit,
        "VisionTransformer does not accept images of 32 x 32 pixels "
        "(Wrong image height! Expected 96 but got 32!): choose probe_size",
    ),
    "no classifier": (
        lambda: nn.Conv2d(3, 4, 3),
        "Conv2d returns no finite logits (B, C) for random images",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_another_head_is_refused_with_the_reason_unless_its_drift_is_accepted(family):
    make, reason = REFUSED[family]
    model = settled(built(make))
    modes = [module.training for module in model.modules()]
    with pytest.raises(AdaptError) as refusal:
        adapt(model, probe_size=SIZE)
    assert [module.training for module in model.modules()] == modes
    adapted = adapt(model, "per-position", probe_size=SIZE)
    assert str(refusal.value) == (
        f'{reason}; with head="per-position" the mean over regions would drift from the logits by '
        f"{adapted.drift.mean:.2g} of their spread"
    )
    assert not adapted.exact
    assert isinstance(adapted.head, PerPosition)
    assert 1e-3 < adapted.drift.mean < adapted.drift.max < 10
    assert (
        f"at every position, on {[*adapted.places][-1]}; drift {adapted.drift.mean:.2g} on average"
        in repr(adapted)
    )

    with torch.no_grad():
        assert torch.equal(score(adapted, images()).logits, model(images()))
        assert score(adapted, images()).local(**AREA, repeat=True).shape == (2, 14, CLASSES)
    scores = score(adapted.train(), images())
    loss, _ = METHODS["alone"]()(scores, None, batch_of(images(), torch.tensor([1, 2])))
    (loss + scores.local(**AREA, repeat=True).square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize("head", ["exact", "per-position"])
def test_a_model_without_logits_of_positions_is_refused_with_either_head(case, head):
    make, reason = IMPOSSIBLE[case]
    size = 32 if "32 x 32" in reason else SIZE
    with pytest.raises(AdaptError, match=f"^{re.escape(reason)}$"):
        adapt(built(make), head, probe_size=size)


def test_the_head_at_a_position_equals_the_model_on_that_cell_alone():
    for name in ("mobilenet_v3", "convnext", "alexnet"):
        model = settled(built(REFUSED[name][0]))
        adapted = adapt(model, "per-position", probe_size=SIZE)
        with torch.no_grad():
            scores = score(adapted, images())
            every = adapted.head(scores.features)
            cell = scores.features[:, :, 1:2, :1]
            if name == "alexnet":
                cell = cell.expand(-1, -1, 6, 6)
            alone = model.classifier(cell if name == "convnext" else cell.flatten(1))
            torch.testing.assert_close(every[:, :, 1, 0], alone, rtol=1e-4, atol=1e-5)
            whole = scores.local((1,), "area")[:, 0]
            torch.testing.assert_close(whole, every.mean((2, 3)), rtol=1e-4, atol=1e-5)
            probe = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
            on_probe = score(adapted, probe)
            off = (on_probe.local((1,), "area")[:, 0] - on_probe.logits).abs().mean()
            drift = off / on_probe.logits.std(1, correction=0).mean()
        assert adapted.drift.mean == pytest.approx(float(drift), rel=1e-3)


def test_a_per_position_head_computes_half_precision_maps_in_float32():
    adapted = adapt(settled(built(REFUSED["mobilenet_v3"][0])), "per-position", probe_size=SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = score(adapted, images())
    assert scores.features.dtype == torch.bfloat16
    assert scores.local(**AREA).dtype == torch.float32


def to_fake_cuda(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Replace the weights by fake ones on a CUDA device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter).detach().to("cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to("cuda")
    return model


@pytest.mark.parametrize(
    "family",
    families(
        ["resnet", "regnet_x", "densenet", "mobilenet_v2", "swin", "squeezenet", "convnext"],
        {"squeezenet", "swin", "convnext"},
    ),
)
def test_a_step_of_icd_kd_stays_on_a_cuda_device(family):
    make, head = (EXACT[family][0], "exact") if family in EXACT else (REFUSED[family][0], "per-position")
    networks = [adapt(built(make), head, probe_size=SIZE) for _ in range(2)]
    with FakeTensorMode() as mode:
        student, teacher = (to_fake_cuda(network, mode) for network in networks)
        batch = torch.randn(2, 3, 128, 128, device="cuda")
        target = torch.zeros(2, dtype=torch.int64, device="cuda")
        with torch.no_grad():
            teacher_scores = score(teacher.eval(), batch)
        scores = score(student.train(), batch)
        loss, parts = METHODS["iCD-KD"]()(scores, teacher_scores, batch_of(batch, target))
    # (Without a card the autograd engine itself refuses to go backward.)
    assert {tensor.device.type for tensor in (loss, parts, *scores.stages)} == {"cuda"}
    assert loss.requires_grad
    assert loss.shape == ()
