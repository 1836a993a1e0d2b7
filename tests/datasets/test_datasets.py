"""What ships with the book is what its labels say."""

import csv
import re
import shlex

import pandas as pd
import pytest
from helpers import ROOT

from icd import birdlets, birds
from icd.cli.execute import parse
from icd.datasets import DataSet, cache
from icd.experiments.compare import read_results
from icd.experiments.model_file import load_model
from icd.experiments.run import result_settings
from icd.files import data_path
from icd.objective import METHODS
from icd.trainer import Recipe
from icd.trainer.checkpoint import flatten
from icd.trainer.evaluate import accuracy
from icd.trainer.provenance import digest

README = (ROOT / "data" / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "teachers").iterdir()), ids=lambda path: path.name)
def test_a_teacher_is_as_good_as_its_card_says(path, tmp_path):
    row = re.search(rf"`{path.name}` \| ([\w-]+),.*?([\d.]+) % of Birdlets' 900", README)
    assert row is not None, f"data/README.md has no card of {path.name}"
    model, card = load_model(path)
    assert card.network == row[1]
    photos = birds.CUB200(birdlets.folder(progress=False), "test", size=card.size)
    measured = 100 * accuracy(model, cache.load(photos, folder=tmp_path, progress=False))
    assert measured == pytest.approx(float(row[2]), abs=0.35)  # three images: arithmetic differs by machine


RESULTS = sorted((ROOT / "data" / "results").glob("*.csv"))
COMPARISONS = [
    path for path in RESULTS if path.read_text(encoding="utf8").startswith("method,seed,accuracy,")
]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_row_of_results_says_how_it_was_made(path):
    table = pd.read_csv(path)
    assert {"device", "commit", "command", "seconds"} <= {*table.columns}
    assert not table[["device", "commit", "command", "seconds"]].isna().any().any()


def test_gram_distances_are_paired_over_five_seeds():
    table = pd.read_csv(ROOT / "data" / "results" / "birdlets-gram.csv")
    assert table.groupby("method").seed.apply(sorted).map(tuple).unique().tolist() == [(0, 1, 2, 3, 4)]
    assert (table.distance < table.untrained).all()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.name)
def test_results_are_paired_over_five_seeds_and_say_how_they_were_made(path):
    rows = read_results(path)
    seeds = {
        method: {row.seed for row in rows if row.method == method} for method in {r.method for r in rows}
    }
    assert all(found == set(range(5)) for found in seeds.values())
    for row in rows:
        assert row.objective == str(METHODS[row.method]())
        assert (row.settings["recipe"]["epochs"], row.settings["split"]) == (row.epochs, "test")
        assert re.fullmatch(r"[0-9a-f]{10}", row.commit)
        assert 0 < row.accuracy < 1
        assert row.seconds > 0


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.name)
def test_the_settings_of_a_row_are_those_of_its_command(path):
    teacher = digest(load_model(data_path("teachers/birdlets.safetensors"))[0])
    rows = read_results(path)
    for command in {row.command for row in rows}:
        program, words = shlex.split(command)[:4], shlex.split(command)[4:]
        assert program == ["python", "-m", "icd", "compare"]
        _, options = parse("compare", words)
        of_teacher = {} if path.name == "birdlets-first.csv" else {"teacher": teacher}  # another teacher
        made = result_settings(options["data"], options["recipe"], split=options["split"])
        expected, default = flatten(made | of_teacher), flatten(result_settings(DataSet(), Recipe()))
        for row in rows:
            if row.command == command:
                settings = flatten(row.settings)
                assert {name: expected.get(name) for name in settings} == settings
                newer = expected.keys() - settings.keys()  # than the run
                assert {name: expected[name] for name in newer} == {name: default[name] for name in newer}


def test_published_figures_give_the_headline_and_its_share():
    with open(data_path("published/cub200_top1.csv"), newline="", encoding="utf8") as file:
        top1 = {(row["pair"], row["method"]): float(row["top1"]) for row in csv.DictReader(file)}
    pair = "ResNet32x4->MobileNetV2"
    assert top1[pair, "iCD-KD"] - top1[pair, "KD"] == pytest.approx(5.08, abs=0.005)
    assert top1[pair, "SD-KD"] - top1[pair, "KD"] == pytest.approx(4.42)
