"""The trainer against the published recipe, written out here in plain PyTorch with no line of `icd` in it.

The network is small, smooth, in float64 and without batch statistics, so that 12 steps agree to rounding on
every processor. The cross-entropy term computes in float32, which is the rounding that remains.
"""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Smooth, interrupt, stripes
from torch import nn

from icd.losses import dkd_loss, icd_loss, kd_loss, scale_decoupled_loss
from icd.objective import METHODS, clustering, scale_decoupled, whole_image
from icd.scores import Batch, Scores
from icd.trainer import Recipe, fit

CLASSES = 4
# Four steps an epoch; 6 of the 70 images are left over.
RECIPE = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=0.08,
    schedule="multistep",
    milestones=(0.4, 0.7),
    body_rate=0.7,
    momentum=0.8,
    nesterov=True,
    weight_decay=0.02,
    max_grad_norm=0.6,
    seed=5,
    precision="float32",
    accumulation_steps=2,
)


# ---- the losses by hand: logits s (student) and t (teacher), (n, C); labels y (n,); one loss a row


def kl(t, s):
    return (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)


def ce(s, y):
    return -s.log_softmax(1)[torch.arange(len(y)), y].mean()


def kd(s, t, y):
    return 16 * kl(t / 4, s / 4)


def others(z, y):
    """The logits of all classes but the label, (n, C - 1)."""
    return z[F.one_hot(y, CLASSES) == 0].view(len(z), CLASSES - 1)


def dkd(beta):
    def loss(s, t, y):
        rows = torch.arange(len(y))
        p, q = (t / 4).softmax(1)[rows, y], (s / 4).softmax(1)[rows, y]
        tckd = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return 16 * (tckd + beta * kl(others(t, y) / 4, others(s, y) / 4))

    return loss


def nkd(gamma, T):
    def loss(s, t, y):
        rows = torch.arange(len(y))
        sure = t.softmax(1)[rows, y] * s.log_softmax(1)[rows, y]
        spread = ((others(t, y) / T).softmax(1) * (others(s, y) / T).log_softmax(1)).sum(1)
        return -sure - gamma * T**2 * spread

    return loss


def regions(network, features, m):
    return F.adaptive_avg_pool2d(features, m).flatten(2).mT @ network.head.weight.T + network.head.bias


def decoupled(base):
    """Every region of scales 1, 2 and 4: twice where region and whole image differ in being right."""

    def loss(s, t, y):
        s, t = (torch.cat([regions(*z, m) for m in (1, 2, 4)], 1) for z in (s, t))
        each = torch.stack([base(s[:, n], t[:, n], y) for n in range(21)], 1)
        right = t.argmax(2) == y[:, None]
        return (each * torch.where(right == right[:, :1], 1, 2)).mean()

    return loss


def icd(s, t, y):
    total = 0
    for m, weight in ((1, 1 / 6), (2, 2 / 6), (4, 3 / 6)):
        (gs, gt) = (z @ z.mT for z in (F.normalize(regions(*z, m), dim=2) for z in (s, t)))
        total += weight * kl(gt / 2, gs / 2).sum(1).mean()
    return total


def image(base):
    return lambda s, t, y: base(*(regions(*z, 1)[:, 0] for z in (s, t)), y).mean()


# What each method adds to how much cross-entropy: (weight, loss, whether it warms up over 20 epochs).
BY_HAND = {
    "alone": (1.0, []),
    "KD": (0.1, [(0.9, image(kd), False)]),
    "DKD": (1.0, [(1.0, image(dkd(8)), True)]),
    "NKD": (1.0, [(1.0, image(nkd(1.5, 1)), True)]),
    "SD-KD": (0.1, [(0.9, decoupled(kd), False)]),
    "SD-DKD": (1.0, [(1.0, decoupled(dkd(2)), True)]),
    "SD-NKD": (1.0, [(1.0, decoupled(nkd(2, 4)), True)]),
    "iCD-KD": (0.1, [(0.9, decoupled(kd), False), (2.0, icd, False)]),
    "iCD-DKD": (1.0, [(1.0, decoupled(dkd(2)), True), (2.0, icd, False)]),
    "iCD-NKD": (1.0, [(1.0, decoupled(nkd(2, 4)), True), (2.0, icd, False)]),
}


