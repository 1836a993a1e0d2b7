"""Tools to draw a batch of images at once: signed distances, and a canvas to paint them on.

Only operations that IEEE arithmetic rounds correctly (+ - * / sqrt, comparisons) make the pixels, so
an image is the same bytes on any machine, in any batch, on any number of threads. Coordinates are x
to the right and y down; angles are in radians.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from icd.datasets.birdlets.plumage import COLOURS

Array = np.ndarray  # float32: (B, 1, 1) one number an image, (B, H, W) one a pixel, (3, B, 1, 1) a colour
Number = Array | float
Point = tuple[Number, Number]

PARTS = (
    "background", "tail", "legs", "belly", "back", "breast", "throat",
    "wing", "head", "crown", "crest", "beak", "eye",
)  # fmt: skip
THROWS = 265  # uniform numbers that one scene uses


class Dice:
    """The uniform numbers (B, THROWS) of a batch of scenes, used up column by column."""

    def __init__(self, uniforms: Array):
        self._columns = iter(uniforms.T)

    def between(self, low: float, high: float) -> Array:
        return (low + (high - low) * next(self._columns))[:, None, None]

    def chance(self, share: float) -> Array:
        return (self.between(0, 1) < share).astype(np.float32)

    def pick(self, options: Array) -> Array:
        """A row of `options` for each image."""
        return options[(next(self._columns) * len(options)).astype(int)]

    def colour(self, base: Array, spread: float) -> Array:
        """`base` (3, B or 1, 1, 1), a little lighter or darker and of a slightly other hue in each image."""
        shift = self.between(-spread, spread)
        return np.stack([base[i] + shift + self.between(-spread / 3, spread / 3) for i in range(3)])


class Frame(NamedTuple):
    """Coordinates of every pixel in some frame, and how long a pixel is there."""

    x: Array
    y: Array
    pixel: Number

    def moved(self, origin: Point, angle: Number = 0.0, scale: Number = 1.0, mirror: Number = 1.0) -> Frame:
        """The frame at `origin`, its x axis turned upwards by `angle`, `scale` long, mirrored where -1."""
        c, s = direction(angle)
        x, y = (self.x - origin[0]) * (mirror / scale), (self.y - origin[1]) / scale
        return Frame(c * x - s * y, s * x + c * y, self.pixel / scale)

    def cover(self, distance: Array, blur: Number = 1.0) -> Array:
        """The share of each pixel inside a shape of this signed distance; its edge is `blur` pixels wide."""
        return np.clip(0.5 - distance / (self.pixel * blur), 0, 1)


class Canvas:
    """Colours (3, B, H, W) and part indices (B, H, W), painted back to front."""

    def __init__(self, count: int, size: int):
        self.colours = np.zeros((3, count, size, size), np.float32)
        self.parts = np.zeros((count, size, size), np.uint8)

    def paint(self, cover: Array, colour: Array, part: str | None = None) -> None:
        """Lay `colour` over the share `cover` of each pixel, which from then on shows `part`."""
        for channel, value in zip(self.colours, colour, strict=True):
            channel += cover * (value - channel)
        if part is not None:
            self.parts[cover > 0.5] = PARTS.index(part)


def direction(angle: Number) -> Point:
    """(cos, sin), near enough for a drawing, from its half angle without a library's rounding."""
    half = angle / 2 * (1 + angle * angle / 12)  # tan(angle / 2) to third order
    return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


def limb(at: Frame, a: Point, b: Point, ra: Number, rb: Number) -> Array:
    """Distance to a rounded stroke from `a` to `b` whose radius goes from `ra` to `rb`."""
    bx, by = b[0] - a[0], b[1] - a[1]
    px, py = at.x - a[0], at.y - a[1]
    along = np.clip((px * bx + py * by) / (bx * bx + by * by + 1e-9), 0, 1)
    px, py = px - along * bx, py - along * by
    return np.sqrt(px * px + py * py) - (ra + along * (rb - ra))


def disc(at: Frame, centre: Point, radius: Number) -> Array:
    dx, dy = at.x - centre[0], at.y - centre[1]
    return np.sqrt(dx * dx + dy * dy) - radius


def leaf(at: Frame, length: Array, width: Array) -> Array:
    """Distance, roughly, to a pointed leaf from the frame's origin along x."""
    t = at.x / length * 2 - 1
    return np.maximum(np.abs(at.y) - width * (1 - t * t), np.abs(t) * length / 2 - length / 2)


def union(a: Array, b: Array, soft: float) -> Array:
    """Smooth minimum of two distances."""
    mix = np.clip(0.5 + (b - a) / (2 * soft), 0, 1)
    return b + (a - b) * mix - soft * mix * (1 - mix)


def wave(x: Array) -> Array:
    """A triangle wave of period 1 between 0 and 1."""
    return np.abs(x - np.floor(x) - 0.5) * 2


def noise(dice: Dice, size: int, cells: int) -> Array:
    """Smooth noise (B, size, size) in [0, 1] between (cells + 1)^2 random values."""
    grid = np.stack([dice.between(0, 1)[:, 0, 0] for _ in range((cells + 1) ** 2)], 1)
    grid = grid.reshape(-1, cells + 1, cells + 1)
    x = (np.arange(size, dtype=np.float32) + 0.5) * (cells / size)
    cell = np.minimum(x.astype(int), cells - 1)
    f = x - cell.astype(np.float32)
    f = f * f * (3 - 2 * f)
    rows = grid[:, :, cell] * (1 - f) + grid[:, :, cell + 1] * f
    return rows[:, cell] * (1 - f)[:, None] + rows[:, cell + 1] * f[:, None]


def named(*names: str) -> Array:
    """Colour names, one for each image or one for all -> (3, B, 1, 1)."""
    return np.array([COLOURS[name] for name in names], np.float32).T[:, :, None, None]
