"""Your results beside the published figures: measured once, and only with the settings of the recipe."""

import shlex
from dataclasses import replace

import pytest
from helpers import QUICK, small, stripes

from icd.cli.execute import parse
from icd.datasets import DataSet
from icd.errors import RunError
from icd.experiments.compare import read_results, same_settings, write_results
from icd.experiments.published import (
    TEST_IMAGES,
    as_markdown,
    command_of,
    compare_with_published,
    published_run,
    record_result,
)
from icd.experiments.run import result_settings
from icd.objective import METHODS
from icd.trainer import Student, fit_together
from icd.trainer.evaluate import accuracy
from icd.trainer.provenance import digest

DATA = DataSet("cub200", size=224)
NAME = "cub200-resnet32x4-shufflenetv1-icd-kd"


def short(**changes):
    """The published run, cut short."""
    return replace(published_run(NAME), recipe=replace(QUICK, **changes))


def trained(teacher=1, **changes):
    student = Student(small(), METHODS["iCD-KD"]())
    recipe = replace(QUICK, **changes)
    fit_together([student], stripes(), recipe, teacher=small(teacher), progress=False)
    return student


@pytest.fixture(scope="module")
def student():
    return trained()


def test_a_run_is_measured_once(student, tmp_path, monkeypatch):
    test = stripes(seed=1)
    row = record_result(short(), student, test, DATA, tmp_path)
    assert row.accuracy == accuracy(student.network, test)
    assert (row.method, row.seed, row.images, row.epochs) == (NAME, 0, 96, 3)
    assert row.command == (
        f"icd reproduce {NAME} --recipe.epochs 3 --recipe.batch_size 16 "
        "--recipe.learning_rate 0.05 --recipe.schedule one-cycle --recipe.precision float32"
    )
    assert row.settings["teacher"] == digest(small(1))
    assert row.settings["recipe"]["batch_size"] == 16
    assert row.settings["data"]["size"] == 224
    assert read_results(tmp_path / "results.csv") == [row]
    monkeypatch.setattr("icd.experiments.compare.accuracy", lambda *_: pytest.fail("measured again"))
    assert record_result(short(), student, test, DATA, tmp_path) == row


def test_unfinished_and_different_runs_are_refused(student, tmp_path):
    test = stripes(seed=1)
    with pytest.raises(RunError, match="has ended 3 of 240 epochs: let it end before you measure it"):
        record_result(published_run(NAME), student, test, DATA, tmp_path)
    record_result(short(), student, test, DATA, tmp_path)
    fewer = stripes(count=48, seed=1)
    with pytest.raises(RunError, match=f"has another run of {NAME} with seed 0: 96 images, icd reproduce"):
        record_result(short(), student, fewer, DATA, tmp_path)
    with pytest.raises(RunError, match="Choose another folder, or delete that row"):
        record_result(short(max_grad_norm=1.0), student, test, DATA, tmp_path)
    assert record_result(short(seed=1), student, fewer, DATA, tmp_path).seed == 1
    other = replace(short(seed=2), objective=METHODS["SD-KD"]())
    with pytest.raises(RunError, match=r"but the student 0\.1"):
        record_result(other, student, test, DATA, tmp_path)


def test_a_row_holds_for_every_value_of_free_settings(tmp_path, monkeypatch):
    test = stripes(seed=1)
    row = record_result(short(precision="auto"), trained(precision="bf16"), test, DATA, tmp_path)
    assert row.settings["recipe"]["precision"] == "bf16"
    assert row.command.endswith(" --recipe.precision bf16")
    student = trained(precision="float32")
    monkeypatch.setattr("icd.experiments.compare.accuracy", lambda *_: pytest.fail("measured again"))
    for changes in ({"precision": "bf16"}, {"sync_batch_norm": True}, {"compile": True}):
        for data in (DATA, DataSet("birds", size=224)):
            assert record_result(short(**changes), student, test, data, tmp_path) == row
    for other in (short(accumulation_steps=2), replace(short(), network="vgg8")):
        with pytest.raises(RunError, match="has another run"):
            record_result(other, student, test, DATA, tmp_path)


