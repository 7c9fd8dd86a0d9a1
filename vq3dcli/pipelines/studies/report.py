"""Reports: what a run's folder and a set of figures look like to a reader, as sections of one HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vq3dcli.export.chart import line_chart, number_text
from vq3dcli.export.page import Block, Code, Media, Row, Section, Svg, Table, Text
from vq3dcli.sealed import json_value

Metrics = Mapping[str, float]
Record = Mapping[str, Any]

# Curves whose early values dwarf the rest.
_LOG_SCALE = ("loss", "l1", "l2", "depth", "commitment", "codebook", "auxiliary", "gradient_norm")
_FIRST_CURVES = ("loss", "bits", "held_out_bits", "l2", "l1", "depth", "perplexity", "images_per_second")
STAGE1_SHEET = (
    "A row an image: input, reconstruction, rendered disparity, its label, views from the left and the right."
)
STAGE2_SHEET = "A row a class: samples of the averaged prior, each beside its disparity; the same seeds on each sheet."
_SHEETS = 4
_SHEET_WIDTH_PX = 560
_VIDEO_WIDTH_PX = 256


@dataclass(frozen=True)
class Target:
    """A figure and the bound that it should keep.

    Attributes:
        name: Key of the figure.
        meaning: In one line.
        bound: The bound as text, from all figures.
        met: Whether it is kept, from all figures.
    """

    name: str
    meaning: str
    bound: Callable[[Metrics], str]
    met: Callable[[Metrics], bool]


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`.

    Half a line that a crash left is passed over; a missing or unreadable file is empty.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json_value(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "images_seen" in record:
            records.append(record)
    return records


def training_section(run: Path, title: str = "Training", sheets_text: str = STAGE1_SHEET) -> Section:
    """Curves, contact sheets and the recipe of a training run's folder, finished or not."""
    records = read_metrics(run / "metrics.jsonl")
    blocks: list[Block] = [Text("There are no metrics yet.")] if not records else [Row(_curves(records))]
    sheets = sorted((run / "sheets").glob("*.png"))
    if sheets:
        blocks.append(Text(sheets_text))
        blocks.append(Row([Media(path, path.stem, width_px=_SHEET_WIDTH_PX) for path in _spread(sheets, _SHEETS)]))
    recipe = run / "recipe.toml"
    if recipe.exists():
        blocks.append(Code(recipe.read_text(errors="replace")))
    return Section(title, blocks)


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


def videos_section(rows: Sequence[tuple[Path, Path, Path]], text: str) -> Section:
    """A row a scene: the input picture, a video and its disparity; `text` says what they are."""
    return Section("From one picture to novel views", [Text(text), *_video_rows(rows)])


def samples_section(sheet: Path, rows: Sequence[tuple[Path, Path, Path]], text: str) -> Section:
    """A contact sheet of samples, then a row a filmed one: its picture, its video and its disparity."""
    blocks: list[Block] = [Text(text), Media(sheet, sheet.stem, width_px=_SHEET_WIDTH_PX)]
    return Section("New scenes", [*blocks, *_video_rows(rows)])


def commands_section(commands: Sequence[str]) -> Section:
    """Commands to go on with."""
    return Section("Go on", [Code("\n".join(commands))])


def curve_names(records: Sequence[Record]) -> list[str]:
    """Names of figures that are numbers in every record that has them, in the order in which they appear."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name != "images_seen" and _is_curve(name, records)]


def curve(name: str, records: Sequence[Record], title: str | None = None) -> Svg:
    """One figure over images seen, on a logarithmic axis if its early values dwarf the rest.

    Args:
        name: Its key in the records; gaps where it is missing.
        records: In their order.
        title: Above the curve; the name by default.
    """
    x = [float(record["images_seen"]) for record in records]
    y = [math.nan if record.get(name) is None else float(record[name]) for record in records]
    return Svg(line_chart(title or name, x, y, x_label="images", log_y=name in _LOG_SCALE))


def _curves(records: Sequence[Record]) -> list[Svg]:
    names = curve_names(records)
    names.sort(key=lambda name: _FIRST_CURVES.index(name) if name in _FIRST_CURVES else len(_FIRST_CURVES))
    return [curve(name, records) for name in names]


def _video_rows(rows: Sequence[tuple[Path, Path, Path]]) -> list[Row]:
    return [
        Row(
            [
                Media(path, name, width_px=_VIDEO_WIDTH_PX)
                for path, name in ((picture, picture.stem), (video, video.stem), (disparity, "disparity"))
            ]
        )
        for picture, video, disparity in rows
    ]


def _is_curve(name: str, records: Sequence[Record]) -> bool:
    values = [record.get(name) for record in records]
    return any(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
    )


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """`count` items from first to last, evenly."""
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]
