"""Draw a batch of birds: signed distances, painted one over the other, with a mask of the parts.

Only operations that IEEE arithmetic rounds correctly (+ - * / sqrt, comparisons) touch the pixels,
and each scene is made from its own row of uniform numbers. So an image is the same bytes on any
machine, in any batch, on any number of threads. Lengths are in image sides (x right, y down) or, in
a bird's own frame, in bird lengths (u towards the beak, v down); angles in radians.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .plumage import COLOURS, FORMS, Species, family_of

Array = np.ndarray  # float32; (B, 1, 1) a number for each image, (B, H, W) for each pixel, (3, B, 1, 1) a colour
Point = tuple[Array, Array]

PARTS = (
    "background", "tail", "legs", "belly", "back", "breast", "throat",
    "wing", "head", "crown", "crest", "beak", "eye",
)  # fmt: skip
THROWS = 288  # uniform numbers that one scene may use
PLACES = np.float32([  # sky at the top, at the bottom, colour of the blurred blobs
    [(0.60, 0.75, 0.88), (0.85, 0.90, 0.92), (0.97, 0.97, 0.96)],
    [(0.42, 0.54, 0.34), (0.26, 0.37, 0.24), (0.62, 0.72, 0.42)],
    [(0.78, 0.85, 0.76), (0.56, 0.65, 0.36), (0.88, 0.84, 0.50)],
    [(0.64, 0.75, 0.79), (0.42, 0.58, 0.63), (0.84, 0.90, 0.89)],
    [(0.78, 0.66, 0.48), (0.55, 0.43, 0.30), (0.88, 0.68, 0.36)],
    [(0.72, 0.66, 0.74), (0.90, 0.77, 0.66), (0.97, 0.86, 0.75)],
])  # fmt: skip
CRESTS = np.float32([  # three strokes each, in head radii: from (u, v) to (u, v), radius at each end
    [(0, 0, 0, 0, -9, -9)] * 3,
    [(-0.10, -0.65, -0.95, -1.55, 0.50, 0.02), (-0.3, -0.6, -1.2, -1.35, 0.40, 0.02), (0, 0, 0, 0, -9, -9)],
    [(0.20, -0.8, 0.25, -1.60, 0.16, 0.03), (-0.10, -0.8, -0.20, -1.65, 0.17, 0.03),
     (-0.4, -0.7, -0.65, -1.45, 0.16, 0.03)],
    [(0.10, -0.8, 0.15, -1.45, 0.06, 0.05), (0.15, -1.45, 0.60, -1.70, 0.08, 0.17), (0, 0, 0, 0, -9, -9)],
])  # fmt: skip


class Dice:
    """The uniform numbers (B, THROWS) of a batch of scenes, used up column by column."""

    def __init__(self, uniforms: Array):
        self._columns = iter(uniforms.astype(np.float32).T)

    def between(self, low: float, high: float) -> Array:
        return (np.float32(low) + np.float32(high - low) * next(self._columns))[:, None, None]

    def chance(self, share: float) -> Array:
        return (self.between(0, 1) < share).astype(np.float32)

    def pick(self, options: Array) -> Array:
        """A row of `options` for each image."""
        return options[(next(self._columns) * len(options)).astype(int)]

    def colour(self, base: Array, spread: float) -> Array:
        shift = self.between(-spread, spread)  # one for all channels: lighter or darker
        return np.stack([base[i] + shift + self.between(-spread / 3, spread / 3) for i in range(3)])


class Frame(NamedTuple):
    """Coordinates of every pixel in some frame, and how long a pixel is there."""

    x: Array
    y: Array
    pixel: Array

    def moved(self, origin: Point, angle: Array, scale: Array, mirror: Array) -> Frame:
        """The frame at `origin`, its x axis turned upwards by `angle`, `scale` long, mirrored where -1."""
        c, s = direction(angle)
        dx, dy = self.x - origin[0], self.y - origin[1]
        mirrored = dx * (mirror / scale)
        down = dy / scale
        return Frame(c * mirrored - s * down, s * mirrored + c * down, self.pixel / scale)

    def out(self, point: Point, origin: Point, angle: Array, scale: Array, mirror: Array) -> Point:
        """Where `point` of the frame that `moved` makes lies in this one."""
        c, s = direction(angle)
        return (
            origin[0] + (c * point[0] + s * point[1]) * scale * mirror,
            origin[1] + (c * point[1] - s * point[0]) * scale,
        )

    def cover(self, distance: Array, blur: Array | float = 1.0) -> Array:
        """The share of each pixel that lies within a shape, from its signed distance."""
        return np.clip(np.float32(0.5) - distance / (self.pixel * blur), 0, 1)


class Canvas:
    """Colours (3, B, H, W) and part indices (B, H, W), painted back to front."""

    def __init__(self, count: int, size: int):
        self.colours = np.zeros((3, count, size, size), np.float32)
        self.parts = np.zeros((count, size, size), np.uint8)

    def paint(self, cover: Array, colour: Array, part: str | None = None) -> None:
        for channel, value in zip(self.colours, colour, strict=True):
            channel += cover * (value - channel)
        if part is not None:
            self.parts[cover > 0.5] = PARTS.index(part)


def direction(angle: Array) -> tuple[Array, Array]:
    """(cos, sin), near enough for a drawing, from its half angle without a library's rounding."""
    half = angle / 2 * (1 + angle * angle / 12)  # tan(angle / 2) to third order
    return (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)


