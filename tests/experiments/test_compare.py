"""Comparisons: paired by construction, never run twice, and a row for every run."""

import json
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import QUICK, interrupt, small, stripes

from icd.datasets import DataSet
from icd.errors import RunError
from icd.experiments import compare as comparison
from icd.experiments import run as running
from icd.experiments.compare import (
    Comparison,
    Result,
    differences,
    measure,
    read_results,
    same_settings,
    write_results,
)
from icd.objective import METHODS
from icd.trainer import Student, fit, fit_together
from icd.trainer import provenance as origin
from icd.trainer.evaluate import accuracy


@dataclass(frozen=True)
class Stripes(DataSet):
    """Training and validation images without a file."""

    def load(self, split, progress=True):
        return stripes(seed=split == "validation")


@pytest.fixture(autouse=True)
def small_students(monkeypatch):
    monkeypatch.setattr(
        running, "network", lambda name, classes, size, weights: small(torch.initial_seed() % 100, classes)
    )


def compared(folder, methods, seeds, **changes):
    options = {"network": "small", "data": Stripes(), "recipe": QUICK, "teacher": small(1).eval()}
    return Comparison(methods, seeds, folder=folder, progress=False, **{**options, **changes})


def test_every_run_has_a_row_and_equals_the_run_alone(tmp_path):
    rows = compared(tmp_path, ["alone", "KD"], [0, 1]).run()
    assert [(row.method, row.seed) for row in rows] == [("alone", 0), ("KD", 0), ("alone", 1), ("KD", 1)]
    assert read_results(tmp_path / "results.csv") == rows
    assert all(
        row.images == 96 and row.together == 2 and row.peak_mb > 50 and row.seconds > 0 for row in rows
    )
    assert rows[1].objective == str(METHODS["KD"]())
    assert rows[1].settings["split"] == "validation"
    assert rows[1].settings["data"]["size"] == DataSet().size
    assert rows[1].settings["recipe"]["learning_rate"] == QUICK.learning_rate
    assert rows[1].settings["teacher"] == origin.digest(small(1))
    torch.manual_seed(1)
    alone = small(1)
    fit(
        alone,
        METHODS["KD"](),
        stripes(),
        replace(QUICK, seed=1),
        teacher=small(1).eval(),
        progress=False,
    )
    assert rows[3].accuracy == accuracy(alone, stripes(seed=1))


def test_runs_with_a_row_are_skipped_and_missing_ones_are_added(tmp_path, monkeypatch):
    first = compared(tmp_path, ["alone", "KD"], [0]).run()
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "fit_together", lambda *_, **__: pytest.fail("trained again"))
        assert compared(tmp_path, ["KD", "alone"], [0]).run() == first
    more = compared(tmp_path, ["alone", "SD-KD"], [0, 1]).run()
    assert more[:2] == first
    assert [(row.method, row.seed) for row in more[2:]] == [("SD-KD", 0), ("alone", 1), ("SD-KD", 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "other"},
        {"recipe": replace(QUICK, learning_rate=0.1)},
        {"data": Stripes(size=32)},
        {"split": "test"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_table_of_other_settings_is_refused_before_training(tmp_path, changes):
    compared(tmp_path, ["alone"], [0]).run()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"has results of other settings \(alone, seed 0\)"):
        compared(tmp_path, ["alone"], [0, 1], **changes).check()
    assert sorted(tmp_path.rglob("*")) == before
    compared(tmp_path, ["alone"], [0], recipe=replace(QUICK, precision="auto")).check()


def test_free_settings_and_an_unknown_teacher_do_not_separate_runs():
    one = {"data": {"root": "a", "size": 32}, "recipe": {"epochs": 1, "precision": "fp16"}, "teacher": "x"}
    assert same_settings(one, one | {"data": {"root": "b", "size": 32}})
    assert same_settings(one, one | {"recipe": {"epochs": 1, "precision": "bf16"}})
    assert same_settings(one, {name: one[name] for name in ("data", "recipe")})
    assert not same_settings(one, one | {"teacher": "y"})
    assert not same_settings(one, one | {"recipe": {"epochs": 2, "precision": "fp16"}})
    assert not same_settings(one, one | {"data": {"size": 32, "crop": "box"}})


def test_differences_are_paired_by_seed_and_in_points(tmp_path):
    def row(method, seed, accuracy):
        return Result(method, seed, accuracy, 10, "o", "n", 1, 2, 1.0, 1, "cpu", "c", "icd", {})

    rows = [row("KD", seed, 0.5 + seed / 10) for seed in range(3)]
    rows += [row("iCD-KD", seed, 0.52 + seed / 10) for seed in (2, 1, 0)] + [row("DKD", 0, 0.9)]
    found = differences(rows, "KD")
    assert set(found) == {"iCD-KD"}
    assert found["iCD-KD"].mean == pytest.approx(2.0)
    assert found["iCD-KD"].low == pytest.approx(2.0)
    write_results(tmp_path / "t.csv", rows)
    assert read_results(tmp_path / "t.csv") == rows


def test_a_row_names_the_devices_of_the_training_not_of_the_measurement(tmp_path, monkeypatch):
    def go_on(device, commit, call=None):
        monkeypatch.setattr("icd.trainer.state.device_name", lambda *_: device)
        monkeypatch.setattr("icd.trainer.state.commit", lambda: commit)
        teacher, learner = small(1), Student(small(3), METHODS["KD"]())
        if call:
            interrupt(teacher, call)
        with pytest.raises(KeyboardInterrupt) if call else nullcontext():
            fit_together([learner], stripes(), QUICK, teacher=teacher, folder=tmp_path, progress=False)
        return learner

    go_on("Tesla T4", "0123456789", 2)  # stopped within an epoch
    go_on("Tesla T4", "0123456789", 2)
    go_on("NVIDIA L4", "0123456789", 7)
    go_on("NVIDIA L4", "abcdef0123")
    learner = go_on("NVIDIA A100", "fedcba9876")  # which only reads it
    monkeypatch.setattr(comparison, "device_name", lambda *_: "cpu")
    row = measure(learner, stripes(seed=1), "small", 0, {"split": "test"})
    assert (row.device, row.commit) == ("Tesla T4, NVIDIA L4", "0123456789, abcdef0123")
    write_results(tmp_path / "t.csv", [row])
    assert read_results(tmp_path / "t.csv") == [row]
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert first["provenance"] == learner.provenance
    assert [on["epoch"] for on in first["provenance"]] == [1, 1, 2]
    assert {on["precision"] for on in first["provenance"]} == {"float32"}


def test_the_commit_of_an_installation_from_git(monkeypatch):
    class Installed:
        def __init__(self, text):
            self.text = text

        def read_text(self, name):
            assert name == "direct_url.json"
            return self.text

    monkeypatch.setattr(origin.subprocess, "run", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(origin.subprocess, "CalledProcessError", ZeroDivisionError)
    for text, expected in (
        ('{"url": "u", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}', "0123456789"),
        ('{"url": "u", "dir_info": {}}', "installed"),
        (None, "installed"),
    ):
        monkeypatch.setattr(origin.metadata, "distribution", lambda _, text=text: Installed(text))
        assert origin.commit.__wrapped__() == expected


def test_an_installation_inside_another_checkout_does_not_take_its_commit(tmp_path, monkeypatch):
    (tmp_path / "origin.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    monkeypatch.setattr(origin, "_installed_commit", lambda: "installed")
    assert origin.commit.__wrapped__() == "installed"
    subprocess.run([*git, "add", "origin.py"], check=True)
    assert len(origin.commit.__wrapped__().rstrip("+")) == 10
