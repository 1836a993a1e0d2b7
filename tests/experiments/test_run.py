"""Experiments: refused before anything is written, trained and saved with one card, and resumed."""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import QUICK, same_weights, small, stripes

from icd.datasets import DataSet
from icd.errors import RunError
from icd.experiments import run as running
from icd.experiments.model_file import load_model
from icd.experiments.run import Experiment, load_teacher
from icd.objective import METHODS, parse
from icd.trainer import fit


@dataclass(frozen=True)
class Stripes(DataSet):
    """Images without a file; `asked` lists the splits that were loaded."""

    def load(self, split, progress=True):
        asked.append(split)
        return stripes(seed=split == "validation")


asked: list[str] = []


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    asked.clear()
    monkeypatch.setattr(
        running, "network", lambda name, classes, size, weights: small(torch.initial_seed() % 100, classes)
    )


def experiment(folder, **changes):
    options = {"network": "resnet10-8", "objective": METHODS["KD"](), "data": Stripes(size=32)}
    options |= {"recipe": QUICK, "teacher": small(1).eval(), "progress": False}
    return Experiment(folder=folder / "run", **{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "the objective compares with a teacher and none was given"),
        ({"teacher_classes": ("a", "b")}, 'class 1 is "a" in the teacher and "class 0" in the images'),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds is -1"),
        ({"checkpoint_epochs": 0}, "checkpoint_epochs is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_refused_experiment_writes_nothing(tmp_path, changes, message):
    for method in ("check", "run"):
        with pytest.raises((RunError, ValueError), match=message):
            getattr(experiment(tmp_path, **changes), method)()
    assert not list(tmp_path.iterdir())


def test_a_check_writes_nothing_and_changes_nothing(tmp_path):
    checked = experiment(tmp_path)
    checked.check()
    assert not list(tmp_path.iterdir())
    assert same_weights(checked.run().network, experiment(tmp_path / "other").run().network)


def test_a_run_trains_as_fit_does_and_saves_the_network_with_its_card(tmp_path):
    data = Stripes(size=32, crop="box", margin=0.3, resize="shorter")
    student = experiment(tmp_path, data=data, recipe=replace(QUICK, seed=5), note="a note").run()
    expected = small(5)
    options = {"teacher": small(1).eval(), "validation": stripes(seed=1), "progress": False}
    log = fit(expected, METHODS["KD"](), stripes(), replace(QUICK, seed=5), **options)
    assert same_weights(student.network, expected)
    assert [row["validation_accuracy"] for row in student.history] == [
        row["validation_accuracy"] for row in log
    ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt",
        "log.jsonl",
        "model.safetensors",
    ]
    card = experiment(tmp_path, data=data, note="a note").card()
    assert (card.network, card.classes, card.note) == ("resnet10-8", stripes().classes, "a note")
    assert (card.crop, card.margin, card.resize) == ("box", 0.3, "shorter")
    assert (card.size, card.resize_size) == (32, 36)
    assert (card.mean, card.std) == (stripes().mean, stripes().std)


def test_the_saved_file_has_the_card(tmp_path, monkeypatch):
    monkeypatch.undo()  # the file must hold a network that can be built again
    data = replace(stripes(), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    made = experiment(tmp_path, data=data, objective=METHODS["alone"](), teacher=None)
    student = made.run()
    model, card = load_model(tmp_path / "run")
    assert card == made.card()
    assert card.mean == (0.1, 0.2, 0.3)
    assert same_weights(model, student.network)


def test_all_training_images_and_loaded_images_have_no_validation(tmp_path):
    for changes in ({"images": "trainval"}, {"data": stripes()}):
        student = experiment(tmp_path / str(len(asked)), **changes).run()
        assert "validation_accuracy" not in student.history[-1]
    assert asked == ["trainval"]
    assert "validation_accuracy" in experiment(tmp_path).run().history[-1]
    assert asked == ["trainval", "train", "validation"]


def test_an_objective_without_logit_terms_takes_a_teacher_of_other_classes(tmp_path):
    objective = parse("cross_entropy() + 2 * clustering()")
    teacher = small(1, classes=7).eval()
    names = tuple(f"bird {i}" for i in range(7))
    experiment(tmp_path, objective=objective, teacher=teacher, teacher_classes=names).check()


def test_published_weights_are_loaded_without_a_look_at_the_test_images(tmp_path, monkeypatch):
    monkeypatch.undo()
    torch.save(running.network("resnet20", 4, 32).state_dict(), tmp_path / "weights.pth")
    model, classes = load_teacher(str(tmp_path / "weights.pth"), "resnet20", Stripes(size=32), "train")
    assert classes is None
    assert model.head.out_features == 4
    assert asked == ["train"]
    with pytest.raises(RunError, match="does not name the network of its weights: give --teacher_network"):
        load_teacher(str(tmp_path / "weights.pth"), None, Stripes(size=32), "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "does not train in fp16"),
        ({"accumulation_steps": 7}, "cannot be split into 7 equal parts"),
    ],
)
def test_a_recipe_that_this_device_cannot_train_leaves_nothing(tmp_path, settings, message):
    recipe = replace(QUICK, **settings)
    experiment = Experiment("resnet10-8", METHODS["alone"](), stripes(), recipe, tmp_path / "run")
    with pytest.raises(RunError, match=message):
        experiment.check()
    assert not (tmp_path / "run").exists()