def limb(at: Frame, a: Point, b: Point, ra: Array | float, rb: Array | float) -> Array:
    """Distance to a rounded stroke from `a` to `b` whose radius goes from `ra` to `rb`."""
    bx, by = b[0] - a[0], b[1] - a[1]
    px, py = at.x - a[0], at.y - a[1]
    along = np.clip((px * bx + py * by) / (bx * bx + by * by + np.float32(1e-9)), 0, 1)
    px, py = px - along * bx, py - along * by
    return np.sqrt(px * px + py * py) - (ra + along * (rb - ra))


def disc(at: Frame, centre: Point, radius: Array | float) -> Array:
    dx, dy = at.x - centre[0], at.y - centre[1]
    return np.sqrt(dx * dx + dy * dy) - radius


def leaf(at: Frame, length: Array, width: Array) -> Array:
    """Distance, roughly, to a pointed leaf from the frame's origin along x."""
    t = at.x / length * 2 - 1
    return np.maximum(np.abs(at.y) - width * (1 - t * t), np.abs(t) * length / 2 - length / 2)


def union(a: Array, b: Array, soft: float) -> Array:
    """Smooth minimum of two distances."""
    mix = np.clip(np.float32(0.5) + (b - a) / (2 * soft), 0, 1)
    return b + (a - b) * mix - np.float32(soft) * mix * (1 - mix)


def wave(x: Array) -> Array:
    """A triangle wave of period 1 between 0 and 1."""
    return np.abs(x - np.floor(x) - np.float32(0.5)) * 2


def noise(dice: Dice, size: int, cells: int) -> Array:
    """Smooth noise (B, size, size) in [0, 1] between (cells + 1)^2 random values."""
    grid = np.stack([dice.between(0, 1)[:, 0, 0] for _ in range((cells + 1) ** 2)], 1)
    grid = grid.reshape(-1, cells + 1, cells + 1)
    x = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    cell = np.minimum(x.astype(int), cells - 1)
    f = x - cell
    f = f * f * (3 - 2 * f)
    rows = grid[:, :, cell] * (1 - f) + grid[:, :, cell + 1] * f
    return rows[:, cell] * (1 - f)[:, None] + rows[:, cell + 1] * f[:, None]


def named(names: Sequence[str]) -> Array:
    """Colour names, one for each image -> (3, B, 1, 1)."""
    return np.float32([COLOURS[name] for name in names]).T[:, :, None, None]


