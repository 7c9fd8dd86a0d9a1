import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq3dcli.export.charts import (
    HEIGHT_PX,
    SMALL_WIDTH_PX,
    WIDTH_PX,
    Series,
    bar_chart,
    histogram,
    line_chart,
    series_chart,
    standalone,
    ticks,
)
from vq3dcli.export.page import number_text

NUMBERS = st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, 0.0, 5e-324])

VALUES = NUMBERS | st.just(1e-300)


@given(st.lists(NUMBERS, max_size=12), st.lists(NUMBERS, max_size=12), st.booleans())
def test_any_values_give_curves_inside_the_frame(first, second, from_zero):
    series = [Series("a < b", range(len(first)), first), Series("b", range(len(second)), second, dashed=True)]
    svg = series_chart("title", series, x_label="x", marks=[(1.0, "here")], from_zero=from_zero)
    for path in ElementTree.fromstring(svg).iter("path"):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        assert all(-1 <= number <= max(WIDTH_PX, HEIGHT_PX) for number in numbers)
    assert "nan" not in svg.replace("name", "")


def test_bars_are_as_long_as_their_values():
    svg = bar_chart("figures", [("a", 2.0), ("b", 1.0), ("c", -1.0), ("d", None), ("e", math.inf)])
    widths = [float(bar.attrib["width"]) for bar in ElementTree.fromstring(svg).iter("rect")]
    assert widths == pytest.approx([2 * widths[1], widths[1], widths[1]], abs=0.2)
    assert ">American Staffordshire…<" in bar_chart("classes", [("American Staffordshire terrier", 1.0)])


def test_a_histogram_counts_every_value():
    def heights(values: list[float], bins: int) -> list[float]:
        """Of the outline over its ground, bin by bin."""
        svg = ElementTree.fromstring(histogram("values", values, x_label="dB", bins=bins))
        outline = [*svg.iter("path")][-1].attrib["d"]
        places = [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+)[ ,](-?[\d.]+)", outline)]
        ground = max(y for _, y in places)
        assert len({x for x, _ in places}) == bins + 1
        return [ground - y for _, y in places[1:-1:2]]

    low, high = heights([0.0, 0.1, 1.0, math.nan], 2)
    assert low == pytest.approx(2 * high, abs=0.2) and high > 0
    one, none, three = heights([0.0, 2.9, 3.0, 2.5], 3)
    assert (3 * one, none) == pytest.approx((three, 0.0), abs=0.3)
    assert "no values" in histogram("none", [math.nan], x_label="dB")


def test_a_chart_alone_is_a_file():
    chart = bar_chart("figures", [("a", 1.0)])
    root = ElementTree.fromstring(standalone(chart))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # Nothing of the page around it is needed: a ground and a style of its own, then all that the chart has.
    style, ground, *inside = root
    assert (style.tag.endswith("}style"), ground.attrib["fill"]) == (True, "#fff")
    assert len(inside) == len(ElementTree.fromstring(chart))


@given(st.lists(VALUES, max_size=30), st.booleans())
def test_any_values_give_a_chart_inside_its_frame(values, log_y):
    svg = line_chart("a < b", list(range(len(values))), values, x_label="images", log_y=log_y)
    root = ElementTree.fromstring(svg)
    for path in root.iter("path"):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        assert all(-1 <= number <= SMALL_WIDTH_PX for number in numbers)
    assert "nan" not in svg.replace("name", "")


def test_a_long_run_stays_small():
    svg = line_chart(
        "loss", list(range(100_000)), [1.0 / (1 + i) for i in range(100_000)], x_label="images", log_y=True
    )
    assert len(svg) < 12_000


def test_the_last_value_is_written():
    assert ">0.25<" in line_chart("loss", [0, 1, 2], [1.0, 0.5, 0.25], x_label="images")


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 5, 10]), (0.13, 0.47, [0.2, 0.3, 0.4]), (-2.1, -0.9, [-2, -1.5, -1])]
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_inside_and_are_few(low, width):
    found = ticks(low, low + width)
    assert len(found) <= 10
    assert all(low - 1e-6 * width <= tick <= low + 1.000001 * width or math.isclose(tick, low) for tick in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (32000, "32k"), (1.5e6, "1.5M"), (22.347, "22.3"), (0.00031, "3.1e-4"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value, text):
    assert number_text(value) == text
