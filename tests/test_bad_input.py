"""A catalogue of bad input: what is handed over by mistake or by malice, and the sentence that is the answer.

Each case is a name, a function that does the wrong thing, the exception, and its exact message, with {tmp},
{birds} and {run} in the place of folders. Broken text tables and archives have catalogues of their own in
test_birds.py, published weights in test_zoo.py, shapes of logits in test_losses.py and test_scores.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import QUICK, explosive, small, stripes
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from icd import birdlets, figures, files
from icd.cli.main import main
from icd.datasets import DataSet, cache, cifar
from icd.datasets.cache import CachedImages
from icd.datasets.folders import class_folders
from icd.datasets.images import ImageList
from icd.errors import AdaptError, DataError, ModelError, NonFiniteLoss, RunError
from icd.experiments.compare import Comparison, Result, read_results, write_results
from icd.experiments.model_file import ModelCard, classify, load_image, load_model, save_model
from icd.experiments.statistics import average_linkage_clusters, paired_interval
from icd.figures import plots
from icd.losses import dkd_loss, icd_loss, kd_loss, nkd_loss, scale_decoupled_loss
from icd.networks import NETWORKS, adapt, load_published, network
from icd.networks.registry import LIBRARIES
from icd.objective import (
    LOSSES,
    METHODS,
    TERMS,
    Objective,
    clustering,
    cross_entropy,
    parse,
    scale_decoupled,
    whole_image,
)
from icd.scores import Scores, local_logits, score
from icd.trainer import Recipe, Student, fit, fit_together

SHORT = ["--network", "resnet10-8", "--recipe.epochs", "1", "--recipe.batch_size", "8"]
ALONE = METHODS["alone"]()
ALL_METHODS = ", ".join(METHODS)
ALL_NETWORKS = ", ".join([*NETWORKS, *(f"{library}/NAME" for library in LIBRARIES)])
WORDS = ", ".join([*TERMS, *LOSSES])
DAMAGED = (
    "{tmp}/checkpoint.pt is not a checkpoint of icd, or it is damaged. Delete it to start again, or "
    "choose another folder"
)
COLUMNS = (
    "method,seed,accuracy,images,objective,network,epochs,together,seconds,peak_mb,device,commit,command,"
    "settings"
)
ROW = Result("KD", 0, 0.5, 10, "o", "n", 1, 2, 1.0, 1, "cpu", "c", "icd", {})


class Place:
    """Where a case may do what it likes: `tmp`. What it leaves as it is: `birds`, and a finished `run`."""

    def __init__(self, tmp: Path, birds: Path, run: Path, patch: pytest.MonkeyPatch):
        self.tmp, self.birds, self.run, self.patch = tmp, birds, run, patch

    def parse(self, text: str) -> str:
        for name in ("tmp", "birds", "run"):
            text = text.replace(f"{{{name}}}", str(getattr(self, name)))
        return text

    def file(self, name: str, content: bytes | str = "hello\n") -> Path:
        """A file in `tmp`."""
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def spoilt(self, name: str, content: bytes | str | None) -> Path:
        """A copy of the run in `tmp/run`, with another content of a file; for None, a folder in its place."""
        folder = shutil.copytree(self.run, self.tmp / "run")
        (folder / name).unlink()
        if content is None:
            (folder / name).mkdir()
        else:
            self.file(f"run/{name}", content)
        return folder

    def model(self, change: Callable[[dict[str, torch.Tensor]], object] = bool, **card: Any) -> Path:
        """The run's model in `tmp/a.safetensors`, with other weights or another card."""
        weights = load_file(self.run / "model.safetensors")
        change(weights)
        told = asdict(load_model(self.run)[1]) | card
        save_file(weights, self.tmp / "a.safetensors", metadata={"icd": json.dumps(told)})
        return self.tmp / "a.safetensors"

    def image(self, name: str = "a.png", size: tuple[int, int] = (30, 20)) -> Path:
        Image.new("RGB", size, (200, 30, 10)).save(self.tmp / name)
        return self.tmp / name

    def bird_folders(self) -> Path:
        return shutil.copytree(self.birds, self.tmp / "birds")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> tuple[Path, Path]:
    """Photographs of three classes, five of each, and a network that was taught them."""
    root, generator = tmp_path_factory.mktemp("shelf"), np.random.default_rng(0)
    for name in ("crow", "finch", "gull"):
        (root / "birds" / name).mkdir(parents=True)
        for i in range(5):
            noise = generator.integers(0, 255, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "birds" / name / f"{i}.png")
    assert main(["teach", str(root / "run"), "--data.root", str(root / "birds"), *SHORT]) == 0
    return root / "birds", root / "run"


@pytest.fixture
def at(shelf, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, *shelf, monkeypatch)


def train(
    student: Any, objective: Any = ALONE, data: Any = None, recipe: Any = QUICK, **options: Any
) -> object:
    return fit(
        student, objective, stripes() if data is None else data, recipe, **{"progress": False, **options}
    )


def compared(at: Place, *methods: str, seeds: Any = (0,), **changes: Any) -> object:
    recipe = changes.pop("recipe", QUICK)
    data = DataSet(str(at.birds))
    return Comparison(methods, seeds, "resnet10-8", data, recipe, small(1), at.tmp, progress=False).run()


def table(at: Place, old: str = "", new: str = "") -> object:
    """Reads a table of results in which `old` became `new`."""
    write_results(at.tmp / "t.csv", [ROW, replace(ROW, method="iCD-KD")])
    text = (at.tmp / "t.csv").read_text()
    assert old in text
    return read_results(at.file("t.csv", text.replace(old, new, 1)))


def one(path: Path, **settings: Any) -> ImageList:
    return ImageList((path,), np.zeros(1, dtype=np.int64), ("a",), **{"size": 8, **settings})


def cached(at: Place, **changes: Any) -> CachedImages:
    values = {
        "images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.int64),
    }
    rest = {"classes": ("a",), "size": 6, "repairs": {}, "fingerprint": ""}
    return CachedImages(**{**values, **rest, **changes})


def resumed(at: Place, damage: Callable[[Path], object], **changes: Any) -> object:
    """Goes on with a run of one epoch after something happened to its checkpoint."""
    recipe = replace(QUICK, epochs=1)
    train(small(), recipe=recipe, folder=at.tmp)
    damage(at.tmp / "checkpoint.pt")
    settings = {"student": small(), "recipe": recipe, "folder": at.tmp, **changes}
    return train(settings.pop("student"), **settings)


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def forget_optimizer(state: dict) -> None:
    state["students"]["student"]["optimizer"].clear()


