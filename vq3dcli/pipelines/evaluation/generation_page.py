"""The page of `vq3d evaluate generation`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vq3dcli.export.charts import bar_chart
from vq3dcli.export.page import Media, Row, Section, Svg, Text
from vq3dcli.metrics.features import FeatureNetwork, distance_name
from vq3dcli.pipelines.evaluation.generation import GenerationResult
from vq3dcli.pipelines.evaluation.page import text_tables
from vq3dcli.pipelines.sampling.record import shown_name

_FIGURES_TEXT = (
    "Each set against the real images. Reconstructions are the floor that no prior over their codes gets below; images "
    "of the training show what a set of equal size scores by chance."
)


def generation_sections(
    result: GenerationResult, network: FeatureNetwork, rows: Sequence[Sequence[object]], sheet: Path
) -> Sequence[Section]:
    """Figures, plots and pictures as sections of a page.

    Args:
        result: What was measured.
        network: In whose features.
        rows: The command's table.
        sheet: The contact sheet of samples.
    """
    names = {key: found.images.name for key, found in result.sets.items()}
    figures = [distance_name(network, "frechet"), distance_name(network, "kernel"), "precision", "recall"]
    charts: list[Svg] = []
    for figure in figures:
        bars = [(names[key], float(found[figure])) for key, found in result.figures.items() if figure in found]
        charts.append(Svg(bar_chart(figure, bars)))
    sections = [Section("Figures", [Text(_FIGURES_TEXT), *text_tables(rows), Row(charts)])]
    recognised = result.figures["samples"].get("recognised")
    if recognised is not None:
        bars_by_class = [(shown_name(name), part) for name, part in recognised.items() if name != "all"]
        chart = Svg(bar_chart("part of the samples that is recognised", bars_by_class))
        sections.append(Section("By class", [chart]))
    sections.append(Section("Samples", [Media(sheet, "the first samples of each class", width_px=1040)]))
    return sections