def render(species: Sequence[Species], uniforms: Array, size: int) -> tuple[Array, Array]:
    """One image of each species: pixels (B, size, size, 3) and part indices (B, size, size), uint8.

    `uniforms` (B, THROWS) decides everything that varies between two images of one species.
    """
    dice = Dice(uniforms)
    canvas = Canvas(len(species), size)
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    page = Frame(centres[None, None, :], centres[None, :, None], np.float32(1 / size))
    shade = _background(canvas, page, dice)
    where = _Pose(dice, species)
    _perch(canvas, page, dice, where)
    _bird(canvas, page, dice, where, species)
    _in_front(canvas, page, dice, where)
    warm, bright = dice.between(-0.09, 0.09), dice.between(0.80, 1.10)
    light = bright * (np.float32(0.92) + np.float32(0.16) * shade)
    for channel, tint in zip(canvas.colours, (1 + warm, 1 + warm / 4, 1 - warm), strict=True):
        channel *= light * tint
    pixels = np.clip(canvas.colours * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), canvas.parts


class _Pose:
    """Where the bird of each image stands, and where the points of its body are in its own frame."""

    def __init__(self, dice: Dice, species: Sequence[Species]):
        families = [family_of(s) for s in species]

        def each(values: Sequence[float]) -> Array:
            return np.float32(values)[:, None, None]

        self.mirror = 1 - 2 * dice.chance(0.5)
        self.scale = dice.between(0.66, 0.92)
        self.angle = dice.between(-0.22, 0.22)
        posture = each([f.posture for f in families]) + dice.between(-0.12, 0.12)
        self.along = c, s = direction(posture)
        half = each([f.length for f in families]) / 2
        self.chest: Point = (c * half, -s * half)
        self.rump: Point = (-c * half, s * half)
        self.fat = dice.between(0.92, 1.08)
        self.chest_radius = each([f.breast for f in families]) * self.fat
        self.rump_radius = each([f.rump for f in families]) * self.fat
        self.head_radius = each([f.head for f in families])
        reach = dice.between(0.85, 1.10)
        self.head: Point = (
            self.chest[0] + each([f.neck[0] for f in families]) * reach,
            self.chest[1] - each([f.neck[1] for f in families]) * reach,
        )
        self.head_angle = dice.between(-0.28, 0.28)
        self.turn = dice.between(0.0, 0.5)  # of the face towards the viewer
        self.backwards = 1 - 2 * dice.chance(0.12)  # looking over the shoulder
        self.tail = [each([f.tail[i] for f in families]) for i in range(4)]
        self.tail[3] = self.tail[3] + dice.between(-0.18, 0.18)
        self.leg = each([f.leg for f in families]) * dice.between(0.85, 1.1)
        self.beak = [each([f.beak[i] for f in families]) for i in range(3)]
        self.wing = each([f.wing for f in families])
        self.wing_angle = dice.between(-0.10, 0.16)
        self.foot = half * s * 0 + self.chest_radius * np.float32(0.72) + self.leg
        # the whole bird, beak to tail and crown to foot, is put about the middle of the picture
        crown = self.head[1] - self.head_radius
        left = self.rump[0] - self.rump_radius - self.tail[0] * np.float32(0.75)
        right = self.head[0] + self.head_radius + self.beak[0]
        middle = ((left + right) / 2, (crown + self.foot) / 2)
        self.origin: Point = (np.float32(0), np.float32(0))
        mx, my = self.on_page(middle)
        self.origin = (dice.between(0.43, 0.57) - mx, dice.between(0.45, 0.57) - my)

    def on_page(self, point: Point) -> Point:
        return Frame.out(_NOWHERE, point, self.origin, self.angle, self.scale, self.mirror)


_NOWHERE = Frame(np.float32(0), np.float32(0), np.float32(1))


