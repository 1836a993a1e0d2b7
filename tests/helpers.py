"""What several test files share: paths, chapters, small data, small networks, and interruptions."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from icd.datasets.cache import CachedImages
from icd.networks import Network, SmallResNet
from icd.scores import Batch
from icd.terms import Term
from icd.trainer import Recipe

ROOT = Path(__file__).resolve().parents[1]


def pages_in_toc() -> list[str]:
    """The book's pages in reading order, as `_toc.yml` names them."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf8"))
    pages = [toc["root"]]

    def walk(node: dict) -> None:
        for chapter in node.get("chapters", []) + node.get("sections", []):
            pages.append(chapter["file"])
            walk(chapter)
        for part in node.get("parts", []):
            walk(part)

    walk(toc)
    return pages


def chapters_in_toc() -> list[Path]:
    """The pages that are notebooks."""
    paths = (ROOT / "book" / f"{page}.ipynb" for page in pages_in_toc())
    return [path for path in paths if path.exists()]


QUICK = Recipe(epochs=3, batch_size=16, learning_rate=0.05, schedule="one-cycle", precision="float32")


def stripes(count: int = 96, classes: int = 4, side: int = 36, seed: int = 0) -> CachedImages:
    """Images of noise over stripes; the class is their direction and width."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    grid = np.indices((side, side))
    images = generator.integers(0, 120, (count, side, side, 3))
    for image, label in zip(images, labels, strict=True):
        image += (135 * (grid[label % 2] // (3 + label) % 2))[:, :, None]
    names = tuple(f"class {i}" for i in range(classes))
    return CachedImages(
        torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), names, 32, {}, str(seed)
    )


def small(seed: int = 0, classes: int = 4) -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(classes, widths=(8, 12, 16), blocks=(1, 1, 1))


class Smooth(Network):
    """A network of which runs agree to rounding: in float64, without a kink, and without batch statistics."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.head = nn.Conv2d(3, 6, 5, stride=4, padding=1), nn.Linear(6, 4)
        self.double()
        with torch.no_grad():
            self.head.weight *= 6  # else all scores are small, and all losses nearly quadratic

    def maps(self, images):
        features = self.conv(images.double()).tanh()
        return features, (features,)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def interrupt(teacher: Network, call: int, number: int = signal.SIGINT) -> None:
    """Make `teacher` press Ctrl-C, or send another signal, when it is asked for the `call`-th time."""
    maps, calls = teacher.maps, 0

    def interrupting(images):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return maps(images)

    teacher.maps = interrupting


def explosive(at: int) -> Term:
    """A term that is no number from the call `at` on."""
    calls = 0

    def function(student, teacher, batch):
        nonlocal calls
        calls += 1
        return student.logits.mean() * (float("nan") if calls >= at else 0.0)

    return Term("explosive", "explosive()", function, needs_teacher=False)


TEXTS = {  # two species, four photographs (ids with a gap), two parts
    "images.txt": "1 001.Wren/a.jpg\n2 001.Wren/b.jpg\n3 002.Snowy_Owl/c.jpg\n5 002.Snowy_Owl/d.jpg\n",
    "classes.txt": "1 001.Wren\n2 002.Snowy_Owl\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n5 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n5 0\n",
    "bounding_boxes.txt": "".join(
        f"{i} {left} 2.0 20.0 10.0\n" for i, left in ((1, 1.0), (2, 2.0), (3, 3.0), (5, 5.5))
    ),
    "parts/parts.txt": "1 beak\n2 left eye\n",
    "parts/part_locs.txt": "".join(
        f"{i} {p} {i * 2}.5 {p}.0 {p % 2}\n" for i in (1, 2, 3, 5) for p in (1, 2)
    ),
}


def write_tables(folder: Path, **changes: str | bytes | None) -> Path:
    for name, text in {**TEXTS, **changes}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def batch_of(images: torch.Tensor, target: torch.Tensor) -> Batch:
    """A batch of the first images of a training set."""
    return Batch(images, target, torch.arange(len(target)))
