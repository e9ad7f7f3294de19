"""Plots as text: what stands where, whatever the numbers are."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.tui.widgets.plot_canvas import Axis, Series, as_text, plot


def drawn(*series, width=40, height=10, x=Axis(), y=Axis()):  # noqa: B008
    lines = plot(series, width, height, x, y)
    assert len(lines) == height
    assert all(sum(len(text) for text, _ in line) == width for line in lines)
    return as_text(lines).split("\n")


def test_a_falling_line_has_numbered_axes():
    lines = drawn(Series([(step, 4 - step / 100) for step in range(401)]), x=Axis("step"), y=Axis("loss"))
    assert lines[0].startswith("loss")
    assert lines[1][:2] == "4┤"
    assert lines[-3][:2] == "0┤"
    assert lines[1][2] != " "
    assert lines[1][-1] == " "
    assert lines[-3][-1] != " "
    assert lines[-1].split() == ["0", "200", "step"]
    assert lines[-2].startswith(" └┬")


@pytest.mark.parametrize(("low", "high"), [(3.1, 4.93), (4.005, 4.931), (0.55, 1.95), (101.0, 199.0)])
def test_an_axis_has_two_numbers_where_it_is_low(low, high):
    lines = drawn(Series([(0, high), (10, low)]), height=10, width=70)
    assert sum("┤" in line for line in lines) >= 2


def test_series_are_told_apart_by_marks_and_styles():
    line, dots = Series([(0, 0), (10, 10)], style="red"), Series([(5, 2)], mark="o", joined=False, style="blue")
    runs = [run for row in plot([line, dots], 40, 10) for run in row]
    assert ("o", "blue") in runs
    assert {style for _, style in runs} == {"", "red", "blue"}


def test_lines_and_later_series_do_not_cover_marks():
    lines = drawn(Series([(0, 0), (5, 5), (10, 10)], mark="o"), Series([(0, 10), (10, 0)]))
    assert "".join(lines).count("o") == 3


def test_logarithmic_axes():
    series = Series([(10.0**n, 10.0**-n) for n in range(6)], mark="x", joined=False)
    lines = drawn(series, x=Axis(log=True), y=Axis(log=True), width=60, height=20)
    places = [(row, line.index("x")) for row, line in enumerate(lines) if "x" in line]
    assert len(places) == 6
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(places)}
    assert all(3 <= down <= 4 and 10 <= right <= 12 for down, right in steps)  # equal ratios, equal distances
    assert any(line.lstrip().startswith("0.001┤") for line in lines)


def test_labels_stand_beside_points_and_cover_none():
    points = [(0.0, 1.0), (1.0, 1.0), (10.0, 1.0)]
    lines = drawn(Series(points, mark="x", joined=False, labels=["first", "second", "third"]))
    assert any("x  x second" in line and line.endswith("third x") for line in lines)
    assert any(" first " in line and "x" not in line for line in lines), "a row off: there is no room beside it"
    crowd = Series([(0.0, 1.0)] * 9, mark="x", joined=False, labels=["word"] * 9)
    assert "".join(drawn(crowd)).count("word") < 9


def test_many_points_look_like_all_of_them():
    """What is left out is what nobody would see: every dot of the whole line is there."""
    rng = random.Random(0)
    points = [(float(step), rng.random()) for step in range(20_000)]
    highest = max(range(20_000), key=lambda step: points[step][1])
    lines = drawn(Series(points), width=60, height=20)
    column = 4 + round(highest / 20_000 * 56)
    assert any(lines[0][near] not in " \u2800" for near in range(column - 1, column + 2))


@pytest.mark.parametrize("points", [[], [(math.nan, 1), (1, math.inf), (1, -math.inf)]], ids=["none", "no numbers"])
def test_nothing_to_draw_leaves_bare_axes(points):
    lines = drawn(Series(points), x=Axis("step"))
    assert lines[0].strip() == "│"
    assert lines[-1].strip() == "step"


def test_nothing_is_drawn_where_there_is_no_room():
    assert drawn(Series([(1, 1)]), width=11, height=3) == [" " * 11] * 3
    assert plot([Series([(1, 1)])], 0, 0) == []


numbers = st.floats(width=32) | st.integers(-3, 3)


@given(
    st.lists(st.tuples(numbers, numbers), max_size=12),
    st.integers(0, 50),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_numbers_can_be_drawn(points, width, height, log, joined):
    axis = Axis("a label", log=log)
    series = Series(points, mark="" if joined else "o", joined=joined, labels=["a"] * len(points))
    drawn(series, Series(points), width=width, height=height, x=axis, y=axis)