def _background(canvas: Canvas, page: Frame, dice: Dice) -> Array:
    """A blurred landscape; returns the smooth noise (B, H, W) that also dapples the light."""
    size = canvas.parts.shape[-1]
    place = np.moveaxis(dice.pick(PLACES), 0, 2)[..., None, None]  # (3 tones, 3 channels, B, 1, 1)
    top, bottom, glow = (dice.colour(tone, 0.06) for tone in place)
    dapple = noise(dice, size, 4)
    horizon = np.clip((page.y - dice.between(0.0, 0.6)) / dice.between(0.2, 0.9), 0, 1)
    canvas.paint(np.ones_like(dapple), top)
    canvas.paint(np.clip(horizon + (dapple - np.float32(0.5)) * np.float32(0.5), 0, 1), bottom)
    for i in range(8):
        radius = dice.between(0.04, 0.17)
        spot = disc(page, (dice.between(0, 1), dice.between(0, 1)), radius)
        soft = np.clip(np.float32(0.5) - spot / (radius * dice.between(0.3, 1.4)), 0, 1)
        canvas.paint(soft * dice.between(0.1, 0.6), dice.colour(glow if i % 2 else bottom * np.float32(0.85), 0.06))
    blades = dice.chance(0.35)
    for _ in range(6):
        foot, lean, height = dice.between(0, 1), dice.between(-0.2, 0.2), dice.between(0.45, 0.95)
        blade = limb(page, (foot, np.float32(1.05)), (foot + lean, height), 0.016, 0.002)
        canvas.paint(page.cover(blade, 2) * blades * np.float32(0.7), dice.colour(bottom * np.float32(0.8), 0.1))
    return dapple


def _perch(canvas: Canvas, page: Frame, dice: Dice, pose: _Pose) -> None:
    """A branch, or a mound of earth, under the bird's feet."""
    x, y = pose.on_page((np.float32(0), pose.foot))
    thick = dice.between(0.020, 0.040)
    y = y + thick * np.float32(0.6)
    slope = dice.between(-0.22, 0.22)
    bark = dice.colour(named(["brown"] * len(canvas.parts)), 0.08)
    end = x + dice.between(0.15, 0.9)
    mound = dice.chance(0.3)
    branch = limb(page, (np.float32(-0.1), y + slope * (-0.1 - x)), (end, y + slope * (end - x)), thick, thick * 0.6)
    side = 1 - 2 * dice.chance(0.5)
    for _ in range(3):
        far = dice.between(-0.45, 0.45)
        tilt = dice.between(-1.2, 1.2)
        _leaf(canvas, page, dice, (x + far, y + slope * far), tilt, side, 1 - mound)
    hill = y + slope * np.float32(0.3) * (page.x - x) - page.y
    earth = bark * np.float32(0.6) + dice.colour(named(["olive"] * len(canvas.parts)), 0.1) * np.float32(0.4)
    for distance, colour, here in ((branch, bark, 1 - mound), (hill, earth, mound)):
        canvas.paint(page.cover(distance) * here, colour)
        canvas.paint(page.cover(distance + thick * np.float32(0.55), 3) * here * np.float32(0.3), colour * 1.5)


def _leaf(canvas: Canvas, page: Frame, dice: Dice, at: Point, angle: Array, side: Array, here: Array) -> None:
    length = dice.between(0.08, 0.16)
    frame = page.moved(at, angle, np.float32(1), side)
    inside = frame.cover(leaf(frame, length, length * dice.between(0.16, 0.26))) * here
    green = dice.colour(named(["olive"] * len(canvas.parts)) * np.float32(0.9), 0.14)
    canvas.paint(inside, green)
    canvas.paint(inside * frame.cover(frame.y), green * np.float32(0.86))  # the side below the rib
    canvas.parts[inside > 0.5] = 0


def _in_front(canvas: Canvas, page: Frame, dice: Dice, pose: _Pose) -> None:
    """Sometimes a twig or a leaf or two between us and the bird."""
    x, y = pose.on_page((dice.between(-0.35, 0.35), dice.between(-0.30, 0.25)))
    here = dice.chance(0.30)
    frame = page.moved((x, y), dice.between(-1.5, 1.5), np.float32(1), np.float32(1))
    twig = limb(frame, (np.float32(-1.2), np.float32(0)), (dice.between(0.05, 0.4), np.float32(0)), 0.016, 0.006)
    inside = frame.cover(twig) * here
    canvas.paint(inside, dice.colour(named(["brown"] * len(canvas.parts)) * np.float32(0.8), 0.08))
    canvas.parts[inside > 0.5] = 0
    for share in (0.30, 0.20):
        at = pose.on_page((dice.between(-0.45, 0.45), dice.between(-0.40, 0.35)))
        _leaf(canvas, page, dice, at, dice.between(-1.5, 1.5), 1 - 2 * dice.chance(0.5), dice.chance(share))


