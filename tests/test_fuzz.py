"""Damaged files: given any bytes, a reader reads them or raises its one clean error, and warns of nothing.

The same few examples every time. `ICD_FUZZ=100 pytest tests/test_fuzz.py` draws a hundred times as many, and
others each time.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import QUICK, TEXTS, small, stripes, write_tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from icd.datasets.birds import CUB200, read_tables
from icd.datasets.fetch import unpack
from icd.errors import DataError, ModelError, RunError
from icd.experiments.compare import Result, read_results, write_results
from icd.experiments.model_file import ModelCard, load_image, load_model, save_model
from icd.experiments.run import data_of, read_settings
from icd.networks import load_published, network
from icd.objective import METHODS, parse
from icd.trainer import Student, fit
from icd.trainer.checkpoint import Checkpoint, load_checkpoint
from icd.trainer.distributed import make_accelerator
from icd.trainer.state import restore

pytestmark = pytest.mark.thorough

TIMES = int(os.environ.get("ICD_FUZZ", "1"))


def fuzz(examples: int) -> Callable:
    """So many examples of a file; one that takes half a minute is as good as one that never ends."""
    return settings(
        max_examples=examples * TIMES,
        deadline=timedelta(seconds=30),
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def clean(error: type[Exception], file: str | Path | None = None) -> Iterator[None]:
    """Inside, this error is allowed, if it is one line that begins with the file; no other, and no warning.

    A warning is allowed where it begins with the file.
    """
    raised: Exception | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except error as one:
            raised = one
    if raised is not None:
        assert type(raised) is error
        assert str(raised).startswith(str(file or ""))
        assert str(raised).strip()
        assert "\n" not in str(raised)
    messages = [str(warning.message) for warning in caught]
    assert [text for text in messages if file is None or not text.startswith(str(file))] == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for each test; its examples write over each other's files."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- how files are damaged

TOKENS = [
    b",", b"0", b"1", b"-1", b"1.5", b"nan", b"inf", b"1e999", b"1_0", b'"', b"{", b"}", b"[", b"]", b":",
    b"..", b"/", b"\\", b"#", b"null", b"true", b"", b"\0", b"\xff", b"\n", b"\r", b" ", b"\t", b"\x0b",
    b"9" * 30, b"\xff\xff\xff\x7f", *(character.encode() for character in "\x85\xa0\ufeff\u0663\u2028"),
]  # fmt: skip

_edit = st.tuples(
    st.floats(0, 1), st.integers(0, 12), st.sampled_from(TOKENS) | st.binary(max_size=6) | st.floats(0, 1)
)
_edits = st.lists(_edit, min_size=1, max_size=6)


def edited(content: bytes, edits: list[tuple[float, int, bytes | float]]) -> bytes:
    """Bytes cut out, and in their place others, or a copy of what stands elsewhere."""
    damaged = bytearray(content)
    for place, cut, piece in edits:
        start = int(place * len(damaged))
        if isinstance(piece, float):
            other = int(piece * len(damaged))
            piece = bytes(damaged[other : other + 40])
        damaged[start : start + cut] = piece
    return bytes(damaged)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few edits, or cut off, or with wrong bits, or something else."""
    edits = _edits.map(lambda edits: edited(content, edits))
    cuts = st.floats(0, 1).map(lambda share: content[: int(share * len(content))])
    bits = st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4).map(
        lambda places: flipped(content, places)
    )
    return st.one_of(edits, edits, bits, cuts, st.binary(max_size=60))


