"""A batch of scenes: a blurred landscape, a perch, a bird, and what stands in front of it.

Every scene is made from its own row of uniform numbers (`icd.canvas.Dice`). Lengths are in image sides or,
in a bird's own frame, in bird lengths, with x towards the beak and y down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from icd.datasets.birdlets.canvas import (
    PARTS,
    Array,
    Canvas,
    Dice,
    Frame,
    Point,
    direction,
    disc,
    leaf,
    limb,
    named,
    noise,
    union,
    wave,
)
from icd.datasets.birdlets.plumage import FORMS, Species, family_of

PLACES = np.array([  # the colours far up, far down, and of the blurred lights
    [(0.60, 0.75, 0.88), (0.85, 0.90, 0.92), (0.97, 0.97, 0.96)],
    [(0.42, 0.54, 0.34), (0.26, 0.37, 0.24), (0.62, 0.72, 0.42)],
    [(0.78, 0.85, 0.76), (0.56, 0.65, 0.36), (0.88, 0.84, 0.50)],
    [(0.64, 0.75, 0.79), (0.42, 0.58, 0.63), (0.84, 0.90, 0.89)],
    [(0.78, 0.66, 0.48), (0.55, 0.43, 0.30), (0.88, 0.68, 0.36)],
    [(0.72, 0.66, 0.74), (0.90, 0.77, 0.66), (0.97, 0.86, 0.75)],
], np.float32)  # fmt: skip
NO_STROKE = (0, 0, 0, 0, -9, -9)
CRESTS = np.array([  # strokes in head radii, one row a form: from x, y to x, y, radius at each end
    [NO_STROKE] * 3,
    [(-0.10, -0.65, -0.95, -1.55, 0.50, 0.02), (-0.30, -0.60, -1.20, -1.35, 0.40, 0.02), NO_STROKE],
    [(0.20, -0.80, 0.25, -1.60, 0.16, 0.03), (-0.10, -0.80, -0.20, -1.65, 0.17, 0.03),
     (-0.40, -0.70, -0.65, -1.45, 0.16, 0.03)],
    [(0.10, -0.80, 0.15, -1.45, 0.06, 0.05), (0.15, -1.45, 0.60, -1.70, 0.08, 0.17), NO_STROKE],
], np.float32)  # fmt: skip


def render(species: Sequence[Species], uniforms: Array, size: int) -> tuple[Array, Array]:
    """One image of each species: pixels (B, size, size, 3) and part indices (B, size, size), uint8.

    `uniforms` (B, THROWS), float32 in [0, 1), decides everything in which two images of a species differ.
    """
    dice, canvas = Dice(uniforms), Canvas(len(species), size)
    middles = (np.arange(size, dtype=np.float32) + 0.5) / size
    page = Frame(middles[None, None, :], middles[None, :, None], 1 / size)
    dapple = _landscape(canvas, page, dice)
    bird = _Bird(canvas, page, dice, species)
    _perch(canvas, page, dice, bird.on_page((0.0, bird.foot)))
    bird.paint()
    _in_front(canvas, page, dice, bird)
    warm, light = dice.between(-0.09, 0.09), dice.between(0.80, 1.10) * (0.92 + 0.16 * dapple)
    for channel, tint in zip(canvas.colours, (1 + warm, 1 + warm / 4, 1 - warm), strict=True):
        channel *= light * tint
    pixels = np.clip(canvas.colours * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), canvas.parts


def _landscape(canvas: Canvas, page: Frame, dice: Dice) -> Array:
    """Paint what lies far behind; returns the smooth noise (B, H, W) that also dapples the light."""
    place = np.moveaxis(dice.pick(PLACES), 0, 2)[..., None, None]  # (3 tones, 3 channels, B, 1, 1)
    top, bottom, lights = (dice.colour(tone, 0.06) for tone in place)
    dapple = noise(dice, canvas.parts.shape[-1], 4)
    depth = (page.y - dice.between(0.0, 0.6)) / dice.between(0.2, 0.9)
    canvas.colours += top
    canvas.paint(np.clip(np.clip(depth, 0, 1) + (dapple - 0.5) * 0.5, 0, 1), bottom)
    for i in range(8):
        radius = dice.between(0.04, 0.17)
        edge = disc(page, (dice.between(0, 1), dice.between(0, 1)), radius) / (
            radius * dice.between(0.3, 1.4)
        )
        colour = dice.colour(lights if i % 2 else bottom * 0.85, 0.06)
        canvas.paint(np.clip(0.5 - edge, 0, 1) * dice.between(0.1, 0.6), colour)
    grass = dice.chance(0.35) * 0.7
    for _ in range(6):
        foot, lean, height = dice.between(0, 1), dice.between(-0.2, 0.2), dice.between(0.45, 0.95)
        blade = limb(page, (foot, 1.05), (foot + lean, height), 0.016, 0.002)
        canvas.paint(page.cover(blade, 2) * grass, dice.colour(bottom * 0.8, 0.1))
    return dapple


def _perch(canvas: Canvas, page: Frame, dice: Dice, foot: Point) -> None:
    """A branch with leaves, or else a mound of earth, under the bird's foot."""
    thick, slope, mound = dice.between(0.020, 0.040), dice.between(-0.22, 0.22), dice.chance(0.3)
    x, y = foot[0], foot[1] + thick * 0.6
    bark = dice.colour(named("brown"), 0.08)
    end = x + dice.between(0.15, 0.9)
    branch = limb(page, (-0.1, y + slope * (-0.1 - x)), (end, y + slope * (end - x)), thick, thick * 0.6)
    for _ in range(3):
        far, angle = dice.between(-0.45, 0.45), dice.between(-1.2, 1.2)
        _leaf(canvas, page, dice, (x + far, y + slope * far), angle, 1 - mound)
    hill = y + slope * 0.3 * (page.x - x) - page.y
    earth = bark * 0.6 + dice.colour(named("olive"), 0.1) * 0.4
    for distance, colour, here in ((branch, bark, 1 - mound), (hill, earth, mound)):
        canvas.paint(page.cover(distance) * here, colour)
        canvas.paint(page.cover(distance + thick * 0.55, 3) * here * 0.3, colour * 1.5)


