"""The store of decoded images, and the batches cut from it."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from icd.datasets.cache import MEAN, STD, _gather, load, normalise, stored_size
from icd.datasets.folders import class_folders
from icd.errors import DataError


@pytest.fixture
def photos(tmp_path):
    """Twelve images of two classes, each of one colour that tells which it is; one of them grey."""
    for i in range(12):
        folder = tmp_path / "birds" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (10 * i, 5, 200)).save(folder / f"{i:02}.png")
    Image.new("L", (20, 30), 77).save(tmp_path / "birds" / "class1" / "grey.png")
    return class_folders(tmp_path / "birds", size=28)


def test_images_are_decoded_once_and_mapped(photos, tmp_path, monkeypatch):
    first = load(photos, folder=tmp_path / "store", progress=False)
    assert first.images.shape == (13, 32, 32, 3)
    assert first.repairs == {"colour mode L, made RGB": 1}
    monkeypatch.setattr(type(photos), "read", None)  # a second decoding would fail
    again = load(photos, folder=tmp_path / "store", progress=False)
    assert torch.equal(first.images, again.images)
    assert again.repairs == first.repairs
    assert again.labels.tolist() == photos.labels.tolist()


@pytest.mark.parametrize("damage", ["null", "[1]", '{"grey": "x"}', "{", "deep", "\udcff", ""])
def test_a_store_with_damaged_notes_is_made_again(photos, tmp_path, damage):
    first = load(photos, folder=tmp_path / "store", progress=False)
    (notes,) = (tmp_path / "store").glob("*.json")
    notes.write_text("[" * 100_000 if damage == "deep" else damage, errors="surrogateescape")
    again = load(photos, folder=tmp_path / "store", progress=False)
    assert torch.equal(first.images, again.images)
    assert again.repairs == first.repairs
    assert json.loads(notes.read_bytes()) == first.repairs


def test_the_store_is_keyed_by_what_decides_its_content(photos, tmp_path):
    store = tmp_path / "store"
    load(photos, folder=store, progress=False)
    Image.new("RGB", (20, 30), (255, 255, 255)).save(photos.paths[0])
    os.utime(photos.paths[0], (1, 1))
    changed = load(photos, folder=store, progress=False)
    assert (changed.images[0] == 255).all()
    assert len(list(store.glob("*.npy"))) == 2


def test_a_broken_image_is_named_and_nothing_is_kept(photos, tmp_path):
    photos.paths[5].write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"{photos.paths[5].name}: the image does not decode"):
        load(photos, folder=tmp_path / "store", progress=False)
    assert not [p for p in (tmp_path / "store").iterdir() if p.suffix != ".lock"]
    with pytest.raises(DataError, match="there are no images to load"):
        load(photos.subset([]), progress=False)


def _slow_load(photos, store, delay):
    read = type(photos).read

    def slowly(self, index):
        time.sleep(delay)
        return read(self, index)

    type(photos).read = slowly
    load(photos, folder=store, progress=False)


@pytest.mark.slow
def test_two_processes_build_one_store_and_a_killed_one_leaves_no_half(photos, tmp_path):
    context, store = multiprocessing.get_context("spawn"), tmp_path / "store"
    store.mkdir()
    victim = context.Process(target=_slow_load, args=(photos, store, 1.0))
    victim.start()
    while not list(store.glob(".*.part")):
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert not list(store.glob("*.npy"))
    both = [context.Process(target=_slow_load, args=(photos, store, 0.01)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    whole = load(photos, folder=store, progress=False)
    assert torch.equal(whole.images[3], torch.from_numpy(np.array(photos_at(photos, whole)[3])))


def photos_at(photos, pixels):
    from dataclasses import replace

    stored = replace(photos, size=stored_size(pixels.size))
    return [stored.read(i)[0] for i in range(len(photos))]


def test_a_batch_is_a_pure_function_of_seed_epoch_and_step(photos, tmp_path):
    pixels = load(photos, folder=tmp_path / "store", progress=False)
    images, *_ = pixels.training_batch(1, 2, 1, 4)
    again, *_ = pixels.training_batch(1, 2, 1, 4)
    assert torch.equal(images, again)
    assert images.shape == (4, 3, 28, 28)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(images, pixels.training_batch(1, 3, 1, 4)[0])
    assert not torch.equal(images, pixels.training_batch(2, 2, 1, 4)[0])
    for i in range(2):  # the shares of two processes
        assert torch.equal(images[i::2], pixels.training_batch(1, 2, 1, 4, share=(i, 2))[0])
    seen = [pixels.training_batch(1, 2, step, 4)[1] for step in range(pixels.steps(4))]
    assert len(torch.cat(seen)) == 12  # the thirteenth makes no full batch


def test_a_batch_may_take_the_memory_of_an_earlier_one(photos, tmp_path):
    pixels = load(photos, folder=tmp_path / "store", progress=False)
    fresh, *_ = pixels.training_batch(1, 2, 1, 4)
    earlier, *_ = pixels.training_batch(1, 2, 0, 4)
    again, *_ = pixels.training_batch(1, 2, 1, 4, out=earlier)
    assert again.data_ptr() == earlier.data_ptr()
    assert torch.equal(fresh, again)
    larger, *_ = pixels.training_batch(1, 2, 0, 5, out=earlier)
    assert larger.shape == (5, 3, 28, 28)


def test_every_image_comes_once_an_epoch(photos, tmp_path):
    pixels = load(photos.subset(range(12)), folder=tmp_path / "store", progress=False)
    pixels.images[:] = torch.arange(12, dtype=torch.uint8)[:, None, None, None]
    plain = torch.cat([pixels.training_batch(0, 0, step, 4)[0] for step in range(3)])
    values = (plain[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
    assert sorted(values.round().int().tolist()) == list(range(12))


def test_cuts_lie_inside_flip_half_the_time_and_the_test_cut_is_central(photos, tmp_path):
    pixels = load(photos, folder=tmp_path / "store", progress=False)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pixels.images[:] = torch.stack([rows, columns, torch.zeros_like(rows)], 2).to(torch.uint8)
    corners, flips = set(), 0
    for epoch in range(40):
        cut, *_ = pixels.training_batch(0, epoch, 0, 12)
        cut = (cut * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        for image in cut.round().int():
            down, along = image[0, :, 0], image[1, 0]
            flipped = bool(along[0] > along[-1])
            flips += flipped
            along = along.flip(0) if flipped else along
            assert torch.equal(down, torch.arange(28) + down[0])
            assert torch.equal(along, torch.arange(28) + along[0])
            corners.add((int(down[0]), int(along[0])))
    assert corners == {(i, j) for i in range(5) for j in range(5)}
    assert 180 < flips < 300
    central, _ = next(pixels.batches(5))
    torch.testing.assert_close(central[0], normalise(pixels.images[0, 2:30, 2:30].permute(2, 0, 1)))
    assert sum(len(y) for _, y in pixels.batches(5)) == 13


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 2, 1)])
def test_normalise_takes_pixels_in_any_layout(axes):
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    laid_out = images.permute(axes).contiguous().permute(tuple(np.argsort(axes)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(normalise(laid_out), (images / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    assert normalise(laid_out[0]).shape == (3, 4, 5)


def test_a_gpu_gathers_what_a_processor_cuts(photos, tmp_path):
    pixels = load(photos, folder=tmp_path / "store", progress=False)
    pixels.images[:] = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), np.uint8))
    cuts = np.stack([[3, 0, 12, 7], [0, 4, 2, 1], [4, 0, 3, 2], [0, 1, 1, 0]])
    gathered = _gather(pixels.images, torch.from_numpy(cuts), 28)
    assert torch.equal(gathered, torch.stack(list(pixels._squares(cuts))))
