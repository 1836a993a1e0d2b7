"""CUB-200-2011's layout: what reads, what is refused and where, and what is fetched."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers import TEXTS, write_tables
from PIL import Image

from icd import birds
from icd.datasets.birds import CUB200, download, extract, read_tables
from icd.datasets.cache import load
from icd.errors import DataError

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that holds CUB_200_2011 with four small photographs."""
    folder = write_tables(tmp_path / "CUB_200_2011")
    for row in TEXTS["images.txt"].splitlines():
        path = folder / "images" / row.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 30, 10)).save(path)
    return tmp_path


def change(root: Path, name: str, old: str, new: str) -> None:
    path = root / "CUB_200_2011" / name
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


# --- what reads


def test_the_official_splits(root):
    train, test, both = (CUB200(root, split) for split in ("train", "test", "all"))
    assert [path.name for path in train.paths] == ["a.jpg", "c.jpg"]
    assert [path.name for path in test.paths] == ["b.jpg", "d.jpg"]
    assert [path.name for path in both.paths] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert both.labels.tolist() == [0, 0, 1, 1]
    assert both.labels.dtype == np.int64
    assert both.classes == ("001.Wren", "002.Snowy_Owl")
    assert both.boxes is not None
    assert both.boxes.tolist()[3] == [5.5, 2, 20, 10]
    assert both.box_sources is not None
    assert both.box_sources[3] == f"{root / 'CUB_200_2011' / 'bounding_boxes.txt'}:4"


def test_the_folder_or_its_parent_and_the_cut(root):
    inner = CUB200(root / "CUB_200_2011", "train")
    assert inner.paths == CUB200(str(root), "train").paths
    photos = CUB200(root, "train", crop="box", size=16, margin=0.3, resize="shorter")
    assert (photos.crop, photos.size, photos.margin, photos.resize) == ("box", 16, 0.3, "shorter")
    assert photos[0][0].shape == (3, 16, 16)
    assert (inner.crop, inner.size, inner.resize) == ("image", 224, "squash")


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        (1, ["001.Wren"], [0]),
        (2, ["001.Wren", "002.Snowy_Owl"], [0, 1]),
        (np.int64(1), ["001.Wren"], [0]),
    ],
)
def test_some_of_the_classes(root, classes, names, labels):
    photos = CUB200(root, "train", classes=classes)
    assert list(photos.classes) == names
    assert photos.labels.tolist() == labels
    for path, label in zip(photos.paths, photos.labels, strict=True):
        assert path.parent.name == names[label]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, """split is 'val': choose "train", "test" or "all\""""),
        ({"classes": 3}, "classes is 3: {}/classes.txt has 2"),
        ({"classes": 0}, "classes is 0: {}/classes.txt has 2"),
        ({"classes": [0]}, "classes is [0]: give how many, {}/classes.txt has 2"),
        ({"classes": "Wren"}, "classes is 'Wren': give how many, {}/classes.txt has 2"),
        ({"classes": True}, "classes is True: give how many, {}/classes.txt has 2"),
        ({"classes": 2.0}, "classes is 2.0: give how many, {}/classes.txt has 2"),
        ({"size": 64.0}, "size is 64.0: give a whole number"),
        ({"size": 0}, "size is 0: an image needs at least one pixel a side"),
        ({"crop": "bird"}, """crop is 'bird': choose "image" or "box\""""),
    ],
)
def test_arguments_that_mean_nothing(root, arguments, message):
    with pytest.raises(DataError) as error:
        CUB200(**{"root": root, "split": "train", **arguments})
    assert str(error.value) == message.format(root / "CUB_200_2011")


def test_order_gaps_line_ends_blank_lines_and_marks_do_not_matter(root):
    plain = CUB200(root, "all")
    for name, text in TEXTS.items():
        rows = [f"{row}  " for row in reversed(text.splitlines())]
        rows.insert(2, "")
        path = root / "CUB_200_2011" / name
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n\r\n")
    other = CUB200(root, "all")
    assert other.paths == plain.paths
    assert other.classes == plain.classes
    for name in ("labels", "boxes"):
        np.testing.assert_array_equal(getattr(other, name), getattr(plain, name))
    assert other.box_sources is not None
    assert [int(source.rsplit(":")[-1]) for source in other.box_sources] == [5, 4, 2, 1]


