"""All that `vq3d bench` measures, as one table and as figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from vq3dcli.errors import UsageError
from vq3dcli.pipelines.bench import data, render, sample, train, video
from vq3dcli.pipelines.bench.measure import Figures, Work, host_limits, measure, one_thread

_WORKS: dict[str, Callable[[torch.device], Iterator[Work]]] = {
    "render": render.works,
    "train": train.works,
    "sample": sample.works,
    "data": data.works,
    "video": video.works,
}
DEFAULT = tuple(_WORKS)
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
    """Measure some subjects, names of `DEFAULT`; with `baselines`, only what has one of these.

    Data are read on a CPU. `on_work` is called with how many works are done, None, and what comes next.

    Raises:
        UsageError: No such subject, or nothing has such a baseline.
        UnavailableError: A baseline's package is not installed.
    """
    unknown = [name for name in names if name not in DEFAULT]
    if unknown:
        raise UsageError(f"nothing to measure by that name ({unknown[0]})", remedy=", ".join(DEFAULT))
    with one_thread():
        limits = host_limits(device)
        metrics: dict[str, Any] = {"host": limits}
        table: list[tuple[object, ...]] = [_HEADING]
        missed: list[str] = []
        for name in names:
            metrics[name] = []
            for work in _WORKS[name](device):
                if not baselines or work.baseline in baselines:
                    on_work(len(table) - 1, None, work.what)
                    figures = measure(work, rounds, device)
                    metrics[name].append(figures)
                    table.append(_row(work, figures))
                    missed += [] if figures.get("baseline", {}).get("agrees", True) else [work.what]
        if baselines and len(table) == 1:
            raise UsageError(f"nothing is compared with {', '.join(baselines)}", remedy="a name of the table")
    table.append((f"this machine at best: copies {limits['copy_gb_a_second']:.1f} GB a second, "
                  f"multiplies {limits['float32_gflops']:.0f} GFLOP a second in float32",))  # fmt: skip
    return Measured(metrics, table, missed)


def _row(work: Work, figures: Figures) -> tuple[object, ...]:
    rate = f"{figures[f'{work.unit}_a_second']:.4g} {work.unit}"
    own = (work.what, figures["seconds"]["median"], rate, _megabytes(figures["added_bytes"]))
    if (there := figures.get("baseline")) is None:
        return own
    memory = _megabytes(there["added_bytes"])
    return (*own, there["name"], there["seconds"]["median"], memory, *there["ratio"].values(), there["agreement"])


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6
