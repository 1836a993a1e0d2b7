"""What matters on a GPU, shown without one: no waiting for the device, and no tensor on the wrong one."""

import runpy
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, batch_of, stripes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from icd import score
from icd.networks import SmallResNet
from icd.objective import METHODS
from icd.trainer import Recipe, Student
from icd.trainer.distributed import make_accelerator

CPU = torch.device("cpu")
# Operators that make the host wait for a device: a number or a shape is needed before going on.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::is_nonzero",
    "aten::equal",
    "aten::_unique2",
    "aten::bincount",
    "aten::repeat_interleave.Tensor",
}


class NoWaiting(TorchDispatchMode):
    """Counts operators, and refuses those that wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        name = function._schema.name
        assert name not in WAITING, f"{name} waits for the device"
        masks = args[1] if name == "aten::index" else ()
        assert not any(m is not None and m.dtype == torch.bool for m in masks), "indexing by a mask waits"
        return function(*args, **(kwargs or {}))


def test_the_guard_sees_what_waits():
    values = torch.arange(4.0)
    for waiting in (lambda: values.sum().item(), lambda: values[values > 1], lambda: values.nonzero()):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waiting()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_training_never_waits_for_the_device(method):
    torch.manual_seed(0)
    learner = Student(SmallResNet(5, widths=(8, 12, 16), blocks=(1, 1, 1)), METHODS[method](), method)
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        told = score(SmallResNet(5, widths=(8, 12, 16), blocks=(1, 1, 1)), images)
    learner.build(batch_of(images, target), told, 4, seed=0)
    learner.start(Recipe(), make_accelerator("float32"))
    with NoWaiting():
        learner.step(batch_of(images, target), told, 1, 0.1)
    assert len(learner.pending) == 1


def test_the_terms_take_few_operators_and_wait_for_none():
    speed = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "speed.py"))
    counts = {name: speed["count"](run) for name, run in speed["objective"]("channels last").items()}
    ours, waiting = counts["SD-KD + iCD"]
    assert waiting == 0
    assert ours < counts["written plainly"][0] * 0.6
    assert ours < counts["region by region"][0] / 3
    assert counts["written plainly"][1] > 0


class NoBlockingCopy(TorchDispatchMode):
    """Refuses copies to a device for which the host waits until all that the device has to do is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._schema.name == "aten::_to_copy" and torch.device(kwargs.get("device") or "cpu") != CPU:
            assert kwargs.get("non_blocking"), "this copy waits for the device"
            self.copies += 1
        return function(*args, **kwargs)

    copies = 0


@pytest.mark.parametrize("held", ["cpu", "cuda"])
def test_a_batch_is_cut_and_sent_without_waiting_for_the_device(held, monkeypatch):
    def constant(like, *_):  # made once on a real device, and for every batch on this one
        return like.new_zeros(like.shape[-1]), like.new_ones(like.shape[-1])

    monkeypatch.setattr("icd.datasets.cache._shift_and_scale", constant)
    with FakeTensorMode(allow_non_fake_inputs=True):
        data = replace(stripes(16), size=12)
        data = data.to(held) if held == "cuda" else data
        with NoBlockingCopy() as guard:
            images, target, index = data.training_batch(0, 0, 0, 8, torch.device("cuda"))
    assert images.device.type == target.device.type == index.device.type == "cuda"
    assert guard.copies > 0


@pytest.fixture
def half_by_default():
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_networks_on_a_gpu_give_a_loss_in_float32_there(method, half_by_default):
    with FakeTensorMode(), torch.device("cuda"):
        student, teacher = SmallResNet(5), SmallResNet(5, widths=(8, 16, 24, 32))
        images, target = torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.int64)
        said, told = score(student, images), score(teacher, images)
        assert said.logits.dtype == torch.float16
        objective, batch = METHODS[method](), batch_of(images, target)
        objective.build(said, told, images=4)
        loss, parts = objective(said, told, batch)
    assert loss.device.type == parts.device.type == "cuda"
    assert loss.dtype == torch.float32
    assert loss.shape == ()
