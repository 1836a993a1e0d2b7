"""The command line: from a folder of photographs to a student that names birds."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from PIL import Image

from icd.cli import commands
from icd.cli.execute import parse
from icd.cli.main import COMMANDS, main
from icd.datasets import DataSet
from icd.datasets.birds import CUB200
from icd.experiments.model_file import ModelCard, classify, load_image, load_model
from icd.experiments.published import published_run
from icd.files import data_path
from icd.objective import METHODS
from icd.trainer import Recipe

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
    """Three classes of photographs that differ in colour, ten images of each."""
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
    """A teacher and its student, trained by two commands."""
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


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    """Birds with boxes, and a network that was trained on boxes with unusual settings."""
    root = tmp_path_factory.mktemp("boxed")
    small = ["--species", "3", "--families", "1", "--train", "8", "--test", "4", "--size", "64"]
    assert main(["draw", str(root / "drawn"), *small]) == 0
    cut = ["--data.crop", "box", "--data.margin", "0.3", "--data.resize", "shorter", "--data.size", "32"]
    cut += ["--data.hold_out", "0.4", "--data.split_seed", "3"]
    network = ["--network", "resnet10-8", "--data.root", str(root / "drawn")]
    assert main(["teach", str(root / "run"), *network, *cut, *SHORT]) == 0
    return root


def test_every_command_has_help(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert f"  {name:10} {line}\n" in listed
        assert getattr(commands, name).__doc__.splitlines()[0] == line
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        out = capsys.readouterr().out
        assert out.startswith(f"usage: icd {name} ")
        assert line.rstrip(".") in " ".join(out.split())


@pytest.mark.thorough
def test_help_and_imports_are_quick():
    """The list of commands needs no PyTorch, and a command no library that it does not use."""
    heavy = "torch", "scipy", "sklearn", "torchvision", "matplotlib", "pandas"
    look = f"print([name for name in {heavy} if name in sys.modules])"
    code = (
        f"import sys; from icd.cli.main import main; main(['--help']); {look}; import icd.cli.execute; {look}"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-2:] == ["[]", "['torch']"]


def test_a_script_named_icd_is_installed():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf8")
    module, function = re.search(r'\[project\.scripts\]\nicd = "([\w.]+):(\w+)"', project).groups()
    assert getattr(import_module(module), function) is main


def test_a_run_saves_settings_log_checkpoint_and_a_small_model(runs):
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


def test_config_yaml_starts_the_run_again(runs, capsys):
    before = load_model(runs / "student")[0].state_dict()
    assert main(["distil", "--config", str(runs / "student" / "config.yaml")]) == 0
    after = load_model(runs / "student")[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_clustering_learns_from_a_teacher_of_other_classes(runs, birds, tmp_path, capsys):
    def trained(command, name, *options):
        where = [command, str(runs / "teacher"), str(tmp_path / name), "--network", "resnet10-8"]
        images = ["--data.root", str(birds), "--data.classes", "2", "--recipe.epochs", "1"]
        return main([*where, *images, "--recipe.batch_size", "8", *options])

    capsys.readouterr()
    by_gram = ["--method", "cross_entropy() + 2 * clustering()"]
    assert trained("distil", "a", *by_gram) == 0
    assert trained("compare", "b", "--methods", "alone", "--seeds", "1") == 0
    printed = capsys.readouterr()
    assert "an epoch takes" not in printed.out + printed.err  # there is only one epoch
    assert trained("distil", "c") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_resumed_run_keeps_its_execution_settings(runs, tmp_path, capsys):
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
    assert f"a different precision: there {there}, here {other}" in capsys.readouterr().err
    assert main([*again, "auto"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["recipe"] == began["recipe"]


@pytest.mark.parametrize("command", ["teach", "distil"])
def test_a_recipe_may_be_a_file(command, runs, birds, tmp_path):
    (tmp_path / "rec.yaml").write_text("epochs: 1\nbatch_size: 8\nlearning_rate: 0.03\n")
    words = [command, *([str(runs / "teacher")] if command == "distil" else []), str(tmp_path / "a")]
    words += ["--network", "resnet10-8", "--data.root", str(birds), "--recipe", str(tmp_path / "rec.yaml")]
    assert main(words) == 0
    kept = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (kept["recipe"]["epochs"], kept["recipe"]["learning_rate"]) == (1, 0.03)


def test_reproduce_is_teach_or_distil_with_the_settings_of_a_recipe():
    name, options = parse("reproduce", ["cub200-vgg13", "runs/x", "--recipe.seed", "3"])
    assert (name, options["folder"], options["network"]) == ("teach", "runs/x", "vgg13")
    assert options["images"] == published_run("cub200-vgg13").settings()["images"]
    assert options["recipe"] == Recipe(seed=3)
    student = "cub200-vgg13-vgg8-kd"
    name, options = parse("reproduce", [student, "--data.root", "birds"])
    assert (name, options["teacher"], options["folder"]) == ("distil", "runs/cub200-vgg13", f"runs/{student}")
    assert options["data"] == DataSet("birds", size=224)


def test_ctrl_c_says_how_to_resume(birds, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    teach = ["teach", str(tmp_path / "run"), "--network", "resnet10-8", "--data.root", str(birds), *SHORT]
    for place, words, message in (
        ("icd.datasets.birdlets.dataset._write", ["draw", str(tmp_path / "drawn")], "stopped"),
        (
            "icd.experiments.run.DataSet.load",
            teach,
            "stopped before the first checkpoint: the same command starts again",
        ),
        (
            "icd.experiments.run.save_model",
            teach,
            "stopped: run the same command again to resume from the checkpoint",
        ),
        ("icd.cli.execute.capture_parser", ["methods"], "stopped"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            assert main(words) == 130
        assert capsys.readouterr().err.splitlines()[-1] == message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_evaluate_uses_the_images_of_the_run_and_predict_any_picture(runs, birds, tmp_path, capsys):
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


def test_root_overrides_the_images_of_the_run(boxed, tmp_path, monkeypatch, capsys):
    seen = []
    load = DataSet.load

    def seeing(data, *options):
        seen.append(data)
        return load(data, *options)

    monkeypatch.setattr(DataSet, "load", seeing)

    def evaluated(*arguments):
        capsys.readouterr()
        assert main(["evaluate", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    own = evaluated(boxed / "run", "--split", "validation")
    assert "of 9 validation images" in own
    moved = shutil.copytree(boxed / "drawn", tmp_path / "moved")
    assert evaluated(boxed / "run", "--split", "validation", "--root", moved) == own
    assert seen[1] == replace(seen[0], root=str(moved))
    test = evaluated(boxed / "run")
    assert main(["pack", str(boxed / "run"), str(tmp_path / "alone" / "small.safetensors")]) == 0
    assert evaluated(tmp_path / "alone" / "small.safetensors", "--root", moved)[:20] == test[:20]
    assert seen[-1] == DataSet(str(moved), crop="box", margin=0.3, size=32, resize="shorter")


def test_a_box_is_cropped_as_in_training(boxed, tmp_path, capsys):
    run, photos = boxed / "run", CUB200(boxed / "drawn", "test")
    first, box = photos.paths[0], photos.boxes[0]
    _, card = load_model(run)
    assert (card.crop, card.margin) == ("box", 0.3)
    assert load_model(data_path("teachers/birdlets.safetensors"))[1].crop == "image"  # it does not say
    data = DataSet(str(boxed / "drawn"), crop="box", margin=0.3, resize="shorter", size=32)
    images, _ = next(data.load("test").batches(1))
    assert torch.equal(load_image(first, card, box), images)
    assert main(["predict", str(run), str(first), "--top", "1"]) == 0
    note, _ = capsys.readouterr().out.splitlines()
    assert note == (
        f"{run} was trained on birds cropped to their boxes: give --box left,top,width,height, or a picture "
        "that the bird fills"
    )
    given = ",".join(f"{value:g}" for value in box)
    assert main(["predict", str(run), str(first), "--box", given, "--top", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (name, chance), *_ = classify(*load_model(run), first, box=box)
    assert line == f"{100 * chance:5.1f} %  {name}"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_in_coordinates_of_the_upright_picture(tmp_path, orientation):
    noise = np.random.default_rng(0).integers(0, 255, (30, 44, 3), dtype=np.uint8)
    upright, exif = Image.fromarray(noise), Image.Exif()
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each
    turned = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif[0x0112] = orientation
    upright.save(tmp_path / "upright.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    card, box = ModelCard("resnet10-8", ("a",), 24, "shorter", crop="box"), (20, 3, 12, 9)
    assert torch.equal(load_image(tmp_path / "turned.png", card), load_image(tmp_path / "upright.png", card))
    seen = [load_image(tmp_path / name, card, box) for name in ("turned.png", "upright.png")]
    assert (seen[0] - seen[1]).abs().max() < 0.05  # a step of a pixel's value
    assert (seen[1] - load_image(tmp_path / "upright.png", card)).abs().max() > 1


def test_networks_are_listed_and_birds_are_drawn(tmp_path, capsys):
    assert main(["networks"]) == 0
    assert "resnet10-16" in capsys.readouterr().out
    small = ["--species", "2", "--families", "1", "--train", "2", "--test", "1", "--size", "32"]
    assert main(["draw", str(tmp_path / "drawn"), *small]) == 0
    assert len((tmp_path / "drawn" / "images.txt").read_text().splitlines()) == 6


def test_methods_say_what_they_need(capsys):
    assert main(["methods"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["compares", "labels", "classes", "learns", "keeps", "objective"]
    table = {row.split()[0]: row for row in rows}
    assert [*table] == [*METHODS]
    for name, make in METHODS.items():
        assert table[name].endswith(f"  {make()}")
        words = table[name][:60].split()
        assert ("same" in words) == any(term.same_classes for term in make().terms)
        assert ("yes" in words) == ("DKD" in name or "NKD" in name or "SD-" in name or "iCD" in name)
    assert "region logits + region Gram" in table["iCD-KD"]
    numbers = {name: [word for word in table[name][45:73].split() if word.isdigit()] for name in table}
    assert {name: len(found) for name, found in numbers.items() if found} == {
        "FitNet": 1,
        "CRD": 2,
        "SemCKD": 1,
    }
    assert numbers["CRD"] == [str(129 * 128 + 257 * 128), str(2 * 900 * 128)]