def flip(path: Path) -> None:
    """One wrong bit in the middle, where the weights lie."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def without(folder: Path, keep: int) -> Path:
    """Class folders whose first class has so many images left."""
    for path in sorted((folder / "crow").iterdir())[keep:]:
        path.unlink()
    return folder


def forbid(at: Place) -> None:
    """No folder may be made. (Whoever runs the tests may be allowed everything.)"""

    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    at.patch.setattr(Path, "mkdir", refuse)


def forbid_files(at: Place) -> None:
    """No file may be written."""

    def refuse(path: Path) -> None:
        part = path.with_name(f".{path.name}.01234567.part")
        raise PermissionError(13, "Permission denied", str(part))

    at.patch.setattr(files, "_open_part", refuse)


# --- images and data sets

DATA = [
    ("no image", lambda at: one(at.tmp / "a.png").read(0), DataError,
     "{tmp}/a.png: there is no such image"),
    ("an image that leads nowhere", lambda at: one(linked(at)).read(0), DataError,
     "{tmp}/a.png: there is no such image"),
    ("a folder as an image", lambda at: one(at.tmp).read(0), DataError,
     "{tmp}: this is a folder; name an image in it"),
    ("text as an image", lambda at: one(at.file("a.png")).read(0), DataError,
     "{tmp}/a.png: the image does not decode (unknown format)"),
    ("an empty image", lambda at: one(at.file("a.png", b"")).read(0), DataError,
     "{tmp}/a.png: the image does not decode (unknown format)"),
    ("an image of floats", lambda at: one(floats(at)).read(0), DataError,
     "{tmp}/a.tif: the image does not decode (its pixels are floats of unknown range)"),
    ("an image cut off", lambda at: one(half(at)).read(0), DataError,
     "{tmp}/a.png: the image does not decode (image file is truncated)"),
    ("more pixels than there can be", lambda at: DataSet(size=100_000), DataError,
     "size is 100000: give at most 16384 pixels a side"),
    ("a size that is text", lambda at: DataSet(size="64"), DataError, "size is '64': give a whole number"),
    ("a size of a half", lambda at: DataSet(size=63.5), DataError, "size is 63.5: give a whole number"),
    ("a root that is a number", lambda at: DataSet(root=3), DataError,
     "root is 3: give the name of a folder"),
    ("classes by name where they are counted", lambda at: DataSet(classes="two"), DataError,
     "classes is 'two': give how many"),
    ("classes that are true", lambda at: DataSet(classes=True), DataError, "classes is True: give how many"),
    ("a size that is true", lambda at: DataSet(size=True), DataError, "size is True: give a whole number"),
    ("a share that is missing", lambda at: DataSet(hold_out=None), DataError,
     "hold_out is None: give a number"),
    ("a negative margin", lambda at: DataSet(margin=-1), DataError,
     "margin is -1: give a fraction of the box between 0 and 10"),
    ("an unknown crop", lambda at: DataSet(crop="bird"), DataError,
     "crop is 'bird': choose \"image\" or \"box\""),
    ("a negative seed of a split",
     lambda at: DataSet(str(at.birds), split_seed=-1).image_list("train"), DataError,
     "the seed is -1: give 0 or more"),
    ("nothing held out", lambda at: DataSet(str(at.birds), hold_out=0).image_list("train"), DataError,
     "hold_out is 0: give a number between 0 and 1"),
    ("a split that is near one", lambda at: DataSet(str(at.birds)).image_list("val"), DataError,
     'there is no split "val": did you mean "validation"? There are train, validation, trainval, test'),
    ("a split of CIFAR-100", lambda at: cifar.load(at.tmp, "tests"), DataError,
     'there is no split "tests": did you mean "test"? There are train, validation, trainval, test'),
    ("CIFAR-100 at another size", lambda at: DataSet("cifar100").load("train"), DataError,
     "CIFAR-100's images have 32 pixels a side and no boxes: give size=32 and crop=\"image\", not 64 and "
     "\"image\""),
    ("CIFAR-100 as photographs", lambda at: DataSet("cifar100").image_list("train"), DataError,
     "CIFAR-100 has no photographs in files: use load"),
    ("no folder", lambda at: class_folders(at.tmp / "none"), DataError,
     "{tmp}/none: there is no such folder"),
    ("a folder of nobody's home", lambda at: DataSet("~nobody-at-all/x").image_list("train"), DataError,
     '~nobody-at-all/x: there is no such folder. Give a folder, or one of birdlets, cub200, cifar100'),
    ("a folder without classes", lambda at: class_folders(at.tmp), DataError,
     "{tmp}: expected one folder of photographs for each class, and found no folder"),
    ("a class without images", lambda at: class_folders(without(at.bird_folders(), 0)), DataError,
     "{tmp}/birds/crow: this class has no image (.jpg, .jpeg, .jfif, .png, .webp, .bmp, .gif, .tif, .tiff)"),
    ("a class with one image",
     lambda at: class_folders(without(at.bird_folders(), 1)).hold_out(), DataError,
     "class crow has one image to split, {tmp}/birds/crow/0.png: holding it out would leave none to learn "
     "from"),
    ("a class with two images, of which one is for the test",
     lambda at: DataSet(str(without(at.bird_folders(), 2))).image_list("train"), DataError,
     "class crow has one image to split, {tmp}/birds/crow/1.png: holding it out would leave none to learn "
     "from"),
    ("more classes than there are", lambda at: class_folders(at.birds, 4), DataError,
     "classes is 4: {birds} has 3"),
    ("folders' classes by name", lambda at: class_folders(at.birds, ["crow"]), DataError,
     "classes is ['crow']: give how many, {birds} has 3"),
    ("folders' classes that are true", lambda at: class_folders(at.birds, True), DataError,
     "classes is True: give how many, {birds} has 3"),
    ("half of the folders' classes", lambda at: class_folders(at.birds, 1.5), DataError,
     "classes is 1.5: give how many, {birds} has 3"),
    ("boxes where there are none",
     lambda at: DataSet(str(at.birds), crop="box").image_list("train"), DataError,
     '{birds} has no boxes: crop="box" is for data sets in the layout of CUB-200-2011'),
    ("splits of other classes", lambda at: DataSet(str(parted(at))).image_list("trainval"), DataError,
     "{tmp}: the class finch is in only one of train/ and test/"),
    ("paths without labels", lambda at: ImageList((at.tmp,), np.zeros(2, int), ("a",)), DataError,
     "1 paths and 2 labels: give one for each"),
    ("a label of no class", lambda at: ImageList((at.tmp,), np.array([3]), ("a", "b")), DataError,
     "a label is 3: the 2 classes are counted from 0"),
    ("a negative label", lambda at: ImageList((at.tmp,), np.array([-1]), ("a", "b")), DataError,
     "a label is -1: the 2 classes are counted from 0"),
    ("a box that is no number", lambda at: boxed(at, (1, 1, np.nan, 2)), DataError,
     "{tmp}/a.png: the middle of the box (1, 1, nan, 2) is not in its image, 30 x 20 pixels"),
    ("no images at all", lambda at: cache.load(class_folders(at.birds).subset([])), DataError,
     "there are no images to load"),
    ("pixels that are floats", lambda at: cached(at, images=torch.full((4, 8, 8, 3), torch.nan)), DataError,
     "images are torch.float32, (4, 8, 8, 3): give torch.uint8, (N, S, S, 3)"),
    ("channels first", lambda at: cached(at, images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8)), DataError,
     "images are torch.uint8, (4, 3, 8, 8): give torch.uint8, (N, S, S, 3)"),
    ("pixels without labels", lambda at: cached(at, labels=labels(0)), DataError,
     "4 images and 1 labels: give one for each"),
    ("squares larger than the image", lambda at: cached(at, size=9), DataError,
     "size is 9: squares of 1 to 8 pixels can be cut from these images"),
    ("a file where decoded images go",
     lambda at: cache.load(class_folders(at.birds), folder=at.file("store")), NotADirectoryError,
     "[Errno 20] there is a file where a folder should be: '{tmp}/store'"),
    ("a disk too small to decode on",
     lambda at: cache.load(class_folders(at.birds, size=14_000), folder=at.tmp), DataError,
     "15 images of 16000 x 16000 pixels take 11.5 GB, and {tmp} has 1.0 GB free: choose a smaller size, "
     "or another folder by the environment variable ICD_CACHE"),
    ("a damaged card of Birdlets",
     lambda at: birdlets.families(at.file("birdlets.json", "{").parent), ValueError,
     "{tmp}/birdlets.json: this file is damaged; draw the data set again in a new folder"),
    ("a card of Birdlets of something else",
     lambda at: birdlets.families(at.file("birdlets.json", "[]").parent), ValueError,
     "{tmp}/birdlets.json: this file is damaged; draw the data set again in a new folder"),
    ("no Birdlets", lambda at: birdlets.families(at.tmp), FileNotFoundError,
     "{tmp}: this is no Birdlets data set, it has no birdlets.json"),
    ("no mask", lambda at: birdlets.masks(at.tmp, ["x/a.png"]), FileNotFoundError,
     "{tmp}/segmentations/x/a.png: there is no part mask for the image x/a.png"),
]  # fmt: skip


def linked(at: Place) -> Path:
    (at.tmp / "a.png").symlink_to(at.tmp / "nowhere")
    return at.tmp / "a.png"


def half(at: Place) -> Path:
    content = (at.birds / "crow" / "0.png").read_bytes()
    return at.file("a.png", content[: len(content) // 2])


def floats(at: Place) -> Path:
    Image.fromarray(np.ones((4, 4), np.float32)).save(at.tmp / "a.tif")
    return at.tmp / "a.tif"


def parted(at: Place) -> Path:
    for name in ("train/crow", "train/finch", "test/crow"):
        shutil.copytree(at.birds / "crow", at.tmp / name)
    return at.tmp


def boxed(at: Place, box: tuple[float, ...]) -> object:
    return one(at.image(), crop="box", boxes=np.array([box])).read(0)


# --- networks and saved weights

MODELS = [
    ("no run", lambda at: load_model(at.tmp / "none"), ModelError,
     "{tmp}/none: there is no such file. Has the run that writes it ended?"),
    ("a run that has not ended", lambda at: load_model(at.tmp), ModelError,
     "{tmp}/model.safetensors: there is no such file. Has the run that writes it ended?"),
    ("text as a network", lambda at: load_model(at.file("a.safetensors")), ModelError,
     "{tmp}/a.safetensors is not a safetensors file, or it is damaged"),
    ("an empty network", lambda at: load_model(at.file("a.safetensors", b"")), ModelError,
     "{tmp}/a.safetensors is not a safetensors file, or it is damaged"),
    ("a network cut off", lambda at: load_model(shortened(at)), ModelError,
     "{tmp}/run/model.safetensors is not a safetensors file, or it is damaged"),
    ("a checkpoint as a network", lambda at: load_model(at.run / "checkpoint.pt"), ModelError,
     "{run}/checkpoint.pt is not a safetensors file, or it is damaged"),
    ("weights without a card", lambda at: load_model(foreign(at)), ModelError,
     "{tmp}/a.safetensors has no card: it was not saved by icd"),
    ("a card that is no JSON", lambda at: load_model(foreign(at, "{")), ModelError,
     "{tmp}/a.safetensors: its card cannot be read"),
    ("a card that is a list", lambda at: load_model(foreign(at, "[]")), ModelError,
     "{tmp}/a.safetensors: its card cannot be read"),
    ("a card that lacks its classes",
     lambda at: load_model(foreign(at, '{"network": "vgg8", "size": 32}')), ModelError,
     "{tmp}/a.safetensors: its card cannot be read"),
    ("classes that are no list", lambda at: load_model(at.model(classes="abc")), ModelError,
     "{tmp}/a.safetensors: the card's classes cannot be 'abc'"),
    ("no classes", lambda at: load_model(at.model(classes=[])), ModelError,
     "{tmp}/a.safetensors: the card's classes cannot be ()"),
    ("a size that is text, in a card", lambda at: load_model(at.model(size="big")), ModelError,
     "{tmp}/a.safetensors: the card's size cannot be 'big'"),
    ("a size beyond any memory", lambda at: load_model(at.model(size=10**9)), ModelError,
     "{tmp}/a.safetensors: the card's size cannot be 1000000000"),
    ("a resize that is unknown", lambda at: load_model(at.model(resize="longer")), ModelError,
     "{tmp}/a.safetensors: the card's resize cannot be 'longer'"),
    ("a spread of zero", lambda at: load_model(at.model(std=[1, 0, 1])), ModelError,
     "{tmp}/a.safetensors: the card's std cannot be (1, 0, 1)"),
    ("a mean of two channels", lambda at: load_model(at.model(mean=[0, 0])), ModelError,
     "{tmp}/a.safetensors: the card's mean cannot be (0, 0)"),
    ("a square larger than the picture", lambda at: load_model(at.model(resize_size=10)), ModelError,
     "{tmp}/a.safetensors: the card's resize_size cannot be 10"),
    ("a crop that is unknown", lambda at: load_model(at.model(crop="bird")), ModelError,
     "{tmp}/a.safetensors: the card's crop cannot be 'bird'"),
    ("a margin that is text", lambda at: load_model(at.model(margin="wide")), ModelError,
     "{tmp}/a.safetensors: the card's margin cannot be 'wide'"),
    ("a network that the zoo lacks", lambda at: load_model(at.model(network="resnet99")), ModelError,
     f'{{tmp}}/a.safetensors: there is no network "resnet99": did you mean "resnet56"? There are '
     f'{ALL_NETWORKS}'),
    ("weights of another network", lambda at: load_model(at.model(network="vgg8")), ModelError,
     "{tmp}/a.safetensors does not fit vgg8: it has no block0.0.weight. It fits resnet10-8"),
    ("fewer names than classes", lambda at: load_model(at.model(classes=["crow"])), ModelError,
     "{tmp}/a.safetensors: the weights have 3 classes and the card 1"),
    ("a weight that is missing", lambda at: load_model(at.model(lambda w: w.pop("head.bias"))), ModelError,
     "{tmp}/a.safetensors does not fit resnet10-8: it has no head.bias"),
    ("a weight of another shape",
     lambda at: load_model(at.model(lambda w: w.update({"head.bias": torch.zeros(4)}))), ModelError,
     "{tmp}/a.safetensors does not fit resnet10-8: its head.bias has shape (4,), the network's has "
     "shape (3,)"),
    ("a weight that is no number",
     lambda at: load_model(at.model(lambda w: w["head.bias"].fill_(torch.nan))), ModelError,
     "{tmp}/a.safetensors: its head.bias has values that are not finite numbers"),
    ("a counter of another shape", lambda at: load_model(at.model(miscount)), ModelError,
     "{tmp}/a.safetensors does not fit resnet10-8: num_batches_tracked does not match"),
    ("published weights that are complex",
     lambda at: load_published("resnet20", saved(at, torch.zeros(1, dtype=torch.complex64))), ModelError,
     "{tmp}/a.pth: its conv1.weight has values that are not finite numbers"),
    ("published weights that are infinite",
     lambda at: load_published("resnet20", saved(at, torch.tensor([-torch.inf]))), ModelError,
     "{tmp}/a.pth: its conv1.weight has values that are not finite numbers"),
    ("a card made by hand", lambda at: ModelCard("resnet10-8", ("a",), 0), ModelError,
     "the card's size cannot be 0"),
    ("a file where a saved network goes",
     lambda at: save_model(at.file("a") / "b", small(), ModelCard("vgg8", ("a",), 8)), NotADirectoryError,
     "[Errno 20] there is a file where a folder should be: '{tmp}/a'"),
    ("a picture that is none",
     lambda at: load_image(at.file("a.jpg"), ModelCard("vgg8", ("a",), 8)), DataError,
     "{tmp}/a.jpg: the image does not decode (unknown format)"),
    ("a box of three numbers",
     lambda at: load_image(at.image(), ModelCard("vgg8", ("a",), 8), (1, 2, 3)), DataError,
     "the box is (1, 2, 3): give left, top, width and height in pixels"),
    ("a box of no bird",
     lambda at: load_image(at.image(), ModelCard("vgg8", ("a",), 8), (1, 2, 3, 0)), DataError,
     "the box is (1, 2, 3, 0): give left, top, width and height in pixels"),
    ("a box on no picture",
     lambda at: load_image(at.tmp / "b", ModelCard("vgg8", ("a",), 8), (1, 2, 3, 4)), DataError,
     "{tmp}/b: there is no such image"),
    ("no names asked for", lambda at: classify(*load_model(at.run), at.image(), top=0), ValueError,
     "top is 0: give 1 or more"),
    ("an unknown network", lambda at: network("resnet10", 3), ValueError,
     f'there is no network "resnet10": did you mean "resnet10-8"? There are {ALL_NETWORKS}'),
    ("no class", lambda at: network("vgg8", 0), ValueError, "a network for 0 classes: give 1 or more"),
    ("no pixel", lambda at: network("vgg8", 3, 0), ValueError,
     "a network for images of 0 pixels a side: give 1 or more"),
    ("too few pixels to halve", lambda at: network("vgg13", 3, 4), ValueError,
     "VGG halves an image three times: give 8 pixels a side or more, not 4"),
    ("a probe of nothing", lambda at: adapt(small(), probe_size=-1), ValueError,
     "probe_size is -1: give a number of pixels, 1 or more"),
    ("an unknown head", lambda at: adapt(small(), "linear"), ValueError,
     "head is 'linear': choose 'exact' or 'per-position'"),
    ("one image and no batch", lambda at: score(small(), logits(3, 32, 32)), ValueError,
     "images have shape (3, 32, 32): expected (B, 3, H, W)"),
    ("grey images", lambda at: score(small(), logits(2, 1, 32, 32)), ValueError,
     "images have shape (2, 1, 32, 32): expected (B, 3, H, W)"),
    ("images still in bytes",
     lambda at: score(small(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), ValueError,
     "images have dtype torch.uint8: normalise them with icd.datasets.cache.normalise"),
    ("a module without logits", lambda at: score(nn.Conv2d(3, 4, 3), logits(2, 3, 8, 8)), TypeError,
     "Conv2d returns no logits of shape (B, C)"),
    ("regions of a module without maps",
     lambda at: score(nn.Flatten(), logits(2, 3, 8, 8)).local(), AdaptError,
     "Flatten gives logits of whole images only: for losses of regions or features wrap it with "
     "icd.networks.adapt, or use cross_entropy() and whole_image()"),
    ("no such file of the book", lambda at: files.data_path("zzz"), FileNotFoundError,
     "zzz does not ship with this installation of icd"),
]  # fmt: skip


def shortened(at: Place) -> Path:
    return at.spoilt("model.safetensors", (at.run / "model.safetensors").read_bytes()[:5000])


def foreign(at: Place, card: str | None = None) -> Path:
    save_file({"weight": torch.zeros(1)}, at.tmp / "a.safetensors", metadata=card and {"icd": card})
    return at.tmp / "a.safetensors"


def miscount(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("num_batches_tracked"))
    weights[name] = torch.zeros(2, dtype=torch.int64)


def saved(at: Place, first: torch.Tensor) -> Path:
    torch.save({**network("resnet20", 100).state_dict(), "conv1.weight": first}, at.tmp / "a.pth")
    return at.tmp / "a.pth"


# --- losses and objectives

TWO = logits(2, 3), logits(2, 3)
REGIONS = logits(2, 5, 3), logits(2, 5, 3)

OBJECTIVES = [
    ("a temperature of zero", lambda at: kd_loss(*TWO, temperature=0), ValueError,
     "temperature is 0: give a positive number"),
    ("a temperature that is no number", lambda at: kd_loss(*TWO, temperature=torch.nan), ValueError,
     "temperature is nan: give a positive number"),
    ("a negative alpha", lambda at: dkd_loss(*TWO, labels(0, 1), alpha=-1), ValueError,
     "alpha is -1: give a finite number, not negative"),
    ("a beta that is no number", lambda at: dkd_loss(*TWO, labels(0, 1), beta=torch.nan), ValueError,
     "beta is nan: give a finite number, not negative"),
    ("a negative gamma", lambda at: nkd_loss(*TWO, labels(0, 1), gamma=-2.0), ValueError,
     "gamma is -2.0: give a finite number, not negative"),
    ("a negative weight of regions",
     lambda at: scale_decoupled_loss(kd_loss, *REGIONS, labels(0, 1), complementary=-1), ValueError,
     "complementary is -1: give a finite number, not negative"),
    ("labels that are probabilities", lambda at: dkd_loss(*TWO, torch.rand(2)), ValueError,
     "dkd_loss: target has dtype torch.float32: expected labels, int64"),
    ("mismatched class counts", lambda at: kd_loss(logits(2, 3), logits(2, 4)), ValueError,
     "kd_loss compares class with class: the student has 3 classes and the teacher 4. Only losses of "
     "Gram matrices and features accept a teacher of other classes"),
    ("a scale by itself", lambda at: icd_loss(*REGIONS, scales=2), ValueError,
     "scales are 2: give one or more positive integers, like (1, 2, 4)"),
    ("scales as text", lambda at: clustering("12"), ValueError,
     "scales are ('1', '2'): give one or more positive integers, like (1, 2, 4)"),
    ("a scale of zero", lambda at: scale_decoupled(kd_loss, (1, 0)), ValueError,
     "scales are (1, 0): give one or more positive integers, like (1, 2, 4)"),
    ("no scales", lambda at: local_logits(logits(1, 2, 4, 4), None, None, ()), ValueError,
     "scales are (): give one or more positive integers, like (1, 2, 4)"),
    ("a scale finer than the map", lambda at: local_logits(logits(1, 2, 2, 2), None, None), ValueError,
     "scale 4 cuts a 2 x 2 map into 4 x 4 regions, more than it has cells: they would only repeat. Use "
     "coarser scales, or say repeat=True"),
    ("a bias of another head",
     lambda at: local_logits(logits(1, 2, 4, 4), logits(5, 2), logits(4)), ValueError,
     "the head's bias has shape (4,): expected (5,), as its weight"),
    ("weights that are no numbers",
     lambda at: icd_loss(*REGIONS, (1, 2), weights=(1, torch.nan)), ValueError,
     "icd_loss: weights are (1, nan): give 2 numbers, none negative, one for each scale"),
    ("an objective of nothing", lambda at: Objective(()), ValueError,
     "an objective without terms: give one or more"),
    ("a loss in the place of a term", lambda at: cross_entropy() + kd_loss, TypeError,
     "kd_loss is not a term of an objective: give a sum of terms, like 0.1 * cross_entropy() + 0.9 * "
     "whole_image(kd_loss), or METHODS[\"KD\"]()"),
    ("a name in the place of an objective", lambda at: train(small(), "KD"), TypeError,
     "'KD' is not a term of an objective: give a sum of terms, like 0.1 * cross_entropy() + 0.9 * "
     "whole_image(kd_loss), or METHODS[\"KD\"]()"),
    ("a loss without a name", lambda at: whole_image(lambda_without_name()), TypeError,
     "a term is named after its loss: give a function and then its arguments"),
    ("a negative weight", lambda at: -1.0 * whole_image(kd_loss), ValueError,
     "the weight of kd is -1.0: give a finite number, not negative"),
    ("a weight that is no number", lambda at: torch.nan * cross_entropy(), ValueError,
     "the weight of cross_entropy is nan: give a finite number, not negative"),
    ("two terms of one name", lambda at: whole_image(kd_loss) + whole_image(kd_loss), ValueError,
     "two terms are named 'kd': rename one of them for the log with .named(\"kd_2\")"),
    ("a warm-up over nothing", lambda at: cross_entropy().warmed_up(0), ValueError,
     "a warm-up over 0 epochs: give 1 or more"),
    ("an argument misspelt", lambda at: whole_image(kd_loss, temprature=4), ValueError,
     "kd_loss takes no 'temprature': did you mean \"temperature\"? choose from temperature"),
    ("a temperature that is a word", lambda at: whole_image(kd_loss, temperature="4"), ValueError,
     "temperature is '4': give a number"),
    ("a weight for all scales", lambda at: clustering(weights=3), ValueError,
     "weights is 3: give one for each scale, like (1, 2, 3)"),
    ("a loss for each image", lambda at: whole_image(kd_loss, reduction="none"), ValueError,
     "kd_loss takes no 'reduction': choose from temperature"),
    ("a method that is no method", lambda at: parse("KDD"), ValueError,
     f'there is no method "KDD": did you mean "KD"? There are {ALL_METHODS}'),
    ("an expression that does not end", lambda at: parse("cross_entropy("), ValueError,
     "\"cross_entropy(\" is not an objective: '(' was never closed"),
    ("an expression of numbers", lambda at: parse("(3)"), ValueError,
     '"(3)" is not an objective: it has no term'),
    ("an expression with code in it", lambda at: parse("__import__('os').mkdir('sprung')"), ValueError,
     "\"__import__('os').mkdir('sprung')\" cannot be part of an objective: its words are "
     f"{WORDS}"),
    ("a term misspelt", lambda at: parse("cross_entropi()"), ValueError,
     '"cross_entropi()" cannot be part of an objective: did you mean "cross_entropy"? its words are '
     f"{WORDS}"),
    ("another function", lambda at: parse("import_os()"), ValueError,
     '"import_os()" cannot be part of an objective: its words are '
     f"{WORDS}"),
    ("a method that is like none", lambda at: parse("XX"), ValueError,
     f'there is no method "XX": there are {ALL_METHODS}'),
    ("a term without its teacher",
     lambda at: Objective((clustering(),))(Scores(*TWO, nn.Identity()), None, labels(0, 1)), ValueError,
     "the term clustering compares with a teacher, and there is none: give a teacher"),
]  # fmt: skip


def lambda_without_name() -> Callable:
    from functools import partial

    return partial(kd_loss, temperature=2)


# --- recipes and runs

RUNS = [
    ("no epochs", lambda at: Recipe(epochs=0), ValueError,
     "the recipe's epochs is 0: give a positive number"),
    ("half an epoch", lambda at: Recipe(epochs=2.5), ValueError,
     "the recipe's epochs is 2.5: give a whole number"),
    ("epochs as text", lambda at: Recipe(epochs="3"), ValueError,
     "the recipe's epochs is '3': give a whole number"),
    ("a negative batch", lambda at: Recipe(batch_size=-8), ValueError,
     "the recipe's batch_size is -8: give a positive number"),
    ("a rate that is no number", lambda at: Recipe(learning_rate=torch.nan), ValueError,
     "the recipe's learning_rate is nan: give a positive number"),
    ("an infinite rate", lambda at: Recipe(learning_rate=torch.inf), ValueError,
     "the recipe's learning_rate is inf: give a positive number"),
    ("gradients cut to nothing", lambda at: Recipe(max_grad_norm=0), ValueError,
     "the recipe's max_grad_norm is 0: give a positive number"),
    ("momentum for ever", lambda at: Recipe(momentum=1.0), ValueError,
     "the recipe's momentum is 1.0: give 0 or more, and less than 1"),
    ("nesterov without momentum", lambda at: Recipe(nesterov=True, momentum=0), ValueError,
     "the recipe's momentum is 0: Nesterov momentum needs a positive number"),
    ("growing weights", lambda at: Recipe(weight_decay=-1), ValueError,
     "the recipe's weight_decay is -1: give 0 or more, and less than inf"),
    ("a negative seed", lambda at: Recipe(seed=-1), ValueError,
     "the recipe's seed is -1: give 0 or more, and less than 9.22337e+18"),
    ("a seed too long", lambda at: Recipe(seed=2**63), ValueError,
     "the recipe's seed is 9223372036854775808: give 0 or more, and less than 9.22337e+18"),
    ("an unknown schedule", lambda at: Recipe(schedule="cosine"), ValueError,
     "the recipe's schedule is 'cosine': choose \"multistep\" or \"one-cycle\""),
    ("an unknown precision", lambda at: Recipe(precision="fp8"), ValueError,
     "the recipe's precision is 'fp8': choose \"auto\" or \"float32\" or \"bf16\" or \"fp16\""),
    ("milestones after the end", lambda at: Recipe(milestones=(0.5, 150)), ValueError,
     "the recipe's milestones is (0.5, 150): give fractions of the run, from 0 to 1, like (0.5, 0.75)"),
    ("a milestone by itself", lambda at: Recipe(milestones=0.5), ValueError,
     "the recipe's milestones is 0.5: give fractions of the run, from 0 to 1, like (0.5, 0.75)"),
    ("a checkpoint before the last", lambda at: train(small(), checkpoint_seconds=torch.nan), ValueError,
     "checkpoint_seconds is nan: give 0 seconds or more"),
    ("accumulation steps that do not divide",
     lambda at: train(small(), recipe=replace(QUICK, accumulation_steps=3)), RunError,
     "16 images cannot be split into 3 equal parts: choose accumulation_steps that divide them"),
    ("no teacher", lambda at: train(small(), METHODS["KD"]()), RunError,
     "the objective compares with a teacher and none was given: pass teacher="),
    ("a teacher of other classes",
     lambda at: train(small(), METHODS["KD"](), teacher=small(1, 9)), ValueError,
     "kd_loss compares class with class: the student has 4 classes and the teacher 9. Only losses of "
     "Gram matrices and features accept a teacher of other classes"),
    ("a student of fewer classes", lambda at: train(small(0, 2)), RunError,
     "student has 2 classes, and the training images have 4: build it for as many"),
    ("photographs for pixels", lambda at: train(small(), data=class_folders(at.birds)), RunError,
     "the training images are not decoded: pass them through icd.datasets.cache.load first"),
    ("photographs to validate with",
     lambda at: train(small(), validation=class_folders(at.birds)), RunError,
     "the validation images are not decoded: pass them through icd.datasets.cache.load first"),
    ("validation images of fewer classes",
     lambda at: train(small(), validation=stripes(classes=2)), RunError,
     'class 2 is "class 2" in the training images and missing in the validation images: give both the same '
     "classes in the same order"),
    ("validation images of other classes",
     lambda at: train(small(), validation=replace(stripes(), classes=("a", "b", "c", "d"))), RunError,
     'class 0 is "class 0" in the training images and "a" in the validation images: give both the same '
     "classes in the same order"),
    ("no student", lambda at: fit_together([], stripes(), QUICK), RunError,
     "there is no student: give one or more"),
    ("two students of one name",
     lambda at: fit_together([Student(small(), ALONE), Student(small(), ALONE)], stripes(), QUICK), RunError,
     'two students are named "student": rename one of them, as the log needs a name for each'),
    ("a loss that is no number", lambda at: train(small(), cross_entropy() + explosive(3)), NonFiniteLoss,
     "student: explosive is nan in epoch 1, step 3. Lower the learning rate, or train in float32. A "
     "checkpoint written earlier is unaffected"),
    ("weights that are no numbers", lambda at: train(broken(), folder=at.tmp), NonFiniteLoss,
     "student: spare is not finite after 1 epoch(s). Lower the learning rate, or train in float32. "
     "A checkpoint written earlier is unaffected"),
    ("a run in a file", lambda at: train(small(), folder=at.file("a")), RunError,
     "{tmp}/a: there is a file where a folder should be. Choose another folder for the run"),
    ("a run below a file", lambda at: train(small(), folder=at.file("a") / "b" / "c"), RunError,
     "{tmp}/a: there is a file where a folder should be. Choose another folder for the run"),
    ("a run where nobody may write", lambda at: (forbid(at), train(small(), folder=at.tmp / "a")), RunError,
     "{tmp}/a: Permission denied. Choose another folder for the run"),
    ("an empty checkpoint", lambda at: resumed(at, lambda path: path.write_bytes(b"")), RunError, DAMAGED),
    ("a checkpoint cut off", lambda at: resumed(at, cut), RunError, DAMAGED),
    ("a checkpoint with a wrong bit", lambda at: resumed(at, flip), RunError, DAMAGED),
    ("a checkpoint of another program",
     lambda at: resumed(at, lambda path: torch.save({"model": {}}, path)), RunError, DAMAGED),
    ("a checkpoint with code in it",
     lambda at: resumed(at, lambda path: torch.save({"settings": Trap()}, path)), RunError, DAMAGED),
    ("a pickle with code in it",
     lambda at: resumed(at, lambda path: path.write_bytes(b"cos\nmkdir\n(S'sprung'\ntR.")), RunError,
     DAMAGED),
    ("a checkpoint that lacks its weights",
     lambda at: resumed(at, lambda path: rewrite(path, lambda s: s.pop("students"))), RunError, DAMAGED),
    ("a checkpoint of another optimizer",
     lambda at: resumed(at, lambda path: rewrite(path, forget_optimizer)), RunError, DAMAGED),
    ("a folder as a checkpoint",
     lambda at: resumed(at, lambda path: (path.unlink(), path.mkdir())), RunError,
     "{tmp}/checkpoint.pt cannot be read (Is a directory): fix that, or choose another folder"),
    ("a run of another recipe", lambda at: resumed(at, bool, recipe=replace(QUICK, epochs=4)), RunError,
     "{tmp} holds a run with a different recipe.epochs: there 1, here 4. Give the same settings to resume "
     "it, or choose another folder"),
    ("a run of another objective", lambda at: resumed(at, bool, objective=2.0 * cross_entropy()), RunError,
     "{tmp} holds a run with a different objectives.student: there cross_entropy(), here 2 * "
     "cross_entropy(). Give the same settings to resume it, or choose another folder"),
    ("a run of another network", lambda at: resumed(at, bool, student=network("resnet10-8", 4)), RunError,
     "{tmp} holds a run with a different networks.student: there SmallResNet, 8132 weights, here "
     "SmallResNet, 77612 weights. Give the same settings to resume it, or choose another folder"),
    ("a run of other images", lambda at: resumed(at, bool, data=stripes(seed=3)), RunError,
     "{tmp} holds a run with a different images: there 96 of 4 classes, 32 pixels, 0, here 96 of 4 classes, "
     "32 pixels, 3. Give the same settings to resume it, or choose another folder"),
]  # fmt: skip


def broken() -> nn.Module:
    """A network with an infinite weight that no image meets."""
    model = small()
    model.spare = nn.Parameter(torch.tensor(torch.inf))
    return model


# --- tables of results, evidence and figures

EVIDENCE = [
    ("no table", lambda at: read_results(at.tmp / "t.csv"), RunError,
     "{tmp}/t.csv cannot be read (No such file or directory)"),
    ("a folder as a table", lambda at: read_results(at.tmp), RunError,
     "{tmp} cannot be read (Is a directory)"),
    ("an empty table", lambda at: read_results(at.file("t.csv", "")), RunError,
     "{tmp}/t.csv is not a table of results (No columns to parse from file)"),
    ("a table of something else", lambda at: read_results(at.file("t.csv", "a,b\n1,2\n")), RunError,
     f"{{tmp}}/t.csv is not a table of results: its columns are not {COLUMNS}"),
    ("a table that is no text", lambda at: read_results(at.file("t.csv", b"\xff\xfe")), RunError,
     "{tmp}/t.csv is not a table of results ('utf-8' codec can't decode byte 0xff in position 0: invalid "
     "start byte)"),
    ("a quote that does not end", lambda at: table(at, "iCD-KD", '"iCD-KD'), RunError,
     "{tmp}/t.csv is not a table of results (Error tokenizing data. C error: EOF inside string starting at "
     "row 2)"),
    ("a row cut off", lambda at: table(at, ",cpu,c,icd,{}\niCD", "\niCD"), RunError,
     "{tmp}/t.csv:2: the settings is '', not settings in JSON"),
    ("a row too long", lambda at: table(at, "{}\niCD", "{},1\niCD"), RunError,
     "{tmp}/t.csv is not a table of results (Length of header or names does not match length of data. This "
     "leads to a loss of data with index_col=False.)"),
    ("a seed that is a word", lambda at: table(at, "KD,0,", "KD,zero,"), RunError,
     "{tmp}/t.csv:2: the seed is 'zero', not a whole number"),
    ("an accuracy that is a word", lambda at: table(at, "iCD-KD,0,0.5", "iCD-KD,0,good"), RunError,
     "{tmp}/t.csv:3: the accuracy is 'good', not a number"),
    ("an accuracy in points", lambda at: table(at, "0.5", "50"), RunError,
     "{tmp}/t.csv:2: the accuracy is 50.0, not a fraction from 0 to 1"),
    ("an accuracy that is no number", lambda at: table(at, "0.5", "nan"), RunError,
     "{tmp}/t.csv:2: the accuracy is nan, not a fraction from 0 to 1"),
    ("settings that are a number", lambda at: table(at, "{}", "3"), RunError,
     "{tmp}/t.csv:2: the settings is '3', not settings in JSON"),
    ("a run with two rows", lambda at: table(at, "iCD-KD", "KD"), RunError,
     "{tmp}/t.csv:3: KD with seed 0 has a row already"),
    ("an unknown method", lambda at: compared(at, "alone", "icd kd"), RunError,
     f'there is no method "icd kd": did you mean "iCD-KD"? There are {ALL_METHODS}'),
    ("a method twice", lambda at: compared(at, "KD", "KD"), RunError,
     'the method "KD" is given twice: give it once'),
    ("no methods", lambda at: compared(at), RunError,
     "0 methods for 1 seeds: give one or more of both"),
    ("no seeds", lambda at: compared(at, "alone", seeds=range(0)), RunError,
     "1 methods for 0 seeds: give one or more of both"),
    ("a table of other runs",
     lambda at: (write_results(at.tmp / "results.csv", [ROW]), compared(at, "alone")), RunError,
     "{tmp}/results.csv has results of other settings (KD, seed 0): choose another folder"),
    ("one pair", lambda at: paired_interval([1.0], [2.0]), ValueError,
     "1 and 1 runs: a paired interval needs two pairs at least, seed by seed"),
    ("runs without a partner", lambda at: paired_interval([1.0, 2.0], [1.0]), ValueError,
     "2 and 1 runs: a paired interval needs two pairs at least, seed by seed"),
    ("a run that is no number", lambda at: paired_interval([1, 2, torch.nan], [1, 2, 3]), ValueError,
     "the difference of pair 2, from 0, is not finite"),
    ("more than certain", lambda at: paired_interval([1, 2], [1, 3], confidence=95), ValueError,
     "confidence is 95: give a number between 0 and 1, like 0.95"),
    ("no groups", lambda at: average_linkage_clusters(np.eye(3)[None], [0]), ValueError,
     "average_linkage_clusters: counts are [0]: give 1 to 3"),
    ("more groups than things", lambda at: average_linkage_clusters(np.eye(3)[None], [4]), ValueError,
     "average_linkage_clusters: counts are [4]: give 1 to 3"),
    ("a similarity that is no number",
     lambda at: average_linkage_clusters(np.full((1, 2, 2), np.nan), [2]), ValueError,
     "average_linkage_clusters: a similarity is not finite"),
    ("a term that nobody logged",
     lambda at: plots.term_curves([{"epoch": 1, "kd": 2.0}], ["sd_kd"]), ValueError,
     'the log of epoch 1 has no term "sd_kd"'),
    ("a sheet of no columns", lambda at: figures.contact_sheet(np.zeros((1, 4, 4)), columns=0), ValueError,
     "a contact sheet of 0 columns: give 1 or more"),
    ("a picture of seven channels", lambda at: figures.contact_sheet(np.zeros((1, 4, 4, 7))), ValueError,
     "an image has shape (4, 4, 7): expected (H, W), (H, W, 3) or (3, H, W)"),
    ("a frame that is no number",
     lambda at: figures.flipbook(np.full((1, 4, 4), np.nan), ["a"], alt="a"), ValueError,
     "an image has values that are not finite"),
    ("a start beyond the end",
     lambda at: figures.flipbook(np.zeros((2, 4, 4)), ["a", "b"], alt="a", start=2), ValueError,
     "start is 2: give the index of a frame, 0 to 1"),
    ("a file in the way of a cache",
     lambda at: files.write_atomically(at.file("a") / "b", "x"), NotADirectoryError,
     "[Errno 20] there is a file where a folder should be: '{tmp}/a'"),
    ("a folder in the way of a file", lambda at: files.write_atomically(at.tmp, "x"), IsADirectoryError,
     "[Errno 21] Is a directory: '{tmp}'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [pytest.param(*case[1:], id=case[0]) for case in (*DATA, *MODELS, *OBJECTIVES, *RUNS, *EVIDENCE)],
)
def test_bad_input_raises_one_sentence(do, error, message, at):
    at.patch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(error) as refused:
        do(at)
    assert type(refused.value) is error
    assert str(refused.value) == at.parse(message)
    assert not Path("sprung").exists()  # no code in any file was run


# --- the command line: what the library does not check, and five of its errors that pass through

WRONG = [  # a name, a command, what happens before, and the line that follows "icd COMMAND: "
    ("an error of the recipe", "teach {tmp}/a --data.root {birds} --recipe.epochs 0", None,
     "the recipe's epochs is 0: give a positive number"),
    ("an error of the data", "teach {tmp}/a {short} --data.classes 9", None, "classes is 9: {birds} has 3"),
    ("an error of an image",
     "teach {tmp}/a {short} --data.root {tmp}/birds",
     lambda at: (at.bird_folders(), at.file("birds/crow/0.png")),
     "{tmp}/birds/crow/0.png: the image does not decode (unknown format)"),
    ("an error of an objective", "distil {run} {tmp}/a {short} --method icd-kd", None,
     f'there is no method "icd-kd": did you mean "iCD-KD"? There are {ALL_METHODS}'),
    ("an error of training", "teach {tmp}/a {short} --recipe.learning_rate 1e30 --recipe.epochs 2", None,
     "student: cross_entropy is nan in epoch 2, step 1. Lower the learning rate, or train in float32. "
     "A checkpoint written earlier is unaffected"),
    ("a file as a folder", "teach {tmp}/a {short}", lambda at: at.file("a"),
     "{tmp}/a: there is a file where a folder should be"),
    ("a folder that cannot be made", "teach /proc/nothing {short}", None,
     "/proc/nothing: No such file or directory"),
    ("a folder that cannot be written", "teach {tmp}/a {short}", lambda at: forbid_files(at),
     "{tmp}/a/config.yaml: Permission denied"),
    ("another run's folder",
     "teach {tmp}/run {short} --data.size 48", lambda at: shutil.copytree(at.run, at.tmp / "run"),
     "{tmp}/run has a run with a different data.size: there 64, here 48. Resume it with --config "
     "{tmp}/run/config.yaml, or choose another folder"),
    ("a damaged checkpoint", "teach {tmp}/run {short}", lambda at: at.spoilt("checkpoint.pt", b"PK"),
     "{tmp}/run/checkpoint.pt is not a checkpoint of icd, or it is damaged. Delete it to start "
     "again, or choose another folder"),
    *((name, "teach {tmp}/run {short}", lambda at, text=text: at.spoilt("config.yaml", text),
       "{tmp}/run/config.yaml is damaged or has no settings: repair or delete it")
      for name, text in (
          ("damaged settings", "["),
          ("empty settings", ""),
          ("settings that are not text", b"\xff"),
          ("settings that contain themselves", "&a {x: *a}"),
          ("settings with code in them", "x: !!python/object/apply:os.mkdir [sprung]"),
      )),
    ("a folder as settings", "teach {tmp}/run {short}", lambda at: at.spoilt("config.yaml", None),
     "{tmp}/run/config.yaml cannot be read (Is a directory): repair or delete it"),
    ("no teacher", "distil {tmp}/none {tmp}/a", None,
     "{tmp}/none: there is no such file. Has the run that writes it ended?"),
    ("a teacher without a run", "distil {tmp} {tmp}/a", None,
     "{tmp}/model.safetensors: there is no such file. Has the run that writes it ended?"),
    ("a teacher of an unknown network", "distil {run}/checkpoint.pt {tmp}/a", None,
     "{run}/checkpoint.pt does not name the network of its weights: give --teacher_network"),
    ("a teacher that is not trained yet", "distil runs/cub200-resnet32x4 {tmp}/a", None,
     "there is no teacher in runs/cub200-resnet32x4: train it first, with icd reproduce cub200-resnet32x4"),
    ("an unknown recipe to show", "recipes --name cub2000", None,
     'there is no recipe "cub2000": did you mean "cub200-vgg8"? `icd recipes` lists all 180'),
    ("a config without settings", 'teach {tmp}/a --config {"recipe":3}', None,
     "data and recipe must be named settings: see the file given to --config"),
    ("a teacher of more classes", "distil {run} {tmp}/a {short} --data.classes 2", None,
     'the teacher has other classes than the images: class 3 is "gull" in the teacher and missing in the '
     "images. Use an objective that compares no logits, such as cross_entropy() + clustering()"),
    *((f"a teacher of other classes to {command}", f"{command} {{run}} {{tmp}}/a {{short}} "
       f"--data.root {{tmp}}/birds {options}", lambda at: rename_classes(at),
       'the teacher has other classes than the images: class 2 is "finch" in the teacher and "gull" in the '
       "images. Use an objective that compares no logits, such as cross_entropy() + clustering()")
      for command, options in (("distil", ""), ("compare", "--methods alone,KD"))),
    ("a negative time", "teach {tmp}/a {short} --checkpoint_seconds -5", None,
     "checkpoint_seconds is -5.0: give 0 seconds or more"),
    ("a seed for all seeds", "compare {run} {tmp}/a {short} --recipe.seed 7", None,
     "the recipe's seed is 7: a comparison takes its seeds from --seeds alone"),
    ("an unknown student", "compare {run} {tmp}/a {short} --network resnet10", None,
     f'there is no network "resnet10": did you mean "resnet10-8"? There are {ALL_NETWORKS}'),
    ("a map too small", "distil {run} {tmp}/a {short} --data.size 32", None,
     "scale 4 cuts a 2 x 2 map into 4 x 4 regions, more than it has cells: they would only repeat. Use "
     "coarser scales, or say repeat=True"),
    ("no methods", "compare {run} {tmp}/a {short} --methods=", None,
     f'there is no method "": there are {ALL_METHODS}'),
    ("no seeds", "compare {run} {tmp}/a {short} --methods alone --seeds 0", None,
     "1 methods for 0 seeds: give one or more of both"),
    ("another table",
     "compare {run} {tmp}/a {short} --methods alone", lambda at: at.file("a/results.csv", "a,b\n"),
     f"{{tmp}}/a/results.csv is not a table of results: its columns are not {COLUMNS}"),
    ("a comparison of other settings",
     "compare {run} {tmp}/a {short} --methods alone --seeds 1 --recipe.max_grad_norm 1", lambda at: begun(at),
     "{tmp}/a has a run with a different recipe.max_grad_norm: there 40.0, here 1.0. Resume it with --config "
     "{tmp}/a/config.yaml, or choose another folder"),
    ("nothing to evaluate", "evaluate {tmp}/none", None,
     "{tmp}/none: there is no such file. Has the run that writes it ended?"),
    ("images of other classes", "evaluate {run} --root {tmp}/two",
     lambda at: shutil.copytree(at.birds, at.tmp / "two", ignore=lambda *_: ["gull"]),
     "{run} has 3 (crow, ...) classes and the images 2 (crow, ...): give --root"),
    ("missing settings",
     "evaluate {tmp}", lambda at: shutil.copy(at.run / "model.safetensors", at.tmp),
     "{tmp}/config.yaml cannot be read (No such file or directory): give --root"),
    *((name, "evaluate {tmp}/run", lambda at, text=text: at.spoilt("config.yaml", text),
       f"{{tmp}}/run/config.yaml has no valid data settings{reason}: give --root")
      for name, text, reason in (
          ("settings without images", "recipe: {}", ""),
          ("settings whose images are a number", "data: 3", ""),
          ("settings with an unknown name", "data: {rot: birdlets}", ""),
          ("settings with a value of another kind",
           "data: {root: 3}", " (root is 3: give the name of a folder)"),
      )),
    ("a missing picture", "predict {run} {tmp}/none.jpg", None, "{tmp}/none.jpg: there is no such image"),
    ("a box in words", "predict {run} {tmp}/a.png --box left,top", lambda at: at.image(),
     '--box is "left,top": give left,top,width,height in pixels, like 60,27,325,304'),
    ("a name with another ending", "pack {run} {tmp}/a.pt", None,
     "{tmp}/a.pt: give a name that ends in .safetensors"),
    ("a folder in the way", "pack {run} {tmp}/a.safetensors", lambda at: (at.tmp / "a.safetensors").mkdir(),
     "{tmp}/a.safetensors: Is a directory"),
    ("something else in the folder", "draw {birds}", None,
     "{birds}: something other than Birdlets lies here; choose a new folder"),
]  # fmt: skip


def rename_classes(at: Place) -> None:
    """As many classes, two of them with other names."""
    folder = at.bird_folders()
    (folder / "finch").rename(folder / "gulls")
    (folder / "gull").rename(folder / "heron")
    (folder / "gulls").rename(folder / "gull")


# Found by the first steps of a run, or by the disk: the folder exists by then.
LATE = ("is nan in epoch", "scale 4 cuts", "Permission denied", "is not a checkpoint")


def contents(folder: Path) -> dict[Path, bytes | str]:
    return {path: path.read_bytes() if path.is_file() else "folder" for path in folder.rglob("*")}


def begun(at: Place) -> None:
    """A comparison with a table of results, with all but one of these settings."""
    command = f"compare {{run}} {{tmp}}/a {' '.join(SHORT)} --data.root {{birds}} --methods alone --seeds 1"
    assert main(at.parse(command).split()) == 0


@pytest.mark.parametrize(
    ("command", "before", "message"), [pytest.param(*case[1:], id=case[0]) for case in WRONG]
)
def test_a_failing_command_prints_one_line_and_exits_with_1(command, before, message, at, capsys):
    if before is not None:
        before(at)
    capsys.readouterr()
    before_it = contents(at.tmp)
    short = f"--data.root {at.birds} {' '.join(SHORT)}"
    assert main([*at.parse(command.replace("{short}", short)).split()]) == 1
    said = capsys.readouterr().err
    progress = re.compile(r"\s*|.*image/s.*|an epoch takes .*")
    lines = [line for line in re.split(r"[\r\n]", said) if not progress.fullmatch(line)]
    assert lines == [f"icd {command.split()[0]}: {at.parse(message)}"]
    left = contents(at.tmp)
    new = [path for path in left if left[path] != before_it.get(path)]
    assert not new or any(late in message for late in LATE)
    assert before_it.keys() <= left.keys()
    assert not Path("sprung").exists()


MISUSED = [  # a name, a command, and parts of the last lines: the option and the reason
    ("no command", "", ["a command is missing: `icd --help` lists them"]),
    ("an unknown command", "teech", ['there is no command "teech": did you mean "teach"?']),
    ("no folder", "teach", ["folder"]),
    ("an unknown option", "teach {tmp}/a --rubbish 3", ["--rubbish"]),
    ("an option cut short", "teach {tmp}/a --recipe.epoch 2", ["--recipe.epoch"]),
    ("an option without a value", "distil {run} {tmp}/a --method", ["--method"]),
    ("no recipe", "reproduce", ["name"]),
    ("an unknown recipe", "reproduce cub200-vgg", ['no recipe "cub200-vgg"', '"cub200-vgg8"']),
    ("an unknown option of a recipe", "reproduce cub200-vgg8 --recipe.epoch 2", ["--recipe.epoch"]),
    ("a missing recipe file", "distil {run} {tmp}/a --recipe rec.yaml", ["rec.yaml"]),
    ("a word for a number", "teach {tmp}/a --recipe.epochs two", ["recipe.epochs", "two"]),
    ("half an epoch", "teach {tmp}/a --recipe.epochs 2.5", ["recipe.epochs", "2.5"]),
    ("an infinite rate", "teach {tmp}/a --recipe.learning_rate inf", ["recipe.learning_rate", "inf"]),
    (
        "an unknown schedule",
        "teach {tmp}/a --recipe.schedule cosine",
        ["recipe.schedule", "'one-cycle'", "cosine"],
    ),
    ("an unknown crop", "teach {tmp}/a --data.crop bird", ["data.crop", "'box'", "bird"]),
    ("an unknown split", "evaluate {run} --split val", ["split", "'validation'", "val"]),
    ("no settings", "teach --config {tmp}/none.yaml", ["{tmp}/none.yaml"]),
    ("settings that are a folder", "teach --config {tmp}", ["{tmp}"]),
    ("no picture", "predict {run}", ["picture"]),
    ("an argument too many", "methods 3", ["3"]),
]


@pytest.mark.parametrize(("command", "parts"), [pytest.param(*case[1:], id=case[0]) for case in MISUSED])
def test_wrong_usage_ends_with_status_2(command, parts, at, capsys):
    try:
        status = main(at.parse(command).split())
    except SystemExit as end:
        status = end.code
    assert status == 2
    printed = capsys.readouterr().err
    assert printed.startswith("usage: icd ")
    last = printed.rpartition("error: ")[2]
    assert all(at.parse(text) in last for text in parts), last
    assert "Traceback" not in printed


@pytest.mark.thorough
def test_a_process_ends_with_the_message_and_status(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "icd", "evaluate", str(tmp_path)], capture_output=True, text=True, check=False
    )
    missing = tmp_path / "model.safetensors"
    assert (
        ended.stderr == f"icd evaluate: {missing}: there is no such file. Has the run that writes it ended?\n"
    )
    assert (ended.returncode, ended.stdout) == (1, "")
