"""Controls keep all of a method but one thing."""

import pytest
import torch
from helpers import batch_of
from hypothesis import given
from hypothesis import strategies as st

from icd import kd_loss
from icd.losses import scale_decoupled_loss, standardise
from icd.objective import cross_entropy, parse, scale_decoupled, whole_image
from icd.scores import Scores
from icd.terms import shuffled_kd, shuffled_regions
from icd.terms.controls import shuffle


def scores(seed, images=4, classes=7):
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(5, classes)
    features = torch.randn(images, 5, 4, 4, generator=generator)
    return Scores(head(features.mean((2, 3))), features, head)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return scores(0), scores(1), batch_of(torch.zeros(4, 3, 8, 8), torch.tensor([0, 3, 6, 2]))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True), st.integers(2, 300))
def test_a_shuffle_is_a_permutation_by_the_images_number_alone(numbers, count):
    index = torch.tensor(numbers)
    keys = shuffle(index, count)
    assert (keys.argsort(1).sort(1).values == torch.arange(count)).all()
    assert torch.equal(keys[-1:], shuffle(index[-1:], count))


def test_shuffles_of_different_images_are_independent():
    order = shuffle(torch.arange(6000), 10).argsort(1)
    share = torch.stack([(order == c).double().mean(0) for c in range(10)])
    assert (share - 0.1).abs().max() < 0.02  # five standard deviations
    assert (order[1:] == order[:-1]).double().mean() < 0.12


def test_shuffled_kd_keeps_the_target_and_the_values_of_the_others(pair, monkeypatch):
    student, teacher, batch = pair
    seen = {}
    monkeypatch.setattr(
        "icd.terms.controls.kd_loss",
        lambda s, t, temperature: seen.update(t=t) or kd_loss(s, t, temperature=temperature),
    )
    shuffled_kd()(student, teacher, batch)
    target = batch.target[:, None]
    assert torch.equal(seen["t"].gather(1, target), teacher.logits.gather(1, target))
    assert torch.equal(seen["t"].sort(1).values, teacher.logits.sort(1).values)
    assert not torch.equal(seen["t"], teacher.logits)


def test_shuffled_regions_keep_the_regions_of_each_scale(pair, monkeypatch):
    student, teacher, batch = pair
    seen = {}

    def record(loss, ours, theirs, *rest, **options):
        seen.update(ours=ours, theirs=theirs)
        return scale_decoupled_loss(loss, ours, theirs, *rest, **options)

    monkeypatch.setattr("icd.terms.controls.scale_decoupled_loss", record)
    shuffled_regions(kd_loss)(student, teacher, batch)
    assert torch.equal(seen["ours"], student.local())
    for mixed, plain in zip(
        seen["theirs"].split([1, 4, 16], 1), teacher.local().split([1, 4, 16], 1), strict=True
    ):
        assert torch.equal(mixed[..., 0].sort(1).values, plain[..., 0].sort(1).values)
    assert not torch.equal(seen["theirs"], teacher.local())
    moved = [int((row != 0).any()) for row in (seen["theirs"] - teacher.local()).flatten(1)]
    assert sum(moved) == 4


@given(st.integers(0, 2**31), st.floats(0.1, 50), st.floats(-50, 50))
def test_standardised_logits_ignore_shift_and_scale(seed, scale, shift):
    logits = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(standardise(scale * logits + shift), standardise(logits), rtol=1e-5, atol=1e-5)
    assert standardise(logits).mean(1).abs().max() < 1e-9
    torch.testing.assert_close(
        standardise(logits).std(1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_standardised_terms_apply_it_to_both_networks(pair):
    student, teacher, batch = pair
    louder = Scores(teacher.logits * 7 + 3, teacher.features, teacher.head)
    plain = whole_image(kd_loss, standardised=True, temperature=2)
    torch.testing.assert_close(plain(student, louder, batch), plain(student, teacher, batch))
    torch.testing.assert_close(
        plain(student, teacher, batch),
        kd_loss(standardise(student.logits), standardise(teacher.logits), temperature=2),
    )
    regions = scale_decoupled(kd_loss, standardised=True)
    expected = scale_decoupled_loss(
        kd_loss,
        standardise(student.local()),
        standardise(teacher.local()),
        batch.target,
        teacher_logits=teacher.logits,
    )
    torch.testing.assert_close(regions(student, teacher, batch), expected)


def test_label_smoothing(pair):
    student, _, batch = pair
    value = cross_entropy(smoothing=0.2)(student, None, batch)
    uniform = -student.logits.log_softmax(1).mean()
    torch.testing.assert_close(value, 0.8 * cross_entropy()(student, None, batch) + 0.2 * uniform)
    with pytest.raises(ValueError, match="smoothing is 1: give a number from 0 to below 1"):
        cross_entropy(smoothing=1)


@pytest.mark.parametrize(
    "text",
    [
        "cross_entropy(smoothing=0.1) + 0.9 * shuffled_kd(temperature=4)",
        "cross_entropy() + shuffled_regions(kd_loss, scales=(1, 4), temperature=2)",
        "cross_entropy() + scale_decoupled(kd_loss, standardised=True, complementary=1)",
        "whole_image(kd_loss, standardised=True, temperature=2)",
        "fitnet(stage=1) + crd(negatives=64, temperature=0.1) + rkd(angle=0) + at(power=1)",
    ],
)
def test_controls_and_rivals_print_and_parse(text):
    assert str(parse(text)) == text
