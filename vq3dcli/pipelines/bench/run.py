"""All that `vq3d bench` measures, as one table and as figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from vq3dcli.errors import UsageError
from vq3dcli.pipelines.bench import data, render, sample, train, video
from vq3dcli.pipelines.bench.curves import Curve, curves
from vq3dcli.pipelines.bench.measure import Result, Work, host_limits, measure, one_thread

_WORKS: dict[str, Callable[[torch.device], Iterator[Work]]] = {
    "render": render.works,
    "train": train.works,
    "sample": sample.works,
    "data": data.works,
    "video": video.works,
}
DEFAULT = tuple(_WORKS)
CURVES = "curves"
_HEADING = ("work", "s", "a second", "MB", "baseline", "s", "MB", "ratio", "least", "most", "agreement")


class Measured(NamedTuple):
    """Everything."""

    metrics: dict[str, Any]  # figures, nested by subject
    table: list[tuple[object, ...]]  # the same for a reader, the first row the heading
    missed: list[str]  # works whose two ways do not agree


def run(
    names: Sequence[str],
    baselines: Sequence[str],
    rounds: int,
    device: torch.device,
    on_work: Callable[..., object] = lambda done, total, status="": None,
) -> Measured:
    """Measure some subjects.

    Args:
        names: Of `DEFAULT`, and `CURVES`.
        baselines: Leave out what has none of these; empty for all.
        device: Where to compute; data are read on a CPU.
        on_work: Called with how many works are done, None, and what comes next.

    Raises:
        UsageError: No such subject, or nothing has such a baseline.
        UnavailableError: A baseline's package is not installed.
    """
    unknown = [name for name in names if name not in (*DEFAULT, CURVES)]
    if unknown:
        raise UsageError(f"nothing to measure by that name ({unknown[0]})", remedy=", ".join((*DEFAULT, CURVES)))
    with one_thread():
        limits = host_limits(device)
        metrics: dict[str, Any] = {"host": limits}
        table: list[tuple[object, ...]] = [_HEADING]
        missed: list[str] = []
        done = 0
        for name in names:
            if name == CURVES:
                continue
            found: list[Result] = []
            for work in _WORKS[name](device):
                if baselines and work.baseline not in baselines:
                    continue
                on_work(done, None, work.what)
                found.append(measure(work, rounds, device))
                done += 1
            metrics[name] = [_figures(result) for result in found]
            table += [_row(result) for result in found]
            missed += [each.what for each in found if each.against is not None and not each.against.gate.passed]
        if baselines and not done:
            raise UsageError(f"nothing is compared with {', '.join(baselines)}", remedy="a name of the table")
        if CURVES in names:
            drawn = []
            for curve in curves(rounds, device):
                drawn.append(curve)
                on_work(len(drawn), None, curve.axis)
            metrics[CURVES] = {curve.axis: _curve_figures(curve) for curve in drawn}
            table = [*(table if done else []), *_curve_rows(drawn)]
    table.append((f"this machine at best: copies {limits['copy_gb_a_second']:.1f} GB a second, "
                  f"multiplies {limits['float32_gflops']:.0f} GFLOP a second in float32",))  # fmt: skip
    return Measured(metrics, table, missed)


def _figures(result: Result) -> dict[str, Any]:
    """A result as JSON knows it."""
    figures: dict[str, Any] = {
        "work": result.what,
        "seconds": result.cost.seconds._asdict(),
        "added_bytes": result.cost.added_bytes,
        f"{result.unit}_a_second": result.rate,
    }
    if result.against is not None:
        against = result.against
        figures["baseline"] = {
            "name": against.name,
            "seconds": against.cost.seconds._asdict(),
            "added_bytes": against.cost.added_bytes,
            "ratio": against.ratio._asdict(),
            against.gate.name: against.gate.value,
            "agrees": against.gate.passed,
        }
    return figures


def _row(result: Result) -> tuple[object, ...]:
    rate = f"{result.rate:.4g} {result.unit}"
    own = (result.what, result.cost.seconds.median, rate, _megabytes(result.cost.added_bytes))
    if result.against is None:
        return own
    name, cost, ratio, gate = result.against
    agreement = f"{gate.name} {gate.value:.4g}" + ("" if gate.passed else f", not {gate.least:.4g}")
    return (*own, name, cost.seconds.median, _megabytes(cost.added_bytes), *ratio, agreement)


def _curve_figures(curve: Curve) -> dict[str, Any]:
    return {"bend": curve.bend, "points": [_figures(each) for each in curve.results]}


def _curve_rows(drawn: Sequence[Curve]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [("along", "size", "s", "us a thing", "things", "MB", "bend")]
    for curve in drawn:
        for size, result in zip(curve.sizes, curve.results, strict=True):
            a_thing = 1e6 * result.cost.seconds.median / result.things
            last = curve.bend if size == curve.sizes[-1] else ""
            memory = _megabytes(result.cost.added_bytes)
            rows.append((curve.axis, size, result.cost.seconds.median, a_thing, result.unit, memory, last))
    return rows


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6