def train_by_hand(method: str, recipe: Recipe, data) -> Smooth:
    """Train a student by the published recipe, in plain PyTorch."""
    student, teacher = Smooth(1), Smooth(2)
    weights = list(student.parameters())
    velocity = [torch.zeros_like(weight) for weight in weights]
    steps = len(data) // recipe.batch_size  # the last short batch is dropped
    for epoch in range(recipe.epochs):
        for step in range(steps):
            images, labels, *_ = data.training_batch(recipe.seed, epoch, step, recipe.batch_size)
            gradient = [torch.zeros_like(weight) for weight in weights]
            for x, y in zip(
                images.chunk(recipe.accumulation_steps), labels.chunk(recipe.accumulation_steps), strict=True
            ):
                s, t = ((z, z.maps(x)[0]) for z in (student, teacher))
                share, terms = BY_HAND[method]
                loss = share * ce(regions(*s, 1)[:, 0], y)
                for weight, term, warm in terms:
                    loss = loss + (min((epoch + 1) / 20, 1) if warm else 1) * weight * term(
                        s, (t[0], t[1].detach()), y
                    )
                parts = torch.autograd.grad(loss / recipe.accumulation_steps, weights)
                gradient = [sum(pair) for pair in zip(gradient, parts, strict=True)]
            length = math.sqrt(sum(float(part.square().sum()) for part in gradient))
            gradient = [part * min(1, recipe.max_grad_norm / length) for part in gradient]
            done = (epoch * steps + step) / (recipe.epochs * steps)
            if recipe.schedule == "multistep":
                rate = recipe.learning_rate / 10 ** len([m for m in recipe.milestones if done >= m])
            elif done < 0.2:  # a line from 4 %, then half a cosine
                rate = recipe.learning_rate * np.interp(done, [0, 0.2], [0.04, 1])
            else:
                rate = recipe.learning_rate * (1 + math.cos((done - 0.2) / 0.8 * math.pi)) / 2
            with torch.no_grad():
                # conv.weight, conv.bias, head.weight, head.bias
                rates = [rate * recipe.body_rate] * 2 + [rate] * 2
                for weight, part, v, own in zip(weights, gradient, velocity, rates, strict=True):
                    part = part + recipe.weight_decay * weight
                    v.mul_(recipe.momentum).add_(part)
                    weight -= own * (part + recipe.momentum * v if recipe.nesterov else v)
    return student


# Of the test of one setting: another value that is not the default.
CHANGED = {
    "epochs": 2,
    "batch_size": 20,
    "learning_rate": 0.05,
    "schedule": "one-cycle",
    "milestones": (0.2, 0.9),
    "body_rate": 1.5,
    "momentum": 0.6,
    "nesterov": False,
    "weight_decay": 0.05,
    "max_grad_norm": 0.4,
    "seed": 6,
    "accumulation_steps": 4,
}


@pytest.fixture(scope="module")
def data():
    return stripes(70)


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two networks' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("method", BY_HAND)
def test_fit_makes_the_weights_that_the_published_recipe_makes(method, data):
    student = Smooth(1)
    fit(student, METHODS[method](), data, RECIPE, teacher=Smooth(2), progress=False)
    by_hand = train_by_hand(method, RECIPE, data)
    assert distance(student, by_hand) < 1e-6
    assert distance(by_hand, Smooth(1)) > 0.05
    assert not student.training


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_of_the_recipe_acts_as_the_published_recipe_has_it(name, data):
    recipe = replace(RECIPE, **{name: CHANGED[name]})
    student = Smooth(1)
    fit(student, METHODS["iCD-KD"](), data, recipe, teacher=Smooth(2), progress=False)
    by_hand = train_by_hand("iCD-KD", recipe, data)
    assert distance(student, by_hand) < 1e-6
    if name != "accumulation_steps":  # which without batch statistics changes no weight
        assert distance(by_hand, train_by_hand("iCD-KD", RECIPE, data)) > 1e-3