def test_students_of_two_teachers_are_two_runs(student, tmp_path):
    test = stripes(seed=1)
    row = record_result(short(), student, test, DATA, tmp_path)
    with pytest.raises(RunError, match="has another run"):
        record_result(short(), trained(teacher=2), test, DATA, tmp_path)
    unknown = {name: value for name, value in row.settings.items() if name != "teacher"}
    assert same_settings(unknown, row.settings)
    write_results(tmp_path / "results.csv", [replace(row, settings=unknown)])
    assert record_result(short(), student, test, DATA, tmp_path).settings == unknown


def test_only_runs_with_the_published_settings_are_in_the_table(student, tmp_path):
    rows = compare_with_published(tmp_path, "cub200")
    assert len(rows) == 15
    assert not any(row.measured for row in rows)
    assert as_markdown(rows).count("not measured yet") == 15
    assert "| ResNet32x4 → ShuffleNetV1 | SD-KD | 65.46 | not measured yet |" in as_markdown(rows)
    odd = "the log gives the same 65.878/86.918 for plain KD and for iCD-NKD"
    assert "| iCD-KD | 65.88 <sup>1)</sup> | not measured yet |" in as_markdown(rows)
    assert f"\n1) {odd}.\n" in as_markdown(rows)

    run = published_run(NAME)
    row = record_result(short(), student, stripes(seed=1), DATA, tmp_path)
    assert not any(row.measured for row in compare_with_published(tmp_path, "cub200"))  # 3 epochs of 240

    def settings(data=DATA, **recipe):
        return result_settings(data, replace(run.recipe, **recipe)) | {"teacher": "0123"}

    true = replace(
        row,
        images=TEST_IMAGES["cub200"],
        accuracy=0.625,
        network=run.network,
        objective=str(run.objective),
        settings=settings(DataSet("birds", size=224)),
    )
    for changed in (
        replace(true, images=300),
        replace(true, settings=settings(DataSet("cub200", size=112))),
        replace(true, settings=settings(accumulation_steps=2)),
        replace(true, settings={}),
        replace(true, network="vgg8"),
        replace(true, objective=str(METHODS["KD"]())),
        replace(true, method="iCD-KD"),
    ):
        write_results(tmp_path / "results.csv", [changed])
        assert not any(row.measured for row in compare_with_published(tmp_path, "cub200"))
    again = replace(true, seed=1, accuracy=0.64, settings=settings(precision="fp16", seed=1))
    write_results(tmp_path / "results.csv", [true, again])
    (one,) = [row for row in compare_with_published(tmp_path, "cub200") if row.measured]
    assert (one.run.name, one.measured) == (NAME, (62.5, 64.0))
    assert "| iCD-KD | 65.88 <sup>1)</sup> | 63.25 (2 seeds) |" in as_markdown([one])


def test_a_command_of_the_table_makes_the_run_again():
    run = published_run(NAME)
    changed = replace(run, recipe=replace(run.recipe, epochs=2, milestones=(0.5, 0.75), nesterov=True))
    command = command_of(changed, DataSet("birds", classes=3, size=128))
    name, chosen = parse("reproduce", shlex.split(command)[2:])
    assert name == "distil"
    assert chosen["recipe"] == changed.recipe
    assert chosen["data"] == DataSet("birds", classes=3, size=128)
    assert chosen["method"] == str(run.objective)
    assert command_of(run, DataSet("birds", size=224)) == f"icd reproduce {NAME} --data.root birds"


def test_folders_of_runs_are_those_of_the_command_line(tmp_path):
    run = published_run(NAME)
    assert run.folder(tmp_path) == tmp_path / NAME
    assert published_run(NAME, seed=2, epochs=None).folder(tmp_path) == tmp_path / f"{NAME}-seed-2"
    few = published_run(NAME, epochs=3, seed=1)
    assert few.folder(tmp_path) == few.results_folder(tmp_path) == tmp_path / f"{NAME}-3-epochs-seed-1"
    assert run.results_folder(tmp_path) == tmp_path


def test_other_tables():
    with pytest.raises(ValueError, match=r'cub200_top1\.csv has no method "iCDKD": did you mean "iCD-KD"'):
        compare_with_published("nowhere", "cub200", ("iCDKD",))
    assert len(compare_with_published("nowhere", "cifar100")) == 30
    assert len(compare_with_published("nowhere", "cub200", ("teacher", "student"))) == 6
    ablations = compare_with_published("nowhere", "cub200", ("iCD-KD",), "ablations")
    assert "iCD-KD scales 1 |" in as_markdown(ablations)
