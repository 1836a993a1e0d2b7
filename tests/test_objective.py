"""Objectives: weighted sums of terms that print as they are written, and the table of methods."""

import pytest
import torch
import torch.nn.functional as F
from helpers import batch_of

from icd import icd_loss, kd_loss, scale_decoupled_loss, score
from icd.networks import SmallResNet
from icd.objective import METHODS, Objective, clustering, cross_entropy, parse, scale_decoupled, whole_image
from icd.terms import at, crd, fitnet, rkd, semckd, sp

TABLE = {
    "alone": "cross_entropy()",
    "KD": "0.1 * cross_entropy() + 0.9 * whole_image(kd_loss, temperature=4)",
    "DKD": "cross_entropy() + whole_image(dkd_loss, beta=8, temperature=4).warmed_up(20)",
    "NKD": "cross_entropy() + whole_image(nkd_loss, gamma=1.5, temperature=1).warmed_up(20)",
    "SD-KD": "0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4)",
    "SD-DKD": "cross_entropy() + scale_decoupled(dkd_loss, beta=2, temperature=4).warmed_up(20)",
    "SD-NKD": "cross_entropy() + scale_decoupled(nkd_loss, gamma=2, temperature=4).warmed_up(20)",
    "iCD-KD": "0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2 * clustering()",
    "iCD-DKD": "cross_entropy() + scale_decoupled(dkd_loss, beta=2, temperature=4).warmed_up(20) "
    "+ 2 * clustering()",
    "iCD-NKD": "cross_entropy() + scale_decoupled(nkd_loss, gamma=2, temperature=4).warmed_up(20) "
    "+ 2 * clustering()",
    "FitNet": "cross_entropy() + 100 * fitnet()",
    "CRD": "cross_entropy() + 0.8 * crd()",
    "SemCKD": "cross_entropy() + whole_image(kd_loss, temperature=4) + 400 * semckd()",
    "SP": "cross_entropy() + 3000 * sp()",
    "RKD": "cross_entropy() + rkd()",
    "AT": "cross_entropy() + 1000 * at()",
}


@pytest.fixture(scope="module")
def scores():
    """Scores of a student and a teacher, and their batch."""
    torch.manual_seed(0)
    student, teacher = SmallResNet(5), SmallResNet(5, widths=(8, 16, 24, 32))
    batch = batch_of(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        return score(student, batch.images), score(teacher, batch.images), batch


def test_methods_are_the_published_objectives():
    assert {name: str(make()) for name, make in METHODS.items()} == TABLE


def test_every_method_makes_a_fresh_objective():
    for make in METHODS.values():
        assert make() is not make()


def test_an_objective_is_the_weighted_sum_of_its_terms(scores):
    student, teacher, batch = scores
    objective = 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2.0 * clustering()
    total, parts = objective(student, teacher, batch)
    regions, target = (student.local(), teacher.local()), batch.target
    expected = [
        0.1 * F.cross_entropy(student.logits, target),
        0.9 * scale_decoupled_loss(kd_loss, *regions, target, teacher_logits=teacher.logits, temperature=4),
        2.0 * icd_loss(*regions),
    ]
    torch.testing.assert_close(parts, torch.stack(expected))
    torch.testing.assert_close(total, sum(expected))
    assert objective.names == ("cross_entropy", "sd_kd", "clustering")
    assert not parts.requires_grad


def test_an_objective_prints_as_it_is_written_and_parses():
    for text in TABLE.values():
        assert str(parse(text)) == repr(parse(text)) == text
    assert str(0.5 * (cross_entropy() + 2 * clustering((2, 4), temperature=0.5))) == (
        "0.5 * cross_entropy() + clustering(scales=(2, 4), temperature=0.5)"
    )


def test_parse_takes_the_name_of_a_method():
    assert str(parse("iCD-DKD")) == TABLE["iCD-DKD"]
    with pytest.raises(ValueError, match='there is no method "iCDKD": did you mean'):
        parse("iCDKD")


def test_a_term_keeps_its_digits_and_its_name():
    fine = clustering(scales=(2,), temperature=1 / 3).named("fine").warmed_up(3)
    objective = cross_entropy() * 0.123456789 + 2 * clustering() + fine
    assert objective.names == ("cross_entropy", "clustering", "fine")
    assert parse(str(objective)).terms[0].weight == 0.123456789
    assert str(parse(str(objective))) == str(objective)
    for name in ("no word", "seconds"):
        with pytest.raises(ValueError, match="a term cannot be named"):
            clustering().named(name)


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two terms are named 'clustering'.*\.named\(\"clustering_2\"\)"):
        clustering() + clustering(temperature=0.1)


def test_arithmetic_leaves_a_term_as_it_was():
    term = clustering()
    weighted = 0.5 * term
    assert (term.weight, weighted.weight, (2 * weighted).weight) == (1.0, 0.5, 1.0)
    assert term.warmed_up(4).warmup_epochs == 4
    assert term.warmup_epochs == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clustering(temperature=-1), "temperature is -1"),
        (lambda: clustering(reduction="none"), "reduction is 'none'"),
        (lambda: whole_image(kd_loss, temperature=0), "temperature is 0"),
        (lambda: scale_decoupled(icd_loss), "region logits have shapes"),
        (lambda: whole_image(no_scalar), r"no_scalar\(\) does not return a scalar"),
    ],
)
def test_a_term_raises_what_its_loss_refuses_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def no_scalar(student, teacher, target):
    return student


