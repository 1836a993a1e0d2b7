"""Birdlets: deterministic, consistent between its files, fine-grained, safe to draw."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icd import birdlets
from icd.datasets.birdlets.canvas import PARTS, THROWS
from icd.datasets.birdlets.dataset import PALETTE
from icd.datasets.birdlets.plumage import FAMILIES, FORMS, MOST_PER_FAMILY, relatives, species_table
from icd.datasets.birdlets.scenes import render

pytestmark = pytest.mark.thorough

SMALL = {"species": 6, "families": 3, "train": 2, "test": 3, "size": 48, "progress": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return birdlets.draw(tmp_path_factory.mktemp("birdlets") / "small", **SMALL)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rows(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def paths(root: Path) -> list[Path]:
    return [root / "images" / name for _, name in rows(root / "images.txt")]


def uniforms(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, THROWS), dtype=np.float32)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(small: Path, tmp_path: Path):
    assert contents(birdlets.draw(tmp_path / "again", **SMALL)) == contents(small)
    other = birdlets.draw(tmp_path / "other", **SMALL, seed=2)
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(paths(small), paths(other), strict=True)]
    assert not any(same)


def test_more_test_images_leave_the_others_as_they_were(small: Path, tmp_path: Path):
    more = birdlets.draw(tmp_path / "more", **{**SMALL, "test": 5})
    before = {p.name: p.read_bytes() for p in paths(small)}
    after = {p.name: p.read_bytes() for p in paths(more)}
    assert len(after) == 6 * 7
    assert before.items() <= after.items()


def test_a_scene_does_not_depend_on_its_batch():
    table = species_table(5, 5)
    together, parts = render(table, uniforms(5), 33)
    for i, species in enumerate(table):
        alone, part = render([species], uniforms(5)[i : i + 1], 33)
        np.testing.assert_array_equal(alone[0], together[i])
        np.testing.assert_array_equal(part[0], parts[i])


def test_another_size_shows_the_same_scenes():
    table = species_table(8, 8)
    small, _ = render(table, uniforms(8), 48)
    large, _ = render(table, uniforms(8), 144)
    shrunk = large.reshape(8, 48, 3, 48, 3, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small).mean() < 4  # of 255


def test_files_agree_on_ids_names_splits_and_classes(small: Path):
    images, labels = rows(small / "images.txt"), rows(small / "image_class_labels.txt")
    splits, boxes = rows(small / "train_test_split.txt"), rows(small / "bounding_boxes.txt")
    ids = [str(i) for i in range(1, 6 * 5 + 1)]
    assert all([row[0] for row in table] == ids for table in (images, labels, splits, boxes))
    classes = dict(rows(small / "classes.txt"))
    assert list(classes) == [str(i) for i in range(1, 7)]
    assert list(classes.values()) == sorted(classes.values())
    for (_, name), (_, label), (_, train) in zip(images, labels, splits, strict=True):
        assert name.split("/")[0] == classes[label]
        assert ("_train_" in name) == (train == "1")
    assert sum(int(train) for _, train in splits) == 6 * 2
    assert {p.relative_to(small / "images") for p in (small / "images").glob("*/*")} == {
        p.relative_to(small / "images") for p in paths(small)
    }
    with Image.open(paths(small)[0]) as image:
        assert (image.mode, image.size) == ("RGB", (48, 48))


def test_boxes_and_part_places_follow_from_the_masks(small: Path):
    masks = birdlets.masks(small, paths(small))
    assert masks.shape == (30, 48, 48)
    assert masks.dtype == np.uint8
    assert masks.max() < len(PARTS)
    assert dict(rows(small / "parts" / "parts.txt")) == {str(i): name for i, name in enumerate(PARTS) if i}
    for mask, (_, *box) in zip(masks, rows(small / "bounding_boxes.txt"), strict=True):
        y, x = np.nonzero(mask)
        left, top, width, height = map(float, box)
        assert (left, top) == (x.min(), y.min())
        assert (left + width, top + height) == (x.max() + 1, y.max() + 1)
    places = rows(small / "parts" / "part_locs.txt")
    assert [row[:2] for row in places] == [
        [str(i), str(p)] for i in range(1, 31) for p in range(1, len(PARTS))
    ]
    for image, part, x, y, visible in places:
        mask = masks[int(image) - 1]
        assert (visible == "1") == bool((mask == int(part)).any())
        if visible == "1":
            assert mask[int(float(y)), int(float(x))] == int(part)
        else:
            assert (x, y) == ("0.0", "0.0")


def test_masks_are_pictures_in_a_palette_and_are_found_by_any_path_of_their_image(small: Path):
    path = paths(small)[7]
    with Image.open(small / "segmentations" / path.parent.name / path.name) as image:
        assert image.mode == "P"
        assert len(set(PALETTE)) == len(PALETTE) == len(PARTS)
    relative = birdlets.masks(small, [path.relative_to(small / "images")])
    np.testing.assert_array_equal(relative, birdlets.masks(small, [str(path)]))
    assert birdlets.masks(small, []).shape[0] == 0
    with pytest.raises(FileNotFoundError, match="no part mask"):
        birdlets.masks(small, ["001.Nobody/nobody.png"])


def test_attributes_tell_the_species_apart(small: Path):
    names = [name for _, name in rows(small / "attributes.txt")]
    table = np.loadtxt(small / "attributes" / "class_attribute_labels_continuous.txt")
    assert table.shape == (6, len(names))
    assert set(np.unique(table)) == {0.0, 100.0}
    assert (table.sum(axis=1) == 100 * len(FORMS)).all()
    species = species_table(6, 3)
    for row, one in zip(table, species, strict=True):
        worn = {name for name, value in zip(names, row, strict=True) if value}
        assert worn == {f"has_{mark}::{form}" for mark, form in one.marks.items()}


def test_families_of_the_classes(small: Path):
    np.testing.assert_array_equal(birdlets.families(small), [0, 0, 1, 1, 2, 2])
    card = json.loads((small / "birdlets.json").read_text())
    assert card["families"] == [family.name for family in FAMILIES[:3]]
    with pytest.raises(FileNotFoundError, match="no Birdlets"):
        birdlets.families(small.parent)


def test_every_species_is_distinct_and_few_or_many_begin_alike():
    table = species_table(len(FAMILIES) * MOST_PER_FAMILY, len(FAMILIES))
    assert len({s.name for s in table}) == len(table)
    assert len({(s.family, *s.marks.values()) for s in table}) == len(table)
    assert all(s.marks[mark] in FORMS[mark] for s in table for mark in FORMS)
    assert [s.family for s in species_table(7, 3)] == ["Finch"] * 3 + ["Warbler"] * 2 + ["Wader"] * 2
    assert species_table(6, 3) == tuple(s for s in species_table(30, 3) if s in species_table(6, 3))


def test_species_of_a_family_differ_in_small_places_and_families_in_large_ones():
    """One scene, every species: relatives share most of the bird's pixels, strangers do not."""
    scene = uniforms(1)
    kin = [relatives(family.name)[:5] for family in FAMILIES[:6]]
    drawn = [render(species, np.repeat(scene, 5, 0), 64) for species in kin]

    def share_changed(a, b):
        bird = (a[1] > 0) | (b[1] > 0)
        return (np.abs(a[0].astype(int) - b[0]).max(-1) > 24)[bird].mean()

    within, between = [], []
    for f, (pixels, parts) in enumerate(drawn):
        for i in range(5):
            within += [share_changed((pixels[i], parts[i]), (pixels[j], parts[j])) for j in range(i)]
            between += [share_changed((pixels[i], parts[i]), (d[0][i], d[1][i])) for d in drawn[:f]]
    assert min(within) > 0.005  # no two look alike
    assert max(within) < 0.35
    assert np.mean(within) < np.mean(between) / 3


