"""Sections of a study's page: geometry beside its targets, videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vq3dcli.export.charts import number_text
from vq3dcli.export.page import Block, Media, Row, Section, Table

Metrics = Mapping[str, float]
_VIDEO_WIDTH_PX = 256


class Target(NamedTuple):
    """A figure and the bound that it should keep."""

    name: str  # key of the figure
    meaning: str  # in one line
    bound: Callable[[Metrics], str]  # the bound as text, from all figures
    met: Callable[[Metrics], bool]  # whether it is kept, from all figures


GEOMETRY_TARGETS: tuple[Target, ...] = (
    Target("psnr", "main view against the input, dB", lambda m: "at least 22", lambda m: m["psnr"] >= 22),
    Target(
        "novel_psnr",
        "views 10 and 20 degrees to the side against the exact ones, dB",
        lambda m: f"above {max(m['copy_psnr'], m['flat_psnr']):.2f}, its own copy and flat warp",
        lambda m: m["novel_psnr"] > max(m["copy_psnr"], m["flat_psnr"]),
    ),
    Target(
        "spearman",
        "rank correlation of rendered and true disparity",
        lambda m: f"at least {m['template_spearman'] + 0.05:.3f}, the image-blind template's + 0.05",
        lambda m: m["spearman"] >= m["template_spearman"] + 0.05,
    ),
    Target(
        "ssi_error",
        "disparity error after the best scale and shift",
        lambda m: f"at most {0.57 * m['template_ssi_error']:.3f}, 0.57 of the template's",
        lambda m: m["ssi_error"] <= 0.57 * m["template_ssi_error"],
    ),
    Target(
        "relief", "rendered over true spread of disparity", lambda m: "0.8 to 1.2", lambda m: 0.8 <= m["relief"] <= 1.2
    ),
    Target(
        "weight_variance",
        "spread of a ray's weights: floaters",
        lambda m: "at most 5e-4",
        lambda m: m["weight_variance"] <= 5e-4,
    ),
)


def geometry_section(metrics: Metrics, sheet: Path | None = None) -> Section:
    """Figures of `evaluate_geometry` beside their targets, then all of them, then a contact sheet."""
    rows = [["figure", "measured", "wanted", "what it is"]]
    marks = []
    for target in GEOMETRY_TARGETS:
        rows.append([target.name, number_text(metrics[target.name]), target.bound(metrics), target.meaning])
        marks.append(target.met(metrics))
    everything = [["figure", "measured"], *([name, number_text(value)] for name, value in metrics.items())]
    blocks: list[Block] = [Table(rows, marks), Table(everything)]
    if sheet is not None:
        caption = "Two rows a scene, the exact one above: input, disparity, then the six evaluation views."
        blocks.append(Media(sheet, caption, width_px=1040))
    return Section("Geometry on toy scenes never trained on", blocks)


def video_rows(rows: Sequence[tuple[Path, Path, Path]]) -> list[Row]:
    """A row a scene: its picture, a video and its disparity."""
    return [
        Row(
            [
                Media(path, name, width_px=_VIDEO_WIDTH_PX)
                for path, name in ((picture, picture.stem), (video, video.stem), (disparity, "disparity"))
            ]
        )
        for picture, video, disparity in rows
    ]
