"""A reader's runs beside the published figures: measured once, and only what is the same run counts."""

import shlex
from dataclasses import replace

import pytest
from helpers import QUICK, small, stripes
from jsonargparse import auto_cli, capture_parser

from icd.cli.commands import COMMANDS
from icd.cli.main import _spell_out
from icd.datasets import DataSet
from icd.errors import RunError
from icd.experiments.compare import read_results, write_results
from icd.experiments.ledger import TEST_IMAGES, as_markdown, beside, command_of, enter
from icd.experiments.published import published_run
from icd.objective import METHODS
from icd.trainer import Student, fit_together
from icd.trainer.evaluate import accuracy
from icd.trainer.provenance import digest

DATA = DataSet("cub200", size=224)
NAME = "cub200-resnet32x4-shufflenetv1-icd-kd"


def short(**changes):
    """The published run, cut short."""
    return replace(published_run(NAME), recipe=replace(QUICK, **changes))


def learned(teacher=1, **changes):
    learner = Student(small(), METHODS["iCD-KD"](), "student")
    recipe = replace(QUICK, **changes)
    fit_together([learner], stripes(), recipe, teacher=small(teacher), progress=False)
    return learner


def test_a_run_is_measured_once(tmp_path, monkeypatch):
    learner, test = learned(), stripes(seed=1)
    row = enter(short(), learner, test, DATA, tmp_path)
    assert row.accuracy == accuracy(learner.network, test)
    assert (row.method, row.seed, row.images, row.epochs) == (NAME, 0, 96, 3)
    assert row.command == (
        f"python -m icd distil --recipe {NAME} --recipe.epochs 3 --recipe.batch_size 16 "
        "--recipe.learning_rate 0.05 --recipe.schedule one-cycle --recipe.precision float32 "
        f"# teacher={digest(small(1))}"
    )
    assert read_results(tmp_path / "results.csv") == [row]
    monkeypatch.setattr(
        "icd.experiments.compare.accuracy", lambda *_: pytest.fail("the test images were read again")
    )
    assert enter(short(), learner, test, DATA, tmp_path) == row


def test_what_has_not_ended_or_is_another_run_is_refused(tmp_path):
    learner, test = learned(), stripes(seed=1)
    with pytest.raises(RunError, match="has gone through 3 of 240 epochs: let it end, then measure it"):
        enter(published_run(NAME), learner, test, DATA, tmp_path)
    enter(short(), learner, test, DATA, tmp_path)
    fewer = stripes(count=48, seed=1)
    with pytest.raises(RunError, match=f"has another run of {NAME} with seed 0: 96 images, python"):
        enter(short(), learner, fewer, DATA, tmp_path)
    with pytest.raises(RunError, match="Give this one another folder, or take that row out"):
        enter(short(max_grad_norm=1.0), learner, test, DATA, tmp_path)
    assert enter(short(seed=1), learner, fewer, DATA, tmp_path).seed == 1
    other = replace(short(seed=2), objective=METHODS["SD-KD"]())
    with pytest.raises(RunError, match=r"and the student learned by 0\.1"):
        enter(other, learner, test, DATA, tmp_path)


def test_a_row_is_that_of_the_run_whatever_is_free(tmp_path, monkeypatch):
    learner, test = learned(precision="bf16"), stripes(seed=1)
    row = enter(short(precision="auto"), learner, test, DATA, tmp_path)
    assert " --recipe.precision bf16 # teacher=" in row.command
    monkeypatch.setattr(
        "icd.experiments.compare.accuracy", lambda *_: pytest.fail("the test images were read again")
    )
    for changes in ({"precision": "bf16"}, {"sync_batch_norm": True}, {"compile": True}):
        for data in (DATA, DataSet("birds", size=224)):
            assert enter(short(**changes), learner, test, data, tmp_path) == row
    assert enter(short(), learned(precision="float32"), test, DATA, tmp_path) == row
    for other in (short(accumulation_steps=2), replace(short(), network="vgg8")):
        with pytest.raises(RunError, match="has another run"):
            enter(other, learner, test, DATA, tmp_path)


