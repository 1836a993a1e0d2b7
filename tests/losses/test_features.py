"""FitNet, CRD and SemCKD against values of the published code, and what each loss is blind to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from icd.losses import crd_loss, fitnet_loss, semckd_loss
from icd.scores import Batch, Scores
from icd.terms import features
from icd.terms.features import SemCKD

STORED = np.load(ROOT / "tests" / "vectors" / "feature_losses.npz")
seeds = st.integers(0, 2**31)


def stored(name: str) -> Tensor:
    return torch.tensor(STORED[name])


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def embedded(features: Tensor, network: str) -> Tensor:
    weight, bias = (stored(f"crd/{network}_embedding_{part}") for part in ("weight", "bias"))
    return F.normalize(F.linear(features, weight, bias))


def updated(memory: Tensor, embedding: Tensor) -> Tensor:
    index = stored("crd/index")
    return memory.index_copy(0, index, F.normalize(0.5 * memory[index] + 0.5 * embedding.detach()))


def test_crd_equals_the_published_code():
    inputs = stored("crd/student_features").requires_grad_()
    student, teacher = embedded(inputs, "student"), embedded(stored("crd/teacher_features"), "teacher")
    memories = stored("crd/student_memory"), stored("crd/teacher_memory")
    index, negatives = stored("crd/index"), stored("crd/contrast_index")[:, 1:]
    loss, constants = crd_loss(student, teacher, *memories, index, negatives)
    assert loss.item() == pytest.approx(STORED["crd/loss_first_call"].item(), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(
        gradient, stored("crd/loss_first_call.grad_student_features"), rtol=0, atol=1e-9
    )
    memories = updated(memories[0], student), updated(memories[1], teacher)
    torch.testing.assert_close(memories[0], stored("crd/student_memory_after_first"), rtol=0, atol=1e-12)
    torch.testing.assert_close(memories[1], stored("crd/teacher_memory_after_first"), rtol=0, atol=1e-12)
    loss, again = crd_loss(student, teacher, *memories, index, negatives, constants)
    assert loss.item() == pytest.approx(STORED["crd/loss_second_call"].item(), abs=1e-9)
    assert torch.equal(constants, again)


@given(seeds)
def test_crd_without_negatives_contrasts_with_every_other_image(seed):
    student, teacher = (F.normalize(drawn(seed + i, 3, 4)) for i in range(2))
    memories = [F.normalize(drawn(seed + i, 7, 4)) for i in range(2, 4)]
    index = torch.tensor([2, 0, 6])
    negatives = torch.stack([torch.tensor([j for j in range(7) if j != i]) for i in index.tolist()])
    constants = torch.tensor([3.0, 5.0], dtype=torch.float64)
    whole, _ = crd_loss(student, teacher, *memories, index, None, constants)
    listed, _ = crd_loss(student, teacher, *memories, index, negatives, constants)
    torch.testing.assert_close(whole, listed)


@given(seeds)
def test_crd_is_blind_to_a_rotation_of_all_embeddings(seed):
    student, teacher = (F.normalize(drawn(seed + i, 3, 4)) for i in range(2))
    memories = [F.normalize(drawn(seed + i, 7, 4)) for i in range(2, 4)]
    rotation, _ = torch.linalg.qr(drawn(seed + 4, 4, 4))
    index = torch.tensor([2, 0, 6])
    plain, _ = crd_loss(student, teacher, *memories, index)
    rotated = [tensor @ rotation for tensor in (student, teacher, *memories)]
    torch.testing.assert_close(crd_loss(*rotated, index)[0], plain)


def test_semckd_equals_the_published_code(monkeypatch):
    module, ours, theirs = published_semckd()
    maps: list = []
    monkeypatch.setattr(features, "semckd_loss", lambda *given: maps.extend(given) or semckd_loss(*given))
    ours[0].requires_grad_()
    ours[1].requires_grad_()
    student, teacher = (scores_of([torch.zeros(8, 1, 1, 1), *stages]) for stages in (ours, theirs))
    loss = module(student, teacher, Batch(*[torch.zeros(8)] * 3))
    # The published code keeps the error of each pair of stages in float32.
    attention, projected, goals = maps
    pairs = [
        [(s - t).square().flatten(1).mean(1) for s, t in zip(*rows, strict=True)]
        for rows in zip(projected, goals, strict=True)
    ]
    errors = torch.stack([torch.stack(row, 1) for row in pairs], 1)
    rounded = (attention * errors.float()).sum() / (8 * 2)
    assert rounded.item() == pytest.approx(STORED["semckd/loss"].item(), abs=1e-9)
    assert loss.item() == pytest.approx(rounded.item(), abs=1e-8)
    torch.testing.assert_close(attention, stored("semckd/attention_weights"), rtol=0, atol=1e-9)
    for number, gradient in enumerate(torch.autograd.grad(loss, ours)):
        expected = stored(f"semckd/loss.grad_student_stage_{number}")
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


def published_semckd() -> tuple[SemCKD, list[Tensor], list[Tensor]]:
    """The term with the stored weights, in evaluation mode, and the stages of both networks."""
    ours = [stored(f"semckd/student_stage_{i}") for i in range(2)]
    theirs = [stored(f"semckd/teacher_stage_{i}") for i in range(3)]
    module = SemCKD("semckd", "semckd()")
    stem = torch.zeros(8, 1, 1, 1, dtype=torch.float64)
    module.build(scores_of([stem, *ours]), scores_of([stem, *theirs]), images=100)
    names = {}
    for network, layers in (("query", "queries"), ("key", "keys")):
        for i in range(len(getattr(module, layers))):
            for number, place in ((1, 0), (2, 2)):
                for part in ("weight", "bias"):
                    names[f"{layers}.{i}.{place}.{part}"] = f"{network}_weight{i}.linear{number}.{part}"
    for name in module.state_dict():
        if name.startswith("regressors."):
            _, i, j, rest = name.split(".", 3)
            names[name] = f"regressor{i}{j}.regressor.{rest}"
    module.load_state_dict({name: stored(f"semckd/attention/{theirs}") for name, theirs in names.items()})
    return module.eval(), ours, theirs


def scores_of(stages: list[Tensor]) -> Scores:
    return Scores(torch.zeros(len(stages[0]), 2), stages[-1], torch.nn.Identity(), tuple(stages))


@given(seeds)
def test_semckd_weighs_each_pair_by_its_attention(seed):
    maps = [[drawn(seed + 3 * i + j, 2, 4, 3, 3) for j in range(3)] for i in range(2)]
    goals = [[drawn(seed + 10 + 3 * i + j, 2, 4, 3, 3) for j in range(3)] for i in range(2)]
    one = torch.zeros(2, 2, 3, dtype=torch.float64)
    one[:, :, 1] = 1.0
    expected = sum(F.mse_loss(maps[i][1], goals[i][1]) for i in range(2)) / 2
    torch.testing.assert_close(semckd_loss(one, maps, goals), expected)


def test_shapes_that_differ_are_refused():
    two, memory, numbers = torch.zeros(2, 3), torch.zeros(5, 3), torch.arange(2)
    with pytest.raises(ValueError, match=r"map has shape \(2, 3, 4, 4\): expected \(2, 3, 5, 5\)"):
        fitnet_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"crd_loss: vectors have shapes \(2, 3, 1\)"):
        crd_loss(torch.zeros(2, 3, 1), two, memory, memory, numbers)
    with pytest.raises(ValueError, match=r"teacher_memory has shape \(4, 3\): expected \(5, 3\)"):
        crd_loss(two, two, memory, memory[:4], numbers)
    with pytest.raises(ValueError, match="attention is over 2 x 3 stages"):
        semckd_loss(torch.zeros(4, 2, 3), [[torch.zeros(4, 1, 1, 1)] * 3], [[torch.zeros(4, 1, 1, 1)] * 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    maps = drawn(0, 4, 3, 4, 4).to(dtype), drawn(1, 4, 3, 4, 4).to(dtype)
    assert fitnet_loss(*maps).dtype == torch.float32
    memory = F.normalize(drawn(2, 9, 5)).float()
    half = [F.normalize(drawn(i, 4, 5)).to(dtype) for i in (3, 4)]
    loss, _ = crd_loss(*half, memory, memory, torch.arange(4))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
