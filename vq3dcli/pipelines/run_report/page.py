"""A training run's page, `RUN/report.html`: what the run was, its health, its newest pictures, its curves, its recipe.

Made from what the folder holds, at any moment: while the run goes on, when it was interrupted, when files are missing
or damaged, in which case the page says so.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.config.load import load_either
from vq3dcli.config.schema import DepthRecipe, Recipe, Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_jpeg, read_image, resize
from vq3dcli.errors import InputMissingError, Vq3dError
from vq3dcli.export.charts import line_chart
from vq3dcli.export.page import Html, Section, code, media, media_bytes, number_text, paragraph, row, table, write_page
from vq3dcli.sealed import json_value
from vq3dcli.training.health import guards_of, number, replay

Record = dict[str, float]
"""Figures by name, truth values among them; at least `images_seen`."""

_SHEET_TEXTS = {
    "stage1": "A row an image: input, reconstruction, rendered disparity, its label, views from left and right.",
    "stage2": "A row a class: samples of the averaged prior, each beside its disparity; the same seeds on each sheet.",
    "depth": "Two images a row: image, disparity of the averaged network, label, each map in its own range.",
}

# A section's title, its figures in their order, and what they say.
CurveSection = tuple[str, tuple[str, ...], str]

_TITLES = {
    "psnr": "PSNR of training rays, dB",
    "code_usage": "perplexity / codes",
    "depth_order": "depth order",
    "novel_psnr": "PSNR of rays of novel views, dB",
    "novel_l2": "L2 at novel views",
    "novel_l1": "L1 at novel views",
    "novel_depth": "depth at novel views",
    "novel_perceptual": "perceptual at novel views",
    "novel_views": "novel views an image",
    "weight_variance": "weight variance",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "images_per_second": "images a second",
    "data_wait": "share of the time without a batch",
    "peak_memory_gb": "peak memory, GB",
    "mfu": "model FLOPs utilisation",
    "held_out_psnr": "PSNR, held out, dB",
    "held_out_novel_psnr": "PSNR of exact views, held out, dB",
    "held_out_spearman": "rank correlation of disparity, held out",
    "held_out_ssi_error": "error of disparity, held out",
    "bits": "bits a code, training",
    "held_out_bits": "bits a code, held out",
    "unigram_bits": "bits a code by counting",
    "held_out_share": "held out / counting",
}
_STAGE1_CURVES: tuple[CurveSection, ...] = (
    (
        "Losses and reconstruction",
        ("loss", "psnr", "l2", "l1", "perceptual", "auxiliary", "chroma_ratio"),
        "Of the batches, before the average of weights; unweighted but for the total. Colourfulness is 1 when right.",
    ),
    (
        "Geometry",
        ("depth", "depth_order", "relief", "weight_variance"),
        "Order: how far pairs of rays are from their true order, 0 right, 2 worst. Relief: spread of rendered over "
        "true disparity, 0 a wall, 1 right. Weight variance: large with floaters.",
    ),
    (
        "Codes",
        ("perplexity", "code_usage", "commitment"),
        "Of each batch; before quantisation begins no code is used, only counted.",
    ),
)
_HELD_OUT_CURVES: CurveSection = (
    "Held-out images",
    ("held_out_psnr", "held_out_novel_psnr", "held_out_spearman", "held_out_ssi_error"),
    "Of the average of weights, on images that never train, through their codes; disparity where it is exact.",
)
_NOVEL_CURVES: CurveSection = (
    "Novel views",
    ("novel_psnr", "novel_l2", "novel_l1", "novel_depth", "novel_perceptual", "novel_views"),
    "The same losses at exact pictures from other cameras, in records of a step that had any.",
)
_STAGE2_CURVES: tuple[CurveSection, ...] = (
    (
        "Bits a code",
        ("bits", "held_out_bits", "held_out_share"),
        "Training: of the batches, with dropout, before the average of weights. Held out: of the average, on images "
        "that never train. Counting: the entropy of a code given its class, whatever its place and neighbours.",
    ),
)
_DEPTH_CURVES: tuple[CurveSection, ...] = (
    ("Loss", ("loss",), "Mean over the interval: error of normalised maps and of their slopes, augmented images."),
)
_CURVES = {"stage1": _STAGE1_CURVES, "stage2": _STAGE2_CURVES, "depth": _DEPTH_CURVES}
_STEPS: CurveSection = (
    "Steps",
    ("learning_rate", "gradient_norm", "images_per_second", "data_wait", "peak_memory_gb", "mfu"),
    "Gradient norm before clipping. Wait and memory of the process that has most; utilisation on GPUs alone.",
)
_SCORES = "adversarial_"
_SCORES_TEXT = "Scores above 0 mean real; accuracy is 0.5 by chance and 1 when the discriminator wins."
# Curves whose early values dwarf the rest.
_LOG_SCALE = ("loss", "l1", "l2", "depth", "commitment", "codebook", "auxiliary", "gradient_norm")
# Keys of a recipe, by section, that tell runs apart.
_SHOWN_KEYS = {
    "stage1": {
        "model": "image_size patch codebook_size space",
        "training": "batch_size seed optimizer",
        "loss": "depth_kind depth depth_order novel_l2 novel_l1 novel_depth novel_perceptual",
    },
    "stage2": {
        "model": "width layers heads dropout",
        "training": "batch_size seed optimizer class_dropout",
        "sampling": "temperature guidance",
    },
    "depth": {"model": "encoder input_px frozen_blocks", "training": "batch_size seed", "loss": "gradient"},
}
_SHEETS = 3
_MOST_CLASSES = 60
_SHEET_WIDTH_PX = 1040


def write_run_report(run: Path) -> Path:
    """Write `RUN/report.html` anew from the run's folder, finished or not, and return its path.

    Raises `InputMissingError`: there is no such folder.
    """
    if not run.is_dir():
        raise InputMissingError(f"no such run ({run})", remedy="the folder that --out named")
    path = run / "report.html"
    write_page(path, *run_sections(run))
    return path


def run_sections(run: Path) -> tuple[str, str, list[Section]]:
    """Title, subtitle and sections of the page."""
    records = read_metrics(run / "metrics.jsonl")
    try:
        recipe, problem = load_either(str(run / "recipe.toml")), ""
    except Vq3dError as error:
        recipe, problem = None, str(error)
    status = _status(run, records, recipe)
    health = [paragraph(f"Not judged, for the recipe cannot be read: {problem}")]
    sections = [
        Section("The run", [table([("", ""), ("state", status), *_facts(run, records, recipe)])]),
        Section("Health", health if recipe is None else _health(records, recipe)),
        Section("Newest pictures", _pictures(run, recipe)),
        *_curve_sections(records, recipe),
        *_held_out_section(run),
        Section("Recipe", [code(_text(run / "recipe.toml") or "There is no recipe.")]),
    ]
    return f"vq3d run {run.resolve().name}", status, sections


def read_metrics(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl` that have a position, each after the one before; only numbers of them.

    Half a line that a crash left is passed over; a missing or unreadable file is empty.
    """
    records: list[Record] = []
    last = -math.inf
    for line in _text(path).splitlines():
        with contextlib.suppress(ValueError):
            values = json_value(line)
            known = {name: number(values, name) for name in values} if isinstance(values, dict) else {}
            record = {name: value for name, value in known.items() if value is not None}
            if last < record.get("images_seen", math.nan) < math.inf:
                records.append(record | {name: value for name, value in values.items() if isinstance(value, bool)})
                last = record["images_seen"]
    return records


