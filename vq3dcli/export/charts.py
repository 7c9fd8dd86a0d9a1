"""Charts of an evaluation as inline SVG: several curves, bars by name, histograms. No script, no library.

Curves and bars have colours of their own that are told apart on light and dark pages and by colour-blind readers (Okabe
and Ito, 2008); text and grid take the page's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vq3dcli.export.chart import number_text, ticks

WIDTH_PX = 480
HEIGHT_PX = 260
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 42, 34
_BAR_PX, _BAR_TEXT_PX = 18, 150
_BAR_TEXT_LENGTH = 24  # letters of 6 pixels
_STANDALONE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}.name{font-size:12px;font-weight:600;fill:#111}"
    ".grid{stroke:#ddd;fill:none}"
)


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: In the legend.
        x: Ascending positions.
        y: As many values; those that are not finite are left out.
        dashed: Drawn with a broken line, for what a curve is compared with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def series_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Curves over one pair of axes.

    Args:
        title: What y is.
        series: The curves.
        x_label: What x is.
        marks: Positions on the x axis with a name, drawn as upright lines.
        from_zero: Whether the y axis starts at 0.

    Returns:
        An `<svg>` element.
    """
    lines = [[(a, b) for a, b in zip(s.x, s.y, strict=True) if math.isfinite(a) and math.isfinite(b)] for s in series]
    points = [point for line in lines for point in line]
    if not points:
        return _svg(title, HEIGHT_PX, f'<text x="{_LEFT}" y="{HEIGHT_PX // 2}">no values</text>')
    x_all = [a for a, _ in points] + [position for position, _ in marks]
    x_low, x_high = _range(min(x_all), max(x_all), 0.0)
    y_low, y_high = _range(min(b for _, b in points), max(b for _, b in points), 0.05)
    if from_zero:
        y_low = min(0.0, y_low) if min(b for _, b in points) < 0 else 0.0

    def place(a: float, b: float) -> tuple[float, float]:
        right = _LEFT + (a - x_low) / (x_high - x_low) * (WIDTH_PX - _LEFT - _RIGHT)
        return right, HEIGHT_PX - _BOTTOM - (b - y_low) / (y_high - y_low) * (HEIGHT_PX - _TOP - _BOTTOM)

    parts = []
    for tick in ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH_PX - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick)}</text>')
    for tick in ticks(x_low, x_high, 5):
        x = place(tick, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT_PX - 18}" text-anchor="middle">{number_text(tick)}</text>')
    parts.append(
        f'<text x="{(WIDTH_PX + _LEFT) // 2}" y="{HEIGHT_PX - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    for position, name in marks:
        x = place(position, y_low)[0]
        parts.append(
            f'<path fill="none" stroke="#888" stroke-dasharray="3 3" d="M{x:.1f} {_TOP}V{HEIGHT_PX - _BOTTOM}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 2}" text-anchor="middle">{html.escape(name)}</text>')
    for number, (curve, line) in enumerate(zip(series, lines, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        path = "L".join("{:.1f} {:.1f}".format(*place(a, b)) for a, b in line)
        if path:
            parts.append(f'<path fill="none" stroke="{colour}" stroke-width="1.8"{dash} d="M{path}"/>')
    return _svg(title, HEIGHT_PX, "".join(parts) + _legend([s.name for s in series]))


def bar_chart(title: str, bars: Sequence[tuple[str, float | None]], *, width_px: int = WIDTH_PX) -> str:
    """A horizontal bar a name, from 0; a missing or infinite value has none.

    Args:
        title: What the values are.
        bars: Names, cut where they are too long for their column, and values.
        width_px: Of the chart.
    """
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
    return _svg(title, 34 + len(bars) * _BAR_PX, "".join(parts), width_px)


def histogram(title: str, values: Sequence[float], *, x_label: str, bins: int = 32) -> str:
    """How many values fall into each of `bins` equal parts of their range, as one outline."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return series_chart(title, [], x_label=x_label)
    low, high = _range(min(finite), max(finite), 0.0)
    step = (high - low) / bins
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / step))] += 1
    x = [low + step * edge for edge in range(bins + 1) for _ in (0, 1)]
    y = [0.0, *(float(count) for count in counts for _ in (0, 1)), 0.0]
    return series_chart(title, [Series("images", x, y)], x_label=x_label, from_zero=True)


def standalone(svg: str) -> str:
    """A chart as a file of its own: with its namespace, a white ground and its own style."""
    head, _, body = svg.partition(">")
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_STANDALONE_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{body}\n'
    )


def _svg(title: str, height_px: int, body: str, width_px: int = WIDTH_PX) -> str:
    label = html.escape(title)
    return (
        f'<svg class="chart" viewBox="0 0 {width_px} {height_px}" role="img" aria-label="{label}">'
        f'<text class="name" x="8" y="15">{label}</text>{body}</svg>'
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    parts, x = [], 8.0
    for number, name in enumerate(names):
        parts.append(
            f'<rect fill="{COLOURS[number % len(COLOURS)]}" x="{x:.0f}" y="21" width="10" height="10" rx="2"/>'
        )
        parts.append(f'<text x="{x + 14:.0f}" y="30">{html.escape(name)}</text>')
        x += 26 + 6.2 * len(name)
    return "".join(parts)


def _range(low: float, high: float, margin: float) -> tuple[float, float]:
    """A range that is not empty, wider by a share of itself on both sides."""
    if not low < high:
        half = max(abs(high) * 0.05, 1e-6)
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)


def side_by_side(charts: Sequence[str], columns: int) -> str:
    """Charts of `series_chart` in a grid, as one chart."""
    rows = math.ceil(len(charts) / columns)
    parts = []
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        place = f'<svg x="{column * WIDTH_PX}" y="{row * HEIGHT_PX}" width="{WIDTH_PX}" height="{HEIGHT_PX}"'
        parts.append(chart.replace("<svg", place, 1))
    width_px, height_px = columns * WIDTH_PX, rows * HEIGHT_PX
    return f'<svg class="charts" viewBox="0 0 {width_px} {height_px}" role="img">{"".join(parts)}</svg>'
