"""Photographs: decoding whatever a file holds, cutting squares, splitting, naming what decides the pixels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from icd.datasets.folders import class_folders
from icd.datasets.images import ImageList
from icd.errors import DataError

RAMP = np.tile(np.linspace(0, 1, 40), (30, 1))  # (30, 40) black on the left, white on the right
GREY = (RAMP * 255).astype(np.uint8)
RGB = np.dstack([GREY, GREY, GREY])


def one(path: Path, **settings) -> ImageList:
    return ImageList((path,), np.zeros(1, dtype=np.int64), ("a",), **{"size": 32, **settings})


def plain(counts: list[int], **settings) -> ImageList:
    """ImageList of classes of these sizes, whose files are never opened."""
    labels = np.repeat(np.arange(len(counts)), counts)
    paths = tuple(Path(f"{i}.png") for i in range(len(labels)))
    return ImageList(paths, labels, tuple(f"class {i}" for i in range(len(counts))), **settings)


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, GREY]))


FILES = {
    "rgb.jpg": ("RGB", lambda: Image.fromarray(RGB)),
    "grey.jpg": ("L", lambda: Image.fromarray(GREY)),
    "grey.png": ("L", lambda: Image.fromarray(GREY)),
    "alpha.png": ("RGBA", rgba),
    "grey_alpha.png": ("LA", lambda: rgba().convert("LA")),
    "palette.png": ("P", lambda: Image.fromarray(RGB).quantize(64)),
    "cmyk.jpg": ("CMYK", lambda: Image.fromarray(RGB).convert("CMYK")),
    "sixteen.png": ("I;16", lambda: Image.fromarray((RAMP * 65535).astype(np.uint16))),
    "big_endian.tif": ("I;16B", lambda: Image.fromarray((RAMP * 65535).astype(">u2"))),
    "thirty_two.tif": ("I", lambda: Image.fromarray((RAMP * 65535).astype(np.int32))),
}


@pytest.mark.parametrize("name", FILES)
def test_whatever_the_file_holds_becomes_the_same_three_channels(tmp_path, name):
    mode, make = FILES[name]
    make().save(tmp_path / name)
    pixels, notes = one(tmp_path / name).read(0)
    expected = np.asarray(Image.fromarray(RGB).resize((32, 32), Image.Resampling.BILINEAR))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 8  # a palette of 64, JPEG's rounding
    assert notes == ([] if mode == "RGB" else [f"colour mode {mode}, made RGB"])


def test_a_palette_with_transparency_decodes_without_a_warning(tmp_path):
    Image.fromarray(RGB).quantize(64).save(tmp_path / "a.png", transparency=bytes(range(64)))
    assert one(tmp_path / "a.png").read(0)[0].shape == (32, 32, 3)


def test_floats_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: the image does not decode \(its pixels are floats"):
        one(tmp_path / "a.tif").read(0)


def test_images_that_do_not_decode_are_named(tmp_path):
    path = tmp_path / "a.jpg"
    with pytest.raises(DataError, match=r"a\.jpg: there is no such image"):
        one(path).read(0)
    Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.jpg: the image does not decode"):
            one(path).read(0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_every_exif_orientation_is_made_upright(tmp_path, orientation, kind):
    upright = np.zeros((60, 80, 3), dtype=np.uint8)
    upright[8:12, 18:22] = 255  # a white dot at (20, 10)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that lays it on its side
    image = Image.fromarray(upright)
    if orientation > 1:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{kind}", exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    photos = one(tmp_path / f"a.{kind}", size=80)
    pixels, notes = photos.read(0)
    assert abs(pixels.astype(int) - np.asarray(Image.fromarray(upright).resize((80, 80), 2))).max() < 40
    if kind == "tif":  # Pillow turns TIFFs itself, and their annotators saw what Pillow shows
        return
    assert len(notes) == (orientation > 1)


def test_a_photograph_is_a_tensor_and_a_label(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    photos = one(tmp_path / "a.png", size=8)
    image, label = photos[0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.uint8
    assert label == 0
    assert len(list(photos)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size is 0: an image needs at least one pixel a side"),
        ({"size": 64.0}, "size is 64.0: give a whole number"),
        ({"size": "64"}, "size is '64': give a whole number"),
        ({"size": True}, "size is True: give a whole number"),
        ({"margin": "0.1"}, "margin is '0.1': give a fraction of the box between 0 and 10"),
        ({"crop": "middle"}, 'crop is \'middle\': choose "image" or "box"'),
        ({"resize": "longer"}, 'resize is \'longer\': choose "squash" or "shorter"'),
        ({"margin": -1.0}, "margin is -1.0: give a fraction of the box between 0 and 10"),
        ({"margin": float("nan")}, "margin is nan: give a fraction of the box between 0 and 10"),
        ({"crop": "box"}, 'crop="box" needs boxes, and this data set has none: use crop="image"'),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(DataError) as error:
        plain([1], **changes)
    assert str(error.value) == message


# --- cutting


boxes = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.001, 1), st.floats(0.001, 1))


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    box=boxes,
    margin=st.floats(0, 3),
    resize=st.sampled_from(["squash", "shorter"]),
)
def test_the_cut_lies_inside_the_image_and_holds_the_box_undistorted_or_squashed(
    width, height, box, margin, resize
):
    left, top = box[0] * width, box[1] * height
    w, h = max(box[2] * (width - left), 1e-3), max(box[3] * (height - top), 1e-3)
    photos = plain([1], crop="box", margin=margin, resize=resize, boxes=np.array([[left, top, w, h]]))
    x0, y0, x1, y1 = photos._region(0, width, height)
    assert -1e-9 <= x0 < x1 <= width + 1e-9
    assert -1e-9 <= y0 < y1 <= height + 1e-9
    wide, high = (max(length * (1 + 2 * margin), 1.0) for length in (w, h))
    if resize == "shorter":
        assert x1 - x0 == pytest.approx(y1 - y0)
        if max(wide, high) <= min(width, height):
            assert x1 - x0 == pytest.approx(max(wide, high))
    else:
        assert x1 - x0 == pytest.approx(min(wide, width))
        assert y1 - y0 == pytest.approx(min(high, height))
        assert x0 <= left + 1e-6
        assert left + w <= x1 + 1e-6
        assert y0 <= top + 1e-6
        assert top + h <= y1 + 1e-6


@given(width=st.integers(1, 600), height=st.integers(1, 600))
def test_shorter_keeps_the_centre_square_and_squash_keeps_all(width, height):
    side = min(width, height)
    assert plain([1])._region(0, width, height) == (0, 0, width, height)
    x0, y0, x1, y1 = plain([1], resize="shorter")._region(0, width, height)
    assert (x1 - x0, y1 - y0) == (side, side)
    assert (x0 + x1, y0 + y1) == (width, height)


def test_a_box_square_shows_what_the_box_holds(tmp_path):
    picture = np.zeros((100, 160, 3), dtype=np.uint8)
    picture[20:60, 90:130] = (10, 200, 30)
    Image.fromarray(picture).save(tmp_path / "a.png")
    photos = one(tmp_path / "a.png", crop="box", margin=0.0, boxes=np.array([[90.0, 20.0, 40.0, 40.0]]))
    assert (photos.read(0)[0][1:-1, 1:-1] == (10, 200, 30)).all()  # edges blend with what lies beyond


@pytest.mark.parametrize(
    ("box", "crop", "repairs"),
    [
        ((0, 0, 40, 30), "box", []),
        ((-1, 0, 40, 30), "box", ["box beyond its image, clipped"]),
        ((30, 20, 15, 15), "box", ["box beyond its image, clipped"]),
        ((0, 0, 40, 30), "image", []),
        ((30, 20, 15, 15), "image", ["box beyond its image, not used"]),
        ((9999, 9999, 10, 10), "image", ["box beyond its image, not used"]),
        ((1, 1, np.nan, 2), "image", ["box beyond its image, not used"]),
    ],
)
def test_a_box_that_sticks_out_is_counted_whatever_the_crop(tmp_path, box, crop, repairs):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    photos = one(tmp_path / "a.png", crop=crop, boxes=np.array([box], dtype=float))
    pixels, notes = photos.read(0)
    assert notes == repairs
    if crop == "image":
        assert (pixels == replace(photos, boxes=None).read(0)[0]).all()


def test_a_box_of_a_picture_on_its_side_speaks_of_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    photos = one(tmp_path / "a.jpg", boxes=np.array([[0.0, 0, 40, 30]]))
    assert photos.read(0)[1] == ["rotated or mirrored by EXIF, made upright"]


def test_a_box_elsewhere_names_its_line(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    photos = one(
        tmp_path / "a.png",
        crop="box",
        boxes=np.array([[39.0, 20.0, 30.0, 15.0]]),
        box_sources=("bounding_boxes.txt:7",),
    )
    with pytest.raises(DataError) as error:
        photos.read(0)
    expected = (
        "bounding_boxes.txt:7: the middle of the box (39, 20, 30, 15) is not in its image, 40 x 30 pixels"
    )
    assert str(error.value) == expected


# --- splitting


counts = st.lists(st.integers(2, 12), min_size=1, max_size=6)


@given(counts=counts, share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_hold_out_takes_its_share_of_every_class(counts, share, seed):
    photos = plain(counts)
    fit, held = photos.hold_out(share, seed)
    assert sorted(map(str, fit.paths + held.paths)) == sorted(map(str, photos.paths))
    for label, count in enumerate(counts):
        taken = int((held.labels == label).sum())
        assert 1 <= taken <= count - 1
        assert abs(taken - share * count) <= 1
    again = photos.hold_out(share, seed)
    assert again[0].paths == fit.paths
    assert again[1].paths == held.paths


def test_another_seed_holds_out_others():
    photos = plain([20, 20])
    assert photos.hold_out(0.5, seed=0)[1].paths != photos.hold_out(0.5, seed=1)[1].paths


@given(counts=counts, k=st.integers(2, 5), seed=st.integers(0, 99))
def test_folds_hold_every_image_out_once(counts, k, seed):
    photos = plain(counts)
    if k > min(counts):
        with pytest.raises(DataError, match=f"{k} folds: choose from 2 to {min(counts)}"):
            photos.folds(k, seed)
        return
    folds = photos.folds(k, seed)
    held = [path for _, part in folds for path in part.paths]
    assert sorted(held) == sorted(photos.paths)
    sizes = [len(part) for _, part in folds]
    assert max(sizes) - min(sizes) <= 1
    for fit, part in folds:
        assert not set(fit.paths) & set(part.paths)
        assert len(fit) + len(part) == len(photos)
        each = np.bincount(part.labels, minlength=len(counts))
        assert all(count // k <= n <= -(-count // k) for n, count in zip(each, counts, strict=True))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (lambda photos: photos.hold_out(0.0), "hold_out is 0.0: give a number between 0 and 1"),
        (lambda photos: photos.hold_out(1.0), "hold_out is 1.0: give a number between 0 and 1"),
        (
            lambda photos: photos.hold_out(),
            "class class 1 has one image to split, 3.png: holding it out would leave none to learn from",
        ),
        (
            lambda photos: photos.hold_out("0.2"),
            "hold_out is '0.2': give a number between 0 and 1",
        ),
        (lambda photos: photos.hold_out(0.2, 0.5), "the seed is 0.5: give a whole number"),
        (lambda photos: photos.folds(5.0), "5.0 folds: give a whole number"),
        (lambda photos: photos.folds(True), "True folds: give a whole number"),
        (lambda photos: photos.folds(1), "1 folds: choose from 2 to 1, the images of the smallest class"),
        (lambda photos: photos.subset([]).folds(2), "there are no images to split"),
    ],
)
def test_splits_that_cannot_be_are_refused(split, message):
    with pytest.raises(DataError) as error:
        split(plain([3, 1]))
    assert str(error.value) == message


def test_numbers_may_be_those_of_numpy():
    photos = plain([4, 4], size=np.int64(9), margin=np.float32(0.5))
    assert len(photos.folds(np.int64(2), seed=np.int64(1))) == 2
    assert len(photos.hold_out(np.float32(0.5))[1]) == 4
    assert photos.subset([]).fingerprint() == plain([], size=9).fingerprint()


def test_subset_keeps_rows_together_and_the_order_asked_for():
    photos = plain(
        [2, 2],
        boxes=np.arange(16.0).reshape(4, 4),
        box_sources=tuple("abcd"),
        size=9,
    )
    some = photos.subset([3, 0])
    assert some.paths == (Path("3.png"), Path("0.png"))
    assert some.labels.tolist() == [1, 0]
    assert some.boxes is not None
    assert some.boxes[:, 0].tolist() == [12, 0]
    assert some.box_sources == ("d", "a")
    assert (some.classes, some.size) == (photos.classes, 9)
    assert photos.subset(photos.labels == 1).paths == (Path("2.png"), Path("3.png"))
    assert len(photos.subset([])) == 0
    with pytest.raises(IndexError):
        photos.subset([4])


# --- the fingerprint


@pytest.fixture
def two(tmp_path: Path) -> ImageList:
    for name in "ab":
        Image.fromarray(RGB).save(tmp_path / f"{name}.png")
    return ImageList(
        (tmp_path / "a.png", tmp_path / "b.png"), np.array([0, 1]), ("x", "y"), boxes=np.ones((2, 4)) * 5
    )


def test_the_fingerprint_changes_with_all_that_decides_pixels(two):
    boxed = replace(two, crop="box")
    assert two.boxes is not None
    prints = [
        photos.fingerprint()
        for photos in (
            two,
            replace(two, size=7),
            replace(two, resize="shorter"),
            boxed,
            replace(boxed, margin=0.2),
            replace(boxed, boxes=two.boxes + 1),
            two.subset([1, 0]),
            two.subset([0]),
        )
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_stays_with_all_else(two):
    assert two.boxes is not None
    same = [
        two,
        replace(two, labels=np.array([1, 0])),
        replace(two, classes=("p", "q")),
        replace(two, margin=0.7),
        replace(two, boxes=two.boxes + 1),
        replace(two, box_sources=("a", "b")),
    ]
    assert len({photos.fingerprint() for photos in same}) == 1


def test_the_key_is_another_for_other_boxes(two):
    assert two.boxes is not None
    others = replace(two, boxes=two.boxes + 1), replace(two, boxes=None)
    assert len({photos.key() for photos in (two, *others)}) == 3
    assert len({photos.fingerprint() for photos in (two, *others)}) == 1


def test_the_fingerprint_is_that_of_the_folder_elsewhere_and_the_key_is_not(two, tmp_path):
    (tmp_path / "moved").mkdir()
    there = [tmp_path / "moved" / path.name for path in two.paths]
    for path, copy in zip(two.paths, there, strict=True):
        copy.write_bytes(path.read_bytes())
    moved = replace(two, paths=tuple(there))
    assert (moved.fingerprint() == two.fingerprint(), moved.key() == two.key()) == (True, False)
    before = two.fingerprint(), two.key()
    stat = two.paths[0].stat()
    os.utime(two.paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert (two.fingerprint() == before[0], two.key() == before[1]) == (True, False)
    there[0].write_bytes(there[0].read_bytes() + b"0")
    assert moved.fingerprint() != before[0]


def test_the_fingerprint_names_a_missing_file(two):
    two.paths[1].unlink()
    for digest in (two.fingerprint, two.key):
        with pytest.raises(DataError, match=r"b\.png: there is no such image"):
            digest()


# --- the reader's own folders


def test_class_folders(tmp_path):
    for name in ("wren/2.JPG", "wren/deep/1.png", "owl/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name)
    for name in ("owl/._a.png", ".hidden/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    photos = class_folders(tmp_path, size=16, resize="shorter")
    assert photos.classes == ("owl", "wren")
    assert photos.labels.tolist() == [0, 1, 1]
    assert [path.name for path in photos.paths] == ["a.png", "2.JPG", "1.png"]
    assert (photos.size, photos.resize, photos.boxes) == (16, "shorter", None)
    assert all(image.shape == (3, 16, 16) for image, _ in photos)


def test_files_of_folders_that_are_left_out_are_counted_and_the_first_is_named(tmp_path):
    for name in ("owl/a.png", "wren/a.JFIF"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(RGB).save(tmp_path / name, "JPEG" if name.endswith("JFIF") else "PNG")
    assert len(class_folders(tmp_path)) == 2
    for name in ("wren/zz.heic", "wren/deep/notes.txt", "zz.png", ".DS_Store", "owl/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped 3 files") as caught:
        photos = class_folders(tmp_path, size=16)
    assert [path.name for path in photos.paths] == ["a.png", "a.JFIF"]
    assert all(image.shape == (3, 16, 16) for image, _ in photos)
    assert [str(w.message) for w in caught] == [
        f"{tmp_path}: skipped 3 files, first wren/deep/notes.txt; read are .jpg, .jpeg, .jfif, .png, "
        ".webp, .bmp, .gif, .tif, .tiff in class folders"
    ]
    with pytest.warns(UserWarning, match="skipped 1 files, first zz.png"):
        class_folders(tmp_path, classes=1)


def test_class_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        class_folders(tmp_path / "none")
    with pytest.raises(DataError, match="found no folder"):
        class_folders(tmp_path)
    (tmp_path / "wren").mkdir()
    with pytest.raises(DataError, match="this class has no image"):
        class_folders(tmp_path)
