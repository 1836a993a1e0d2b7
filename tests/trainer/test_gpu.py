"""What only a GPU can show; `make gpu` makes the same checks where pytest is not installed."""

import runpy

import pytest
import torch
from helpers import ROOT

GPU = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "gpu.py"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
@pytest.mark.parametrize("check", GPU["CHECKS"], ids=lambda check: check.__name__)
def test_on_a_gpu(check):
    check(GPU["plan_for"](torch.device("cuda"), tiny=True))


@pytest.mark.slow
@pytest.mark.parametrize("check", GPU["CHECKS"], ids=lambda check: check.__name__)
def test_the_same_checks_on_a_cpu(check):
    check(GPU["plan_for"](torch.device("cpu"), tiny=True))


@pytest.mark.slow
def test_a_measured_row_has_every_column():
    plan = GPU["plan_for"](torch.device("cpu"), tiny=True)
    row = GPU["measure"](plan, GPU["PAIRS"][6], "iCD-KD", "float32")
    assert row["step_ms"] > row["teacher_ms"] > 0
    assert row["waits"] == 0
    assert row["estimate_gb"] > 0
    assert row["hours"] == pytest.approx(row["step_ms"] / 1000 * (50_000 // 4) * 240 / 3600, rel=0.01)
