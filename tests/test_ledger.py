"""A reader's runs beside the published figures: measured once, and only what is the same run counts."""

from dataclasses import replace

import pytest
from test_training import QUICK, small, stripes

from icd.checkpoint import RunError
from icd.compare import read_results, write_results
from icd.evidence import accuracy
from icd.ledger import TEST_IMAGES, as_markdown, beside, enter
from icd.objective import METHODS
from icd.recipes import published_run
from icd.training import Learner, fit_together

NAME = "cub200-resnet32x4-shufflenetv1-icd-kd"


def short(**changes):
    """The published run, cut short."""
    return replace(published_run(NAME), recipe=replace(QUICK, **changes))


def learned():
    learner = Learner(small(), METHODS["iCD-KD"], "student")
    fit_together([learner], stripes(), QUICK, teacher=small(1), progress=False)
    return learner


def test_a_run_is_measured_once(tmp_path, monkeypatch):
    learner, test = learned(), stripes(seed=1)
    row = enter(short(), learner, test, tmp_path)
    assert row.accuracy == accuracy(learner.network, test)
    assert (row.method, row.seed, row.images, row.epochs) == (NAME, 0, 96, 3)
    assert row.command == f"python -m icd distil --recipe {NAME} --recipe.seed 0"
    assert read_results(tmp_path / "results.csv") == [row]
    monkeypatch.setattr("icd.compare.accuracy", lambda *_: pytest.fail("the test images were read again"))
    assert enter(short(), learner, test, tmp_path) == row


def test_what_has_not_ended_or_is_another_run_is_refused(tmp_path):
    learner, test = learned(), stripes(seed=1)
    with pytest.raises(RunError, match="has gone through 3 of 240 epochs: let it end, then measure it"):
        enter(published_run(NAME), learner, test, tmp_path)
    enter(short(), learner, test, tmp_path)
    fewer = stripes(count=48, seed=1)
    with pytest.raises(RunError, match=f"holds another run of {NAME} with seed 0: 3 epochs, 96 images"):
        enter(short(), learner, fewer, tmp_path)
    assert enter(short(seed=1), learner, fewer, tmp_path).seed == 1


def test_the_published_table_waits_for_the_very_run(tmp_path):
    lines = beside(tmp_path, "cub200")
    assert len(lines) == 15
    assert not any(line.measured for line in lines)
    assert as_markdown(lines).count("not measured yet") == 15
    assert "| ResNet32x4 → ShuffleNetV1 | SD-KD | 65.46 | not measured yet |" in as_markdown(lines)
    odd = "the log gives the same 65.878/86.918 for plain KD and for iCD-NKD"
    assert "| iCD-KD | 65.88 <sup>1)</sup> | not measured yet |" in as_markdown(lines)
    assert f"\n1) {odd}.\n" in as_markdown(lines)

    row = enter(short(), learned(), stripes(seed=1), tmp_path)
    assert not any(line.measured for line in beside(tmp_path, "cub200"))  # 3 epochs are no 240
    run = published_run(NAME)
    true = replace(
        row, objective=str(run.objective), epochs=240, images=TEST_IMAGES["cub200"], accuracy=0.625
    )
    write_results(tmp_path / "results.csv", [replace(true, images=300)])
    assert not any(line.measured for line in beside(tmp_path, "cub200"))
    write_results(tmp_path / "results.csv", [true, replace(true, seed=1, accuracy=0.64)])
    (line,) = [line for line in beside(tmp_path, "cub200") if line.measured]
    assert (line.run.name, line.measured) == (NAME, (62.5, 64.0))
    assert "| iCD-KD | 65.88 <sup>1)</sup> | 63.25 (2 seeds) |" in as_markdown([line])


def test_other_tables():
    assert len(beside("nowhere", "cifar100")) == 30
    assert len(beside("nowhere", "cub200", ("teacher", "student"))) == 6
    ablations = beside("nowhere", "cub200", ("iCD-KD",), "ablations")
    assert "iCD-KD scales 1 |" in as_markdown(ablations)
