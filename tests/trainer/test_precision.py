"""Half precisions on a CPU: 200 steps beside float32, with a teacher whose logits reach from -60 to 60."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import stripes

from icd.networks import SmallResNet
from icd.objective import METHODS, Objective, Term, cross_entropy
from icd.scores import Batch, Scoring, score
from icd.trainer import Recipe, Student, fit
from icd.trainer.distributed import make_accelerator

STEPS, BATCH = 200, 8
CLUSTERING = ("iCD-KD", "iCD-DKD", "iCD-NKD")
# The largest distance of a curve from that of float32, as a share of it. Measured: bf16 .0091, fp16 .0037.
DISTANCE = {"bf16": 0.018, "fp16": 0.0075}
# Of the loss in fp16. From 2^16, where scaling begins by default, it comes down by two or three skipped
# steps in these 200, as it is meant to; the distance would then be of runs that differ by those steps.
SCALE = 2.0**12


def small(seed: int) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(4, widths=(8, 16), blocks=(1, 1))


def stretch(network: SmallResNet, images: torch.Tensor) -> SmallResNet:
    """The same network, its head so scaled and shifted that its logits reach from -60 to 60."""
    network.eval()
    with torch.no_grad():
        lowest, highest = network(images).aminmax()
        factor = 120 / (highest - lowest)
        network.head.weight.mul_(factor)
        network.head.bias.sub_((highest + lowest) / 2).mul_(factor)
        torch.testing.assert_close(torch.stack(network(images).aminmax()), torch.tensor([-60.0, 60.0]))
        assert score(network, images).local().abs().max() > 60
    return network


@pytest.fixture(scope="module")
def data():
    large = stripes(64)
    return replace(large, images=large.images[:, :20, :20].contiguous(), size=16)


@pytest.fixture(scope="module")
def teacher(data):
    recipe = Recipe(epochs=12, batch_size=BATCH, schedule="one-cycle", precision="float32")
    teacher = small(1)
    fit(teacher, METHODS["alone"](), data, recipe, progress=False)
    return stretch(teacher, data.training_batch(0, 0, 0, len(data))[0])


def accelerator_of(precision: str) -> Accelerator:
    """Accelerate with a precision, fp16 too, which it refuses to begin with on a CPU."""
    accelerator = make_accelerator("bf16" if precision == "fp16" else precision)
    if precision == "fp16":
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return accelerator


def curve(precision, method, data, teacher):
    """The loss of each step, averaged over ten, (STEPS - 9,)."""
    accelerator, recipe = accelerator_of(precision), Recipe(batch_size=BATCH, learning_rate=0.002)
    learner, telling, finite = Student(small(2), METHODS[method]()), Scoring(teacher), []
    learner.start(recipe, accelerator)
    for weight in learner.network.parameters():
        weight.register_hook(lambda gradient: finite.append(gradient.isfinite().all()))
    for step in range(STEPS):
        epoch, number = divmod(step, data.steps(BATCH))
        images, target, index = data.training_batch(0, epoch, number, BATCH)
        with torch.no_grad(), accelerator.autocast():
            told = telling(images)
        learner.step(Batch(images, target, index), told, epoch + 1, recipe.rate(step / STEPS))
        assert not learner.optimizer.step_was_skipped
    assert torch.stack(finite).all()
    losses = torch.stack(learner.pending)[:, :-1].sum(1)
    assert losses.isfinite().all()
    return np.convolve(losses, np.full(10, 0.1), "valid")


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_loss_scaling_skips_leave_no_mark(fused, data, teacher, monkeypatch):
    """PyTorch's fused SGD, which a GPU is given, leaves new momenta as memory had them where it skips."""
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *given, **named: sgd(*given, **named | {"fused": fused}))
    monkeypatch.setattr("test_precision.SCALE", 2.0**40)
    monkeypatch.setattr(torch, "empty_like", lambda like, **how: torch.full_like(like, 1e30, **how))
    accelerator, recipe = accelerator_of("fp16"), Recipe(batch_size=BATCH, learning_rate=0.002)
    learner = Student(small(2), METHODS["alone"]())
    learner.start(recipe, accelerator)
    weights = list(learner.network.parameters())
    before, skipped = [weight.clone() for weight in weights], -1
    images, target, index = data.training_batch(0, 0, 0, BATCH)
    while all(map(torch.equal, weights, before)):
        learner.step(Batch(images, target, index), None, 1, recipe.rate(0))
        skipped += 1
    assert skipped > 3
    for weight, was in zip(weights, before, strict=True):
        momentum = learner.optimizer.state[weight]["momentum_buffer"]
        torch.testing.assert_close(weight, was - 0.002 * momentum)
        assert momentum.abs().max() < 1e3


def test_what_a_network_says_in_half_precision_is_not_copied_to_float32(data):
    learner, seen = Student(small(2), METHODS["alone"]()), []

    def watching(student, teacher, batch):
        seen.extend([student.features, *student.stages])
        return student.logits.float().sum()

    learner.objective = Objective((Term("watching", "watching()", watching, needs_teacher=False),))
    learner.start(Recipe(batch_size=BATCH), make_accelerator("bf16"))
    learner.step(Batch(*data.training_batch(0, 0, 0, BATCH)), None, 1, 0.1)
    assert len(seen) > 1
    assert {said.dtype for said in seen} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("method", CLUSTERING)
def test_two_hundred_steps_in_half_precision_follow_float32(method, data, teacher):
    exact = curve("float32", method, data, teacher)
    for precision, distance in DISTANCE.items():
        apart = np.abs(curve(precision, method, data, teacher) / exact - 1)
        assert apart.max() < distance, precision


def test_students_side_by_side_share_the_scale_of_the_loss_and_no_skipped_step(data):
    accelerator, recipe = accelerator_of("fp16"), Recipe(batch_size=BATCH)
    wild, calm = (Student(small(seed), METHODS["alone"]()) for seed in (4, 5))
    wild.objective = Objective((1e7 * cross_entropy(),))
    images, target, index = data.training_batch(0, 0, 0, BATCH)
    for learner in (wild, calm):
        learner.start(recipe, accelerator)
    for scale, learner in ((SCALE / 2, wild), (SCALE / 2, calm), (SCALE / 4, wild)):
        before = [weight.clone() for weight in learner.network.parameters()]
        learner.step(Batch(images, target, index), None, 1, 0.01)
        skipped = learner.optimizer.step_was_skipped
        assert accelerator.scaler.get_scale() == scale
        assert skipped == (learner is wild)
        kept = [torch.equal(*pair) for pair in zip(before, learner.network.parameters(), strict=True)]
        assert all(kept) if skipped else not any(kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", CLUSTERING)
def test_large_logits_of_a_student_in_half_precision_give_finite_losses_and_gradients(
    method, dtype, data, teacher
):
    images, target, _ = data.training_batch(0, 0, 0, BATCH)
    student = stretch(small(3), images)
    with torch.autocast("cpu", dtype):
        said, told = score(student, images), score(teacher, images)
        loss, parts = METHODS[method](said, told, target, epoch=20)
    assert said.logits.dtype == told.logits.dtype == dtype
    assert loss.dtype == torch.float32
    assert parts.isfinite().all()
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in student.parameters())
