"""HTML for notebooks: escaped, without scripts, small, and every point inside the picture."""

import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markup import parsed, shown_in
from microgpt.notebook import HEIGHT, WIDTH, curves, table, tints, visible

SVG = "{http://www.w3.org/2000/svg}"
STRANGE = "<script>alert('&')</script>\""


def points_of(picture: ET.Element) -> Iterator[tuple[float, float]]:
    for line in picture.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = point.split(",")
            yield float(x), float(y)


def test_table_shows_names_and_values_as_they_are() -> None:
    markup = table(STRANGE, {"steps": 3, STRANGE: STRANGE})
    assert shown_in(markup) == [STRANGE, "steps", "3", STRANGE, STRANGE]


def test_picture_has_escaped_names_and_no_script() -> None:
    markup = curves(STRANGE, STRANGE, {STRANGE: [(1, 2.0), (2, 1.0)]})
    assert shown_in(markup).count(STRANGE) == 2
    assert parsed(markup).attrib["aria-label"] == STRANGE


def test_picture_leaves_the_colour_of_the_text_to_the_page() -> None:
    root = parsed(curves("loss", "", {"training": [(1, 2.0)], "validation": [(2, 1.0)]}))
    assert root.attrib["fill"] == "currentColor"
    colors = [line.attrib["stroke"] for line in root.iter(f"{SVG}polyline")]
    assert len({*colors}) == 2
    named = {text.text: text.get("style") for text in root.iter(f"{SVG}text") if text.get("style")}
    assert named == {"training": f"fill:{colors[0]}", "validation": f"fill:{colors[1]}"}


def test_curve_goes_from_the_upper_left_to_the_lower_right() -> None:
    root = parsed(curves("loss", "units", {"training": [(0, 3.0), (1000, 2.0)]}))
    (left, top), (right, bottom) = points_of(root)
    assert left < right
    assert top < bottom
    ticks = ["2", "2.2", "2.4", "2.6", "2.8", "3", "0", "200", "400", "600", "800", "1,000"]
    assert [*root.itertext()] == ["units", *ticks, "training"]


@pytest.mark.parametrize("points", [[(1, 2.5)], [(1, 2.5), (2, 2.5)], [(0, 0.0)], [(9, -1e-300)]])
def test_flat_curve_has_axes_too(points: list[tuple[int, float]]) -> None:
    root = parsed(curves("loss", "", {"training": points}))
    assert len([*points_of(root)]) == len(points)
    assert len([*root.itertext()]) > 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), st.integers(1, 10**7))
def test_every_point_is_inside_and_no_axis_is_crowded(losses: list[float], stride: int) -> None:
    points = [(stride * (i + 1), loss) for i, loss in enumerate(losses)]
    root = parsed(curves("loss", "", {"training": points}))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points_of(root))
    assert 5 <= len([*root.itertext()]) - 1 <= 12


def test_words_have_a_tint_by_their_figure_and_are_readable_at_the_strongest() -> None:
    markup = tints(STRANGE, [STRANGE, "b", "c"], [math.nan, 4.0, 100.0])
    assert shown_in(markup) == [STRANGE, "b", "c"]
    spans = [*parsed(markup)]
    assert [span.attrib["title"] for span in spans] == [
        STRANGE,
        f"{STRANGE}: 4.00",
        f"{STRANGE}: 100.00",
    ]
    shares = [re.findall(r"rgba\(249,115,22,([\d.]+)\)", each.attrib["style"]) for each in spans]
    assert shares == [["0.00"], ["0.30"], ["0.60"]]


@pytest.mark.parametrize(
    ("text", "shown"), [("a", "a"), (" ", "␣"), ("\n\x1b", r"\n\x1b"), ("漢", "漢"), ("\\", "\\")]
)
def test_what_is_not_printed_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
