"""SP, RKD and AT against values of the published code, and what each loss is blind to."""

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from icd.losses import at_loss, rkd_loss, sp_loss

STORED = np.load(ROOT / "tests" / "vectors" / "relation_losses.npz")
LOSSES = {
    "sp": sp_loss,
    "rkd_distance25_angle50": lambda s, t: rkd_loss(s.mean((2, 3)), t.mean((2, 3))),
    "at_p2": at_loss,
}
seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", "012")
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_equal_the_published_code(case, name):
    student = torch.tensor(STORED[f"{case}/student_features"]).requires_grad_()
    loss = LOSSES[name](student, torch.tensor(STORED[f"{case}/teacher_features"]))
    assert loss.item() == pytest.approx(STORED[f"{case}/{name}"].item(), rel=0, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = torch.tensor(STORED[f"{case}/{name}.grad_student_features"])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


@given(seeds, st.floats(0.01, 100))
def test_sp_is_blind_to_a_rotation_of_the_features_and_to_the_scale_of_all(seed, scale):
    student, teacher = drawn(seed, 5, 3, 2, 2), drawn(seed + 1, 5, 4, 3, 3)
    rotation, _ = torch.linalg.qr(drawn(seed + 2, 12, 12))
    turned = (student.flatten(1) @ rotation).view_as(student)
    plain = sp_loss(student, teacher)
    torch.testing.assert_close(sp_loss(scale * turned, teacher), plain)
    assert not torch.isclose(sp_loss(student * drawn(seed + 3, 5, 1, 1, 1).exp(), teacher), plain)


@given(seeds, st.floats(0.01, 100))
def test_rkd_is_blind_to_rotation_shift_and_scale(seed, scale):
    student, teacher = drawn(seed, 6, 4), drawn(seed + 1, 6, 7)
    rotation, _ = torch.linalg.qr(drawn(seed + 2, 4, 4))
    moved = scale * student @ rotation + drawn(seed + 3, 4)
    torch.testing.assert_close(rkd_loss(moved, teacher), rkd_loss(student, teacher), rtol=1e-4, atol=1e-7)


@given(seeds, st.floats(0.01, 100))
def test_at_is_blind_to_the_order_and_signs_of_channels_and_to_scale(seed, scale):
    student, teacher = drawn(seed, 3, 5, 4, 4), drawn(seed + 1, 3, 2, 4, 4)
    mixed = student[:, torch.randperm(5)] * drawn(seed + 2, 5, 1, 1).sign()
    torch.testing.assert_close(at_loss(scale * mixed, teacher), at_loss(student, teacher))


@given(seeds)
def test_a_network_compared_with_itself_has_loss_and_gradient_zero(seed):
    maps = drawn(seed, 4, 3, 4, 4).requires_grad_()
    for loss in (sp_loss(maps, maps.detach()), at_loss(maps, maps.detach())):
        assert loss.item() == pytest.approx(0, abs=1e-20)
        (gradient,) = torch.autograd.grad(loss, maps)
        assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fill", [0.0, 6e4, -6e4, 1e-7])
def test_constant_and_extreme_maps_have_finite_losses_and_gradients(dtype, fill):
    student = torch.full((3, 4, 4, 4), fill, dtype=dtype).requires_grad_()
    teacher = torch.randn(3, 4, 4, 4).to(dtype)
    for loss in (function(student, teacher) for function in LOSSES.values()):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.isfinite().all()


def test_other_shapes_are_refused():
    maps, vectors = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    for loss, wrong in ((sp_loss, vectors), (at_loss, vectors), (rkd_loss, maps)):
        with pytest.raises(ValueError, match="the same B for both"):
            loss(wrong, wrong)
    with pytest.raises(ValueError, match="power is 0: give a positive number"):
        at_loss(maps, maps, power=0)
    with pytest.raises(ValueError, match="angle is -1: give a finite number, not negative"):
        rkd_loss(vectors, vectors, angle=-1)
