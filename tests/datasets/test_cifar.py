"""CIFAR-100's layout, with a few images of our own in it: nothing is fetched."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from icd.datasets import DataSet, cifar
from icd.errors import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four images of each of ten classes to learn from, two for the test; torchvision checks their md5."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    generator = np.random.default_rng(0)
    sums = {}
    for split, count in (("train", 40), ("test", 20)):
        images = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": images, "fine_labels": [i % 10 for i in range(count)]}
        (folder / split).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(10)]}))
    for name in ("train", "test", "meta"):
        sums[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    return tmp_path


def test_a_test_image_is_the_file_s_and_a_training_image_is_cut_from_a_black_border(root):
    data = DataSet(str(root), size=32)
    test, train = data.load("test"), data.load("trainval")
    file = CIFAR100(root, train=False)
    images, labels = next(test.batches(20))
    back = images * torch.tensor(cifar.STD)[:, None, None] + torch.tensor(cifar.MEAN)[:, None, None]
    assert torch.equal((255 * back).round().permute(0, 2, 3, 1).to(torch.uint8), torch.from_numpy(file.data))
    assert labels.tolist() == file.targets
    assert (len(train), train.images.shape[1], train.resize_size) == (40, 40, 32)
    assert train.images[:, :4].max() == train.images[:, :, 36:].max() == 0
    seen, *_ = train.training_batch(0, 0, 0, 16)
    assert seen.shape == (16, 3, 32, 32)


def test_splits_and_classes(root):
    fit, held = (DataSet(str(root), size=32, hold_out=0.25).load(s) for s in ("train", "validation"))
    assert (len(fit), len(held)) == (30, 10)
    assert sorted(held.labels.tolist()) == list(range(10))
    assert fit.fingerprint != held.fingerprint
    few = DataSet(str(root), size=32, classes=3).load("trainval")
    assert (len(few), few.classes) == (12, ("class 0", "class 1", "class 2"))


def test_what_cannot_be_is_refused(root, monkeypatch):
    with pytest.raises(
        DataError, match=r"CIFAR-100's images have 32 pixels a side and no boxes: give size=32"
    ):
        DataSet(str(root)).load("trainval")
    with pytest.raises(DataError, match="no photographs in files: use load"):
        DataSet(str(root), size=32).image_list("trainval")
    with pytest.raises(DataError, match="classes is 11: CIFAR-100 has 10"):
        DataSet(str(root), size=32, classes=11).load("trainval")
    (root / "cifar-100-python" / "train").write_bytes(b"")

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR100, "download", offline)
    with pytest.raises(DataError, match=r"could not be downloaded into .*no network.*with a browser"):
        DataSet(str(root), size=32).load("trainval")
