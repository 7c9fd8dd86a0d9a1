"""Charts as inline SVG: curves, bars by name, histograms. No script, no library.

Several curves, and bars, have colours of their own that are told apart on light and dark pages and by colour-blind
readers (Okabe and Ito, 2008); a single curve, text and grid take the page's.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vq3dcli.export.page import Html, number_text

WIDTH_PX, HEIGHT_PX = 480, 260
SMALL_WIDTH_PX, SMALL_HEIGHT_PX = 360, 200
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LEFT, _RIGHT, _BOTTOM = 56, 12, 34
_BAR_PX, _BAR_TEXT_PX = 18, 150
_BAR_TEXT_LENGTH = 24  # letters of 6 pixels
_MOST_POINTS = 400
_STANDALONE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}.name{font-size:12px;font-weight:600;fill:#111}"
    ".grid{stroke:#ddd;fill:none}"
)

Points = list[tuple[float, float]]


class Series(NamedTuple):
    """A curve: its name in the legend, ascending positions, as many values; dashed for what others are compared with.

    Values that are not finite are left out.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def line_chart(title: str, x: Sequence[float], y: Sequence[float], *, x_label: str, log_y: bool = False) -> Html:
    """A small chart of one curve and its last value, as an `<svg>` element.

    Values that are not finite (or not positive, with `log_y`) are left out.
    """
    points = [(a, b) for a, b in _finite(x, y) if b > 0 or not log_y]
    shown = [(a, math.log10(b)) for a, b in _thinned(points)] if log_y else _thinned(points)
    size = (SMALL_WIDTH_PX, SMALL_HEIGHT_PX)
    body = _axes([shown], ['class="line"'], x_label, size, top=26, log_y=log_y)
    if points:
        last = number_text(points[-1][1])
        body += f'<text class="last" x="{SMALL_WIDTH_PX - _RIGHT}" y="15" text-anchor="end">{last}</text>'
    return _svg(title, body, *size)


def series_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> Html:
    """Curves over one pair of axes, as an `<svg>` element; `marks` are named upright lines at x positions."""
    lines = [_finite(curve.x, curve.y) for curve in series]
    strokes = [
        f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.8"'
        + (' stroke-dasharray="5 4"' if curve.dashed else "")
        for number, curve in enumerate(series)
    ]
    size = (WIDTH_PX, HEIGHT_PX)
    body = _axes(lines, strokes, x_label, size, top=42, marks=marks, from_zero=from_zero)
    return _svg(title, body + _legend([curve.name for curve in series]), *size)


