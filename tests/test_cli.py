"""The command line, as a newcomer types it: a folder of photographs in, a student that names birds out."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from icd.__main__ import COMMANDS, main
from icd.saved import ModelError, load_model
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


WRONG = {
    "evaluate {tmp}/none": "{tmp}/none: there is no such file. Has the run that writes it ended?",
    "teach {tmp}/a --data.root {tmp}/none": '{tmp}/none: there is no such folder. Name one, or "birdlets"',
    "teach {tmp}/a --data.root {birds} --network resnet10": 'no network "resnet10": did you mean "resnet10-',
    "teach {tmp}/a --data.root {birds} --data.crop box": 'has no boxes: crop="box" is for data sets',
    "teach {tmp}/a --data.root {birds} --recipe.epochs 0": "the recipe's epochs is 0: give a positive number",
    "teach {tmp}/a --data.root {birds} --data.classes 9": "classes is 9: {birds} has 3",
    "teach {tmp}/a --data.root {birds} --data.hold_out 2": "the share held out is 2.0: give a number between",
    "distil {runs}/teacher {tmp}/a --method icd-kd": 'there is no method "icd-kd": did you mean "iCD-KD"?',
    "distil {tmp}/none {tmp}/a": "{tmp}/none: there is no such file",
    "predict {runs}/student {tmp}/none.jpg": "{tmp}/none.jpg: there is no such image",
    "teach {runs}/teacher --data.root {birds} --data.size 48": "another data.size: there 64, here 48",
    "distil {runs}/teacher {tmp}/a --data.root {birds} --data.size 32": "scale 4 cuts a 2 x 2 map into 4 x 4",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_goes_wrong_is_one_sentence_and_status_1(command, runs, birds, tmp_path, capsys):
    names = {"tmp": tmp_path, "birds": birds, "runs": runs}
    assert main(command.format(**names).split()) == 1
    said = capsys.readouterr().err.strip()
    last = said.splitlines()[-1]
    assert WRONG[command].format(**names) in last
    assert last.startswith(f"icd {command.split()[0]}: ")
    assert "Traceback" not in said
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


def test_a_damaged_or_foreign_model_is_refused(runs, tmp_path):
    from safetensors.torch import save_file

    whole = (runs / "student" / "model.safetensors").read_bytes()
    for name, content in (("cut", whole[:1000]), ("empty", b""), ("text", b"hello" * 100)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not a safetensors file, or it is damaged"):
            load_model(path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="holds weights and no card: it was not saved by icd"):
        load_model(tmp_path / "foreign.safetensors")
    card = {"icd": json.dumps({"network": "resnet10-8", "classes": ["a"], "size": 32})}
    save_file({"weight": torch.zeros(1)}, tmp_path / "misfit.safetensors", metadata=card)
    with pytest.raises(ModelError, match=r"does not fit resnet10-8: it has no stem\.0\.weight"):
        load_model(tmp_path / "misfit.safetensors")