def test_every_setting_of_the_recipe_is_in_the_test_above():
    execution = {"sync_batch_norm", "precision", "compile"}
    assert {field.name for field in fields(Recipe)} == CHANGED.keys() | execution
    same = [name for name in CHANGED if getattr(RECIPE, name) == getattr(Recipe(), name)]
    assert same == ["schedule"]  # milestones act in this one alone


def test_accumulation_sends_a_part_of_the_batch_through_the_networks_at_a_time(data):
    seen = {"student": [], "teacher": []}
    student, teacher = Smooth(1), Smooth(2)
    for name, network in (("student", student), ("teacher", teacher)):
        network.conv.register_forward_hook(lambda _, given, out, name=name: seen[name].append(len(given[0])))
    fit(student, METHODS["KD"](), data, replace(RECIPE, epochs=1), teacher=teacher, progress=False)
    assert seen["student"] == [8, 8] * 4
    assert set(seen["teacher"]) <= {8, 16}


def test_the_arguments_of_a_term_reach_its_loss(data):
    batch = Batch(*data.training_batch(0, 0, 0, 16))
    s, t = ((network, network.maps(batch.images)[0]) for network in (Smooth(1), Smooth(2)))
    scores = [Scores(regions(*z, 1)[:, 0], z[1], z[0].head) for z in (s, t)]
    ours, theirs = (torch.cat([regions(*z, m) for m in (1, 2, 4)], 1) for z in (s, t))
    whole = whole_image(dkd_loss, alpha=0.5, beta=3, temperature=2)
    expected = dkd_loss(ours[:, 0], theirs[:, 0], batch.target, alpha=0.5, beta=3, temperature=2)
    torch.testing.assert_close(whole(*scores, batch), expected)
    parts = scale_decoupled(kd_loss, temperature=2, complementary=3)
    expected = scale_decoupled_loss(kd_loss, ours, theirs, batch.target, temperature=2, complementary=3)
    torch.testing.assert_close(parts(*scores, batch), expected)
    sharp = clustering(temperature=0.5, centre=True)
    torch.testing.assert_close(sharp(*scores, batch), icd_loss(ours, theirs, temperature=0.5, centre=True))


def test_a_resumed_run_logs_what_one_without_a_stop_logs(data, tmp_path):
    def run(teacher, folder=None):
        log = fit(Smooth(1), METHODS["KD"](), data, RECIPE, teacher=teacher, folder=folder, progress=False)
        return [{name: row[name] for name in row if name not in ("seconds", "peak_mb")} for row in log]

    teacher = Smooth(2)
    interrupt(teacher, 7)  # in the middle of the second epoch
    with pytest.raises(KeyboardInterrupt):
        run(teacher, tmp_path)
    assert run(Smooth(2), tmp_path) == run(Smooth(2))


def test_a_batch_is_random_crops_and_flips_of_different_images():
    large = stripes(40)
    data = replace(large, images=large.images[:, :10, :10].contiguous(), size=8)
    stored = normalised(data.images)
    crops = stored.unfold(1, 8, 1).unfold(2, 8, 1)  # (images, top, left, channels, y, x)
    views = torch.stack([crops, crops.flip(-1)], 3).flatten(1, 3)  # (images, 18, channels, y, x)
    places, orders = [], []
    for epoch in range(4):
        order = []
        for step in range(data.steps(16)):
            images, labels, index = data.training_batch(5, epoch, step, 16)
            apart = (
                (views[index] - images[:, None]).abs().amax((2, 3, 4))
            )  # from each view of the image named
            assert apart.amin(1).max() < 1e-5
            assert torch.equal(labels, data.labels[index])
            places += apart.argmin(1).tolist()
            order += index.tolist()
        assert len(set(order)) == len(order) == 32
        orders.append(order)
    assert len(set(map(tuple, orders))) == 4
    assert sorted(orders[0]) not in orders
    counts = np.bincount(places, minlength=18)
    assert counts.min() > 0
    assert counts.max() < 20  # 7 expected
    assert 40 < sum(place % 2 for place in places) < 88  # flipped; 64 expected


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 as the published runs show them to a network: ImageNet's mean and deviation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean) / std