def _bird(canvas: Canvas, page: Frame, dice: Dice, pose: _Pose, species: Sequence[Species]) -> None:
    families = [family_of(s) for s in species]

    def wears(mark: str, *forms: str) -> Array:
        return np.float32([getattr(s, mark) in forms for s in species])[:, None, None]

    back, under, wing_coat = (dice.colour(named([f.coat[i] for f in families]), 0.05) for i in range(3))
    first, second = (dice.colour(named([f.marks[i] for f in families]), 0.04) for i in range(2))
    pale = named(["white"] * len(species))
    at = page.moved(pose.origin, pose.angle, pose.scale, pose.mirror)
    c, s = pose.along
    body = limb(at, pose.rump, pose.chest, pose.rump_radius, pose.chest_radius)
    neck = limb(at, pose.chest, pose.head, pose.chest_radius * np.float32(0.75), pose.head_radius)
    shape = union(body, neck, 0.05)
    inside = at.cover(shape)
    across = at.x * s + at.y * c  # below the line of the back

    _legs(canvas, at, dice, pose, named([f.leg_colour for f in families]))
    _tail(canvas, at, pose, wing_coat, pale, wears)
    face = at.moved(pose.head, pose.head_angle, pose.head_radius, pose.backwards)
    _crest(canvas, face, dice, species, back)
    _beak(canvas, face, pose, named([f.beak_colour for f in families]), wears)
    canvas.paint(inside, back, "back")
    canvas.paint(inside * at.cover(pose.chest_radius * np.float32(0.12) - across, 3), under, "belly")
    _breast(canvas, at, pose, inside, second, back, wears)
    _head(canvas, face, pose, first, second, pale, back, wears)
    _round(canvas, at, shape, inside, across)
    _wing(canvas, at, pose, wing_coat, pale, wears)
    _eye(canvas, face, pose, pale, wears)


def _legs(canvas: Canvas, at: Frame, dice: Dice, pose: _Pose, colour: Array) -> None:
    for shift, tone in ((dice.between(0.03, 0.07), 0.75), (dice.between(-0.05, 0.0), 1.0)):
        hip, foot = (shift * np.float32(0.6), np.float32(0.05)), (shift, pose.foot)
        leg = limb(at, hip, foot, 0.016, 0.011)
        toes = limb(at, foot, (shift + np.float32(0.05), pose.foot + np.float32(0.004)), 0.012, 0.007)
        canvas.paint(at.cover(np.minimum(leg, toes)), colour * np.float32(tone), "legs")


def _tail(canvas: Canvas, at: Frame, pose: _Pose, coat: Array, pale: Array, wears) -> None:
    length, width, fork, angle = pose.tail
    c, s = pose.along
    tc, ts = direction(angle)
    # backwards along the body's axis, then up by the tail's own angle
    ex, ey = -(c * tc + s * ts), s * tc - c * ts
    dx, dy = at.x - pose.rump[0], at.y - pose.rump[1]
    t, n = dx * ex + dy * ey - pose.rump_radius * np.float32(0.4), np.abs(dx * ey - dy * ex)
    length = length + pose.rump_radius * np.float32(0.6)
    half = np.float32(0.035) + (width - np.float32(0.035)) * np.clip(t / length, 0, 1)
    end = t - length - fork * (n - width)
    inside = at.cover(np.maximum(np.maximum(n - half, -t), end))
    canvas.paint(inside, coat * np.float32(0.85), "tail")
    band = np.abs(end + np.float32(0.10)) - np.float32(0.028)
    tip = -end - np.float32(0.055)
    canvas.paint(inside * at.cover(band) * wears("tail_band", "middle"), pale)
    canvas.paint(inside * at.cover(tip) * wears("tail_band", "tip"), pale)