def _status(run: Path, records: Sequence[Record], recipe: Recipe | None) -> str:
    seen = int(records[-1]["images_seen"]) if records else 0
    if recipe is None:
        return f"{seen} images seen"
    total = recipe.training.images
    if seen >= total and (run / "weights.safetensors").exists():
        return f"finished: {seen} images"
    return f"{seen} of {total} images ({seen / total:.0%}): going on or interrupted; the same command again continues"


def _facts(run: Path, records: Sequence[Record], recipe: Recipe | None) -> Iterator[Sequence[object]]:
    if recipe is not None:
        values = recipe.model_dump()
        for section, keys in _SHOWN_KEYS[recipe.kind].items():
            chosen = {key: values[section][key] for key in keys.split()}
            texts = [f"{key} {value}" for key, value in chosen.items() if section != "loss" or value != 0.0]
            yield section, ", ".join(texts)
    with contextlib.suppress(ValueError):
        recorded = json_value(_text(run / "run.json"))
        for key, value in recorded.items() if isinstance(recorded, dict) else ():
            yield str(key), value if isinstance(value, str) else json.dumps(value)
    # Images of each interval over its speed, summed; pauses between two calls of a run do not count.
    seconds, before = 0.0, 0.0
    for record in records:
        if record.get("images_per_second", 0.0) > 0:
            seconds += (record["images_seen"] - before) / record["images_per_second"]
        before = record["images_seen"]
    if seconds > 0:
        yield "time in steps", f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
    for name, value in records[-1].items() if records else ():
        if name != "images_seen" and math.isfinite(value):
            yield f"last {name}", float(value)


def _health(records: Sequence[Record], recipe: Recipe) -> list[Html]:
    guards = guards_of(recipe)
    findings = replay(records, guards)[1]
    watched = f"{len(guards)} guards watch this run"
    if not findings:
        return [paragraph(f"{watched}; none has spoken in {len(records)} records.")]
    rows: list[Sequence[object]] = [("guard", "from", "until", "figure", "likely cause", "try")]
    marks: list[bool | None] = []
    for i, finding in enumerate(findings):
        if not finding.recovered:
            guard = finding.guard
            until = next((x.images_seen for x in findings[i:] if x.recovered and x.guard.name == guard.name), None)
            over = "" if until is None else number_text(until)
            figure = f"{guard.figure} {finding.value:.3g}"
            rows.append((guard.name, number_text(finding.images_seen), over, figure, guard.cause, guard.remedy))
            marks.append(False if until is None else None)
    return [paragraph(f"{watched}. A cross: not recovered yet. Positions are images seen."), table(rows, marks)]


