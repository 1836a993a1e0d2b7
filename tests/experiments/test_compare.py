"""Comparisons: paired by construction, never run twice, and a row for every run."""

import json
import subprocess
from contextlib import nullcontext

import pytest
import torch
from helpers import QUICK, interrupt, small, stripes

from icd.experiments import compare as comparison
from icd.experiments.compare import Result, compare, differences, measure, read_results, write_results
from icd.objective import METHODS
from icd.trainer import Recipe, Student, fit, fit_together
from icd.trainer import provenance as origin
from icd.trainer.evaluate import accuracy


@pytest.fixture(autouse=True)
def small_students(monkeypatch):
    monkeypatch.setattr(
        comparison, "network", lambda name, classes, size: small(torch.initial_seed() % 100, classes)
    )


def test_every_run_has_a_row_and_is_what_it_would_be_alone(tmp_path):
    teacher, data, held = small(1).eval(), stripes(), stripes(seed=1)
    rows = compare(["alone", "KD"], [0, 1], "small", data, held, QUICK, teacher, tmp_path, progress=False)
    assert [(row.method, row.seed) for row in rows] == [("alone", 0), ("KD", 0), ("alone", 1), ("KD", 1)]
    assert read_results(tmp_path / "results.csv") == rows
    assert all(
        row.images == 96 and row.together == 2 and row.peak_mb > 50 and row.seconds > 0 for row in rows
    )
    assert rows[1].objective == str(METHODS["KD"]())
    torch.manual_seed(1)
    alone = small(1)
    recipe = Recipe(**{**QUICK.__dict__, "seed": 1})
    fit(alone, METHODS["KD"](), data, recipe, teacher=teacher, progress=False)
    assert rows[3].accuracy == accuracy(alone, held)


def test_what_has_a_row_is_not_run_again_and_what_is_missing_is_added(tmp_path, monkeypatch):
    teacher, data, held = small(1).eval(), stripes(), stripes(seed=1)
    first = compare(["alone", "KD"], [0], "small", data, held, QUICK, teacher, tmp_path, progress=False)
    calls = []
    monkeypatch.setattr(comparison, "fit_together", lambda *args, **_: calls.append(args))
    assert (
        compare(["KD", "alone"], [0], "small", data, held, QUICK, teacher, tmp_path, progress=False) == first
    )
    assert not calls
    monkeypatch.undo()
    monkeypatch.setattr(
        comparison, "network", lambda name, classes, size: small(torch.initial_seed() % 100, classes)
    )
    more = compare(["alone", "SD-KD"], [0, 1], "small", data, held, QUICK, teacher, tmp_path, progress=False)
    assert more[:2] == first
    assert [(row.method, row.seed) for row in more[2:]] == [("SD-KD", 0), ("alone", 1), ("SD-KD", 1)]


def test_differences_are_paired_by_seed_and_in_points(tmp_path):
    def row(method, seed, accuracy):
        return Result(method, seed, accuracy, 10, "o", "n", 1, 2, 1.0, 1, "cpu", "c", "python")

    rows = [row("KD", seed, 0.5 + seed / 10) for seed in range(3)]
    rows += [row("iCD-KD", seed, 0.52 + seed / 10) for seed in (2, 1, 0)] + [row("DKD", 0, 0.9)]
    found = differences(rows, "KD")
    assert set(found) == {"iCD-KD"}
    assert found["iCD-KD"].mean == pytest.approx(2.0)
    assert found["iCD-KD"].low == pytest.approx(2.0)
    write_results(tmp_path / "t.csv", rows)
    assert read_results(tmp_path / "t.csv") == rows


def test_a_row_says_what_the_run_learned_on_and_not_what_measured_it(tmp_path, monkeypatch):
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
    row = measure(learner, stripes(seed=1), network="small", seed=0)
    assert (row.device, row.commit) == ("Tesla T4, NVIDIA L4", "0123456789, abcdef0123")
    write_results(tmp_path / "t.csv", [row])
    assert read_results(tmp_path / "t.csv") == [row]
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert first["provenance"] == learner.provenance
    assert [on["epoch"] for on in first["provenance"]] == [1, 1, 2]
    assert {on["precision"] for on in first["provenance"]} == {"float32"}


def test_what_pip_installed_from_git_knows_its_commit(monkeypatch):
    class Installed:
        def __init__(self, text):
            self.text = text

        def read_text(self, name):
            assert name == "direct_url.json"
            return self.text

    monkeypatch.setattr(origin.subprocess, "run", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(origin.subprocess, "CalledProcessError", ZeroDivisionError)
    for text, said in (
        ('{"url": "u", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}', "0123456789"),
        ('{"url": "u", "dir_info": {}}', "installed"),
        (None, "installed"),
    ):
        monkeypatch.setattr(origin.metadata, "distribution", lambda _, text=text: Installed(text))
        assert origin.commit.__wrapped__() == said


def test_what_is_installed_within_another_checkout_has_not_its_commit(tmp_path, monkeypatch):
    (tmp_path / "origin.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    monkeypatch.setattr(origin, "_installed_commit", lambda: "installed")
    assert origin.commit.__wrapped__() == "installed"
    subprocess.run([*git, "add", "origin.py"], check=True)
    assert len(origin.commit.__wrapped__().rstrip("+")) == 10