def _in_front(canvas: Canvas, page: Frame, dice: Dice, bird: _Bird) -> None:
    """Sometimes a twig, a leaf or two between us and the bird."""
    at = bird.on_page((dice.between(-0.35, 0.35), dice.between(-0.30, 0.25)))
    frame = page.moved(at, dice.between(-1.5, 1.5))
    twig = frame.cover(limb(frame, (-1.2, 0.0), (dice.between(0.05, 0.4), 0.0), 0.016, 0.006)) * dice.chance(
        0.3
    )
    canvas.paint(twig, dice.colour(named("brown") * 0.8, 0.08), "background")
    for share in (0.3, 0.2):
        at = bird.on_page((dice.between(-0.45, 0.45), dice.between(-0.40, 0.35)))
        _leaf(canvas, page, dice, at, dice.between(-1.5, 1.5), dice.chance(share))


def _leaf(canvas: Canvas, page: Frame, dice: Dice, at: Point, angle: Array, here: Array) -> None:
    length = dice.between(0.08, 0.16)
    frame = page.moved(at, angle, mirror=1 - 2 * dice.chance(0.5))
    inside = frame.cover(leaf(frame, length, length * dice.between(0.16, 0.26))) * here
    green = dice.colour(named("olive") * 0.9, 0.14)
    canvas.paint(inside, green, "background")
    canvas.paint(inside * frame.cover(frame.y), green * 0.86)  # the half below the rib


