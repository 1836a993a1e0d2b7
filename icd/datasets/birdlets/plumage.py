"""How a Birdlet looks: ten body plans, and the small marks that tell the species of one family apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

COLOURS = {
    "white": (0.95, 0.94, 0.90),
    "cream": (0.92, 0.85, 0.70),
    "buff": (0.82, 0.68, 0.48),
    "yellow": (0.94, 0.79, 0.28),
    "orange": (0.91, 0.55, 0.20),
    "rust": (0.69, 0.35, 0.20),
    "red": (0.78, 0.22, 0.18),
    "rose": (0.85, 0.58, 0.56),
    "blue": (0.32, 0.50, 0.74),
    "slate": (0.40, 0.46, 0.54),
    "teal": (0.24, 0.52, 0.52),
    "olive": (0.52, 0.54, 0.30),
    "brown": (0.47, 0.35, 0.24),
    "grey": (0.60, 0.60, 0.58),
    "black": (0.14, 0.14, 0.16),
}


@dataclass(frozen=True)
class Family:
    """A body plan. Lengths are in bird lengths (beak to tail is about 1), angles in radians, upwards."""

    name: str
    posture: float  # of the back: 0 lies level
    length: float  # from the middle of the rump to the middle of the breast
    breast: float  # radii
    rump: float
    head: float
    neck: tuple[float, float]  # from the breast to the head: forwards, up
    tail: tuple[float, float, float, float]  # length, width at the end, fork (below 0: wedge), angle
    leg: float
    beak: tuple[float, float, float]  # length, thickness, downward bend
    wing: float
    coat: tuple[str, str, str]  # back, underside, wing
    beak_colour: str
    leg_colour: str
    marks: tuple[str, str]  # the colours of cap and bib, and of cheek and breast


FAMILIES = (
    Family("Finch", 0.45, 0.20, 0.165, 0.115, 0.125, (0.085, 0.165), (0.25, 0.050, 0.5, 0.0), 0.12,
           (0.085, 0.050, 0.01), 0.36, ("brown", "cream", "brown"), "grey", "rose", ("rust", "black")),
    Family("Warbler", 0.25, 0.22, 0.135, 0.090, 0.105, (0.080, 0.110), (0.27, 0.035, 0.0, 0.05), 0.14,
           (0.085, 0.022, 0.00), 0.35, ("olive", "yellow", "slate"), "black", "buff", ("black", "rust")),
    Family("Wader", 0.12, 0.20, 0.140, 0.095, 0.085, (0.130, 0.215), (0.16, 0.035, -0.4, -0.1), 0.27,
           (0.230, 0.022, 0.03), 0.36, ("buff", "white", "brown"), "black", "orange", ("rust", "black")),
    Family("Jay", 0.40, 0.22, 0.145, 0.105, 0.120, (0.090, 0.140), (0.40, 0.055, -0.5, -0.1), 0.13,
           (0.110, 0.036, 0.01), 0.36, ("blue", "white", "blue"), "black", "slate", ("black", "slate")),
    Family("Wren", 0.15, 0.16, 0.160, 0.125, 0.120, (0.110, 0.095), (0.23, 0.045, -0.5, 1.3), 0.12,
           (0.110, 0.022, 0.02), 0.28, ("rust", "buff", "brown"), "brown", "rose", ("black", "cream")),
    Family("Dove", 0.30, 0.24, 0.165, 0.115, 0.090, (0.085, 0.185), (0.32, 0.065, -0.3, 0.0), 0.09,
           (0.075, 0.024, 0.01), 0.42, ("grey", "rose", "slate"), "slate", "red", ("slate", "white")),
    Family("Flycatcher", 0.95, 0.20, 0.130, 0.095, 0.110, (0.025, 0.135), (0.27, 0.032, 0.3, -0.1), 0.09,
           (0.085, 0.030, 0.00), 0.36, ("slate", "white", "slate"), "black", "slate", ("rust", "yellow")),
    Family("Swallow", 0.50, 0.22, 0.120, 0.080, 0.100, (0.060, 0.105), (0.38, 0.060, 2.6, -0.1), 0.07,
           (0.055, 0.026, 0.01), 0.50, ("teal", "cream", "slate"), "black", "slate", ("rust", "white")),
    Family("Quail", 0.35, 0.18, 0.190, 0.145, 0.095, (0.100, 0.195), (0.13, 0.045, -0.3, -0.3), 0.12,
           (0.060, 0.034, 0.02), 0.32, ("slate", "buff", "brown"), "black", "buff", ("rust", "white")),
    Family("Kingfisher", 0.85, 0.16, 0.145, 0.100, 0.145, (0.035, 0.150), (0.16, 0.040, 0.0, 0.0), 0.06,
           (0.210, 0.040, 0.00), 0.32, ("teal", "orange", "blue"), "black", "red", ("blue", "white")),
)  # fmt: skip


@dataclass(frozen=True)
class Species:
    """One species: its family, and the local marks that set it apart from its relatives."""

    name: str
    family: str
    crest: str = "none"
    cap: str = "none"
    brow: str = "none"
    eye_ring: str = "none"
    cheek: str = "none"
    beak: str = "none"
    bib: str = "none"
    breast: str = "none"
    wing_bars: str = "none"
    tail_band: str = "none"

    @property
    def marks(self) -> dict[str, str]:
        """Mark -> form, without the name and the family."""
        return {mark: form for mark, form in asdict(self).items() if mark not in ("name", "family")}


FORMS = {  # every form that a mark takes, the plain one first
    "crest": ("none", "peak", "tuft", "plume"),
    "cap": ("none", "dark"),
    "brow": ("none", "pale"),
    "eye_ring": ("none", "white", "yellow"),
    "cheek": ("none", "patch"),
    "beak": ("none", "orange", "pale"),
    "bib": ("none", "dark"),
    "breast": ("none", "spots", "streaks", "band", "patch"),
    "wing_bars": ("none", "one", "two"),
    "tail_band": ("none", "tip", "middle"),
}
EPITHETS = {  # how a form shows in the name
    "crest peak": "Crested", "crest tuft": "Tufted", "crest plume": "Plumed", "cap dark": "Capped",
    "brow pale": "White_browed", "eye_ring white": "White_ringed", "eye_ring yellow": "Golden_eyed",
    "cheek patch": "Patch_cheeked", "beak orange": "Orange_billed", "beak pale": "Pale_billed",
    "bib dark": "Dark_throated", "breast spots": "Spotted", "breast streaks": "Streaked",
    "breast band": "Collared", "breast patch": "Patch_breasted", "wing_bars one": "Bar_winged",
    "wing_bars two": "Double_barred", "tail_band tip": "White_tipped", "tail_band middle": "Band_tailed",
}  # fmt: skip
MOST_PER_FAMILY = 20
MARKS_WORN = 3  # by each species
LEAST_APART = 3  # marks in which two species of a family differ, at least


@lru_cache
def relatives(family: str) -> tuple[Species, ...]:
    """The `MOST_PER_FAMILY` species of one family, always in the same order."""
    found: list[Species] = []
    used: set[str] = set()
    for worn in _wearings(family):
        marks = dict.fromkeys(FORMS, "none") | worn
        if any(sum(marks[m] != s.marks[m] for m in marks) < LEAST_APART for s in found):
            continue
        epithets = [EPITHETS[f"{mark} {form}"] for mark, form in worn.items()]
        choices = [*epithets, "_".join(epithets[:2]), "_".join(epithets)]
        name = next(name for name in choices if name not in used)
        used.add(name)
        found.append(Species(name=f"{name}_{family}", family=family, **marks))
        if len(found) == MOST_PER_FAMILY:
            return tuple(found)
    raise AssertionError("wearings do not end")


def _wearings(family: str) -> Iterator[dict[str, str]]:
    """Random choices of `MARKS_WORN` marks and their forms, without end."""
    rng = np.random.default_rng([7, [f.name for f in FAMILIES].index(family)])
    names = list(FORMS)
    while True:
        chosen = sorted(rng.choice(len(names), MARKS_WORN, replace=False))
        yield {names[i]: str(rng.choice(FORMS[names[i]][1:])) for i in chosen}


def species_table(species: int = 30, families: int = 6) -> tuple[Species, ...]:
    """The species of a data set, family by family; where they do not divide, the first families get one more.

    Raises `ValueError` for more of either than there are.
    """
    if not 1 <= families <= len(FAMILIES):
        raise ValueError(f"families is {families}: choose from 1 to {len(FAMILIES)} body plans")
    if species < families:
        raise ValueError(f"species is {species}: {families} families need at least one species each")
    most = families * MOST_PER_FAMILY
    if species > most:
        raise ValueError(f"species is {species}: {families} families hold at most {most} distinct species")
    each, more = divmod(species, families)
    return tuple(s for i, f in enumerate(FAMILIES[:families]) for s in relatives(f.name)[: each + (i < more)])


def family_of(species: Species) -> Family:
    return next(family for family in FAMILIES if family.name == species.family)
