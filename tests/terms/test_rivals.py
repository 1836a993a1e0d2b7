"""FitNet, CRD, SemCKD, SP, RKD and AT in training: any pair of networks, resumed runs, parts of a batch."""

from dataclasses import replace

import pytest
import torch
from helpers import QUICK, batch_of, interrupt, same_weights, small, stripes

from icd import score
from icd.errors import RunError
from icd.networks import network
from icd.objective import METHODS, Objective, cross_entropy, parse
from icd.terms import crd, fitnet, semckd
from icd.trainer import Recipe, Student, fit, fit_together

pytestmark = pytest.mark.thorough

RIVALS = ("FitNet", "CRD", "SemCKD", "SP", "RKD", "AT")
LEARNING = {
    "fitnet": "cross_entropy() + 10 * fitnet()",
    "crd": "cross_entropy() + 0.8 * crd()",
    "crd of drawn negatives": "cross_entropy() + 0.8 * crd(negatives=8)",
    "semckd": "cross_entropy() + 10 * semckd()",
}


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_brings_the_student_nearer_by_its_own_measure(method):
    one = Student(small(2), METHODS[method]())
    recipe = replace(QUICK, epochs=4, learning_rate=0.02)
    fit_together([one], stripes(), recipe, teacher=small(1), progress=False)
    term = one.objective.names[-1]
    assert one.history[-1][term] < one.history[0][term]


PAIRS = [
    ("wrn_16_2", "ShuffleV1", 32),
    ("resnet10-16", "MobileNetV2", 128),
    ("vgg8", "resnet20", 32),
    ("torchvision/resnet18", "ShuffleV2", 64),
]


@pytest.mark.parametrize(("teacher", "student", "size"), PAIRS)
@pytest.mark.parametrize("method", RIVALS)
def test_any_pair_of_networks(method, teacher, student, size):
    torch.manual_seed(0)
    pair = network(student, 5, size), network(teacher, 7, size).eval()  # of different classes
    batch = batch_of(torch.randn(6, 3, size, size), torch.arange(6) % 5)
    terms = [term for term in METHODS[method]().terms if not term.same_classes]
    objective = Objective(terms)
    with torch.no_grad():
        teacher_scores = score(pair[1], batch.images)
        objective.build(score(pair[0].eval(), batch.images), teacher_scores, images=6)
    scores = score(pair[0].train(), batch.images)
    loss, parts = objective(scores, teacher_scores, batch)
    objective.terms[-1](scores, teacher_scores, batch).backward()
    assert loss.isfinite()
    assert parts.isfinite().all()
    assert sum(w.grad.abs().sum() for w in pair[0].parameters() if w.grad is not None) > 0


@pytest.mark.parametrize("text", LEARNING.values(), ids=LEARNING)
def test_a_run_resumes_to_the_same_bits(tmp_path, text):
    data, never_stopped = stripes(), Student(small(3), parse(text))
    fit_together([never_stopped], data, QUICK, teacher=small(1), progress=False)
    teacher = small(1)
    interrupt(teacher, 10)
    with pytest.raises(KeyboardInterrupt):
        fit(small(3), parse(text), data, QUICK, teacher=teacher, folder=tmp_path, progress=False)
    resumed = Student(small(99), parse(text))
    fit_together([resumed], data, QUICK, teacher=small(1), folder=tmp_path, progress=False)
    assert same_weights(resumed.network, never_stopped.network)
    state, expected = resumed.objective.state_dict(), never_stopped.objective.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value
        assert same, name


@pytest.mark.parametrize("text", LEARNING.values(), ids=LEARNING)
def test_parts_of_a_batch(text):
    recipe = Recipe(epochs=1, batch_size=16, accumulation_steps=4, precision="float32")
    log = fit(small(2), parse(text), stripes(), recipe, teacher=small(1), progress=False)
    assert all(value == value for value in log[0].values())


def test_semckd_takes_a_shorter_batch_than_the_first():
    student, teacher = small(1).eval(), small(2).eval()
    images = torch.randn(8, 3, 32, 32)
    term = semckd()
    with torch.no_grad():
        term.build(score(student, images), score(teacher, images), images=8)
        short = batch_of(images[:3], torch.arange(3))
        value = term.eval()(score(student, short.images), score(teacher, short.images), short)
    assert value.isfinite()


def test_crd_draws_other_images_and_new_ones_at_every_step():
    term = crd(negatives=50)
    term.seed, term.calls = 3, 0
    term.student_memory = torch.zeros(200, 4)
    index = torch.arange(0, 200, 10)
    first, second = term._draw(index), term._draw(index)
    for drawn in (first, second):
        assert drawn.shape == (20, 50)
        assert (drawn != index[:, None]).all()
        assert drawn.min() >= 0
        assert drawn.max() < 200
    assert not torch.equal(first, second)
    term.calls = 0
    assert torch.equal(term._draw(index), first)


def test_crd_moves_the_memory_of_the_images_of_the_batch_alone():
    student, teacher = small(1), small(2).eval()
    batch = batch_of(torch.randn(4, 3, 32, 32), torch.arange(4))
    term = crd(momentum=0.25)
    with torch.no_grad():
        scores = score(student, batch.images), score(teacher, batch.images)
        term.build(*scores, images=9)
        before = term.student_memory.clone()
        term(*scores, batch)
        embedded = torch.nn.functional.normalize(term.embed["student"](scores[0].features.mean((2, 3))))
    mixed = torch.nn.functional.normalize(0.25 * before[:4] + 0.75 * embedded)
    torch.testing.assert_close(term.student_memory[:4], mixed)
    assert torch.equal(term.student_memory[4:], before[4:])


def test_only_a_memory_is_refused_by_several_processes(monkeypatch):
    monkeypatch.setattr("icd.trainer.loop.world_size", lambda: 2)
    with pytest.raises(RunError, match="the term crd remembers images, and 2 processes cannot share"):
        fit(small(2), METHODS["CRD"](), stripes(), QUICK, teacher=small(1), progress=False)
    for method in ("FitNet", "SemCKD"):
        objective = METHODS[method]()
        images = torch.zeros(4, 3, 32, 32)
        objective.build(score(small(1), images), score(small(2), images), images=9)
        assert objective.memory is None


def test_a_stage_that_a_network_lacks_is_named():
    images = torch.zeros(2, 3, 32, 32)
    pair = score(small(1), images), score(small(2), images)
    with pytest.raises(ValueError, match="fitnet compares stage 9, and a network has 3, from 0"):
        (cross_entropy() + fitnet(stage=9)).build(*pair, images=2)
