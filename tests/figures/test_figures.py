"""The book's figures: distinct colours, complete and small sliders."""

from __future__ import annotations

import base64
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from icd import figures
from icd.figures import plots, slider

pytestmark = pytest.mark.thorough

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _plain_matplotlib():
    """Restore matplotlib's settings."""
    with mpl.rc_context():
        mpl.use("agg")
        yield
    plt.close("all")


def linear(colour: str) -> np.ndarray:
    """Return linear RGB."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Convert linear RGB to CIELAB with white D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb / [0.9505, 1, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


#: Linear RGB as seen without one kind of cone (Machado et al. 2009, severity 1).
DEFICIENCIES = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


COLOURS = figures.PALETTE | figures.NEUTRAL


def test_every_colour_has_a_contrast_of_3_on_the_background() -> None:
    assert min(contrast(colour, figures.PAPER) for colour in COLOURS.values()) >= 3


def distances(deficiency: str, names: list[str]) -> dict[tuple[str, str], float]:
    """Return the CIELAB distance of each pair of colours as seen with a deficiency."""
    eye = np.array(DEFICIENCIES[deficiency])
    colours = [lab(np.clip(eye @ linear(COLOURS[name]), 0, 1)) for name in names]
    return {
        (a, b): float(np.linalg.norm(colours[i] - colours[j]))
        for i, a in enumerate(names)
        for j, b in enumerate(names[:i])
    }


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_are_distinct_with_any_colour_vision(deficiency: str) -> None:
    methods = ["teacher", "student", "KD", "SD-KD", "iCD-KD", "CRD", "RKD"]
    apart = distances(deficiency, methods)
    assert min(apart.values()) > 20, min(apart, key=apart.__getitem__)
    # The neutral colours have less room.
    apart = distances(deficiency, [*methods, *figures.NEUTRAL])
    assert min(apart.values()) > 18, min(apart, key=apart.__getitem__)


def test_a_name_without_a_colour_always_gets_the_same_neutral_one() -> None:
    names = ["XKD", "alone", "zzz", "icd-kd", ""]
    assert [figures.colour(name) for name in names] == [figures.colour(name) for name in names]
    assert {figures.colour(name) for name in names} <= set(figures.NEUTRAL.values())
    assert figures.line_style("XKD")["label"] == "XKD"
    intervals = {"XKD - KD": (1.0, 0.5, 1.5), "KD": (0.0, -1.0, 1.0, 5)}
    assert len(plots.forest(intervals, "points").axes[0].lines) == 5
    plots.seeds_and_means({"XKD": [1.0, 2.0], "KD": [2.0]}, "points")


def test_lines_without_a_colour_take_the_neutral_ones_in_turn() -> None:
    figures.use_style()
    lines = plt.plot(np.eye(3))
    assert [line.get_color() for line in lines] == list(figures.NEUTRAL.values())


def test_a_term_has_the_colour_of_its_method() -> None:
    figures.use_style()
    terms = ["cross_entropy", "dkd", "sd_nkd", "clustering", "rkd", "my_own", "another"]
    axis = plots.term_curves([{"epoch": 1} | dict.fromkeys(terms, 1.0)], terms).axes[0]
    assert {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines} == {
        "cross-entropy": (figures.PALETTE["student"], "-"),
        "DKD": (figures.PALETTE["KD"], "--"),
        "SD-NKD": (figures.PALETTE["SD-KD"], ":"),
        "clustering": (figures.PALETTE["iCD-KD"], "-"),
        "RKD": (figures.PALETTE["SP"], "--"),
        "my own": (figures.NEUTRAL["wine"], "-"),
        "another": (figures.NEUTRAL["olive"], "-"),
    }


def test_members_of_a_family_differ_by_dashes() -> None:
    families = [[f"{prefix}{name}" for name in ("KD", "DKD", "NKD")] for prefix in ("", "SD-", "iCD-")]
    for family in (*families, ("FitNet", "CRD", "SemCKD"), ("SP", "RKD", "AT")):
        styles = [figures.line_style(name) for name in family]
        assert len({style["color"] for style in styles}) == 1
        assert len({style["linestyle"] for style in styles}) == 3


def bars(height: float):
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.bar([0, 1], [height, 1 - height])
    return figure


def pictures(html: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def test_flipbook_shows_one_frame_and_contains_all() -> None:
    figures.use_style()
    html = figures.flipbook([bars(h) for h in (0.1, 0.5, 0.9)], ["a", "b", "c"], alt="Two bars", start=1).data
    assert len(pictures(html)) == 3
    assert len({picture.size for picture in pictures(html)}) == 1
    assert html.count(" hidden>") == 2
    assert 'alt="Two bars (Frame: b)" width="288">' in html
    assert not plt.get_fignums()
    assert len(html) < 60_000


def test_flipbook_of_arrays_is_lossless() -> None:
    frames = RANDOM.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    html = figures.flipbook(frames, ["x", "y"], alt=["the first", "the second"]).data
    assert all(
        np.array_equal(np.asarray(p.convert("RGB")), f) for p, f in zip(pictures(html), frames, strict=True)
    )


def test_flipbook_escapes_its_texts() -> None:
    html = figures.flipbook(np.zeros((2, 4, 4)), ['"<b>', "a|b"], alt="zero & nothing", name="<i>").data
    assert "<b>" not in html
    assert "<i>" not in html
    assert "zero &amp; nothing" in html


def test_flipbook_lowers_quality_before_it_raises() -> None:
    noise = RANDOM.integers(0, 256, (4, 200, 200, 3), dtype=np.uint8)
    html = figures.flipbook(noise, list("abcd"), alt="noise").data
    assert len(html) <= 300_000
    with pytest.raises(ValueError, match="do not fit 20,000 bytes"):
        figures.flipbook(noise, list("abcd"), alt="noise", max_bytes=20_000)


def photo(seed: int):
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.imshow(np.random.default_rng(seed).random((160, 160, 3)))
    axis.set_title(f"noise {seed}")
    return figure


def test_flipbook_of_figures_lowers_resolution_before_it_raises() -> None:
    figures.use_style()
    sizes = {}
    for room in (900_000, 150_000):
        html = figures.flipbook([photo(i) for i in range(4)], list("abcd"), alt="noise", max_bytes=room).data
        assert len(html) <= room
        assert html.count('width="288"') == 4
        (sizes[room],) = {picture.size for picture in pictures(html)}
    assert sizes[900_000] == (576, 384)
    assert sizes[150_000] < sizes[900_000]


def test_drawing_a_frame_again_moves_nothing() -> None:
    """Else the picture jumps where some frames were drawn once more than others."""
    figures.use_style()
    once, again = photo(0), photo(0)
    slider._frame(once, 192)
    slider._frame(again, 192)
    slider._frame(again, 160)
    assert np.array_equal(slider._frame(once, 128), slider._frame(again, 128))


@pytest.mark.parametrize(
    ("labels", "alt"), [(["one"], "two frames"), (["a", "b"], " "), (["a", "b"], ["only one"]), ([], "none")]
)
def test_flipbook_refuses_labels_and_texts_that_do_not_match(labels: list[str], alt: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"frames|alt"):
        figures.flipbook(np.zeros((2, 4, 4)), labels, alt=alt)


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 3), (5, 3, 8, 9), (5, 1, 8, 9)])
def test_contact_sheet_accepts_every_layout(shape: tuple[int, ...]) -> None:
    figure = figures.contact_sheet(RANDOM.random(shape), [str(i) for i in range(5)], columns=3)
    assert sum(bool(axis.images) for axis in figure.axes) == 5
    assert {axis.images[0].get_array().shape[:2] for axis in figure.axes if axis.images} == {(8, 9)}
    with pytest.raises(ValueError, match="5 images and 1 labels"):
        figures.contact_sheet(RANDOM.random(shape), ["one"])


def shown(value: int) -> int:
    """Return the next number."""
    if value < 0:
        raise ValueError(value)
    # One more.
    return value + 1


def test_source_is_printed_without_docstring() -> None:
    whole = (
        "def shown(value: int) -> int:\n    if value < 0:\n        raise ValueError(value)\n    # One more.\n"
    )
    whole += "    return value + 1"
    assert figures.source(shown).data == whole
    assert figures.source(shown, shown).data == f"{whole}\n\n\n{whole}"
    part = "def shown(value: int) -> int:\n    ...\n    # One more.\n    return value + 1"
    assert figures.source(shown, start="# One").data == part
    with pytest.raises(ValueError, match="no line of shown begins with 'two'"):
        figures.source(shown, start="two")
