"""The logit losses against the published code's values, and against what they must not change under."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icd import dkd_loss, gram, icd_loss, kd_loss, local_logits, nkd_loss, scale_decoupled_loss
from icd.losses import scale_weights

HERE = Path(__file__).parents[1]
SHARED = HERE.parents[1] / "shared" / "vectors" / "logit_losses.npz"
STORED = np.load(SHARED if SHARED.exists() else HERE / "vectors" / "logit_losses.npz")
CASES = sorted({name.split("/")[0] for name in STORED})
PUBLISHED = {
    "kd_T4": lambda case: kd_loss(case.student, case.teacher),
    "dkd_a1_b8_T4": lambda case: dkd_loss(case.student, case.teacher, case.target),
    "nkd_as_coded_T1_g1.5": lambda case: nkd_loss(
        case.student, case.teacher, case.target, exclude_target=False
    ),
    "sd_kd_T4": lambda case: case.decoupled(kd_loss),
    "sd_dkd_a1_b2_T4": lambda case: case.decoupled(dkd_loss, beta=2.0),
    "sd_nkd_as_coded_T4_g2": lambda case: case.decoupled(
        nkd_loss, temperature=4.0, gamma=2.0, exclude_target=False
    ),
    "icd_tau2_gamma2": lambda case: 2.0 * icd_loss(case.student_local, case.teacher_local, case.scales),
}
LOGIT_LOSSES = [kd_loss, dkd_loss, nkd_loss]


class Case:
    """One stored case, gone through our local logits from its features."""

    def __init__(self, number: str):
        def read(name: str) -> Tensor:
            return torch.tensor(STORED[f"{number}/{name}"])

        self.scales = tuple(read("scales").tolist())
        self.target = read("target")
        self.features = read("student_features").requires_grad_()
        head = read("student_weight"), read("student_bias")
        self.student = self.features.mean((2, 3)) @ head[0].T + head[1]
        self.student_local = local_logits(self.features, *head, self.scales)
        features, head = read("teacher_features"), (read("teacher_weight"), read("teacher_bias"))
        self.teacher = features.mean((2, 3)) @ head[0].T + head[1]
        self.teacher_local = local_logits(features, *head, self.scales)

    def decoupled(self, base, **arguments) -> Tensor:
        return scale_decoupled_loss(base, self.student_local, self.teacher_local, self.target, **arguments)


@pytest.mark.parametrize("number", CASES)
def test_local_logits_are_the_published_ones(number):
    case = Case(number)
    for ours, name in ((case.student_local, "student_local"), (case.teacher_local, "teacher_local")):
        stored = torch.tensor(STORED[f"{number}/{name}"]).transpose(1, 2)
        torch.testing.assert_close(ours, stored, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("number", "name"), [(n, k) for n in CASES for k in PUBLISHED if f"{n}/{k}" in STORED]
)
def test_values_and_gradients_are_the_published_ones(number, name):
    case = Case(number)
    loss = PUBLISHED[name](case)
    loss.backward()
    assert loss.item() == pytest.approx(STORED[f"{number}/{name}"].item(), rel=0, abs=1e-9)
    stored = torch.tensor(STORED[f"{number}/{name}.grad_student_features"])
    torch.testing.assert_close(case.features.grad, stored, rtol=0, atol=1e-9)


seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, images: int, classes: int) -> Tensor:
    return torch.randint(classes, (images,), generator=torch.Generator().manual_seed(seed))


@given(seeds, st.integers(1, 4), st.integers(2, 7), st.floats(0.5, 8))
def test_kd_does_not_see_a_shift_of_all_logits(seed, images, classes, temperature):
    student, teacher = draw(seed, images, classes), draw(seed + 1, images, classes)
    shift = draw(seed + 2, images, 1, scale=50.0)
    before = kd_loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(kd_loss(student + shift, teacher - shift, temperature=temperature), before)


@given(seeds, st.integers(1, 4), st.integers(2, 7), st.floats(0.5, 8))
def test_dkd_with_the_teachers_own_weight_is_kd(seed, images, classes, temperature):
    student, teacher, target = (
        draw(seed, images, classes),
        draw(seed + 1, images, classes),
        labels(seed, images, classes),
    )
    kd = kd_loss(student, teacher, temperature=temperature, reduction="none")
    alike = {"temperature": temperature, "reduction": "none"}
    tckd = dkd_loss(student, teacher, target, alpha=1.0, beta=0.0, **alike)
    nckd = dkd_loss(student, teacher, target, alpha=0.0, beta=1.0, **alike)
    other = 1 - (teacher / temperature).softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(tckd + other * nckd, kd)


@given(seeds, st.integers(2, 6))
def test_nkd_is_its_formula_word_for_word(seed, classes):
    student, teacher, target = draw(seed, 1, classes), draw(seed + 1, 1, classes), labels(seed, 1, classes)
    y, rest = int(target), [i for i in range(classes) if i != int(target)]
    said, told = student[0].softmax(0), teacher[0].softmax(0)
    q_said, q_told = (student[0, rest] / 3).softmax(0), (teacher[0, rest] / 3).softmax(0)
    formula = -told[y] * said[y].log() - 1.5 * 9 * (q_told * q_said.log()).sum()
    torch.testing.assert_close(nkd_loss(student, teacher, target, temperature=3.0), formula)


@given(seeds, st.integers(1, 5), st.integers(2, 8), st.integers(1, 3))
def test_gram_forgets_rotation_permutation_sign_and_length(seed, regions, classes, images):
    local = draw(seed, images, regions, classes)
    turn = torch.linalg.qr(draw(seed + 1, classes, classes))[0]
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    length = draw(seed + 2, images, regions, 1).abs() + 0.1
    for other in (local @ turn, local[:, :, order], -local, length * local):
        torch.testing.assert_close(gram(other), gram(local))
    torch.testing.assert_close(
        gram(local).diagonal(dim1=1, dim2=2), torch.ones(images, regions, dtype=torch.float64)
    )


@given(seeds, st.booleans(), st.sampled_from(["sum", "mean"]), st.floats(0.1, 4))
def test_icd_sees_a_shift_of_a_regions_logits_unless_centred(seed, diagonal, reduction, temperature):
    student, teacher = draw(seed, 2, 5, 6), draw(seed + 1, 2, 5, 6)
    shift = draw(seed + 2, 2, 5, 1)
    settings = {"scales": (1, 2), "temperature": temperature, "diagonal": diagonal, "reduction": reduction}
    before = icd_loss(student, teacher, centre=True, **settings)
    torch.testing.assert_close(icd_loss(student + shift, teacher - shift, centre=True, **settings), before)
    assert (
        icd_loss(student + shift, teacher, **settings) - icd_loss(student, teacher, **settings)
    ).abs() > 1e-9


@given(seeds, st.permutations([1, 2, 3, 4]), st.integers(1, 4))
def test_a_distillation_loss_of_a_network_with_itself_is_exactly_zero(seed, order, count):
    scales = tuple(order[:count])
    local = draw(seed, 2, sum(m * m for m in scales), 5).requires_grad_()
    target = labels(seed, 2, 5)
    losses = (
        kd_loss(local[:, 0], local.detach()[:, 0]),
        dkd_loss(local[:, 0], local.detach()[:, 0], target),
        scale_decoupled_loss(kd_loss, local, local.detach(), target),
        icd_loss(local, local.detach(), scales),
        icd_loss(local, local.detach(), scales, centre=True, diagonal=False),
    )
    for loss in losses:
        assert loss.item() == 0.0
        (slope,) = torch.autograd.grad(loss, local, retain_graph=True)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


@settings(max_examples=10)
@given(seeds, st.booleans(), st.booleans())
def test_gradients_are_those_of_finite_differences(seed, centre, diagonal):
    local, teacher, target = draw(seed, 2, 5, 4).requires_grad_(), draw(seed + 1, 2, 5, 4), labels(seed, 2, 4)
    for base in LOGIT_LOSSES:
        assert torch.autograd.gradcheck(lambda x, base=base: base(x[:, 0], teacher[:, 0], target), local)
        assert torch.autograd.gradcheck(
            lambda x, base=base: scale_decoupled_loss(base, x, teacher, target, temperature=4.0), local
        )
    assert torch.autograd.gradcheck(
        lambda x: icd_loss(x, teacher, (1, 2), 0.5, centre=centre, diagonal=diagonal), local
    )


EXTREMES = [0.0, 1e-30, -1e-7, 1.0, -88.0, 1e4, -65504.0, 65504.0, 1e18, -1e30, 3e38, -3e38]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(EXTREMES), min_size=24, max_size=24), seeds)
def test_any_finite_input_gives_finite_values_and_gradients(numbers, seed):
    local = torch.tensor(numbers, dtype=torch.float32).view(2, 4, 3)
    teacher = local[:, torch.randperm(4, generator=torch.Generator().manual_seed(seed))]
    target = labels(seed, 2, 3)
    for loss in (
        lambda x: kd_loss(x[:, 0], teacher[:, 0], temperature=0.5),
        lambda x: dkd_loss(x[:, 0], teacher[:, 0], target),
        lambda x: nkd_loss(x[:, 0], teacher[:, 0], target),
        lambda x: nkd_loss(x[:, 0], teacher[:, 0], target, exclude_target=False),
        lambda x: scale_decoupled_loss(dkd_loss, x, teacher, target),
        lambda x: icd_loss(x, teacher, (2,), 0.01),
        lambda x: icd_loss(x, teacher, (2,), centre=True, diagonal=False),
    ):
        student = local.clone().requires_grad_()
        value = loss(student)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0.0, 6e-8, -6e-5, 1e-3, 1.0, 65504.0, -65504.0]), min_size=24, max_size=24))
def test_any_finite_float16_gives_finite_values_and_gradients(numbers):
    local = torch.tensor(numbers, dtype=torch.float16).view(2, 4, 3)
    teacher, target = local.flip(1), torch.zeros(2, dtype=torch.int64)
    for loss in (
        lambda x: scale_decoupled_loss(kd_loss, x, teacher, target),
        lambda x: scale_decoupled_loss(dkd_loss, x, teacher, target),
        lambda x: icd_loss(x, teacher, (2,)),
        lambda x: icd_loss(x, teacher, (2,), temperature=0.1, centre=True, diagonal=False),
        lambda x: gram(x).square().sum(),
    ):
        student = local.clone().requires_grad_()
        value = loss(student)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("second", [torch.float16, torch.float64, torch.int64])
def test_losses_of_two_precisions_compute_in_the_finer_one(second):
    student, teacher, target = draw(0, 4, 5, 7), 10 * draw(1, 4, 5, 7), labels(0, 4, 7)
    other, finer = teacher.to(second), torch.promote_types(torch.float32, second)
    for loss in (
        lambda s, t: kd_loss(s[:, 0], t[:, 0]),
        lambda s, t: dkd_loss(s[:, 0], t[:, 0], target),
        lambda s, t: scale_decoupled_loss(nkd_loss, s, t, target),
        lambda s, t: icd_loss(s, t, (1, 2)),
    ):
        mixed, same = loss(student.float(), other), loss(student.float().to(finer), other.to(finer))
        assert mixed.dtype == same.dtype == finer
        torch.testing.assert_close(mixed, same)


def test_a_region_of_zeros_looks_like_nothing_and_is_not_pulled():
    local = draw(0, 1, 4, 5)
    local[0, 2] = 0
    local.requires_grad_()
    assert (gram(local)[0, 2] == 0).all()
    icd_loss(local, draw(1, 1, 4, 5), (2,)).backward()
    assert local.grad.isfinite().all()
    assert local.grad.abs().max() < 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("base", LOGIT_LOSSES)
def test_half_precision_is_raised_before_anything_is_computed(dtype, base):
    student, teacher, target = draw(0, 4, 5, 7).to(dtype), draw(1, 4, 5, 7).to(dtype), labels(0, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        half = base(student[:, 0], teacher[:, 0], target), icd_loss(student, teacher, (1, 2))
    full = (
        base(student[:, 0].float(), teacher[:, 0].float(), target),
        icd_loss(student.float(), teacher.float(), (1, 2)),
    )
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.float32
        assert a.item() == b.item()


def test_losses_of_rounded_logits_stay_near_those_of_exact_ones():
    student, teacher, target = draw(0, 64, 21, 50).float(), draw(1, 64, 21, 50).float(), labels(0, 64, 50)
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        for loss in (
            lambda s, t: icd_loss(s, t),
            lambda s, t: scale_decoupled_loss(kd_loss, s, t, target),
            lambda s, t: scale_decoupled_loss(dkd_loss, s, t, target),
        ):
            torch.testing.assert_close(
                loss(student.to(dtype), teacher.to(dtype)), loss(student, teacher), rtol=tolerance, atol=0
            )


def test_complementary_regions_count_twice_and_are_judged_by_the_teacher():
    # The image is right. Of its four regions the teacher gets two right; the student's answers do not matter.
    teacher = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]]])
    student, target = draw(0, 1, 4, 2).float(), torch.tensor([0])
    each = kd_loss(student[0], teacher[0], reduction="none")
    expected = (each * torch.tensor([1.0, 1.0, 2.0, 2.0])).mean()
    torch.testing.assert_close(scale_decoupled_loss(kd_loss, student, teacher, target), expected)
    wrong = torch.tensor(
        [[0.0, 1.0]]
    )  # now the image is wrong, and the right regions are the complementary ones
    swapped = (each * torch.tensor([2.0, 2.0, 1.0, 1.0])).mean()
    judged = scale_decoupled_loss(kd_loss, student, teacher, target, teacher_logits=wrong)
    torch.testing.assert_close(judged, swapped)


def test_scale_one_is_dead_and_fine_scales_weigh_more():
    student, teacher = draw(0, 3, 21, 9).requires_grad_(), draw(1, 3, 21, 9)
    alone = icd_loss(student[:, :1], teacher[:, :1], (1,))
    assert alone.item() == 0
    assert torch.autograd.grad(alone, student)[0].abs().max() == 0
    parts = [icd_loss(student, teacher, weights=[float(i == k) for k in range(3)]) for i in range(3)]
    assert scale_weights((1, 2, 4)) == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    torch.testing.assert_close(icd_loss(student, teacher), parts[0] / 6 + parts[1] * 2 / 6 + parts[2] * 3 / 6)
    assert icd_loss(torch.eye(16)[None], torch.eye(16)[None], (4,)) == 0
    assert (gram(torch.eye(16)[None]) / 2).softmax(-1).max().item() == pytest.approx(0.099, abs=5e-4)


def test_other_classes_suit_gram_matrices_alone():
    student, teacher = draw(0, 2, 5, 200), draw(1, 2, 5, 100)
    assert icd_loss(student, teacher, (1, 2)).isfinite()
    for base in LOGIT_LOSSES:
        with pytest.raises(ValueError, match="200 classes and the teacher 100"):
            base(student[:, 0], teacher[:, 0], labels(0, 2, 100))
    with pytest.raises(
        ValueError, match="scale_decoupled_loss compares class with class: the student has 200"
    ):
        scale_decoupled_loss(kd_loss, student, teacher, labels(0, 2, 100))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kd_loss(draw(0, 2, 3), draw(1, 3, 3)),
            "kd_loss: logits have shapes (2, 3) (student) and (3, 3) (teacher): expected (B, C) for both",
        ),
        (
            lambda: kd_loss(draw(0, 2, 3), draw(1, 2, 3), temperature=0),
            "temperature is 0: give a positive number",
        ),
        (
            lambda: kd_loss(draw(0, 2, 3), draw(1, 2, 3), reduction="sum"),
            "reduction is 'sum': choose 'mean' or 'none'",
        ),
        (
            lambda: dkd_loss(draw(0, 2, 3), draw(1, 2, 3), labels(0, 3, 3)),
            "dkd_loss: target has shape (3,): expected (2,)",
        ),
        (
            lambda: dkd_loss(draw(0, 2, 1), draw(1, 2, 1), labels(0, 2, 1)),
            "dkd_loss compares the target with the other classes: it needs two classes or more",
        ),
        (
            lambda: nkd_loss(draw(0, 2, 1), draw(1, 2, 1), labels(0, 2, 1)),
            "nkd_loss compares the target with the other classes: it needs two classes or more",
        ),
        (lambda: gram(draw(0, 2, 3)), "gram: region logits have shape (2, 3): expected (B, n, C)"),
        (
            lambda: icd_loss(draw(0, 2, 21, 3), draw(1, 2, 20, 3)),
            "icd_loss: region logits have shapes (2, 21, 3) (student) and (2, 20, 3) (teacher): "
            "expected (B, N, C), the same B and N for both",
        ),
        (
            lambda: icd_loss(draw(0, 2, 20, 3), draw(1, 2, 20, 3)),
            "icd_loss: scales (1, 2, 4) have 21 regions, the logits 20",
        ),
        (
            lambda: icd_loss(draw(0, 2, 5, 3), draw(1, 2, 5, 3), (1, 2), weights=(1,)),
            "icd_loss: weights are (1,): give 2 numbers, none negative, one for each scale",
        ),
        (
            lambda: icd_loss(draw(0, 2, 5, 3), draw(1, 2, 5, 3), (1, 2), weights=(1, -1)),
            "icd_loss: weights are (1, -1): give 2 numbers, none negative, one for each scale",
        ),
        (
            lambda: icd_loss(draw(0, 2, 5, 3), draw(1, 2, 5, 3), (1, 0)),
            "scales are (1, 0): give one or more positive integers, like (1, 2, 4)",
        ),
        (
            lambda: icd_loss(draw(0, 2, 5, 3), draw(1, 2, 5, 3), (1, 2), reduction="none"),
            "reduction is 'none': choose 'sum' or 'mean'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert str(error.value) == message