def test_a_row_says_whose_teacher_it_was(tmp_path):
    test = stripes(seed=1)
    row = enter(short(), learned(), test, DATA, tmp_path)
    with pytest.raises(
        RunError, match=r"has another run of .* # teacher=[0-9a-f]{24}\. Give this one another"
    ):
        enter(short(), learned(teacher=2), test, DATA, tmp_path)
    silent = replace(row, command=row.command.split(" #")[0])  # as early rows were
    write_results(tmp_path / "results.csv", [silent])
    assert enter(short(), learned(), test, DATA, tmp_path) == silent
    whole = f"python -m icd distil --recipe {NAME} --recipe.precision fp16 # teacher=0123"
    for command, counts in ((whole, 1), (whole + " '", 0), (whole.replace("distil", "compare"), 0)):
        changed = replace(row, command=command, images=TEST_IMAGES["cub200"])
        write_results(tmp_path / "results.csv", [changed])
        assert sum(len(line.measured) for line in beside(tmp_path, "cub200")) == counts


def test_the_published_table_waits_for_the_very_run(tmp_path):
    lines = beside(tmp_path, "cub200")
    assert len(lines) == 15
    assert not any(line.measured for line in lines)
    assert as_markdown(lines).count("not measured yet") == 15
    assert "| ResNet32x4 → ShuffleNetV1 | SD-KD | 65.46 | not measured yet |" in as_markdown(lines)
    odd = "the log gives the same 65.878/86.918 for plain KD and for iCD-NKD"
    assert "| iCD-KD | 65.88 <sup>1)</sup> | not measured yet |" in as_markdown(lines)
    assert f"\n1) {odd}.\n" in as_markdown(lines)

    row = enter(short(), learned(), stripes(seed=1), DATA, tmp_path)
    assert not any(line.measured for line in beside(tmp_path, "cub200"))  # 3 epochs are no 240
    run = published_run(NAME)
    here = DataSet("birds", size=224)
    assert command_of(run, here) == f"python -m icd distil --recipe {NAME} --data.root birds"
    true = replace(row, command=command_of(run, here), images=TEST_IMAGES["cub200"], accuracy=0.625)
    for changed in (
        replace(true, images=300),
        replace(true, command=command_of(run, DataSet("cub200", size=112))),
        replace(
            true, command=command_of(replace(run, recipe=replace(run.recipe, accumulation_steps=2)), DATA)
        ),
        replace(true, command=command_of(replace(run, network="vgg8"), DATA)),
        replace(true, command=command_of(replace(run, objective=METHODS["KD"]()), DATA)),
        replace(true, command="python -m icd compare"),
    ):
        write_results(tmp_path / "results.csv", [changed])
        assert not any(line.measured for line in beside(tmp_path, "cub200"))
    second = replace(run, recipe=replace(run.recipe, seed=1, precision="fp16"))
    again = replace(true, seed=1, accuracy=0.64, command=command_of(second, DATA))
    write_results(tmp_path / "results.csv", [true, again])
    (line,) = [line for line in beside(tmp_path, "cub200") if line.measured]
    assert (line.run.name, line.measured) == (NAME, (62.5, 64.0))
    assert "| iCD-KD | 65.88 <sup>1)</sup> | 63.25 (2 seeds) |" in as_markdown([line])


def test_a_command_of_the_table_makes_the_run_again():
    run = published_run(NAME)
    changed = replace(run, recipe=replace(run.recipe, epochs=2, milestones=(0.5, 0.75), nesterov=True))
    command = command_of(changed, DataSet("birds", classes=3, size=128))
    given = shlex.split(f"{command} # teacher=0123", comments=True)[3:]
    parser = capture_parser(auto_cli, COMMANDS, prog="python -m icd", allow_abbrev=False)
    chosen = parser.instantiate(parser.parse_args(_spell_out(given)))["distil"]
    assert chosen.recipe == replace(changed.recipe, seed=0)
    assert chosen.data == DataSet("birds", classes=3, size=128)


def test_other_tables():
    with pytest.raises(ValueError, match=r'cub200_top1\.csv has no method "iCDKD": did you mean "iCD-KD"'):
        beside("nowhere", "cub200", ("iCDKD",))
    assert len(beside("nowhere", "cifar100")) == 30
    assert len(beside("nowhere", "cub200", ("teacher", "student"))) == 6
    ablations = beside("nowhere", "cub200", ("iCD-KD",), "ablations")
    assert "iCD-KD scales 1 |" in as_markdown(ablations)
