"""Local logits: what pooling and the head promise, at any scale of any map."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from icd import Scores, icd_loss, local_logits, score
from icd.errors import AdaptError
from icd.networks import SmallResNet
from icd.objective import METHODS
from icd.scores import Batch

maps = st.tuples(st.integers(4, 28), st.integers(4, 28))
scale_sets = st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True).map(tuple)


def features_and_head(
    height: int, width: int, classes: int = 5, channels: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    shapes = (2, channels, height, width), (classes, channels), (classes,)
    return tuple(torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)


@given(maps, scale_sets)
def test_area_pooling_keeps_the_images_logits_as_the_mean_at_every_scale(size, scales):
    features, weight, bias = features_and_head(*size)
    image = F.linear(features.mean((2, 3)), weight, bias)
    regions = local_logits(features, weight, bias, scales, "area").split([m * m for m in scales], 1)
    for of_scale in regions:
        torch.testing.assert_close(of_scale.mean(1), image)


@given(maps, scale_sets, st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_adaptive_pooling_goes_through_the_4_by_4_grid(size, scales, layout):
    features, weight, bias = features_and_head(*size)
    features = features.contiguous(memory_format=layout)
    expected = []
    for m in scales:
        source = features if m == 3 else F.adaptive_avg_pool2d(features, 4)
        expected.append(F.adaptive_avg_pool2d(source, m).flatten(2))
    expected = F.linear(torch.cat(expected, 2).transpose(1, 2), weight, bias)
    torch.testing.assert_close(local_logits(features, weight, bias, scales), expected)


@given(maps, st.permutations([1, 2, 3, 4]), st.sampled_from(["adaptive", "area"]))
def test_a_region_does_not_depend_on_the_other_scales(size, scales, pooling):
    features, weight, bias = features_and_head(*size)
    together = local_logits(features, weight, bias, scales, pooling)
    apart = [local_logits(features, weight, bias, (m,), pooling) for m in scales]
    torch.testing.assert_close(together, torch.cat(apart, 1))


@given(st.sampled_from([(1,), (2,), (1, 2), (3, 1), (2, 3)]), st.just(3), st.integers(3, 9))
def test_a_map_smaller_than_4_by_4_is_its_own_grid(scales, height, width):
    features, weight, bias = features_and_head(height, width)
    pooled = [F.adaptive_avg_pool2d(features, m).flatten(2) for m in scales]
    expected = F.linear(torch.cat(pooled, 2).mT, weight, bias)
    torch.testing.assert_close(local_logits(features, weight, bias, scales), expected)


def test_a_scale_finer_than_4_is_the_grid_of_those_that_divide_it():
    features, weight, bias = features_and_head(20, 22)
    grid = F.adaptive_avg_pool2d(features, 8)
    pooled = [
        F.adaptive_avg_pool2d(source, m).flatten(2) for source, m in ((grid, 2), (grid, 8), (features, 3))
    ]
    expected = F.linear(torch.cat(pooled, 2).mT, weight, bias)
    torch.testing.assert_close(local_logits(features, weight, bias, (2, 8, 3)), expected)


def test_both_poolings_agree_where_the_scale_divides_the_map_and_differ_where_not():
    for side, agree in ((8, True), (12, True), (7, False), (14, False)):
        features, weight, bias = features_and_head(side, side)
        pair = [local_logits(features, weight, bias, (1, 2, 4), pooling) for pooling in ("adaptive", "area")]
        assert torch.allclose(*pair) is agree


def test_a_head_without_bias_and_one_region_alone():
    features, weight, _ = features_and_head(5, 7)
    torch.testing.assert_close(
        local_logits(features, weight, None, (1,), "area")[:, 0], features.mean((2, 3)) @ weight.T
    )


def test_a_scale_finer_than_the_map_only_repeats_and_must_be_asked_for():
    features, weight, bias = features_and_head(2, 2)
    with pytest.raises(
        ValueError, match="scale 4 cuts a 2 x 2 map into 4 x 4 regions, more than it has cells"
    ):
        local_logits(features, weight, bias)
    for pooling in ("adaptive", "area"):
        fine = local_logits(features, weight, bias, (4,), pooling, repeat=True).view(2, 4, 4, 5)
        cells = local_logits(features, weight, bias, (2,), pooling).view(2, 2, 2, 5)
        torch.testing.assert_close(fine, cells.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("scales", [(1, 2, 3), (1, 2, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_reach_features_and_head_and_are_exact(layout, scales):
    features, weight, bias = features_and_head(5, 7)
    inputs = [t.requires_grad_() for t in (features.contiguous(memory_format=layout), weight, bias)]
    assert torch.autograd.gradcheck(lambda *args: local_logits(*args, scales), inputs)


def test_half_precision_features_give_float32_logits_also_under_autocast():
    features, weight, bias = (tensor.float() for tensor in features_and_head(7, 7))
    full = local_logits(features, weight, bias, pooling="area")
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        with torch.autocast("cpu", torch.bfloat16):
            half = local_logits(features.to(dtype), weight, bias, pooling="area")
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scales", [(), (0,), (1, -2), (1.5,), (True,), ("1",)])
def test_scales_must_be_positive_integers(scales):
    with pytest.raises(ValueError, match="positive integers"):
        local_logits(*features_and_head(8, 8), scales)


def test_what_does_not_fit_is_refused():
    features, weight, bias = features_and_head(8, 8)
    with pytest.raises(ValueError, match=r"expected \(B, D, H, W\)"):
        local_logits(features[0], weight, bias)
    with pytest.raises(ValueError, match=r"weight has shape \(5, 2\): expected \(C, 3\)"):
        local_logits(features, weight[:, :2], bias)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        local_logits(features, weight, bias, pooling="max")


def test_scores_hold_what_forward_says_and_compute_local_logits_once():
    model = SmallResNet(7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        said = score(model, images)
        torch.testing.assert_close(said.logits, model(images))
        assert said.features.shape == (2, 128, 4, 4)
        assert [tuple(stage.shape[1:]) for stage in said.stages] == [
            (16, 32, 32),
            (32, 16, 16),
            (64, 8, 8),
            (128, 4, 4),
        ]
        torch.testing.assert_close(said.local()[:, 0], said.logits)
    assert said.local() is said.local((1, 2, 4))
    assert said.local(pooling="area") is not said.local()
    assert isinstance(said, Scores)


def test_a_look_at_local_logits_takes_no_gradient_from_a_loss():
    said = score(SmallResNet(7), torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        assert not said.local().requires_grad
    assert said.local().requires_grad
    assert said.local() is said.local()


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_scales_are_integers_of_any_kind(kind):
    features, weight, bias = features_and_head(8, 8)
    torch.testing.assert_close(
        local_logits(features, weight, bias, kind([1, 2, 4])), local_logits(features, weight, bias)
    )


def test_what_inference_made_serves_training_afterwards():
    features, weight, bias = features_and_head(9, 11)
    with torch.inference_mode():
        icd_loss(*2 * [local_logits(features, weight, bias, (1, 3))], scales=(1, 3))
    local = local_logits(features.requires_grad_(), weight, bias, (1, 3))
    icd_loss(local, local.detach().flip(0), scales=(1, 3)).backward()
    assert features.grad.isfinite().all()


class Named(nn.Sequential):
    """A classifier that returns named outputs, as some do."""

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(images), other=images)


@pytest.mark.parametrize("container", [nn.Sequential, Named])
def test_any_classifier_has_scores_of_whole_images_and_refuses_regions_and_features(container):
    model = container(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    images = torch.randn(4, 3, 8, 8)
    scores = score(model, images)
    expected = nn.Sequential(*model)(images)
    batch = Batch(images, torch.tensor([0, 1, 2, 3]), torch.arange(4))
    for mine, rows in ((scores, slice(None)), (scores.rows(slice(1, 3)), slice(1, 3))):
        assert torch.equal(mine.logits, expected[rows])
        for ask in (lambda s: s.local(), lambda s: s.features, lambda s: s.stages):
            with pytest.raises(AdaptError, match=f"{container.__name__} gives logits of whole images only"):
                ask(mine)
    for method in ("KD", "DKD", "NKD"):
        loss, _ = METHODS[method]()(scores, scores, batch)
        loss.backward(retain_graph=True)
        assert model[1].weight.grad.any()
    with pytest.raises(AdaptError):
        METHODS["iCD-KD"]()(scores, scores, batch)
