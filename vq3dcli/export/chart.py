"""Line charts as inline SVG: no script, no library, colours from the page's style sheet."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Sequence

WIDTH_PX = 360
HEIGHT_PX = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 26, 22
_MOST_POINTS = 400


def line_chart(title: str, x: Sequence[float], y: Sequence[float], *, x_label: str, log_y: bool = False) -> str:
    """A curve with its axes and its last value.

    Args:
        title: What y is.
        x: Ascending positions.
        y: As many values; those that are not finite (or not positive, with `log_y`) are left out.
        x_label: What x is.
        log_y: Logarithmic y axis.

    Returns:
        An `<svg>` element. Its classes are `chart`, `axis`, `grid`, `line` and `last`.
    """
    assert len(x) == len(y), (len(x), len(y))
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b) and (b > 0 or not log_y)]
    heading = f'<text class="name" x="{_LEFT}" y="14">{html.escape(title)}</text>'
    if points:
        heading += (
            f'<text class="last" x="{WIDTH_PX - _RIGHT}" y="14" text-anchor="end">{number_text(points[-1][1])}</text>'
        )
        body = _curve(_thinned(points), x_label, log_y)
    else:
        body = f'<text class="axis" x="{_LEFT}" y="{HEIGHT_PX // 2}">no values</text>'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{html.escape(title)}">'
        f"{heading}{body}</svg>"
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


def number_text(value: float) -> str:
    """A number in a few characters: 32000 as 32k, 0.00031 as 3.1e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        scale, unit = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / scale:.4g}{unit}"
    if abs(value) >= 0.001:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _curve(points: list[tuple[float, float]], x_label: str, log_y: bool) -> str:
    heights = [math.log10(b) if log_y else b for _, b in points]
    x_low, x_high = points[0][0], max(points[-1][0], points[0][0] + 1e-12)
    y_low, y_high = min(heights), max(heights)
    margin = 0.05 * (y_high - y_low) or max(abs(y_high) * 0.05, 1e-6)
    y_low, y_high = y_low - margin, y_high + margin

    def place_x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (WIDTH_PX - _LEFT - _RIGHT)

    def place_y(height: float) -> float:
        return HEIGHT_PX - _BOTTOM - (height - y_low) / (y_high - y_low) * (HEIGHT_PX - _TOP - _BOTTOM)

    parts = []
    for tick in ticks(y_low, y_high):
        text = number_text(10**tick if log_y else tick)
        y = place_y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH_PX - _RIGHT}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in ticks(x_low, x_high, 3):
        x = place_x(tick)
        anchor = "end" if x > WIDTH_PX - 30 else "middle"
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{HEIGHT_PX - 6}" text-anchor="{anchor}">{number_text(tick)}</text>'
        )
    parts.append(f'<text class="axis" x="4" y="{HEIGHT_PX - 6}">{html.escape(x_label)}</text>')
    path = "L".join(f"{place_x(a):.1f} {place_y(h):.1f}" for (a, _), h in zip(points, heights, strict=True))
    parts.append(f'<path class="line" d="M{path}"/>')
    return "".join(parts)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` points, means of neighbours, so that a long run does not make a large page."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
