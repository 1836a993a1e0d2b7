"""The estimates of time and memory, and the advice when memory is short."""

import pytest
import torch

from icd.errors import RunError
from icd.networks import network
from icd.objective import METHODS
from icd.trainer.memory import describe_memory, explain_out_of_memory, step_bytes, time_left


def of(teacher, student, images=8, precision="float32", accumulation_steps=1, students=1, method="iCD-KD"):
    pairs = [(network(student, 20, 64), METHODS[method]()) for _ in range(students)]
    return step_bytes(
        pairs,
        teacher and network(teacher, 20, 64),
        images=images,
        size=64,
        classes=20,
        precision=precision,
        accumulation_steps=accumulation_steps,
    )


@pytest.mark.thorough
def test_memory_grows_with_images_students_and_precision():
    plain = of("resnet18-16", "resnet10-16", images=32)
    batch = of("resnet18-16", "resnet10-16", images=64) - plain
    assert 0.8 * plain < batch < 1.2 * plain  # most of it is activations
    assert 0.45 * plain < of("resnet18-16", "resnet10-16", images=32, precision="fp16") < 0.7 * plain
    assert of("resnet18-16", "resnet10-16", images=32, accumulation_steps=4) < 0.75 * plain
    assert plain < of("resnet18-16", "resnet10-16", images=32, students=2) < 1.5 * plain
    weights = 4 * sum(p.numel() for p in network("resnet18-48", 20, 64).parameters())
    assert of(None, "resnet18-48", images=1, method="alone") > 3 * weights  # with gradients and momenta


def test_the_estimate_leaves_the_networks_alone():
    student = network("resnet10-8", 5, 32)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    step_bytes([(student, METHODS["alone"]())], None, images=2, size=32, classes=5, precision="float32")
    assert all(p.grad is None and p.device.type == "cpu" for p in student.parameters())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_the_sentences():
    assert time_left(93, 239) == "an epoch takes 93 s, the other 239 about 6 h 10 min"
    assert time_left(2.5, 20) == "an epoch takes 2.5 s, the other 20 about 1 min"
    enough = describe_memory(5 * 10**9, 14 * 10**9, 15 * 10**9)
    assert enough == "a step takes about 5.0 of the GPU's 15.0 GB; 14.0 are free"
    assert "That may not fit. Train in fp16" in describe_memory(13 * 10**9, 14 * 10**9, 15 * 10**9)


def test_a_full_gpu_says_what_to_do():
    with pytest.raises(RunError, match=r"memory is full\. Train in fp16 or bf16"), explain_out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")