def _crest(canvas: Canvas, face: Frame, dice: Dice, species: Sequence[Species], coat: Array) -> None:
    raised = face.moved((np.float32(0), np.float32(0)), dice.between(-0.25, 0.15), np.float32(1), np.float32(1))
    strokes = CRESTS[[FORMS["crest"].index(s.crest) for s in species]]  # (B, 3, 6)
    distance = np.float32(9)
    for i in range(3):
        au, av, bu, bv, ra, rb = (strokes[:, i, j, None, None] for j in range(6))
        distance = np.minimum(distance, limb(raised, (au, av), (bu, bv), ra, rb))
    canvas.paint(face.cover(distance), coat * np.float32(0.82), "crest")


def _beak(canvas: Canvas, face: Frame, pose: _Pose, colour: Array, wears) -> None:
    length, thick, bend = (value / pose.head_radius for value in pose.beak)
    length = length * (1 - np.float32(0.35) * pose.turn)
    for form, name in (("orange", "orange"), ("pale", "cream")):
        worn = wears("beak", form)
        colour = colour * (1 - worn) + named([name] * len(worn)) * worn
    reach = np.clip((face.x - np.float32(0.7)) / (length + np.float32(0.3)), 0, 1)
    bent = Frame(face.x, face.y - np.float32(0.12) - bend * reach * reach, face.pixel)
    tip = np.float32(1.0) + length
    inside = face.cover(limb(bent, (np.float32(0.7), np.float32(0)), (tip, np.float32(0.05)), thick, 0.02))
    canvas.paint(inside, colour, "beak")
    canvas.paint(inside * face.cover(np.float32(0.04) - bent.y), colour * np.float32(0.75))


def _breast(canvas: Canvas, at: Frame, pose: _Pose, inside: Array, colour: Array, back: Array, wears) -> None:
    c, s = pose.along
    radius = pose.chest_radius
    front = (pose.chest[0] + radius * np.float32(0.45), pose.chest[1] + radius * np.float32(0.20))
    area = disc(at, front, radius * np.float32(0.72))
    here = inside * at.cover(area, 2)
    canvas.parts[here > 0.5] = PARTS.index("breast")
    canvas.paint(here * wears("breast", "patch"), colour)
    u, v = (at.x - front[0]) / radius, (at.y - front[1]) / radius
    ring = np.abs(disc(at, pose.head, pose.head_radius * np.float32(1.65))) - np.float32(0.024)
    canvas.paint(inside * at.cover(ring) * at.cover(np.float32(0.02) - at.x) * wears("breast", "band"), colour)
    dark = back * np.float32(0.55)
    cell_u, cell_v = wave(u * np.float32(2.6) + v * np.float32(1.3)), wave(v * np.float32(2.6) - u * np.float32(1.3))
    spots = np.sqrt(cell_u * cell_u + cell_v * cell_v) - np.float32(0.55)
    wide = inside * at.cover(disc(at, front, radius * np.float32(0.95)), 2)
    canvas.paint(wide * np.clip(np.float32(0.5) - spots * 4, 0, 1) * wears("breast", "spots"), dark)
    streaks = wave(u * np.float32(2.8) - v * np.float32(0.8)) - np.float32(0.36)
    canvas.paint(wide * np.clip(np.float32(0.5) - streaks * 4, 0, 1) * wears("breast", "streaks"), dark)