TERMS = (
    {
        "cross_entropy": cross_entropy,
        "kd": lambda: whole_image(kd_loss, temperature=4),
        "sd_kd": lambda: scale_decoupled(kd_loss, temperature=4),
        "sd_kd without the image": lambda: scale_decoupled(kd_loss, (2, 4), temperature=4),
        "clustering": clustering,
    }
    | {
        f"{name}: {term}": lambda name=name, i=i: METHODS[name]().terms[i]
        for name in ("DKD", "NKD", "SD-DKD", "SD-NKD")
        for i, term in enumerate(("cross_entropy", "logits"))
    }
    | {"fitnet": fitnet, "crd": crd, "semckd": semckd, "sp": sp, "rkd": rkd, "at": at}
)


@pytest.mark.parametrize("make", TERMS.values(), ids=TERMS)
def test_every_term_by_itself_has_a_gradient(make, scores):
    _, teacher, batch = scores
    torch.manual_seed(1)
    model = SmallResNet(5)
    objective = Objective([make()])
    objective.build(score(model, batch.images), teacher, images=4)
    loss, parts = objective(score(model, batch.images), teacher, batch, epoch=3)
    loss.backward()
    assert parts.isfinite().all()
    assert next(model.parameters()).grad.abs().sum() > 0


def test_without_scale_1_a_region_is_compared_with_the_whole_image(scores):
    student, teacher, batch = scores
    value = scale_decoupled(kd_loss, (2, 4), temperature=4)(student, teacher, batch)
    regions = student.local((2, 4)), teacher.local((2, 4))
    expected = scale_decoupled_loss(
        kd_loss, *regions, batch.target, teacher_logits=teacher.logits, temperature=4
    )
    without = scale_decoupled_loss(kd_loss, *regions, batch.target, temperature=4)
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, without)  # or this test would not notice


def test_no_gradient_reaches_the_teacher(scores):
    _, _, batch = scores
    torch.manual_seed(2)
    student, teacher = SmallResNet(5), SmallResNet(5)
    for make in METHODS.values():
        objective, pair = make(), (score(student, batch.images), score(teacher, batch.images))
        objective.build(*pair, images=4)
        objective(*pair, batch)[0].backward()
    assert all(weight.grad is None for weight in teacher.parameters())


def test_a_warm_up_grows_linearly_and_stays(scores):
    term = whole_image(kd_loss).warmed_up(20)
    assert [term.weight_at(epoch) for epoch in (1, 10, 20, 240)] == [0.05, 0.5, 1.0, 1.0]
    full, warm = (Objective([t])(*scores, 5)[1].item() for t in (whole_image(kd_loss), term))
    assert warm == pytest.approx(full / 4)


def test_only_a_logit_term_refuses_a_teacher_of_other_classes(scores):
    student, _, batch = scores
    with torch.no_grad():
        other = score(SmallResNet(9), batch.images)
    total, _ = (cross_entropy() + 2 * clustering())(student, other, batch)
    assert total.isfinite()
    for name in ("KD", "SD-KD", "iCD-KD"):
        with pytest.raises(ValueError, match="the student has 5 classes and the teacher 9"):
            METHODS[name]()(student, other, batch)


def test_a_missing_teacher_is_named(scores):
    student, _, batch = scores
    with pytest.raises(ValueError, match="the term kd compares with a teacher, and there is none"):
        METHODS["KD"]()(student, None, batch)
    loss, _ = METHODS["alone"]()(student, None, batch)
    assert loss.isfinite()
