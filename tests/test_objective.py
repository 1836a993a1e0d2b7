"""Objectives: expressions over `Scores` that say what they are."""

import pytest
import torch

from icd import icd_loss, kd_loss, scale_decoupled_loss, score
from icd.networks import SmallResNet
from icd.objective import METHODS, Objective, clustering, cross_entropy, parse, scale_decoupled, whole_image


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    student, teacher = SmallResNet(5), SmallResNet(5, widths=(8, 16, 24, 32))
    images, target = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        return score(student, images), score(teacher, images), target


def test_an_objective_is_the_weighted_sum_of_its_terms(batch):
    student, teacher, target = batch
    objective = 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2.0 * clustering()
    total, parts = objective(student, teacher, target)
    regions = student.local(), teacher.local()
    by_hand = [
        0.1 * torch.nn.functional.cross_entropy(student.logits, target),
        0.9 * scale_decoupled_loss(kd_loss, *regions, target, teacher_logits=teacher.logits, temperature=4),
        2.0 * icd_loss(*regions),
    ]
    torch.testing.assert_close(parts, torch.stack(by_hand))
    torch.testing.assert_close(total, sum(by_hand))
    assert objective.names == ("cross_entropy", "sd_kd", "clustering")


def test_an_objective_prints_as_it_is_written():
    for objective in METHODS.values():
        names = {
            "cross_entropy": cross_entropy,
            "whole_image": whole_image,
            "scale_decoupled": scale_decoupled,
        }
        from icd import losses

        again = eval(str(objective), {**names, "clustering": clustering, **vars(losses)})  # our own text
        assert str(again) == str(objective)
        assert [t.weight for t in (again.terms if isinstance(again, Objective) else [again])] == [
            t.weight for t in objective.terms
        ]
    assert str(0.5 * (cross_entropy() + 2 * clustering((2, 4), temperature=0.5))) == (
        "0.5 * cross_entropy() + 1 * clustering(scales=(2, 4), temperature=0.5)".replace("1 * ", "")
    )


def test_a_term_keeps_its_digits_and_its_name():
    fine = clustering(scales=(2,), temperature=1 / 3).named("fine").warmed_up(3)
    objective = cross_entropy() * 0.123456789 + 2 * clustering() + fine
    assert objective.names == ("cross_entropy", "clustering", "fine")
    assert parse(str(objective)).terms[0].weight == 0.123456789
    assert str(parse(str(objective))) == str(objective)
    for name in ("no word", "seconds"):
        with pytest.raises(ValueError, match="a term cannot be named"):
            clustering().named(name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: clustering(temperature=-1), "temperature is -1"),
        (lambda: clustering(reduction="none"), "reduction is 'none'"),
        (lambda: whole_image(kd_loss, temperature=0), "temperature is 0"),
        (lambda: scale_decoupled(icd_loss), "region logits have shapes"),
        (lambda: whole_image(no_scalar), r"no_scalar\(\) gives no scalar"),
    ],
)
def test_what_a_loss_refuses_is_refused_when_its_term_is_made(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def no_scalar(student, teacher, target):
    return student


def test_every_method_gives_a_finite_loss_and_pulls_on_the_student(batch):
    _, teacher, target = batch
    for name, objective in METHODS.items():
        torch.manual_seed(1)
        model = SmallResNet(5)
        total, parts = objective(score(model, torch.randn(4, 3, 64, 64)), teacher, target, epoch=3)
        total.backward()
        assert parts.isfinite().all(), name
        assert not parts.requires_grad
        assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0, name


def test_a_warm_up_grows_linearly_and_stays(batch):
    term = whole_image(kd_loss).warmed_up(20)
    assert [term.weight_at(epoch) for epoch in (1, 10, 20, 240)] == [0.05, 0.5, 1.0, 1.0]
    full, warm = (t(*batch, 5)[1].item() for t in (Objective((whole_image(kd_loss),)), Objective((term,))))
    assert warm == pytest.approx(full / 4)


def test_only_a_logit_term_refuses_a_teacher_of_other_classes(batch):
    student, _, target = batch
    with torch.no_grad():
        stranger = score(SmallResNet(9), torch.randn(4, 3, 64, 64))
    total, _ = (cross_entropy() + 2 * clustering())(student, stranger, target)
    assert total.isfinite()
    for name in ("KD", "SD-KD", "iCD-KD"):
        with pytest.raises(ValueError, match="the student has 5 classes and the teacher 9"):
            METHODS[name](student, stranger, target)
