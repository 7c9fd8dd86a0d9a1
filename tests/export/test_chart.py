import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq3dcli.export.chart import HEIGHT_PX, WIDTH_PX, line_chart, number_text, ticks

NUMBERS = st.floats(-1e12, 1e12) | st.just(math.nan) | st.just(math.inf) | st.sampled_from([0.0, 5e-324, 1e-300])


@given(st.lists(NUMBERS, max_size=30), st.booleans())
def test_any_values_give_a_chart_inside_its_frame(values, log_y):
    svg = line_chart("a < b", list(range(len(values))), values, x_label="images", log_y=log_y)
    root = ElementTree.fromstring(svg)
    for path in root.iter("path"):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        assert all(-1 <= number <= max(WIDTH_PX, HEIGHT_PX) for number in numbers)
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