def test_a_box_outside_its_image_names_its_line(root):
    change(root, "bounding_boxes.txt", "3 3.0 2.0 20.0 10.0", "3 33.0 2.0 20.0 10.0")
    photos = CUB200(root, "train", crop="box", size=16)
    photos[0]
    with pytest.raises(DataError) as error:
        photos[1]
    place = root / "CUB_200_2011" / "bounding_boxes.txt"
    assert str(error.value) == (
        f"{place}:3: the middle of the box (33, 2, 20, 10) is not in its image, 40 x 30 pixels"
    )


def test_boxes_beyond_their_images_are_counted_though_nothing_is_cut_to_them(root):
    plain = load(CUB200(root, "train", size=16), folder=root / "store", progress=False)
    assert plain.repairs == {}
    change(root, "bounding_boxes.txt", "3 3.0 2.0 20.0 10.0", "3 9999 9999 10 10")
    wrong = load(CUB200(root, "train", size=16), folder=root / "store", progress=False)
    assert wrong.repairs == {"box beyond its image, not used": 1}
    assert wrong.fingerprint == plain.fingerprint
    assert torch.equal(wrong.images, plain.images)


def test_images_that_no_row_names_are_counted_once(root):
    images = root / "CUB_200_2011" / "images"
    for name in ("001.Wren/z.png", "001.Wren/y.JPG", "001.Wren/._a.jpg", "001.Wren/Thumbs.db"):
        (images / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="have no row") as caught:
        photos = CUB200(root, "train", classes=1)
    assert len(photos) == 1
    table = root / "CUB_200_2011" / "images.txt"
    assert [str(w.message) for w in caught] == [
        f"{table}: 2 images on disk have no row, first 001.Wren/y.JPG"
    ]
    assert caught[0].filename == __file__


def test_images_in_the_folder_of_another_class_are_counted_and_the_label_holds(root):
    change(root, "image_class_labels.txt", "2 1", "2 2")
    with pytest.warns(UserWarning, match="not their label") as caught:
        photos = CUB200(root, "all")
    assert photos.labels.tolist() == [0, 1, 1, 1]
    table = root / "CUB_200_2011" / "images.txt"
    expected = (
        f"{table}:2: 1 images are in the folder of a class that is not their label, first 001.Wren/b.jpg"
    )
    assert [str(w.message) for w in caught] == [f"{expected}, labelled 002.Snowy_Owl"]


def test_only_the_images_asked_for_need_to_be_there(root):
    (root / "CUB_200_2011/images/002.Snowy_Owl/d.jpg").unlink()
    assert len(CUB200(root, "train")) == 2
    assert len(CUB200(root, "all", classes=1)) == 2
    with pytest.raises(DataError) as error:
        CUB200(root, "all")
    folder = root / "CUB_200_2011"
    missing = folder / "images/002.Snowy_Owl/d.jpg"
    assert str(error.value) == f"{folder}/images.txt:4: {missing} is missing (1 of 4 images are missing)"


