"""The drawings: well-formed, escaped, and each mark where its figure belongs."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.evaluation import svg

HOSTILE = "<script>alert(\"x\")</script> & 'y'"
numbers = st.floats(-1.0, 1.0, allow_subnormal=False).map(lambda value: round(value, 6))


def marks(drawing: str, tag: str, kind: str) -> list[ET.Element]:
    return [
        element
        for element in ET.fromstring(drawing).iter(tag)
        if kind in element.get("class", "").split()
    ]


def at(element: ET.Element, name: str) -> float:
    return float(element.get(name, "nan"))


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), st.booleans())
def test_bars_go_from_start_to_value_on_one_scale(
    rows: list[tuple[float, float, float]], zero: bool
) -> None:
    bars = [
        svg.Bar(HOSTILE, start, value, min(value, end), max(value, end), "note", "gain")
        for start, value, end in rows
    ]
    drawing = svg.intervals(HOSTILE, bars, HOSTILE, zero=zero)
    boxes = marks(drawing, "rect", "bar")
    whiskers = [
        line for line in marks(drawing, "line", "whisker") if at(line, "y1") == at(line, "y2")
    ]
    wide = [bar for bar in bars if bar.low < bar.high]
    assert (len(boxes), len(whiskers)) == (len(bars), len(wide))
    known = [
        (value, place)
        for bar, line in zip(wide, whiskers, strict=True)
        for value, place in ((bar.low, at(line, "x1")), (bar.high, at(line, "x2")))
    ]
    known += [
        (min(bar.start or 0.0, bar.value), at(box, "x"))
        for bar, box in zip(bars, boxes, strict=True)
    ]
    for value, place in known:
        assert 0 <= place <= svg.WIDTH
        for other, there in known:
            if other > value:
                assert there >= place
    assert len(marks(drawing, "line", "zero")) == zero
    assert "<script" not in drawing


def test_a_bar_without_start_is_a_dot() -> None:
    drawing = svg.intervals("t", [svg.Bar("a", None, 0.2, 0.1, 0.4, "n")], "x")
    (dot,) = marks(drawing, "circle", "dot")
    line = next(
        line for line in marks(drawing, "line", "whisker") if at(line, "y1") == at(line, "y2")
    )
    share = (at(dot, "cx") - at(line, "x1")) / (at(line, "x2") - at(line, "x1"))
    assert share == pytest.approx(1 / 3, abs=0.001)


def test_lines_rise_where_the_series_does_and_names_do_not_meet() -> None:
    series = [(f"{HOSTILE} {n}", [0.1, 0.2, 0.3 + n / 1000]) for n in range(10)]
    drawing = svg.lines("t", series, "x", "y")
    names = [at(text, "y") for text in marks(drawing, "text", "name")]
    assert len(names) == 10
    assert min(b - a for a, b in zip(sorted(names), sorted(names)[1:], strict=False)) > 12
    for path in ET.fromstring(drawing).iter("path"):
        points = [point[1:].split(",") for point in path.get("d", "").split()]
        assert [float(x) for x, _ in points] == sorted(float(x) for x, _ in points)
        heights = [float(y) for _, y in points]
        assert heights == sorted(heights, reverse=True)
    assert "<script" not in drawing


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1)), min_size=1, max_size=9))
def test_points_stand_at_the_logarithm(places: list[tuple[float, float]]) -> None:
    points = [svg.Point(HOSTILE, x, y, y, y) for x, y in places]
    drawing = svg.scatter("t", points, "x", "y")
    dots = marks(drawing, "circle", "dot")
    assert len(dots) == len(points)
    found = [(point, at(dot, "cx"), at(dot, "cy")) for point, dot in zip(points, dots, strict=True)]
    for point, x, y in found:
        assert 0 <= x <= svg.WIDTH
        assert math.isfinite(y)
        for other, x2, y2 in found:
            assert (x2 >= x) or other.x <= point.x
            assert (y2 <= y) or other.y <= point.y


@given(st.floats(-100, 100), st.floats(0.001, 100))
def test_ticks_are_round_inside_and_told_apart(low: float, wide: float) -> None:
    ticks = svg._ticks(low, low + wide, 5)
    assert 2 <= len(ticks) <= 11
    assert all(low - 1e-6 * wide <= value <= low + wide * (1 + 1e-6) for value, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)
    assert all(float(label) == pytest.approx(value, abs=1e-9) for value, label in ticks)


def test_one_stage_and_all_zero_can_be_drawn() -> None:
    for drawing in (
        svg.intervals("t", [svg.Bar("a", 0.0, 0.0, 0.0, 0.0, "0")], "x", zero=True),
        svg.intervals("t", [svg.Bar("a", None, 0.0, 0.0, 0.0, "0")], "x"),
        svg.lines("t", [("a", [0.0])], "x", "y"),
        svg.scatter("t", [svg.Point("a", 0.0, 0.0, 0.0, 0.0)], "x", "y"),
    ):
        assert "nan" not in drawing
        assert ET.fromstring(drawing).tag == "svg"
