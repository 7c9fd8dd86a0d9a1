"""What `vq3d evaluate geometry` shows: its tables, and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vq3dcli.export.charts import Series, bar_chart, series_chart
from vq3dcli.export.page import Media, Row, Section, Svg, Text
from vq3dcli.pipelines.evaluation.geometry import VIEW_FIGURES, VIEW_NAMES
from vq3dcli.pipelines.evaluation.page import text_tables

# Name, what a perfect model has, what it says.
_DISPARITY = (
    ("spearman", 1.0, "rank correlation of rendered and true disparity"),
    ("ssi_error", 0.0, "error after the best scale and shift"),
    ("edge_f1", 1.0, "borders within a pixel of true ones and the other way round"),
    ("relief", 1.0, "rendered over true spread of disparity; 0 is a flat wall"),
    ("nfs", None, "non-flatness score of disparity, 1 to 64; perfect is that of the exact scenes"),
    ("reprojection_error", None, "median way home of a pixel through another view, percent of the width"),
    ("reprojection_share", None, "part of the pixels that come home within 2 percent"),
    ("weight_variance", 0.0, "spread of a ray's weights: floaters"),
)
_PSNR = ("psnr", "novel_psnr", "copy_psnr", "flat_psnr", "pivot_psnr", "warp_psnr", "right_psnr")
_VIEWS_TEXT = (
    "The model's novel views beside its own reconstruction that is not moved (copy), painted on a plane (flat, pivot), "
    "and beside the true input moved by exact disparity (warp), the ceiling for what only moves pixels. At yaw 0: the "
    "reconstruction itself."
)
_SHEETS = {
    "toyscenes": "Two rows a scene, the exact one above: input, disparity, then the six evaluation views.",
    "labels": "A row a photo: input, reconstruction, rendered disparity, label, the view from 10 degrees to the side.",
    "stereo": "Left photo, reconstruction, its disparity, the measured one; right photo, the rendered view, the left "
    "photo moved by the measured disparity.",
}


def table(metrics: Mapping[str, object]) -> list[list[object]]:
    """Rows for a reader: disparity beside the image-blind template and what is perfect, then views in dB."""
    rows: list[list[object]] = [["", "measured", "image-blind", "perfect"]]
    for name, perfect, _ in _DISPARITY:
        if name in metrics:
            exact = metrics.get(f"exact_{name}", perfect)
            rows.append([name, metrics[name], metrics.get(f"template_{name}"), exact])
    rows += [[], ["dB", "measured", "image-blind"]]
    rows += [[name, metrics[name], metrics.get(f"template_{name}")] for name in _PSNR if name in metrics]
    rows += [[name, value] for name, value in metrics.items() if name.startswith("input_")]
    views = metrics.get("views")
    if isinstance(views, Mapping):
        rows += [[], ["yaw,pitch", *VIEW_FIGURES]]
        rows += [[view, *(found.get(name) for name in VIEW_FIGURES)] for view, found in views.items()]
    return rows


def geometry_sections(kind: str, metrics: Mapping[str, object], sheet: Path | None) -> Sequence[Section]:
    """Figures, plots and pictures as sections of a page.

    Args:
        kind: `toyscenes`, `labels` or `stereo`.
        metrics: Figures by name; `views` has those of single views.
        sheet: The contact sheet.
    """
    meanings: list[list[object]] = [["figure", "what it says"]]
    meanings += [[name, text] for name, _, text in _DISPARITY if name in metrics]
    sections = [Section("Figures", [*text_tables(table(metrics)), Row(_bars(metrics)), *text_tables(meanings)])]
    views = metrics.get("views")
    if isinstance(views, Mapping):
        chart = _by_yaw(views, metrics)
        sections.append(Section("Novel views by angle", [Text(_VIEWS_TEXT), Svg(chart)]))
    if sheet is not None:
        sections.append(Section("Pictures", [Text(_SHEETS[kind]), Media(sheet, sheet.stem, width_px=1040)]))
    return sections


def _bars(metrics: Mapping[str, object]) -> list[Svg]:
    charts = []
    for name, perfect, _ in _DISPARITY[:5]:
        if name not in metrics:
            continue
        bars = [("measured", metrics[name]), ("image-blind", metrics.get(f"template_{name}"))]
        bars.append(("perfect", metrics.get(f"exact_{name}", perfect)))
        known = [(label, float(value)) for label, value in bars if isinstance(value, int | float)]
        charts.append(Svg(bar_chart(name, known, width_px=360)))
    psnr = [
        (name, float(value))
        for name, value in metrics.items()
        if name.endswith("psnr") and not name.startswith("template_") and isinstance(value, int | float)
    ]
    return [*charts, Svg(bar_chart("PSNR, dB", psnr))]


def _by_yaw(views: Mapping[str, Mapping[str, float]], metrics: Mapping[str, object]) -> str:
    """Each figure over the yaw of the views without pitch."""
    angles = {view: [float(angle) for angle in view.split(",")] for view in VIEW_NAMES if view in views}
    level = sorted((yaw, view) for view, (yaw, pitch) in angles.items() if pitch == 0)
    series = []
    for name in VIEW_FIGURES:
        points = [(yaw, views[view][name]) for yaw, view in level if name in views[view]]
        if name == "novel_psnr":
            psnr = metrics["psnr"]
            assert isinstance(psnr, int | float), psnr
            points = sorted([*points, (0.0, float(psnr))])
        x, y = [p[0] for p in points], [p[1] for p in points]
        series.append(Series(name.removesuffix("_psnr"), x, y, dashed=name != "novel_psnr"))
    return series_chart("PSNR of novel views, dB", series, x_label="yaw, degrees")