def test_an_image_that_does_not_decode_is_named_with_its_line(root):
    folder = root / "CUB_200_2011"
    (folder / "images/002.Snowy_Owl/c.jpg").write_bytes(b"no image")
    fit = CUB200(root, "train", size=16).subset([1])
    with pytest.raises(DataError) as error:
        load(fit, folder=root / "store", progress=False)
    place = f"{folder}/images.txt:3: {folder}/images/002.Snowy_Owl/c.jpg"
    assert str(error.value) == f"{place}: the image does not decode (unknown format)"
    whole = (folder / "images/001.Wren/a.jpg").read_bytes()
    (folder / "images/002.Snowy_Owl/c.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"^{re.escape(place)}: the image does not decode \("):
        fit.read(0)


def test_linked_folders_of_images_are_found(root):
    folder = root / "CUB_200_2011/images/001.Wren"
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    assert len(CUB200(root, "all")) == 4


# --- what is refused

BROKEN = [  # table, text to find (None: the whole file), text to put (None: no file), message
    ("images.txt", None, None, "images.txt: this table is missing"),
    ("classes.txt", None, None, "classes.txt: this table is missing"),
    ("image_class_labels.txt", None, None, "image_class_labels.txt: this table is missing"),
    ("train_test_split.txt", None, None, "train_test_split.txt: this table is missing"),
    ("bounding_boxes.txt", None, None, "bounding_boxes.txt: this table is missing"),
    ("images.txt", None, "", "images.txt: this table is empty"),
    ("bounding_boxes.txt", None, " \r\n\n", "bounding_boxes.txt: this table is empty"),
    ("images.txt", "a.jpg", "a\udcff.jpg", "images.txt:1: byte 0xff is not UTF-8 text"),
    ("bounding_boxes.txt", "2 2.0", "2 \udc802.0", "bounding_boxes.txt:2: byte 0x80 is not UTF-8 text"),
    ("images.txt", "2 001.Wren/b.jpg", "2", "images.txt:2: 1 fields, expected 2 (image id, path)"),
    ("images.txt", "b.jpg", "b 1.jpg", "images.txt:2: 3 fields, expected 2 (image id, path)"),
    (
        "classes.txt",
        "002.Snowy_Owl",
        "002.Snowy Owl",
        "classes.txt:2: 3 fields, expected 2 (class id, class)",
    ),
    (
        "train_test_split.txt",
        "3 1\n",
        "3\n",
        "train_test_split.txt:3: 1 fields, expected 2 (image id, split flag)",
    ),
    (
        "bounding_boxes.txt",
        "5.5 2.0 20.0 10.0",
        "5.5 2.0 20.0",
        "bounding_boxes.txt:4: 4 fields, expected 5 (image id, left, top, width, height)",
    ),
    ("images.txt", "3 002", "three 002", "images.txt:3: the image id is 'three', not a number"),
    ("images.txt", "3 002", "3.5 002", "images.txt:3: the image id is 3.5, not a whole number"),
    ("images.txt", "3 002", "nan 002", "images.txt:3: the image id is nan, not a whole number"),
    ("classes.txt", "2 002", "002. 002", None),  # a number all the same
    (
        "image_class_labels.txt",
        "3 2",
        "3 owl",
        "image_class_labels.txt:3: the class id is 'owl', not a number",
    ),
    (
        "image_class_labels.txt",
        "3 2",
        "3 1.5",
        "image_class_labels.txt:3: the class id is 1.5, not a whole number",
    ),
    ("image_class_labels.txt", "3 2", "3 7", "image_class_labels.txt:3: class id 7 is not in classes.txt"),
    ("image_class_labels.txt", "3 2", "3 -1", "image_class_labels.txt:3: class id -1 is not in classes.txt"),
    ("images.txt", "3 002", "2 002", "images.txt:3: image id 2 is already on line 2"),
    ("classes.txt", "2 002", "1 002", "classes.txt:2: class id 1 is already on line 1"),
    ("classes.txt", "002.Snowy_Owl", "001.Wren", "classes.txt:2: class 001.Wren is already on line 1"),
    ("images.txt", "b.jpg", "a.jpg", "images.txt:2: path 001.Wren/a.jpg is already on line 1"),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "001.Wren/./a.jpg",
        "images.txt:2: path 001.Wren/./a.jpg is already on line 1",
    ),
    ("bounding_boxes.txt", "3 3.0", "2 3.0", "bounding_boxes.txt:3: image id 2 is already on line 2"),
    (
        "train_test_split.txt",
        "5 0\n",
        "5 0\n5 0\n",
        "train_test_split.txt:5: image id 5 is already on line 4",
    ),
    ("image_class_labels.txt", "3 2\n", "", "images.txt:3: image id 3 has no row in image_class_labels.txt"),
    ("train_test_split.txt", "5 0\n", "", "images.txt:4: image id 5 has no row in train_test_split.txt"),
    (
        "bounding_boxes.txt",
        "1 1.0 2.0 20.0 10.0\n",
        "\n",
        "images.txt:1: image id 1 has no row in bounding_boxes.txt",
    ),
    ("bounding_boxes.txt", "5 5.5", "4 5.5", "bounding_boxes.txt:4: image id 4 is not in images.txt"),
    (
        "images.txt",
        "3 002.Snowy_Owl/c.jpg\n",
        "",
        "image_class_labels.txt:3: image id 3 is not in images.txt",
    ),
    (
        "train_test_split.txt",
        "3 1",
        "3 2",
        "train_test_split.txt:3: the split flag is 2: 1 is train, 0 is test",
    ),
    ("train_test_split.txt", "3 1", "3 x", "train_test_split.txt:3: the split flag is 'x', not a number"),
    (
        "train_test_split.txt",
        "3 1",
        "3 0.5",
        "train_test_split.txt:3: the split flag is 0.5: 1 is train, 0 is test",
    ),
    (
        "bounding_boxes.txt",
        "3 3.0 2.0 20.0",
        "3 3.0 2.0 0",
        "bounding_boxes.txt:3: the box is 0 x 10 pixels: both must be positive",
    ),
    (
        "bounding_boxes.txt",
        "2 2.0 2.0 20.0 10.0",
        "2 2.0 2.0 20.0 -10.0",
        "bounding_boxes.txt:2: the box is 20 x -10 pixels: both must be positive",
    ),
    (
        "bounding_boxes.txt",
        "2 2.0 2.0 20.0 10.0",
        "2 2.0 2.0 inf 10.0",
        "bounding_boxes.txt:2: the box (2, 2, inf, 10) is not finite",
    ),
    (
        "bounding_boxes.txt",
        "2 2.0 2.0 20.0 10.0",
        "2 nan 2.0 20.0 10.0",
        "bounding_boxes.txt:2: the box (nan, 2, 20, 10) is not finite",
    ),
    ("bounding_boxes.txt", "2 2.0", "2 2,0", "bounding_boxes.txt:2: the left is '2,0', not a number"),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "../b.jpg",
        "images.txt:2: the path ../b.jpg leads out of the folder of images",
    ),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "x/../../b",
        "images.txt:2: the path x/../../b leads out of the folder of images",
    ),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "/b.jpg",
        "images.txt:2: the path /b.jpg leads out of the folder of images",
    ),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "..\\b.jpg",
        "images.txt:2: the path ..\\b.jpg leads out of the folder of images",
    ),
    (
        "images.txt",
        "001.Wren/b.jpg",
        "C:\\b.jpg",
        "images.txt:2: the path C:\\b.jpg leads out of the folder of images",
    ),
    ("images.txt", "b.jpg", "b\0.jpg", "images.txt:2: the path holds a control character"),
    (
        "images.txt",
        "b.jpg",
        "gone.jpg",
        "images.txt:2: {}/images/001.Wren/gone.jpg is missing (1 of 4 images are missing)",
    ),
    (
        "classes.txt",
        "2 002.Snowy_Owl\n",
        "2 002.Snowy_Owl\n3 003.Kiwi\n",
        "image_class_labels.txt: class 003.Kiwi has no image at all",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), BROKEN)
