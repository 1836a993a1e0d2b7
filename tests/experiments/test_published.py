"""The published runs: each has its figure and the published settings, and takes two training steps."""

import csv
import math
import re
import runpy
from collections import Counter
from functools import lru_cache

import pytest
import torch
from helpers import ROOT, batch_of
from torch._subclasses.fake_tensor import FakeTensorMode

from icd.cli.main import main
from icd.experiments.published import published_run, published_runs
from icd.files import data_path
from icd.networks import network
from icd.objective import METHODS, parse
from icd.scores import score
from icd.trainer import Recipe, Student
from icd.trainer.distributed import make_accelerator

pytestmark = pytest.mark.thorough

RUNS = published_runs()
cost = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "cost.py"))["cost"]
METHOD_NAMES = [prefix + name for prefix in ("", "SD-", "iCD-") for name in ("KD", "DKD", "NKD")]
ODD_BETA = ("cifar100-resnet32x4-mobilenetv2-dkd",)  # 6 in its configuration, unlike others of its teacher
CLASSES = {"cub200": 200, "cifar100": 100}
DISTINCT = {(run.data, run.teacher, run.network, str(run.objective)): run for run in RUNS.values()}


def figures(table):
    with open(data_path(f"published/{table}.csv"), newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def test_every_published_figure_of_these_methods_has_one_recipe():
    kinds = Counter((run.data, run.method, bool(run.factor)) for run in RUNS.values())
    for data, pairs, alone in (("cub200", 5, (3, 3)), ("cifar100", 10, (4, 4))):
        assert all(kinds[data, method, False] == pairs for method in METHOD_NAMES)
        assert (kinds[data, "teacher", False], kinds[data, "student", False]) == alone
        for table in (f"{data}_top1", f"{data}_ablations"):
            for row in figures(table):
                if row["method"] in METHOD_NAMES:
                    key = (row["pair"], row["method"], row.get("factor", ""), row.get("value", ""))
                    found = [r for r in RUNS.values() if (r.pair, r.method, r.factor, r.value) == key]
                    found = [r for r in found if r.table == table]
                    assert len(found) == 1
                    assert found[0].published().top1 == float(row["top1"])
    assert len(RUNS) == 180
    assert (
        {run.method for run in RUNS.values()}
        == {"teacher", "student", *METHOD_NAMES}
        <= {"teacher", "student", *METHODS}
    )


def test_settings_are_those_of_the_published_runs():
    for run in RUNS.values():
        light = run.network in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
        light &= run.name != "cifar100-vgg13-mobilenetv2-icd-kd"  # its configuration has the other rate
        assert run.recipe == Recipe(learning_rate=0.01 if light else 0.05)
        assert run.size == {"cub200": 224, "cifar100": 32}[run.data]
        text = str(run.objective)
        six = run.pair.startswith("VGG13") or run.pair == "WRN40-2->MobileNetV2"
        beta = 6.0 if six else 2.0 if run.method.startswith("iCD") else 8.0
        if run.method == "DKD":
            beta = 6.0 if run.pair.startswith("VGG13") or run.name in ODD_BETA else 8.0
        given = [float(value) for value in re.findall(r"(?:beta|gamma)=([\d.]+)", text)]
        expected = {"NKD": [1.5]}.get(run.method, [beta] if run.method.endswith(("DKD", "NKD")) else [])
        assert given == expected
        assert ("exclude_target=False" in text) == ("NKD" in run.method)
        assert (".warmed_up(20)" in text) == ("DKD" in run.method or "NKD" in run.method)
        tiny_map = run.data == "cifar100" and run.network == "MobileNetV2"  # 2 x 2
        assert ("repeat=True" in text) == (tiny_map and run.method[:3] in ("SD-", "iCD"))
        assert run.published().source
        if run.teacher:
            assert RUNS[run.teacher_recipe].network == run.teacher


@pytest.mark.slow
def test_costs_are_those_that_the_script_counts():
    chosen = ("cub200-resnet32x4-mobilenetv2-icd-kd", "cifar100-wrn40-2-vgg8-sd-kd", "cub200-vgg8")
    for name in chosen:
        now, stored = cost(RUNS[name]), RUNS[name].cost()
        assert now[:3] == stored[:3]
        assert now[3:] == pytest.approx(stored[3:], rel=0.1)  # what PyTorch keeps differs by version
    for run in RUNS.values():
        need = run.cost()
        assert (need.teacher_parameters > 0) == bool(run.teacher)
        assert 0 < need.fp16_gb < 15 - 1.2  # of a T4's memory, less the images
        assert (need.float32_gb > 15) == (run.name == "cub200-resnet50")  # as chapter 9 says
    assert RUNS["cub200-vgg8"].cost().steps == 240 * 93


def covering():
    """The fewest runs, chosen greedily, with every pair of networks and every objective of each data set."""
    parts = {key: {key[:3], (key[0], key[3])} for key in DISTINCT}
    missing, chosen = set().union(*parts.values()), []
    while missing:
        chosen.append(max(parts, key=lambda key: len(parts[key] & missing)))
        missing -= parts[chosen[-1]]
    return chosen


@lru_cache
def fixed(name, classes, size):
    return network(name, classes, size).eval()


@pytest.mark.parametrize(
    ("data", "teacher", "student", "objective"),
    # Large images take most of the time.
    [pytest.param(*key, marks=pytest.mark.slow if key[0] == "cub200" else ()) for key in covering()],
)
def test_two_steps_of_every_pair_and_of_every_objective(data, teacher, student, objective):
    size = {"cub200": 128, "cifar100": 32}[data]  # at 128 the networks have the form of 224
    torch.manual_seed(0)
    classes, images = CLASSES[data], torch.randn(2, 3, size, size)
    learner = Student(network(student, classes, size), parse(objective))
    learner.start(Recipe(weight_decay=0), make_accelerator("float32"))
    with torch.no_grad():
        teacher_scores = score(fixed(teacher, classes, size), images) if teacher else None
    before = [weight.clone() for weight in learner.network.parameters()]
    for step in range(2):
        learner.step(batch_of(images, torch.tensor([0, 1])), teacher_scores, step + 1, 0.01)
    means = learner.read(1, 2)
    for name in learner.objective.names:
        at_scale_1 = name == "clustering" and "scales=(1,)" in objective  # one region: nothing to compare
        assert means[name] == 0 if at_scale_1 else 0 < means[name] < math.inf
    changed = [not torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)  # a few of ShuffleNet's are behind dead ReLUs


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted({key[:3] for key in DISTINCT}))
def test_every_recipe_computes_on_a_gpu(pair):
    data, teacher, student = pair
    size, classes = (224, 200) if data == "cub200" else (32, 100)
    with FakeTensorMode(), torch.device("cuda"):
        images, target = torch.randn(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
        teacher_scores = score(network(teacher, classes, size).eval(), images) if teacher else None
        student_scores = score(network(student, classes, size), images)
        for run in (DISTINCT[key] for key in covering() if key[:3] == pair):
            loss, parts = run.objective(student_scores, teacher_scores, batch_of(images, target))
            assert loss.device.type == parts.device.type == "cuda"


def test_an_unknown_recipe_suggests_the_closest():
    with pytest.raises(ValueError, match='did you mean "cub200-vgg13-vgg8-icd-kd"'):
        published_run("cub200-vgg13-vgg8-icd-kdd")


def test_reproduce_takes_the_settings_of_a_recipe_and_options_override_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.root", "birdlets", "--data.classes", "3", "--recipe.epochs", "1"]
    name = "cifar100-resnet32x4-mobilenetv2-icd-kd"
    assert main(["reproduce", name, *small]) == 1
    assert "train it first, with icd reproduce cifar100-resnet32x4\n" in capsys.readouterr().err
    assert main(["reproduce", "cifar100-resnet32x4", "--network", "resnet8x4", *small]) == 0
    assert (tmp_path / "runs" / "cifar100-resnet32x4" / "model.safetensors").exists()
    assert main(["reproduce", name, *small]) == 0
    kept = (tmp_path / "runs" / name / "config.yaml").read_text()
    assert "clustering(repeat=True)" in kept
    assert "epochs: 1\n" in kept
    assert "network: MobileNetV2\n" in kept


def test_recipes_lists_and_shows_them(capsys):
    name = "cifar100-resnet32x4-mobilenetv2-icd-kd"
    assert main(["recipes", "--name", "cifar100"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == sum(run.startswith("cifar100") for run in RUNS)
    assert main(["recipes", "--name", name]) == 0
    out = capsys.readouterr().out
    assert "published: " in out
    need = RUNS[name].cost()
    assert f"weights, teacher {need.teacher_parameters / 1e6:.2f} million; {need.steps:,} steps; " in out
    assert f"; memory of a step {need.float32_gb:g} GB in float32, {need.fp16_gb:g} in fp16 (" in out
    assert main(["recipes", "--name", "cub200-vgg8"]) == 0
    assert "takes: 4.02 million weights; 22,320 steps; memory of a step " in capsys.readouterr().out


@pytest.mark.parametrize(
    "objective", [*(make() for make in METHODS.values()), *(run.objective for run in RUNS.values())], ids=str
)
def test_a_printed_objective_parses_to_itself(objective):
    assert str(parse(str(objective))) == str(objective)
    assert parse(str(objective)).names == objective.names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iCD-DK", 'there is no method "iCD-DK": did you mean "iCD-DKD"?'),
        ("__import__('os')", "cannot be part of an objective"),
        ("cross_entropy().__class__()", "cannot be part of an objective"),
        ("0.5 * clustring()", 'did you mean "clustering"?'),
        ("clustering(tau=3)", "icd_loss takes no 'tau': did you mean \"temperature\"?"),
        ("-1 * clustering()", "the weight of clustering is -1"),
        ("cross_entropy(", "is not an objective"),
        ("2 + cross_entropy()", "is not an objective"),
        ("(" * 500 + ")" * 500, "is not an objective"),
    ],
)
def test_invalid_objectives_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)