def flipped(content: bytes, places: list[int]) -> bytes:
    wrong = bytearray(content)
    for place in places:
        wrong[place // 8] ^= 1 << place % 8
    return bytes(wrong)


# --- tables


@fuzz(100)
@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_tables_of_birds(folder, name, data):
    write_tables(folder, **{name: data.draw(damaged(TEXTS[name].encode()))})
    with clean(DataError, folder):
        tables = read_tables(folder)
        assert len(tables.paths) == len(tables.labels) == len(tables.boxes)
        assert set(tables.labels.tolist()) <= set(range(len(tables.classes)))
        assert np.isfinite(tables.boxes).all()
        CUB200(folder, "all")
        pytest.fail("there are no images")


RESULTS = [
    Result(
        "KD",
        0,
        0.5,
        900,
        "0.1 * cross_entropy()",
        "vgg8",
        1,
        2,
        1.5,
        99,
        "cpu",
        "0123abcdef",
        "icd",
        {"recipe": {"epochs": 1}},
    ),
    Result(
        "SD-KD", 1, 0.25, 900, 'a, "b"', "vgg8", 1, 2, 2.5, 99, "cpu, 2 threads", "0123abcdef+", "icd", {}
    ),
]


@fuzz(150)
@given(data=st.data())
def test_tables_of_results(folder, data):
    path = folder / "results.csv"
    write_results(path, RESULTS)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with clean(RunError, path):
        for row in read_results(path):
            assert 0 <= row.accuracy <= 1
            assert isinstance(row.seed, int)


SETTINGS = b"""\
teacher: runs/teacher
data: {root: birdlets, classes: null, crop: image, margin: 0.1, size: 64, hold_out: 0.2, split_seed: 0}
recipe:
  epochs: 240
  milestones:
  - 0.625
  - 0.75
  schedule: steps
"""


@fuzz(150)
@given(data=st.data())
def test_settings_of_a_run(folder, data):
    path = folder / "config.yaml"
    path.write_bytes(data.draw(damaged(SETTINGS)))
    with clean(RunError, path):
        read_settings(path, "mend it")
    with clean(RunError, path):
        assert data_of(folder).size >= 1


WORDS = [
    "cross_entropy()", "whole_image(", "scale_decoupled(", "clustering(", "kd_loss", "dkd_loss", "(1, 2)",
    ")", " + ", " * ", "2.0", "-1", "1e999", "3", "temperature=", "scales=", "weights=", "pooling=",
    "repeat=", "=", ".warmed_up(", "'x'", ",", "**", "[", "lambda: ", "#", "True", "None", " not ", "\\", ":",
    "\0", " ", "(" * 99,
]  # fmt: skip


@fuzz(300)
@given(words=st.lists(st.sampled_from(WORDS), max_size=8), at=st.integers(0, 400), cut=st.integers(0, 9))
def test_objectives(words, at, cut):
    text = str(METHODS["iCD-DKD"]())
    with clean(ValueError):
        assert parse(text[: at % len(text)] + "".join(words) + text[at % len(text) + cut :]).names
    with clean(ValueError):
        assert parse("".join(words)).names


# --- images


PICTURE = np.dstack([np.tile(np.linspace(0, 255, 40), (30, 1)).astype(np.uint8)] * 3)
FORMATS = ["jpg", "png", "gif", "webp", "bmp", "tif"]


@fuzz(200)
@given(data=st.data(), kind=st.sampled_from(FORMATS))
def test_photographs(folder, data, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = io.BytesIO()
    Image.fromarray(PICTURE).save(kept, Image.registered_extensions()[f".{kind}"], exif=exif)
    path = folder / f"a.{kind}"
    path.write_bytes(data.draw(damaged(kept.getvalue())))
    with clean(DataError, path):
        assert load_image(path, ModelCard("vgg8", ("a",), 28)).shape == (1, 3, 28, 28)


# --- weights


def file_of(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name, "file"))
        return Path(name, "file").read_bytes()


def repacked(content: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
    """A zip archive with another content of a member, and checksums that are right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            inside = old.read(name)
            new.writestr(name, change(inside) if name.endswith(member) else inside)
    return packed.getvalue()


def damaged_inside(content: bytes) -> st.SearchStrategy[bytes]:
    """What torch.save wrote, damaged, or whole around a damaged pickle."""
    pickle = next(n for n in zipfile.ZipFile(io.BytesIO(content)).namelist() if n.endswith("data.pkl"))
    inside = zipfile.ZipFile(io.BytesIO(content)).read(pickle)
    deep = damaged(inside).map(lambda other: repacked(content, "data.pkl", lambda _: other))
    version = damaged(b"3\n").map(lambda other: repacked(content, "version", lambda _: other))
    return st.one_of(damaged(content), deep, deep, version)


NETWORK = network("resnet10-8", 3, 64)
CARD = ModelCard("resnet10-8", ("crow", "finch", "gull"), 64)
SAVED = file_of(lambda path: save_model(path, NETWORK, CARD))
LENGTH = struct.unpack("<Q", SAVED[:8])[0]
PUBLISHED = file_of(lambda path: torch.save({"model": network("resnet8x4", 5).state_dict()}, path))


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + SAVED[8 + LENGTH :]


def with_card(card: bytes) -> bytes:
    header = json.loads(SAVED[8 : 8 + LENGTH])
    header["__metadata__"]["icd"] = card.decode(errors="replace")
    return with_header(json.dumps(header).encode())


@fuzz(150)
@given(data=st.data())
def test_saved_networks(folder, data):
    path = folder / "model.safetensors"
    header = damaged(SAVED[8 : 8 + LENGTH]).map(with_header)
    card = damaged(json.dumps(json.loads(SAVED[8 : 8 + LENGTH])["__metadata__"]["icd"]).encode()).map(
        with_card
    )
    text = damaged(json.loads(SAVED[8 : 8 + LENGTH])["__metadata__"]["icd"].encode()).map(with_card)
    path.write_bytes(data.draw(st.one_of(damaged(SAVED), header, card, text)))
    with clean(ModelError, path):
        model, read = load_model(path)
        assert len(read.classes) == model.head.out_features
        assert all(weight.isfinite().all() for weight in model.state_dict().values())


@fuzz(60)
@given(data=st.data())
def test_published_weights(folder, data):
    path = folder / "weights.pth"
    path.write_bytes(data.draw(damaged_inside(PUBLISHED)))
    with clean(ModelError, path):
        model = load_published("resnet8x4", path, 5)
        assert all(weight.isfinite().all() for weight in model.state_dict().values())


@pytest.fixture(scope="module")
def run() -> tuple[Student, Accelerator, bytes]:
    """A student, and the bytes of a checkpoint that it can be restored from."""
    accelerator = make_accelerator("float32")
    with tempfile.TemporaryDirectory() as folder:
        fit(small(), METHODS["alone"](), stripes(32), replace(QUICK, epochs=1), folder=folder, progress=False)
        student = Student(small(), METHODS["alone"]())
        student.start(QUICK, accelerator)
        return student, accelerator, Path(folder, "checkpoint.pt").read_bytes()


@fuzz(100)
@given(data=st.data())
def test_checkpoints(folder, run, data):
    student, accelerator, whole = run
    (folder / "checkpoint.pt").write_bytes(data.draw(damaged_inside(whole)))
    with clean(RunError, folder):
        state = load_checkpoint(folder)
        epoch, step = restore([student], state, folder, accelerator, Checkpoint(None, False, 60.0))
        assert epoch >= 0 <= step


# --- archives


def packed(names: list[str]) -> bytes:
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 40
            tar.addfile(info, io.BytesIO(b"1 001.Wren/a.jpg\n" * 3))
    return kept.getvalue()


TAR = packed(
    ["CUB/images.txt", "CUB/images/a.jpg", "CUB/images/" + 120 * "b"]
)  # the last needs a long header
PACKERS: list[Callable[[bytes], Any]] = [bytes, gzip.compress, bz2.compress, lzma.compress]


@fuzz(200)
@given(data=st.data(), pack=st.sampled_from(PACKERS), deep=st.booleans())
def test_archives(folder, data, pack, deep):
    archive, root = folder / "a.tgz", folder / "deep" / "root"
    archive.write_bytes(pack(data.draw(damaged(TAR))) if deep else data.draw(damaged(pack(TAR))))
    with clean(DataError, archive):
        unpack(archive, root / "CUB", "images.txt", progress=False)
        assert (root / "CUB" / "images.txt").is_file()
    left = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert left <= {"a.tgz", "deep"}
    assert {path.name for path in root.glob("*")} <= {"CUB"}
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