class _Bird:
    """The bird of each image: where it stands and how it holds itself, then its parts, back to front."""

    def __init__(self, canvas: Canvas, page: Frame, dice: Dice, species: Sequence[Species]):
        families = [family_of(s) for s in species]
        self.canvas, self.species = canvas, species

        def each(value: Callable) -> Array:
            return np.array([value(family) for family in families], np.float32)[:, None, None]

        self.posture = each(lambda f: f.posture) + dice.between(-0.12, 0.12)
        self.c, self.s = c, s = direction(self.posture)
        half, fat = each(lambda f: f.length) / 2, dice.between(0.92, 1.08)
        self.chest, self.chest_radius = (c * half, -s * half), each(lambda f: f.breast) * fat
        self.rump, self.rump_radius = (-c * half, s * half), each(lambda f: f.rump) * fat
        stretch, self.head_radius = dice.between(0.85, 1.10), each(lambda f: f.head)
        self.head = (
            self.chest[0] + each(lambda f: f.neck[0]) * stretch,
            self.chest[1] - each(lambda f: f.neck[1]) * stretch,
        )
        self.turn = dice.between(0.0, 0.5)  # of the face towards us
        self.tail_length, self.tail_width, self.tail_fork, tail_angle = (
            each(lambda f, i=i: f.tail[i]) for i in range(4)
        )
        self.tail_angle = tail_angle + dice.between(-0.18, 0.18)
        self.beak_length, self.beak_radius, self.beak_bend = (
            each(lambda f, i=i: f.beak[i]) for i in range(3)
        )
        self.wing_length, self.wing_angle = each(lambda f: f.wing), dice.between(-0.10, 0.16)
        self.foot = self.chest_radius * 0.72 + each(lambda f: f.leg) * dice.between(0.85, 1.10)
        self.steps = dice.between(0.03, 0.07), dice.between(-0.05, 0.0)

        self.back, self.under, self.wing = (
            dice.colour(named(*(f.coat[i] for f in families)), 0.05) for i in range(3)
        )
        self.first, self.second = (
            dice.colour(named(*(f.marks[i] for f in families)), 0.04) for i in range(2)
        )
        self.beak_colour = named(*(f.beak_colour for f in families))
        self.leg_colour = named(*(f.leg_colour for f in families))

        self.boldness = dice.between(0.5, 1.0)  # of the marks: plumage fades and wears
        self.angle, self.scale = dice.between(-0.3, 0.3), dice.between(0.52, 0.88)
        self.mirror = 1 - 2 * dice.chance(0.5)
        # beak to tail and crown to foot stand about the middle of the picture
        left = self.rump[0] - self.rump_radius - self.tail_length * 0.75
        right = self.head[0] + self.head_radius + self.beak_length
        self.origin: Point = (0.0, 0.0)
        x, y = self.on_page(((left + right) / 2, (self.head[1] - self.head_radius + self.foot) / 2))
        self.origin = (dice.between(0.43, 0.57) - x, dice.between(0.45, 0.57) - y)
        self.at = page.moved(self.origin, self.angle, self.scale, self.mirror)
        over_shoulder = 1 - 2 * dice.chance(0.12)
        self.face = self.at.moved(self.head, dice.between(-0.28, 0.28), self.head_radius, over_shoulder)
        self.ruffled = self.face.moved((0.0, 0.0), dice.between(-0.25, 0.15))

    def on_page(self, point: Point) -> Point:
        """Where a point of the bird's frame lies on the page: the inverse of `Frame.moved`."""
        c, s = direction(self.angle)
        return (
            self.origin[0] + (c * point[0] + s * point[1]) * self.scale * self.mirror,
            self.origin[1] + (c * point[1] - s * point[0]) * self.scale,
        )

    def wears(self, mark: str, *forms: str) -> Array:
        """How boldly each bird shows `mark` in one of these forms, (B, 1, 1): 0 if its species lacks it."""
        has = np.array([getattr(s, mark) in forms for s in self.species], np.float32)
        return has[:, None, None] * self.boldness

    def paint(self) -> None:
        self._legs()
        self._tail()
        self._crest()
        self._beak()
        self._body()
        self._wing()
        self._eye()

    def _legs(self) -> None:
        for step, tone in zip(self.steps, (0.75, 1.0), strict=True):
            leg = limb(self.at, (step * 0.6, 0.05), (step, self.foot), 0.016, 0.011)
            toes = limb(self.at, (step, self.foot), (step + 0.05, self.foot + 0.004), 0.012, 0.007)
            self.canvas.paint(self.at.cover(np.minimum(leg, toes)), self.leg_colour * tone, "legs")

    def _tail(self) -> None:
        at, canvas, length = self.at, self.canvas, self.tail_length + self.rump_radius * 0.6
        c, s = direction(self.posture - self.tail_angle)
        x, y = at.x - self.rump[0], at.y - self.rump[1]
        along, aside = s * y - c * x - self.rump_radius * 0.4, np.abs(s * x + c * y)
        half = 0.035 + (self.tail_width - 0.035) * np.clip(along / length, 0, 1)
        end = along - length - self.tail_fork * (aside - self.tail_width)
        inside = at.cover(np.maximum(np.maximum(aside - half, -along), end))
        canvas.paint(inside, self.wing * 0.85, "tail")
        canvas.paint(
            inside * at.cover(np.abs(end + 0.10) - 0.028) * self.wears("tail_band", "middle"), named("white")
        )
        canvas.paint(inside * at.cover(-end - 0.055) * self.wears("tail_band", "tip"), named("white"))

    def _crest(self) -> None:
        strokes = CRESTS[[FORMS["crest"].index(s.crest) for s in self.species]]  # (B, 3, 6)
        distances = []
        for i in range(strokes.shape[1]):
            ax, ay, bx, by, start, end = (strokes[:, i, j, None, None] for j in range(6))
            distances.append(limb(self.ruffled, (ax, ay), (bx, by), start, end))
        self.canvas.paint(self.face.cover(np.minimum.reduce(distances)), self.back * 0.82, "crest")

    def _beak(self) -> None:
        face, colour = self.face, self.beak_colour
        for form, name in (("orange", "orange"), ("pale", "cream")):
            colour = colour + (named(name) - colour) * self.wears("beak", form)
        length = self.beak_length / self.head_radius * (1 - 0.35 * self.turn)
        reach = np.clip((face.x - 0.7) / (length + 0.3), 0, 1)
        bent = face._replace(y=face.y - 0.12 - self.beak_bend / self.head_radius * reach * reach)
        shape = limb(bent, (0.7, 0.0), (1 + length, 0.05), self.beak_radius / self.head_radius, 0.02)
        self.canvas.paint(face.cover(shape), colour, "beak")
        self.canvas.paint(face.cover(shape) * face.cover(0.04 - bent.y), colour * 0.75)  # the lower half

    def _body(self) -> None:
        at, canvas = self.at, self.canvas
        trunk = limb(at, self.rump, self.chest, self.rump_radius, self.chest_radius)
        neck = limb(at, self.chest, self.head, self.chest_radius * 0.75, self.head_radius)
        shape = union(trunk, neck, 0.05)
        inside = at.cover(shape)
        below = at.x * self.s + at.y * self.c  # the line of the back
        canvas.paint(inside, self.back, "back")
        canvas.paint(inside * at.cover(self.chest_radius * 0.12 - below, 3), self.under, "belly")
        self._breast(inside)
        self._head()
        depth = np.clip(-shape / 0.09, 0, 1)
        tone = 0.80 + 0.24 * depth * (2 - depth) - np.clip(below, -0.2, 0.2) * 0.6
        canvas.colours *= 1 + inside * (tone - 1)  # round: darker towards the edge and underneath

    def _breast(self, body: Array) -> None:
        at, canvas, radius = self.at, self.canvas, self.chest_radius
        front = (self.chest[0] + radius * 0.45, self.chest[1] + radius * 0.20)
        middle = body * at.cover(disc(at, front, radius * 0.72), 2)
        canvas.parts[middle > 0.5] = PARTS.index("breast")
        canvas.paint(middle * self.wears("breast", "patch"), self.second)
        collar = at.cover(np.abs(disc(at, self.head, self.head_radius * 1.65)) - 0.024) * at.cover(
            0.02 - at.x
        )
        canvas.paint(body * collar * self.wears("breast", "band"), self.second)
        x, y = (at.x - front[0]) / radius, (at.y - front[1]) / radius
        a, b = wave(x * 2.6 + y * 1.3), wave(y * 2.6 - x * 1.3)
        wide = body * at.cover(disc(at, front, radius * 0.95), 2)
        for form, pattern in (
            ("spots", np.sqrt(a * a + b * b) - 0.55),
            ("streaks", wave(x * 2.8 - y * 0.8) - 0.36),
        ):
            canvas.paint(
                wide * np.clip(0.5 - pattern * 4, 0, 1) * self.wears("breast", form), self.back * 0.55
            )

    def _head(self) -> None:
        face, canvas = self.face, self.canvas
        head = face.cover(disc(face, (0.0, 0.0), 1.0))
        canvas.paint(head, self.back, "head")
        throat = face.cover(disc(face, (0.55, 0.75), 0.50)) * face.cover(disc(face, (0.15, 0.35), 0.95))
        canvas.parts[throat > 0.5] = PARTS.index("throat")
        canvas.paint(throat * self.wears("bib", "dark"), self.first)
        crown = head * face.cover(face.y + 0.42 + face.x * 0.12)
        canvas.parts[crown > 0.5] = PARTS.index("crown")
        canvas.paint(crown * self.wears("cap", "dark"), self.first)
        brow = face.cover(limb(face, (0.75, -0.35), (-0.75, -0.42), 0.11, 0.09))
        canvas.paint(head * brow * self.wears("brow", "pale"), named("white"))
        canvas.paint(
            head * face.cover(disc(face, (-0.18, 0.42), 0.36)) * self.wears("cheek", "patch"), self.second
        )

    def _wing(self) -> None:
        at, canvas, radius, coat = self.at, self.canvas, self.chest_radius, self.wing
        c, s = direction(self.posture + self.wing_angle)
        shoulder = (
            self.chest[0] - (self.s * 0.15 + self.c * 0.05) * radius,
            self.chest[1] - (self.c * 0.15 - self.s * 0.05) * radius,
        )
        tip = (shoulder[0] - c * self.wing_length, shoulder[1] + s * self.wing_length)
        x, y = at.x - shoulder[0], at.y - shoulder[1]
        along, aside = (s * y - c * x) / self.wing_length, (s * x + c * y) / radius
        shape = limb(at, shoulder, tip, radius * 0.58, 0.012)
        inside = at.cover(shape)
        canvas.paint(at.cover(shape - 0.012, 3) * (canvas.parts > 0) * 0.25, coat * 0.4)  # its shadow
        canvas.paint(inside, coat, "wing")
        canvas.paint(inside * at.cover(shape + radius * 0.28, 8) * 0.25, coat * 1.3)
        quills = np.clip((along - 0.35) * 3, 0, 1)
        canvas.paint(inside * quills, coat * 0.68)
        canvas.paint(inside * quills * np.clip(wave(aside * 4) * 3 - 2, 0, 1) * 0.35, coat * 1.2)
        for centre, forms in ((0.24, ("one", "two")), (0.46, ("two",))):
            bar = (np.abs(along + aside * aside * 0.10 - centre) - 0.045) * self.wing_length
            canvas.paint(inside * at.cover(bar) * self.wears("wing_bars", *forms), named("white"))

    def _eye(self) -> None:
        face, canvas = self.face, self.canvas
        x, y = 0.30 + self.turn * 0.15, -0.10
        for form in ("white", "yellow"):
            canvas.paint(face.cover(disc(face, (x, y), 0.36)) * self.wears("eye_ring", form), named(form))
        canvas.paint(face.cover(disc(face, (x, y), 0.215)), named("black") * 0.7, "eye")
        canvas.paint(face.cover(disc(face, (x + 0.06, y - 0.07), 0.07)) * 0.9, named("white"))
