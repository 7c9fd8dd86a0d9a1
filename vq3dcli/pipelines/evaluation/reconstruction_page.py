"""The page of `vq3d evaluate reconstruction`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vq3dcli.export.charts import Series, bar_chart, histogram, series_chart
from vq3dcli.export.page import Media, Row, Section, Svg, Text
from vq3dcli.pipelines.evaluation.page import text_tables
from vq3dcli.pipelines.evaluation.reconstruction import ReconstructionResult, table

_SHEET_TEXT = (
    "The worst pairs by PSNR, then the best: above the image, below its reconstruction. Numbers are places in the set."
)
_CODES_TEXT = (
    "Codes in the order of their use. A flat curve uses the whole codebook; a cliff is a codebook that collapsed."
)


def reconstruction_sections(result: ReconstructionResult, sheet: Path) -> Sequence[Section]:
    """Figures, plots and pictures as sections of a page."""
    plots: list[Svg] = [Svg(histogram("images by PSNR, dB", result.psnr.tolist(), x_label="dB"))]
    if len(result.code_counts):
        share = (result.code_counts.double() / result.code_counts.sum().clamp(min=1)).sort(descending=True).values
        rank = [float(number) for number in range(len(share))]
        even = [1.0 / len(share)] * len(share)
        curves = [Series("used", rank, share.tolist()), Series("all alike", rank, even, dashed=True)]
        plots.append(Svg(series_chart("share of each code", curves, x_label="rank", from_zero=True)))
    by_class = [(name, float(found["psnr"])) for name, found in result.figures["classes"].items()]
    sections = [Section("Figures", [*text_tables(table(result)), Row(plots), Text(_CODES_TEXT)])]
    if by_class:
        by_class.sort(key=lambda pair: pair[1])
        shown = by_class if len(by_class) <= 60 else [*by_class[:30], *by_class[-30:]]
        sections.append(Section("By class", [Svg(bar_chart("PSNR, dB", shown))]))
    sections.append(Section("Worst and best", [Text(_SHEET_TEXT), Media(sheet, "worst and best", width_px=1040)]))
    return sections
