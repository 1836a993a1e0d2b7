"""A loss that learns and remembers, defined here alone: the trainer needs to know nothing of it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import QUICK, batch_of, interrupt, same_weights, small, stripes
from torch import nn

from icd import score
from icd.errors import RunError
from icd.objective import Term, cross_entropy, parse
from icd.trainer import Recipe, Student, fit, fit_together
from icd.trainer.memory import step_bytes


class Recall(Term):
    """Project the student's features onto what the teacher's were when the image was last seen."""

    def __init__(self, momentum=0.5):
        super().__init__("recall", f"recall(momentum={momentum})")
        self.momentum = momentum

    def build(self, student, teacher, images):
        width = teacher.features.shape[1]
        self.project = nn.Linear(student.features.shape[1], width)
        self.register_buffer("memory", torch.zeros(images, width))

    def forward(self, student, teacher, batch):
        seen = teacher.features.detach().float().mean((2, 3))
        memory = self.memory[batch.index].lerp(seen, 1 - self.momentum)
        self.memory.index_copy_(0, batch.index, memory)
        return F.mse_loss(self.project(student.features.float().mean((2, 3))), memory)


def objective():
    return cross_entropy() + 0.5 * Recall()


def test_its_parameters_learn_and_its_buffers_fill():
    one, data = Student(small(2), objective()), stripes()
    fit_together([one], data, QUICK, teacher=small(1), progress=False)
    term = one.objective.terms[1]
    assert term.memory.shape == (96, 16)
    assert (term.memory.abs().sum(1) > 0).all()  # every image was seen
    assert str(one.objective) == "cross_entropy() + 0.5 * recall(momentum=0.5)"
    fresh = Student(small(2), objective())
    fit_together([fresh], data, replace(QUICK, epochs=1), teacher=small(1), progress=False)
    assert not torch.equal(term.project.weight, fresh.objective.terms[1].project.weight)
    assert one.history[-1]["recall"] < fresh.history[0]["recall"]


def test_the_momentum_and_weight_decay_of_sgd_apply_to_them():
    one = Student(small(2), objective())
    fit_together([one], stripes(), QUICK, teacher=small(1), progress=False)
    project = one.objective.terms[1].project.weight
    assert one.optimizer.state[project]["momentum_buffer"].abs().sum() > 0
    groups = one.optimizer.param_groups
    assert any(weight is project for group in groups for weight in group["params"])


def test_a_run_resumes_to_the_same_bits(tmp_path):
    data, never_stopped = stripes(), Student(small(3), objective())
    fit_together([never_stopped], data, QUICK, teacher=small(1), progress=False)
    teacher = small(1)
    interrupt(teacher, 10)  # the first call builds the objective
    with pytest.raises(KeyboardInterrupt):
        fit(small(3), objective(), data, QUICK, teacher=teacher, folder=tmp_path, progress=False)
    resumed = Student(small(99), objective())
    fit_together([resumed], data, QUICK, teacher=small(1), folder=tmp_path, progress=False)
    assert same_weights(resumed.network, never_stopped.network)
    assert same_weights(resumed.objective, never_stopped.objective)


def test_a_damaged_memory_is_a_damaged_checkpoint(tmp_path):
    data = stripes()
    fit(small(3), objective(), data, QUICK, teacher=small(1), folder=tmp_path, progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["students"]["student"]["objective"]["terms.1.memory"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="is not a checkpoint of icd, or it is damaged"):
        fit(small(3), objective(), data, QUICK, teacher=small(1), folder=tmp_path, progress=False)


def test_students_side_by_side_are_what_they_are_alone():
    data = stripes()
    together = [Student(small(5), objective(), name) for name in ("first", "second")]
    together.insert(1, Student(small(6), parse("iCD-KD"), "between"))
    fit_together(together, data, QUICK, teacher=small(1), progress=False)
    single = Student(small(5), objective())
    fit_together([single], data, QUICK, teacher=small(1), progress=False)
    for student in (together[0], together[2]):
        assert same_weights(student.network, single.network)
        assert same_weights(student.objective, single.objective)


def test_one_objective_cannot_serve_two_students():
    shared = objective()
    pair = [Student(small(5), shared, name) for name in ("first", "second")]
    with pytest.raises(RunError, match="two students share an objective that learns or remembers"):
        fit_together(pair, stripes(), QUICK, teacher=small(1), progress=False)


def test_building_it_changes_neither_the_network_nor_the_random_state():
    network, teacher = small(5), small(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = batch_of(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)
    random = torch.get_rng_state()
    student = Student(network, objective())
    student.build(batch, score(teacher.eval(), batch.images), 96, seed=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    first = student.objective.terms[1].project.weight.clone()
    torch.manual_seed(123)
    student.build(batch, score(teacher.eval(), batch.images), 96, seed=0)
    assert torch.equal(student.objective.terms[1].project.weight, first)  # a function of the seed alone
    student.build(batch, score(teacher.eval(), batch.images), 96, seed=1)
    assert not torch.equal(student.objective.terms[1].project.weight, first)


def test_gradient_accumulation_passes_each_part_its_numbers():
    class Record(Recall):
        def forward(self, student, teacher, batch):
            seen.append(batch.index.tolist())
            assert len(batch.images) == len(batch.target) == len(batch.index) == len(student.logits)
            return super().forward(student, teacher, batch)

    seen: list[list[int]] = []
    recipe = Recipe(epochs=1, batch_size=16, accumulation_steps=4, precision="float32")
    fit(small(2), cross_entropy() + Record(), stripes(), recipe, teacher=small(1), progress=False)
    assert {len(part) for part in seen} == {4}
    assert sorted(i for part in seen for i in part) == list(range(96))  # an epoch, each image once


def test_the_saved_student_holds_none_of_it():
    network = small(2)
    fit(network, objective(), stripes(), QUICK, teacher=small(1), progress=False)
    assert set(network.state_dict()) == set(small(2).state_dict())


def test_the_memory_estimate_counts_it():
    def estimate(terms):
        return step_bytes([(small(2), terms)], small(1), images=8, size=32, classes=4, precision="float32")

    class Wide(Recall):
        def build(self, student, teacher, images):
            super().build(student, teacher, images)
            self.register_buffer("table", torch.zeros(1000, 1000))

    assert estimate(cross_entropy() + Wide()) - estimate(objective()) == 4_000_000
