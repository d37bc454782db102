"""Charts: where points land, what is kept of long lines, and any figures without a failure."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseed.report import charts
from tinyseed.report.charts import (
    Bar,
    Series,
    bar_chart,
    covering_ticks,
    downsample,
    legend,
    line_chart,
    nice_ticks,
    percent,
    plain,
    smooth,
)

figures = st.floats(-1e30, 1e30, allow_nan=False)


def elements(svg: str, tag: str, kind: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg).iter(tag) if element.get("class") == kind]


def places(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = elements(svg, "path", kind)
    return [tuple(map(float, place.split())) for place in path.get("d", "").removeprefix("M").split("L")]


@given(figures, figures, st.integers(2, 10))
def test_ticks_are_few_round_and_cover_the_figures(one, other, count):
    low, high = min(one, other), max(one, other)
    ticks = covering_ticks(low, high, count)
    assert 2 <= len(ticks) <= count + 3
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(leading - nice) for nice in (1, 2, 5, 10)) < 1e-6
    assert ticks[0] - 1e-6 * steps[0] <= low
    assert high <= ticks[-1] + 1e-6 * steps[0]
    assert max(abs(low), abs(high)) < 1e-29 or ticks[0] + steps[0] > low or high - low < 1e-8 * abs(high)


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.integers(2, 10))
def test_inner_ticks_are_multiples_inside_the_range(low, width, count):
    ticks = nice_ticks(low, low + width, count)
    assert len(ticks) <= count + 1
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_a_tick_is_written_as_it_is():
    assert nice_ticks(0, 0.3) == [0.0, 0.1, 0.2, 0.3]  # not 0.30000000000000004


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000), st.integers(4, 40))
@settings(max_examples=50)
def test_a_thinned_line_keeps_its_ends_peaks_and_order(values, limit):
    points = list(enumerate(map(float, values)))
    kept = downsample(points, limit)
    assert len(kept) <= limit
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    heights = [y for _, y in kept]
    assert (min(heights), max(heights)) == (min(values), max(values))


def test_the_moving_mean_is_numpys_inside():
    values = np.random.default_rng(0).normal(size=200)
    smoothed = smooth(list(enumerate(values.tolist())), share=0.1)
    assert [x for x, _ in smoothed] == list(range(200))
    expected = np.convolve(values, np.ones(21) / 21, mode="valid")
    np.testing.assert_allclose([y for _, y in smoothed[10:-10]], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(smoothed[0][1], values[:11].mean())


def test_points_land_where_the_axes_say():
    svg = line_chart("loss", [Series("loss", [(0, 0.0), (50, 5.0), (100, 10.0)])])
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    expected = [(left, bottom), ((left + right) / 2, (bottom + top) / 2), (right, top)]
    np.testing.assert_allclose(places(svg, "line student"), expected, atol=0.1)
    texts = [element.text for element in elements(svg, "text", "tick")]
    assert texts == ["0", "2", "4", "6", "8", "10", "0", "20", "40", "60", "80", "100"]


def test_hovering_tells_the_figures_of_all_lines():
    lines = [
        Series("student", [(10, 41.25), (20, 43.0)]),
        Series("teacher", [(10, 48.0), (20, 48.0)], "teacher"),
    ]
    svg = line_chart("k-NN", lines, y_format=percent)
    titles = [element.text for element in ElementTree.fromstring(svg).iter("title")]
    assert titles == [
        "step 10\nstudent: 41.2\N{NO-BREAK SPACE}%\nteacher: 48\N{NO-BREAK SPACE}%",
        "step 20\nstudent: 43\N{NO-BREAK SPACE}%\nteacher: 48\N{NO-BREAK SPACE}%",
    ]
    columns = [
        (float(element.get("x", "")), float(element.get("width", "")))
        for element in ElementTree.fromstring(svg).iter("rect")
    ]
    assert columns[0][0] == charts.LEFT
    for (x, width), (following, _) in pairwise(columns):
        assert x + width == pytest.approx(following, abs=0.2)  # no gap between them
    assert sum(columns[-1]) == pytest.approx(charts.WIDTH - charts.RIGHT, abs=0.2)


def test_a_long_run_makes_a_small_chart():
    values = np.random.default_rng(0).normal(size=200_000).tolist()
    svg = line_chart("loss", [Series("loss", list(enumerate(values)))])
    assert len(places(svg, "line student")) <= charts.MOST_POINTS
    assert svg.count("<title>") <= charts.MOST_HOVERS
    assert len(svg) < 60_000


def test_an_empty_series_is_left_out():
    assert line_chart("loss", []) == ""
    assert line_chart("loss", [Series("loss", [])]) == ""
    assert legend([Series("loss", [])]) == ""
    assert bar_chart("k-NN", []) == ""
    svg = line_chart("k-NN", [Series("student", [(0, 1.0), (1, 2.0)]), Series("teacher", [], "teacher")])
    assert "teacher" not in svg


def test_a_single_point_is_a_dot():
    svg = line_chart("k-NN", [Series("student", [(0, 40.0)])])
    assert len(elements(svg, "circle", "dot student")) == 1


@given(
    st.lists(st.tuples(st.floats(0, 1e12), figures), min_size=1, max_size=30),
    st.booleans(),
)
def test_any_figures_make_a_whole_drawing(points, from_zero):
    points = sorted(dict(points).items())
    svg = line_chart("x", [Series("y", points), Series("z", points, "raw")], from_zero=from_zero)
    ElementTree.fromstring(svg)
    assert not re.search(r"\b(nan|inf)\b", svg)
    for x, y in places(svg, "line student"):
        assert charts.LEFT - 0.1 <= x <= charts.WIDTH - charts.RIGHT + 0.1
        assert charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1


def test_names_are_escaped():
    evil = "<script>'\"&"
    line = Series(evil, [(0, 1.0), (1, 2.0)])
    for svg in (
        line_chart(evil, [line], y_label=evil),
        bar_chart(evil, [Bar(evil, 1.0, "student")]),
    ):
        assert "<script>" not in svg
        ElementTree.fromstring(svg)
    assert "<script>" not in legend([line])


def test_bars_are_as_long_as_their_figures():
    svg = bar_chart(
        "k-NN",
        [Bar("before", 12.0, "untrained"), Bar("student", 36.0, "student"), Bar("teacher", 48.0, "teacher")],
    )
    widths = [float(element.get("width", "")) for element in ElementTree.fromstring(svg).iter("rect")]
    assert widths[0] / widths[2] == pytest.approx(0.25, abs=0.01)
    assert widths[1] / widths[2] == pytest.approx(0.75, abs=0.01)
    assert "36\N{NO-BREAK SPACE}%" in svg
    assert ElementTree.fromstring(bar_chart("k-NN", [Bar("x", 0.0, "student")])) is not None


@given(figures)
def test_a_figure_is_written_in_few_characters(value):
    assert len(plain(value)) <= 11
