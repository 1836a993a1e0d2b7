"""Half precisions on a CPU, with a teacher whose logits reach from -60 to 60.

Runs drift apart, by how much depends on how a processor rounds. So single steps are compared, from the same
weights, by ten students.
"""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from helpers import stripes

from icd.networks import SmallResNet
from icd.objective import METHODS, Objective, Term, cross_entropy
from icd.scores import Batch, Scoring, score
from icd.trainer import Recipe, Student, fit
from icd.trainer.checkpoint import Checkpoint
from icd.trainer.distributed import make_accelerator
from icd.trainer.state import restore, run_state

pytestmark = pytest.mark.thorough

BATCH, STUDENTS = 8, 10
CLUSTERING = ("iCD-KD", "iCD-DKD", "iCD-NKD")
# Medians of the distance from float32, as a share: of a term, and of the change of the weights. Measured with
# three sets of instructions: bf16 .0011 and .074, fp16 .0002 and .026.
DISTANCE = {"bf16": (0.005, 0.25), "fp16": (0.001, 0.1)}
# Of the loss in fp16. From 2^16, the default, it would come down by two or three skipped steps.
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


def begun(precision, seed, method="iCD-KD"):
    """A student about to make its first step."""
    student = Student(small(seed), METHODS[method]())
    student.start(Recipe(batch_size=BATCH, learning_rate=0.002), accelerator_of(precision))
    return student


def make_step(student, data, teacher, step):
    """Make one step, and assert that every gradient is finite and none is skipped."""
    finite = []
    hooks = [
        weight.register_hook(lambda gradient: finite.append(gradient.isfinite().all()))
        for weight in student.network.parameters()
    ]
    batch = Batch(*data.training_batch(0, *divmod(step, data.steps(BATCH)), BATCH))
    with torch.no_grad(), student.backend.autocast():
        scores = Scoring(teacher)(batch.images)
    student.step(batch, scores, 1 + step // data.steps(BATCH), 0.002)
    for hook in hooks:
        hook.remove()
    assert torch.stack(finite).all()
    assert not student.optimizer.step_was_skipped


def flat(network):
    return torch.cat([weight.detach().flatten().clone() for weight in network.parameters()])


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


@pytest.mark.parametrize("precision", DISTANCE)
def test_a_step_in_half_precision_is_near_that_of_float32(precision, data, teacher):
    terms, steps = [], []
    for seed in range(STUDENTS):
        both = []
        for kind in ("float32", precision):
            student = begun(kind, seed)
            before = flat(student.network)
            make_step(student, data, teacher, seed)
            both.append((student.pending[0][:-1], flat(student.network) - before))
        (exact, step), (values, other) = both
        terms.append((values / exact - 1).abs())
        steps.append((other - step).norm() / step.norm())
    of_terms, of_steps = DISTANCE[precision]
    assert torch.stack(terms).median(0).values.max() < of_terms
    assert torch.stack(steps).median() < of_steps


@pytest.mark.parametrize("precision", DISTANCE)
def test_sixty_steps_in_half_precision_stay_finite_and_learn(precision, data, teacher):
    student = begun(precision, 2)
    for step in range(60):
        make_step(student, data, teacher, step)
    losses = torch.stack(student.pending)[:, :-1].sum(1)
    assert losses.isfinite().all()
    assert losses[-8:].mean() < losses[:8].mean()


def test_a_checkpoint_keeps_the_loss_scale_and_the_random_state():
    one, other = begun("fp16", 1), begun("fp16", 2)
    scalers = one.backend.scaler, other.backend.scaler
    scalers[0].scale(torch.ones(1))  # which makes the scale
    scalers[0].update(8.0)
    state = run_state([one], one.backend)
    drawn = torch.rand(3)
    saved = {**state, "epoch": 1, "step": 2, "seconds": 3.0}
    assert restore([other], saved, None, other.backend, Checkpoint(None, True, 60.0)) == (1, 2)
    scalers[1].scale(torch.ones(1))
    assert [scaler.get_scale() for scaler in scalers] == [8.0, 8.0]
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(flat(one.network), flat(other.network))


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
    batch = Batch(*data.training_batch(0, 0, 0, BATCH))
    student = stretch(small(3), batch.images)
    with torch.autocast("cpu", dtype):
        said, told = score(student, batch.images), score(teacher, batch.images)
        loss, parts = METHODS[method]()(said, told, batch, epoch=20)
    assert said.logits.dtype == told.logits.dtype == dtype
    assert loss.dtype == torch.float32
    assert parts.isfinite().all()
    loss.backward()
    assert all(weight.grad.isfinite().all() for weight in student.parameters())