def test_what_is_broken_is_named_with_its_file_and_line(root, name, old, new, message):
    folder = root / "CUB_200_2011"
    path = folder / name
    if new is None:
        path.unlink()
    else:
        text = TEXTS[name]
        assert old is None or old in text
        text = new if old is None else text.replace(old, new, 1)
        path.write_bytes(text.encode(errors="surrogateescape"))
    if message is None:
        assert len(CUB200(root, "all")) == 4
        return
    with pytest.raises(DataError) as error:
        CUB200(root, "all")
    assert str(error.value) == f"{folder}/{message.format(folder)}"


def test_lines_are_counted_as_an_editor_does(root):
    """A vertical tab or a form feed is white space, and no line end."""
    change(root, "bounding_boxes.txt", "1 1.0", "\n\x0b1\x0c1.0")
    change(root, "bounding_boxes.txt", "3 3.0", "3 x")
    with pytest.raises(DataError, match=re.escape("bounding_boxes.txt:4: the left is 'x', not a number")):
        CUB200(root, "all")


def test_folders_that_hold_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"none: there is no such folder; icd\.birds\.download downloads"):
        CUB200(tmp_path / "none", "train")
    with pytest.raises(DataError, match=r"neither images\.txt nor CUB_200_2011/images\.txt is here"):
        CUB200(tmp_path, "train")
    write_tables(tmp_path)
    assert len(read_tables(tmp_path).paths) == 4
    with pytest.raises(DataError) as error:
        CUB200(tmp_path, "train")
    advice = "icd.birds.read_tables reads the text files without images"
    assert str(error.value) == f"{tmp_path / 'images'}: there is no such folder; {advice}"


def test_a_split_or_a_class_without_images(root):
    folder = root / "CUB_200_2011"
    change(root, "train_test_split.txt", "5 0", "5 1")
    with pytest.raises(DataError) as error:
        CUB200(root, "test")
    lacking = f"{folder}/image_class_labels.txt: class 002.Snowy_Owl has no image in the test split"
    assert str(error.value) == lacking
    assert len(CUB200(root, "test", classes=1)) == 1
    change(root, "train_test_split.txt", "2 0", "2 1")
    with pytest.raises(DataError) as error:
        CUB200(root, "test")
    assert str(error.value) == f"{folder}/train_test_split.txt: no image is in the test split"