def _pictures(run: Path, recipe: Recipe | None) -> list[Html]:
    text = _SHEET_TEXTS["stage1" if recipe is None else recipe.kind]
    if isinstance(recipe, Stage1Recipe) and recipe.loss.novel:
        text += " Then the camera of an exact view, where there is one: rendered, true."
    blocks: list[Html] = []
    for path in sorted((run / "sheets").glob("*.png"))[: -_SHEETS - 1 : -1]:
        try:
            blocks.append(_picture(path))
        except Vq3dError as error:
            blocks.append(paragraph(f"A sheet is left out: {error}"))
    return [paragraph(text), *blocks] if blocks else [paragraph("There are no pictures yet.")]


def _picture(path: Path) -> Html:
    """The sheet itself, or a smaller JPEG of one that is wide: at 256 pixels an image a sheet takes megabytes."""
    image = read_image(path)
    height_px, width_px = image.shape[-2:]
    if width_px <= _SHEET_WIDTH_PX:
        return media(path, path.stem, width_px=min(2 * width_px, _SHEET_WIDTH_PX))
    height_px = max(round(height_px * _SHEET_WIDTH_PX / width_px), 1)
    return media_bytes(encode_jpeg(resize(image, height_px, _SHEET_WIDTH_PX)), "image/jpeg", path.stem)


def _curve_sections(records: Sequence[Record], recipe: Recipe | None) -> list[Section]:
    for record in records:
        for name, figure in (("l2", "psnr"), ("novel_l2", "novel_psnr")):
            if record.get(name, 0.0) > 0:
                record[figure] = 10.0 * math.log10(4.0 / record[name])  # colours in [-1, 1]: the peak is 2
        if isinstance(recipe, Stage1Recipe) and "perplexity" in record:
            record.setdefault("code_usage", record["perplexity"] / recipe.model.codebook_size)
    names = dict.fromkeys(name for record in records for name, value in record.items() if type(value) is float)
    novel = isinstance(recipe, Stage1Recipe) and recipe.loss.novel
    curves = [*_CURVES["stage1" if recipe is None else recipe.kind], *([_NOVEL_CURVES] if novel else [])]
    curves += [_HELD_OUT_CURVES] if names.keys() & set(_HELD_OUT_CURVES[1]) else []
    known = {"images_seen", *(name for _, figures, _ in [*curves, _STEPS] for name in figures)}
    rest = [name for name in names if name not in known and not name.startswith(_SCORES)]
    sections = [_curve_section(curve, records, names) for curve in curves]
    scores = _charts([name for name in names if name.startswith(_SCORES)], records)
    if scores or not isinstance(recipe, Stage2Recipe | DepthRecipe):
        off = isinstance(recipe, Stage1Recipe) and not recipe.adversarial.on
        none = "This run has no discriminators." if off else "The discriminators have not started."
        sections.append(Section("Discriminators", [paragraph(_SCORES_TEXT if scores else none), *scores]))
    sections.append(_curve_section(_STEPS, records, names))
    return [*sections, *([Section("Other figures", _charts(rest, records))] if rest else [])]


def _curve_section(curve: CurveSection, records: Sequence[Record], names: Mapping[str, None]) -> Section:
    title, figures, text = curve
    charts = _charts([name for name in figures if name in names], records)
    return Section(title, [paragraph(text if charts else "There are no figures yet."), *charts])


def _charts(names: Sequence[str], records: Sequence[Record]) -> list[Html]:
    """Figures over images seen, in a row; gaps where one is missing."""
    x = [record["images_seen"] for record in records]
    charts = []
    for name in names:
        y = [record.get(name, math.nan) for record in records]
        charts.append(line_chart(_TITLES.get(name) or name, x, y, x_label="images", log_y=name in _LOG_SCALE))
    return [row(charts)] if charts else []


def _held_out_section(run: Path) -> list[Section]:
    """Figures on held-out images by class, the worst first; none where there is no sound `held_out.json`."""
    try:
        figures = json_value((run / "held_out.json").read_text())
        rows = [_held_out_row(str(name), row) for name, row in figures["classes"].items()]
        everything = _held_out_row("all", figures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    rows.sort(key=lambda row: -row[2] if math.isfinite(row[2]) else math.inf)
    cells = [["class", "images", "bits a code", "by counting", "share"]]
    for name, images, bits, unigram in [everything, *rows[:_MOST_CLASSES]]:
        share = f"{bits / unigram:.1%}" if unigram > 0 else "-"
        cells.append([name, f"{images:.0f}", f"{bits:.3f}", f"{unigram:.3f}", share])
    seen = number(figures, "images_seen") or 0
    text = f"At {seen:.0f} images. The worst classes first; by counting: the entropy of a code given the class."
    return [Section("Held-out images by class", [paragraph(text), table(cells)])]


def _held_out_row(name: str, row: Mapping[str, Any]) -> tuple[str, float, float, float]:
    """Name, images, bits and bits by counting; NaN for what is not there."""
    values = [number(row, key) for key in ("images", "bits", "unigram_bits")]
    images, bits, unigram = (math.nan if value is None else value for value in values)
    return name, images, bits, unigram


def _text(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