def bar_chart(title: str, bars: Sequence[tuple[str, float | None]], *, width_px: int = WIDTH_PX) -> Html:
    """A horizontal bar a name, from 0; a missing or infinite value has none; names that are too long are cut."""
    known = [value for _, value in bars if value is not None and math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    scale = (width_px - _BAR_TEXT_PX - 60) / ((high - low) or 1.0)
    zero = _BAR_TEXT_PX - low * scale
    parts = []
    for number, (name, value) in enumerate(bars):
        y = 26 + number * _BAR_PX
        shown = name if len(name) <= _BAR_TEXT_LENGTH else f"{name[: _BAR_TEXT_LENGTH - 1].rstrip()}…"
        parts.append(f'<text x="{_BAR_TEXT_PX - 6}" y="{y + 12}" text-anchor="end">{html.escape(shown)}</text>')
        if value is None or not math.isfinite(value):
            parts.append(f'<text x="{zero + 4:.1f}" y="{y + 12}">-</text>')
            continue
        left, length = min(zero, zero + value * scale), abs(value) * scale
        colour = COLOURS[0] if value >= 0 else COLOURS[1]
        parts.append(
            f'<rect fill="{colour}" x="{left:.1f}" y="{y + 2}" width="{length:.1f}" height="{_BAR_PX - 5}" rx="2"/>'
            f'<text x="{left + length + 4:.1f}" y="{y + 12}">{number_text(value)}</text>'
        )
    return _svg(title, "".join(parts), width_px, 34 + len(bars) * _BAR_PX)


def histogram(title: str, values: Sequence[float], *, x_label: str, bins: int = 32) -> Html:
    """How many values fall into each of `bins` equal parts of their range, as one outline."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return series_chart(title, [], x_label=x_label)
    counts, edges = np.histogram(finite, bins, _range(min(finite), max(finite), 0.0))
    outline = Series("images", np.repeat(edges, 2).tolist(), [0.0, *np.repeat(counts, 2).tolist(), 0.0])
    return series_chart(title, [outline], x_label=x_label, from_zero=True)


def side_by_side(charts: Sequence[str], columns: int) -> Html:
    """Charts of `series_chart` in a grid, as one chart."""
    rows = math.ceil(len(charts) / columns)
    parts = []
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        place = f'<svg x="{column * WIDTH_PX}" y="{row * HEIGHT_PX}" width="{WIDTH_PX}" height="{HEIGHT_PX}"'
        parts.append(chart.replace("<svg", place, 1))
    width_px, height_px = columns * WIDTH_PX, rows * HEIGHT_PX
    return Html(f'<svg class="charts" viewBox="0 0 {width_px} {height_px}" role="img">{"".join(parts)}</svg>')


def standalone(svg: str) -> str:
    """A chart as a file of its own: with its namespace, a white ground and its own style."""
    head, _, body = svg.partition(">")
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_STANDALONE_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}\n'
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `about` of them."""
    raw = (high - low) / about
    if not raw > sys.float_info.min:  # steps below it have no power of ten
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _axes(
    lines: Sequence[Points],
    strokes: Sequence[str],
    x_label: str,
    size_px: tuple[int, int],
    *,
    top: int,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Axes and curves; with `log_y` the heights are logarithms."""
    width, height = size_px
    points = [point for line in lines for point in line]
    if not points:
        return f'<text x="{_LEFT}" y="{height // 2}">no values</text>'
    positions = [*(a for a, _ in points), *(position for position, _ in marks)]
    heights = [b for _, b in points]
    x_low, x_high = _range(min(positions), max(positions), 0.0)
    y_low, y_high = _range(min(heights), max(heights), 0.05)
    if from_zero:
        y_low = min(0.0, y_low) if min(heights) < 0 else 0.0

    def place(a: float, b: float) -> tuple[float, float]:
        right = _LEFT + (a - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)
        return right, height - _BOTTOM - (b - y_low) / (y_high - y_low) * (height - top - _BOTTOM)

    parts = []
    for tick in ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>')
        text = number_text(10**tick if log_y else tick)
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in ticks(x_low, x_high, 5 if width == WIDTH_PX else 3):
        x = place(tick, y_low)[0]
        anchor = "end" if x > width - 30 and width < WIDTH_PX else "middle"
        parts.append(f'<text x="{x:.1f}" y="{height - 18}" text-anchor="{anchor}">{number_text(tick)}</text>')
    middle = (width + _LEFT) // 2
    parts.append(f'<text x="{middle}" y="{height - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for position, name in marks:
        x = place(position, y_low)[0]
        parts.append(f'<path fill="none" stroke="#888" stroke-dasharray="3 3" d="M{x:.1f} {top}V{height - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 2}" text-anchor="middle">{html.escape(name)}</text>')
    for stroke, line in zip(strokes, lines, strict=True):
        if line:
            path = "L".join("{:.1f} {:.1f}".format(*place(a, b)) for a, b in line)
            parts.append(f'<path {stroke} d="M{path}"/>')
    return "".join(parts)


def _svg(title: str, body: str, width_px: int, height_px: int) -> Html:
    label = html.escape(title)
    return Html(
        f'<svg class="chart" viewBox="0 0 {width_px} {height_px}" role="img" aria-label="{label}">'
        f'<text class="name" x="8" y="15">{label}</text>{body}</svg>'
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    parts, x = [], 8.0
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect fill="{colour}" x="{x:.0f}" y="21" width="10" height="10" rx="2"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="30">{html.escape(name)}</text>')
        x += 26 + 6.2 * len(name)
    return "".join(parts)


def _finite(x: Sequence[float], y: Sequence[float]) -> Points:
    return [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` points, means of neighbours, so that a long run does not make a large page."""
    size = max(math.ceil(len(points) / _MOST_POINTS), 1)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _range(low: float, high: float, margin: float) -> tuple[float, float]:
    """A range that is not empty, wider by a share of itself on both sides."""
    if not low < high:
        half = max(abs(high) * 0.05, 1e-6)
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)