def _head(canvas: Canvas, face: Frame, pose: _Pose, first, second, pale, back, wears) -> None:
    zero = np.float32(0)
    head = face.cover(disc(face, (zero, zero), np.float32(1)))
    canvas.paint(head * np.float32(0.5), back, "head")
    crown = head * face.cover(face.y + np.float32(0.42) + face.x * np.float32(0.12))
    canvas.parts[crown > 0.5] = PARTS.index("crown")
    throat = face.cover(disc(face, (np.float32(0.55), np.float32(0.75)), 0.50))
    throat = throat * face.cover(disc(face, (np.float32(0.15), np.float32(0.35)), 0.95))
    canvas.parts[throat > 0.5] = PARTS.index("throat")
    canvas.paint(throat * wears("bib", "dark"), first)
    canvas.paint(crown * wears("cap", "dark"), first)
    brow = limb(face, (np.float32(0.75), np.float32(-0.35)), (np.float32(-0.75), np.float32(-0.42)), 0.11, 0.09)
    canvas.paint(head * face.cover(brow) * wears("brow", "pale"), pale)
    cheek = disc(face, (np.float32(-0.18), np.float32(0.42)), 0.36)
    canvas.paint(head * face.cover(cheek) * wears("cheek", "patch"), second)


def _round(canvas: Canvas, at: Frame, shape: Array, inside: Array, across: Array) -> None:
    """Shade the body as a solid: darker towards its edge and underneath."""
    depth = np.clip(-shape / np.float32(0.09), 0, 1)
    tone = np.float32(0.80) + np.float32(0.24) * depth * (2 - depth) - np.clip(across, -0.2, 0.2) * np.float32(0.6)
    for channel in canvas.colours:
        channel *= 1 + inside * (tone - 1)


def _wing(canvas: Canvas, at: Frame, pose: _Pose, coat: Array, pale: Array, wears) -> None:
    c, s = pose.along
    radius = pose.chest_radius
    wc, ws = direction(pose.wing_angle)
    ex, ey = -(c * wc - s * ws), s * wc + c * ws
    shoulder = (
        pose.chest[0] - s * radius * np.float32(0.15) - c * radius * np.float32(0.05),
        pose.chest[1] - c * radius * np.float32(0.15) + s * radius * np.float32(0.05),
    )
    dx, dy = at.x - shoulder[0], at.y - shoulder[1]
    t, n = (dx * ex + dy * ey) / pose.wing, (dx * -ey + dy * ex) / radius  # along it, across it
    tip = (shoulder[0] + ex * pose.wing, shoulder[1] + ey * pose.wing)
    shape = limb(at, shoulder, tip, radius * np.float32(0.58), np.float32(0.012))
    inside = at.cover(shape)
    canvas.paint(at.cover(shape - np.float32(0.012), 3) * (canvas.parts > 0) * np.float32(0.25), coat * np.float32(0.4))
    canvas.paint(inside, coat, "wing")
    quills = np.clip((t - np.float32(0.35)) * 3, 0, 1)
    canvas.paint(inside * quills, coat * np.float32(0.68))
    vanes = np.clip(wave(n * 4) * 3 - np.float32(2), 0, 1)
    canvas.paint(inside * quills * vanes * np.float32(0.35), coat * np.float32(1.2))
    lit = at.cover(shape + radius * np.float32(0.28), 8)
    canvas.paint(inside * lit * (1 - quills) * np.float32(0.25), coat * np.float32(1.3))
    bend = n * n * np.float32(0.10)
    for centre, forms in ((0.24, ("one", "two")), (0.46, ("two",))):
        bar = (np.abs(t + bend - np.float32(centre)) - np.float32(0.045)) * pose.wing
        canvas.paint(inside * at.cover(bar) * wears("wing_bars", *forms), pale)


def _eye(canvas: Canvas, face: Frame, pose: _Pose, pale: Array, wears) -> None:
    centre = (np.float32(0.30) + pose.turn * np.float32(0.15), np.float32(-0.10))
    ring = face.cover(disc(face, centre, 0.36))
    canvas.paint(ring * wears("eye_ring", "white"), pale)
    canvas.paint(ring * wears("eye_ring", "yellow"), named(["yellow"] * len(pale[0])))
    canvas.paint(face.cover(disc(face, centre, 0.215)), named(["black"] * len(pale[0])) * np.float32(0.7), "eye")
    glint = (centre[0] + np.float32(0.06), centre[1] - np.float32(0.07))
    canvas.paint(face.cover(disc(face, glint, 0.07)) * np.float32(0.9), pale)
