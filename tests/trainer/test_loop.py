"""Training: the recipe, the loop, and runs that are stopped in every way."""

import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import QUICK, ROOT, explosive, interrupt, same_weights, small, stripes
from torch import nn

from icd.errors import NonFiniteLoss, RunError
from icd.losses import kd_loss
from icd.networks import SmallResNet
from icd.objective import METHODS, clustering, cross_entropy, scale_decoupled
from icd.scores import score
from icd.trainer import Recipe, Student, fit, fit_together
from icd.trainer.evaluate import accuracy


def test_a_student_learns_and_a_teacher_does_not_change(tmp_path):
    data, teacher, student = stripes(), small(1), small(2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    recipe = Recipe(epochs=8, batch_size=16, schedule="one-cycle")
    log = fit(teacher, METHODS["alone"](), data, recipe, progress=False)
    assert log[-1]["cross_entropy"] < 0.5 * log[0]["cross_entropy"]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    log = fit(
        student,
        METHODS["iCD-KD"](),
        data,
        recipe,
        teacher=teacher,
        validation=stripes(seed=1),
        progress=False,
    )
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert log[-1]["validation_accuracy"] == accuracy(student, stripes(seed=1)) > 0.7
    assert set(log[0]) >= {
        "epoch",
        "cross_entropy",
        "sd_kd",
        "clustering",
        "train_accuracy",
        "learning_rate",
        "seconds",
        "peak_mb",
    }


def test_the_published_schedule_and_the_short_one():
    published = Recipe()
    rates = [published.rate(epoch / 240) for epoch in (0, 149, 150, 180, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 5e-4, 5e-5, 5e-5])
    short = Recipe(schedule="one-cycle")
    rates = [short.rate(i / 1000) for i in range(1000)]
    assert max(rates) == pytest.approx(0.05) == rates[200]
    assert rates[0] == pytest.approx(0.002)
    assert rates[-1] < 1e-5


def test_a_run_with_one_seed_repeats_to_the_bit_and_another_seed_differs():
    runs = []
    for seed in (0, 0, 1):
        student = small()
        fit(
            student, METHODS["alone"](), stripes(), Recipe(epochs=2, batch_size=16, seed=seed), progress=False
        )
        runs.append(student)
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_students_side_by_side_are_what_they_are_alone():
    data, teacher = stripes(), small(1).eval()
    methods = ("alone", "KD", "iCD-KD")
    together = [Student(small(5), METHODS[name](), name) for name in methods]
    fit_together(together, data, QUICK, teacher=teacher, progress=False)
    for learner in together:
        single = small(5)
        fit(single, METHODS[learner.name](), data, QUICK, teacher=teacher, progress=False)
        assert same_weights(single, learner.network), learner.name


def test_ctrl_c_leaves_a_checkpoint_of_that_step_and_the_run_goes_on_to_the_same_bits(tmp_path):
    data, teacher, never_stopped, stopped = stripes(), small(1), small(3), small(3)
    fit(never_stopped, METHODS["KD"](), data, QUICK, teacher=teacher, progress=False)
    interrupt(teacher, 9)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, METHODS["KD"](), data, QUICK, teacher=teacher, folder=tmp_path, progress=False)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == (1, 3)
    fresh = small(99)  # what it starts from no longer matters
    log = fit(fresh, METHODS["KD"](), data, QUICK, teacher=teacher, folder=tmp_path, progress=False)
    assert same_weights(fresh, never_stopped)
    assert [row["epoch"] for row in log] == [1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["precision"] == "float32"
    assert [line["epoch"] for line in lines[1:]] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_in_the_bits_of_one_never_stopped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    from kills import survive

    def enough(tally):
        return (tally.kills >= 3 and tally.inside and tally.loaded) or tally.kills == 40

    tally = survive(tmp_path, enough, random.Random(0))  # which raises where the bits differ
    assert tally.inside
    assert tally.loaded


def test_a_loss_that_is_no_number_stops_with_epoch_step_and_term_and_keeps_the_last_checkpoint(tmp_path):
    objective = cross_entropy() + explosive(10)
    with pytest.raises(NonFiniteLoss, match="student: explosive is nan in epoch 2, step 4"):
        fit(small(), objective, stripes(), QUICK, folder=tmp_path, checkpoint_seconds=0, progress=False)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (kept["epoch"], kept["step"]) == (1, 3)
    assert all(value.isfinite().all() for value in kept["students"]["student"]["network"].values())


@pytest.mark.parametrize(("every", "kept"), [(1, (2, 0)), (2, (2, 0)), (3, None)])
def test_each_epoch_leaves_a_checkpoint_or_every_few(tmp_path, every, kept):
    objective, path = cross_entropy() + explosive(14), tmp_path / "checkpoint.pt"
    with pytest.raises(NonFiniteLoss, match="explosive is nan in epoch 3"):
        fit(small(), objective, stripes(), QUICK, folder=tmp_path, checkpoint_epochs=every, progress=False)
    assert path.exists() == (kept is not None)
    if kept:
        state = torch.load(path, weights_only=True)
        assert (state["epoch"], state["step"]) == kept


def test_another_run_in_the_folder_is_not_overwritten(tmp_path):
    data = stripes()
    fit(small(), METHODS["alone"](), data, QUICK, folder=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = Recipe(epochs=4, batch_size=16, schedule="one-cycle", precision="float32")
    for change in (
        lambda: fit(small(), METHODS["alone"](), data, other, folder=tmp_path, progress=False),
        lambda: fit(small(), 2.0 * cross_entropy(), data, QUICK, folder=tmp_path, progress=False),
        lambda: fit(SmallResNet(4), METHODS["alone"](), data, QUICK, folder=tmp_path, progress=False),
        lambda: fit(small(), METHODS["alone"](), stripes(seed=3), QUICK, folder=tmp_path, progress=False),
    ):
        with pytest.raises(RunError, match="holds a run with a different"):
            change()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    finished = small()
    assert len(fit(finished, METHODS["alone"](), data, QUICK, folder=tmp_path, progress=False)) == 3


def stop(folder, recipe, call=9):
    """A run of KD that Ctrl-C stops when its teacher is asked for the `call`-th time."""
    teacher = small(1)
    interrupt(teacher, call)
    with pytest.raises(KeyboardInterrupt):
        fit(small(3), METHODS["KD"](), stripes(), recipe, teacher=teacher, folder=folder, progress=False)


def go_on(folder, recipe, **options):
    student = small(3)
    options = {"folder": folder, "progress": False, **options}
    fit(student, METHODS["KD"](), stripes(), recipe, teacher=small(1), **options)
    return student


def test_a_run_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch, capsys):
    def on_a_card_of(native):
        for module in ("icd.trainer.loop", "icd.trainer.distributed"):
            monkeypatch.setattr(f"{module}.native_precision", lambda device: native)

    on_a_card_of("bf16")
    recipe = replace(QUICK, precision="auto")
    never_stopped = go_on(None, recipe)
    stop(tmp_path, recipe)
    on_a_card_of("float32")
    with pytest.raises(RunError, match="a different precision: there bf16, here float32"):
        go_on(tmp_path, QUICK)
    capsys.readouterr()
    went_on = go_on(tmp_path, recipe, progress=True)
    said = "resumes in bf16, as it began; a new run would take float32 here\n"
    assert capsys.readouterr().out.count(said) == 1
    assert same_weights(went_on, never_stopped)
    for precision in ("auto", "float32", "bf16"):  # it has ended
        again = go_on(tmp_path, replace(recipe, precision=precision), progress=True)
        assert same_weights(again, went_on)
    assert "resumes" not in capsys.readouterr().out


def change(folder, **settings):
    """Make the checkpoint in a folder one of other settings."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**state, "settings": {**state["settings"], **settings}}, folder / "checkpoint.pt")


def test_a_precision_that_the_device_does_not_train_in_is_refused_until_the_run_has_ended(tmp_path):
    stop(tmp_path / "stopped", QUICK)
    went_on = go_on(tmp_path / "ended", QUICK)
    for name in ("stopped", "ended"):
        change(tmp_path / name, precision="fp16")
    for precision in ("auto", "fp16"):
        recipe = replace(QUICK, precision=precision)
        with pytest.raises(RunError, match=r"this device \(cpu\) does not train in fp16: resume a run"):
            go_on(tmp_path / "stopped", recipe)
        assert same_weights(go_on(tmp_path / "ended", recipe), went_on)
    with pytest.raises(RunError, match="does not train in fp16"):
        go_on(None, replace(QUICK, precision="fp16"))


def test_what_changes_nothing_in_one_process_refuses_no_run(tmp_path):
    never_stopped = go_on(None, QUICK)
    stop(tmp_path, replace(QUICK, sync_batch_norm=True))
    assert same_weights(go_on(tmp_path, QUICK), never_stopped)
    assert same_weights(go_on(tmp_path, replace(QUICK, sync_batch_norm=True)), never_stopped)


def test_how_a_run_that_has_ended_was_compiled_does_not_matter(tmp_path):
    stop(tmp_path, QUICK)
    with pytest.raises(RunError, match=r"a different recipe\.compile: there False, here True"):
        go_on(tmp_path, replace(QUICK, compile=True))
    went_on = go_on(tmp_path, QUICK)
    assert same_weights(go_on(tmp_path, replace(QUICK, compile=True)), went_on)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import icd.files

    data, fsync, calls = stripes(), os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(icd.files.os, "fsync", full)
    with pytest.raises(
        RunError,
        match=r"the checkpoint of epoch 1, step 2 could not be written .No space left on device.. "
        "The previous checkpoint is kept: free some space and start the run again",
    ):
        fit(small(), METHODS["alone"](), data, QUICK, folder=tmp_path, checkpoint_seconds=0, progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_bf16_follows_float32():
    logs = {}
    for precision in ("float32", "bf16"):
        recipe = Recipe(epochs=6, batch_size=16, precision=precision)
        objective = 0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss) + 2.0 * clustering()
        logs[precision] = fit(small(4), objective, stripes(), recipe, teacher=small(1), progress=False)
    curves = [[sum(row[name] for name in objective.names) for row in log] for log in logs.values()]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05)


class Steady(nn.Module):
    """A network without batch normalisation, whose parts of a batch add up to the batch to rounding."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 4)

    def maps(self, images):
        features = self.conv(images).relu()
        return features, (features,)

    def forward(self, images):
        return score(self, images).logits


def test_gradient_accumulation_equals_the_whole_batch():
    weights, logs = [], []
    for accumulation_steps in (1, 4):
        torch.manual_seed(0)
        student, teacher = Steady(), Steady()
        recipe = Recipe(epochs=2, batch_size=16, precision="float32", accumulation_steps=accumulation_steps)
        logs.append(fit(student, METHODS["iCD-KD"](), stripes(), recipe, teacher=teacher, progress=False))
        weights.append(student.conv.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert logs[0][-1]["clustering"] == pytest.approx(logs[1][-1]["clustering"], rel=1e-4)
    with pytest.raises(RunError, match="16 images cannot be split into 3 equal parts"):
        fit(Steady(), METHODS["alone"](), stripes(), replace(recipe, accumulation_steps=3), progress=False)