def test_every_mark_can_be_seen():
    plain = species_table(1, 1)[0]
    scene = uniforms(1, seed=3)
    for mark, forms in FORMS.items():
        seen = {render([_wearing(plain, mark, form)], scene, 64)[0].tobytes() for form in forms}
        assert len(seen) == len(forms), mark


def _wearing(species, mark, form):
    return type(species)(**{**vars(species), mark: form})


def test_drawing_again_does_nothing_and_drawing_something_else_there_is_refused(small: Path):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert birdlets.draw(small, **SMALL) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before
    with pytest.raises(FileExistsError, match="test is 3, not 4"):
        birdlets.draw(small, **{**SMALL, "test": 4})
    with pytest.raises(FileExistsError, match="something other than Birdlets"):
        birdlets.draw(small.parent, **SMALL)


def test_a_data_set_with_a_lost_image_is_named(tmp_path: Path):
    root = birdlets.draw(tmp_path / "birds", **SMALL)
    paths(root)[0].unlink()
    with pytest.raises(FileExistsError, match="29 of 30 images"):
        birdlets.draw(root, **SMALL)


def test_a_failed_draw_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("icd.datasets.birdlets.dataset._write_attributes", fail)
    with pytest.raises(OSError, match="disk is full"):
        birdlets.draw(tmp_path / "birds", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_draw_leaves_nothing_in_place_and_the_next_one_succeeds(small: Path, tmp_path: Path):
    root = tmp_path / "birds"
    code = f"from icd import birdlets; birdlets.draw({str(root)!r}, 6, 3, 2, 2000, 48)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    unfinished = tmp_path / ".birds.unfinished"
    deadline = time.monotonic() + 60
    while not any(unfinished.glob("images/*/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    child.wait()
    assert any(unfinished.glob("images/*/*.png"))
    assert not root.exists()
    birdlets.draw(root, **SMALL)
    assert contents(root) == contents(small)
    assert not unfinished.exists()


def test_two_draws_at_once_make_one_data_set(small: Path, tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(lambda _: birdlets.draw(tmp_path / "birds", **SMALL), range(2)))
    assert roots == [tmp_path / "birds"] * 2
    assert contents(roots[0]) == contents(small)


def test_the_cached_folder_is_named_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ICD_CACHE", str(tmp_path))
    first = birdlets.folder(species=2, families=1, train=1, test=1, size=16)
    assert first.parent == tmp_path
    assert first == birdlets.folder(size=16, species=2, families=1, train=1, test=1)
    assert first == birdlets.folder(species=2, families=1, train=1, test=1, size=16, seed=1)
    assert first != birdlets.folder(species=2, families=1, train=1, test=2, size=16)
    assert first == birdlets.folder(species=2, families=1, train=1, test=1, size=np.int64(16))


def test_numbers_of_numpy_draw_the_same(small: Path, tmp_path: Path):
    settings = {name: np.int64(value) for name, value in SMALL.items() if name != "progress"}
    assert contents(birdlets.draw(tmp_path / "again", **settings, progress=False)) == contents(small)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"families": 0}, "families is 0: choose from 1 to 10 body plans"),
        ({"families": 11, "species": 30}, "families is 11: choose from 1 to 10 body plans"),
        ({"species": 5}, "species is 5: 6 families need at least one species each"),
        ({"species": 121}, "species is 121: 6 families hold at most 120 distinct species"),
        ({"size": 15}, "size is 15: it must be at least 16"),
        ({"size": 2049}, "size is 2049: it must be at most 2048 pixels a side"),
        ({"size": "64"}, "size is '64': give a whole number"),
        ({"size": 64.0}, "size is 64.0: give a whole number"),
        ({"species": 30.0}, "species is 30.0: give a whole number"),
        ({"train": True}, "train is True: give a whole number"),
        ({"train": -1}, "train is -1: it must be at least 0"),
        ({"test": -3}, "test is -3: it must be at least 0"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"train": 0, "test": 0}, "train and test are both 0: there is nothing to draw"),
    ],
)
def test_settings_that_make_no_data_set_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        birdlets.draw(tmp_path / "birds", **settings)
    assert str(error.value) == message
    assert not any(tmp_path.iterdir())
