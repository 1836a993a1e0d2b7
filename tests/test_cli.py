"""The command line, as a newcomer types it: a folder of photographs in, a student that names birds out."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from icd.__main__ import COMMANDS, main
from icd.saved import load_model
from icd.training import Recipe

SHORT = [
    "--recipe.epochs",
    "2",
    "--recipe.batch_size",
    "8",
    "--recipe.schedule",
    "one-cycle",
]


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """A reader's own photographs: three classes that differ in colour, ten images of each."""
    root, generator = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    for label, name in enumerate(("crow", "finch", "gull")):
        (root / name).mkdir()
        for i in range(10):
            noise = generator.integers(0, 60, (40, 50, 3), dtype=np.uint8)
            noise[:, :, label] += 150
            Image.fromarray(noise).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def runs(birds, tmp_path_factory):
    """A teacher and a student of it, made by two commands."""
    folder = tmp_path_factory.mktemp("runs")
    where = ["--data.root", str(birds)]
    assert main(["teach", str(folder / "teacher"), "--network", "resnet10-8", *where, *SHORT]) == 0
    assert (
        main(
            [
                "distil",
                str(folder / "teacher"),
                str(folder / "student"),
                "--network",
                "resnet10-8",
                *where,
                *SHORT,
            ]
        )
        == 0
    )
    return folder


def test_help_answers_for_every_command():
    said = subprocess.run(
        [sys.executable, "-m", "icd", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name, function in COMMANDS.items():
        assert name in said
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert function.__doc__


def test_a_run_leaves_its_settings_its_log_and_a_small_model(runs):
    student = runs / "student"
    assert sorted(p.name for p in student.iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "log.jsonl",
        "model.safetensors",
    ]
    settings = yaml.safe_load((student / "config.yaml").read_text())
    assert settings["method"] == "iCD-KD"
    assert settings["recipe"]["weight_decay"] == Recipe().weight_decay  # resolved: defaults are written too
    log = [json.loads(line) for line in (student / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log[1:]] == [1, 2]
    assert {"cross_entropy", "sd_kd", "clustering", "validation_accuracy"} <= set(log[1])
    model, card = load_model(student)
    assert card.classes == ("crow", "finch", "gull")
    assert card.size == 64
    assert (student / "model.safetensors").stat().st_size < 0.55 * (student / "checkpoint.pt").stat().st_size
    assert not model.training


def test_settings_written_beside_a_run_start_it_again(runs, capsys):
    before = load_model(runs / "student")[0].state_dict()
    assert main(["distil", "--config", str(runs / "student" / "config.yaml")]) == 0
    after = load_model(runs / "student")[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_how_a_run_began_stays_in_its_settings(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "teacher", tmp_path / "run")
    began = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**began, "folder": str(run)}))
    again = ["teach", "--config", str(run / "config.yaml"), "--recipe.precision"]
    assert main([*again, "float32", "--recipe.sync_batch_norm", "true"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["recipe"] == began["recipe"]
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    there = "bf16" if state["settings"]["precision"] == "float32" else "float32"
    torch.save(
        {**state, "epoch": 1, "settings": {**state["settings"], "precision": there}}, run / "checkpoint.pt"
    )
    capsys.readouterr()
    other = {"bf16": "float32", "float32": "bf16"}[there]
    assert main([*again, other]) == 1
    assert f"another precision: there {there}, here {other}" in capsys.readouterr().err
    assert main([*again, "auto"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["recipe"] == began["recipe"]


def test_evaluate_uses_the_runs_own_images_and_predict_names_any_picture(runs, birds, tmp_path, capsys):
    assert main(["evaluate", str(runs / "student"), "--split", "validation"]) == 0
    assert re.fullmatch(
        r"\d+\.\d\d % of 6 validation images \(standard error \d+\.\d\d\)\n", capsys.readouterr().out
    )
    assert main(["evaluate", str(runs / "student")]) == 0
    assert "of 6 test images" in capsys.readouterr().out
    picture = tmp_path / "phone.png"
    Image.new("RGBA", (300, 120), (200, 10, 10, 255)).save(picture)
    assert main(["predict", str(runs / "student"), str(picture), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r" *\d+\.\d %  (crow|finch|gull)", line) for line in lines)


def test_methods_and_networks_are_listed_and_birds_are_drawn(tmp_path, capsys):
    assert main(["methods"]) == 0
    assert (
        "iCD-KD     0.1 * cross_entropy() + 0.9 * scale_decoupled(kd_loss, temperature=4) + 2 * clustering()"
        in (capsys.readouterr().out)
    )
    assert main(["networks"]) == 0
    assert "resnet10-16" in capsys.readouterr().out
    small = ["--species", "2", "--families", "1", "--train", "2", "--test", "1", "--size", "32"]
    assert main(["draw", str(tmp_path / "drawn"), *small]) == 0
    assert len((tmp_path / "drawn" / "images.txt").read_text().splitlines()) == 6