# --- the real files


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} does not lie beside this checkout")
    return SHARED / name


def test_the_real_tables():
    folder = real("cub-200-metadata")
    tables = read_tables(folder)
    assert len(tables.paths) == 11_788
    assert len(tables.classes) == 200
    assert (int(tables.train.sum()), int((~tables.train).sum())) == (5_994, 5_794)
    assert np.bincount(tables.labels).min() >= 41
    assert tables.boxes[0].tolist() == [60, 27, 325, 304]
    assert tables.lines.tolist() == list(range(1, 11_789))


def test_the_real_photographs():
    folder = real("cub-50")
    train, test = CUB200(folder, "train", size=32), CUB200(folder, "test", size=32)
    assert (len(train), len(test)) == (1_500, 1_389)
    assert len(train.classes) == 50
    boxed = CUB200(folder, "all", classes=2, crop="box", size=32)
    assert len(boxed) == 120
    assert boxed.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    for index in range(0, len(boxed), 7):
        assert boxed.read(index)[0].shape == (32, 32, 3)
    fit, held = train.hold_out(0.2, seed=0)
    assert (len(fit), len(held)) == (1_200, 300)
    assert (np.bincount(held.labels) == 6).all()


# --- fetched


def pack(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


SOUND: dict[str, bytes | tarfile.TarInfo] = {
    "attributes.txt": b"1 curved\n",
    **{f"CUB_200_2011/{name}": text.encode() for name, text in TEXTS.items()},
    "CUB_200_2011/images/noise.bin": np.random.default_rng(0).bytes(100_000),
}


class Server(BaseHTTPRequestHandler):
    """Serves one file, as much of it as it is told to, with or without ranges."""

    content: ClassVar[bytes] = b""
    stop_at: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and start >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : self.stop_at])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    md5 = pack(tmp_path / "served.tgz", SOUND)
    handler = type("Handler", (Server,), {"content": (tmp_path / "served.tgz").read_bytes(), "asked": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.01))
    thread.start()
    monkeypatch.setattr(birds, "URL", f"http://127.0.0.1:{http.server_port}/CUB_200_2011.tgz")
    monkeypatch.setattr(birds, "MD5", md5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield handler
    http.shutdown()
    thread.join()
    http.server_close()


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_download_is_whole_and_done_once(server, tmp_path, capsys):
    root = tmp_path / "deep" / "data"
    assert download(root) == root / "CUB_200_2011"
    assert "CUB_200_2011.tgz" in capsys.readouterr().err  # the progress bar
    assert left(root) == ["CUB_200_2011", "CUB_200_2011.tgz"]
    assert len(read_tables(root).paths) == 4
    asked = len(server.asked)
    assert download(root, progress=False) == root / "CUB_200_2011"
    assert len(server.asked) == asked > 0
    assert capsys.readouterr().err == ""


def test_a_download_that_breaks_off_starts_again(server, tmp_path):
    root = tmp_path / "data"
    server.stop_at = 50_000
    with pytest.raises(DataError, match=r"could not be downloaded|its md5 is"):
        download(root, progress=False)
    assert "CUB_200_2011" not in left(root)
    assert "CUB_200_2011.tgz" not in left(root)
    server.stop_at = None
    assert download(root, progress=False).is_dir()
    assert left(root) == ["CUB_200_2011", "CUB_200_2011.tgz"]


def test_a_download_of_another_file_is_refused_and_forgotten(server, tmp_path):
    root, content = tmp_path / "data", server.content
    server.content = content[:-1] + b"x"
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz\.part: its md5 is [0-9a-f]{32} instead of"):
        download(root, progress=False)
    assert left(root) == []
    server.content = content
    assert download(root, progress=False).is_dir()


def test_without_a_network_it_says_what_to_do(server, tmp_path, monkeypatch):
    root = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/CUB_200_2011.tgz"
    monkeypatch.setattr(birds, "URL", address)
    with pytest.raises(DataError) as error:
        download(root, progress=False)
    assert re.fullmatch(
        rf"{re.escape(address)} could not be downloaded \(.*refused.*\). Try again, or download it "
        rf"with a browser, save it as {re.escape(str(root / 'CUB_200_2011.tgz'))}, and try again",
        str(error.value),
    )
    (root / "CUB_200_2011.tgz").write_bytes(server.content)  # what the sentence says
    assert download(root, progress=False).is_dir()
    assert server.asked == []


def test_an_archive_that_the_reader_has(tmp_path):
    archive = tmp_path / "mine.tgz"
    md5 = pack(archive, SOUND)
    with pytest.raises(DataError, match=f"mine.tgz: its md5 is {md5} instead of {birds.MD5}"):
        extract(archive, tmp_path, progress=False)
    assert extract(archive, tmp_path, md5, progress=False) == tmp_path / "CUB_200_2011"
    assert left(tmp_path) == ["CUB_200_2011", "mine.tgz"]
    archive.unlink()
    assert extract(archive, tmp_path, md5).is_dir()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Python 3.12, of a missing filter
def test_pythons_without_an_extraction_filter(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    pack(tmp_path / "mine.tgz", SOUND)
    extract(tmp_path / "mine.tgz", tmp_path, None, progress=False)
    assert len(read_tables(tmp_path).paths) == 4


def test_two_who_unpack_at_once(tmp_path, monkeypatch):
    pack(tmp_path / "mine.tgz", SOUND)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        extract(tmp_path / "mine.tgz", tmp_path, None, progress=False)  # the other is done just before
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    extract(tmp_path / "mine.tgz", tmp_path, None, progress=False)
    assert left(tmp_path) == ["CUB_200_2011", "mine.tgz"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"../out.txt": b"x"}, "the path ../out.txt leads out of the archive"),
        (
            {"CUB_200_2011/../../out.txt": b"x"},
            "the path CUB_200_2011/../../out.txt leads out of the archive",
        ),
        ({"/out.txt": b"x"}, "the path /out.txt leads out of the archive"),
        ({"C:\\out.txt": b"x"}, "the path C:\\out.txt leads out of the archive"),
        (
            {"l": member("CUB_200_2011/l", tarfile.SYMTYPE, "/etc")},
            "CUB_200_2011/l is neither a file nor a folder",
        ),
        (
            {"l": member("CUB_200_2011/l", tarfile.SYMTYPE, "images.txt")},
            "CUB_200_2011/l is neither a file nor a folder",
        ),
        (
            {"l": member("CUB_200_2011/l", tarfile.LNKTYPE, "CUB_200_2011/images.txt")},
            "CUB_200_2011/l is neither a file nor a folder",
        ),
        ({"l": member("CUB_200_2011/l", tarfile.CHRTYPE)}, "CUB_200_2011/l is neither a file nor a folder"),
        ({"l": member("CUB_200_2011/l", tarfile.FIFOTYPE)}, "CUB_200_2011/l is neither a file nor a folder"),
    ],
)
def test_archives_that_reach_out_leave_nothing(tmp_path, extra, message):
    pack(tmp_path / "bad.tgz", {**SOUND, **extra})
    root = tmp_path / "deep" / "data"
    with pytest.raises(DataError) as error:
        extract(tmp_path / "bad.tgz", root, None, progress=False)
    assert str(error.value) == f"{tmp_path / 'bad.tgz'}: {message}"
    assert left(root) == []
    assert left(tmp_path) == ["bad.tgz", "deep"]


@pytest.mark.parametrize("damage", ["cut", "flip", "other", "empty", "no folder", "no tables"])
def test_damaged_archives_leave_nothing(tmp_path, damage):
    archive, root = tmp_path / "bad.tgz", tmp_path / "data"
    pack(archive, SOUND)
    whole = bytearray(archive.read_bytes())
    if damage == "cut":
        archive.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        whole[5_000:5_100] = bytes(100)
        archive.write_bytes(whole)
    elif damage in ("other", "empty"):
        archive.write_bytes(b"no archive" if damage == "other" else b"")
    elif damage == "no folder":
        pack(archive, {"attributes.txt": b"1 curved\n"})
    else:
        pack(archive, {"CUB_200_2011/readme": b"hello"})
    with pytest.raises(DataError, match=r"bad\.tgz: the archive (does not unpack|holds no )"):
        extract(archive, root, None, progress=False)
    assert left(root) == []


def test_extract_does_not_touch_what_is_there(tmp_path):
    archive, folder = tmp_path / "mine.tgz", tmp_path / "CUB_200_2011"
    with pytest.raises(DataError, match=r"mine\.tgz: there is no such archive"):
        extract(archive, tmp_path, None)
    md5 = pack(archive, SOUND)
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(
        DataError, match=r"CUB_200_2011: this folder has no images\.txt; remove it to unpack mine\.tgz"
    ):
        extract(archive, tmp_path, md5, progress=False)
    assert (folder / "mine.txt").read_text() == "keep"
