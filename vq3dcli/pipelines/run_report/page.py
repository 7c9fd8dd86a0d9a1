"""A training run's page, `RUN/report.html`: what the run was, its health, its newest pictures, its curves, its recipe.

Made from what the folder holds, at any moment: while the run goes on, when it was interrupted, when files are missing
or damaged, in which case the page says so.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.config.load import load_either
from vq3dcli.config.schema import DepthRecipe, Recipe, Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_jpeg, read_image, resize
from vq3dcli.errors import InputMissingError, Vq3dError
from vq3dcli.export.charts import line_chart, number_text
from vq3dcli.export.page import Html, Section, code, media, media_bytes, paragraph, row, table, write_page
from vq3dcli.pipelines.run_report.kinds import (
    HELD_OUT_CURVES,
    NOVEL_PSNR,
    PSNR,
    TITLES,
    USAGE,
    CurveSection,
    curve_sections,
    held_out_section,
    model_rows,
    sheet_text,
)
from vq3dcli.sealed import json_value
from vq3dcli.training.health import Finding, guards_of, number, replay

Record = Mapping[str, Any]

# Curves whose early values dwarf the rest.
_LOG_SCALE = ("loss", "l1", "l2", "depth", "commitment", "codebook", "auxiliary", "gradient_norm")


_SHEETS = 3
_SHEET_WIDTH_PX = 1040
_DISCRIMINATOR_PREFIX = "adversarial_"
_STEP_TEXT = "Gradient norm before clipping. Wait and memory of the process that has most; utilisation on GPUs alone."
_STEP = ("learning_rate", "gradient_norm", "images_per_second", "data_wait", "peak_memory_gb", "mfu")


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
    records = _in_order(read_metrics(run / "metrics.jsonl"))
    try:
        recipe, problem = load_either(str(run / "recipe.toml")), ""
    except Vq3dError as error:
        recipe, problem = None, str(error)
    name = run.resolve().name
    sections = [
        Section("The run", [table(_facts(run, records, recipe))]),
        Section("Health", _health(records, recipe, problem)),
        Section("Newest pictures", _pictures(run, sheet_text(recipe))),
        *_curve_sections(_with_derived(records, recipe), recipe),
        *held_out_section(run),
        Section("Recipe", [code(_text(run / "recipe.toml") or "There is no recipe.")]),
    ]
    return f"vq3d run {name}", _status(run, records, recipe), sections


def _in_order(records: Sequence[Record]) -> list[Record]:
    """Those that have a position, each after the one before; a damaged file may hold anything."""
    kept: list[Record] = []
    last = -math.inf
    for record in records:
        seen = number(record, "images_seen")
        if seen is not None and math.isfinite(seen) and seen > last:
            kept.append(record)
            last = seen
    return kept


def _status(run: Path, records: Sequence[Record], recipe: Recipe | None) -> str:
    seen = int(records[-1]["images_seen"]) if records else 0
    if recipe is None:
        return f"{seen} images seen"
    total = recipe.training.images
    if seen >= total and (run / "weights.safetensors").exists():
        return f"finished: {seen} images"
    return f"{seen} of {total} images ({seen / total:.0%}): going on or interrupted; the same command again continues"


def _facts(run: Path, records: Sequence[Record], recipe: Recipe | None) -> list[list[str]]:
    rows = [["", ""], ["state", _status(run, records, recipe)]]
    if recipe is not None:
        rows += model_rows(recipe)
    with contextlib.suppress(ValueError):
        recorded = json_value(_text(run / "run.json"))
        if isinstance(recorded, dict):
            rows += [
                [str(key), value if isinstance(value, str) else json.dumps(value)] for key, value in recorded.items()
            ]
    seconds = _training_seconds(records)
    if seconds > 0:
        rows.append(["time in steps", f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"])
    if records:
        last = [(name, number(records[-1], name)) for name in records[-1] if name != "images_seen"]
        rows += [
            [f"last {name}", number_text(value)] for name, value in last if value is not None and math.isfinite(value)
        ]
    return rows


def _training_seconds(records: Sequence[Record]) -> float:
    """Images of each interval over its speed, summed; pauses between two calls of a run do not count."""
    seconds, before = 0.0, 0.0
    for record in records:
        seen, rate = float(record["images_seen"]), number(record, "images_per_second")
        if rate is not None and rate > 0:
            seconds += (seen - before) / rate
        before = seen
    return seconds


def _health(records: Sequence[Record], recipe: Recipe | None, problem: str) -> list[Html]:
    if recipe is None:
        return [paragraph(f"Not judged, for the recipe cannot be read: {problem}")]
    guards = guards_of(recipe)
    findings = replay(records, guards)[1]
    watched = f"{len(guards)} guards watch this run"
    if not findings:
        return [paragraph(f"{watched}; none has spoken in {len(records)} records.")]
    rows = [["guard", "from", "until", "figure", "likely cause", "try"]]
    marks: list[bool | None] = []
    for finding, until in _episodes(findings):
        guard = finding.guard
        over = "" if until is None else number_text(until)
        since = number_text(finding.images_seen)
        rows.append([guard.name, since, over, f"{guard.figure} {finding.value:.3g}", guard.cause, guard.remedy])
        marks.append(False if until is None else None)
    return [paragraph(f"{watched}. A cross: not recovered yet. Positions are images seen."), table(rows, marks)]


def _episodes(findings: Sequence[Finding]) -> list[tuple[Finding, int | None]]:
    """Each warning with the images seen at its recovery, None without one."""
    return [
        (
            finding,
            next((x.images_seen for x in findings[i:] if x.recovered and x.guard.name == finding.guard.name), None),
        )
        for i, finding in enumerate(findings)
        if not finding.recovered
    ]


def _pictures(run: Path, text: str) -> list[Html]:
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


def _with_derived(records: Sequence[Record], recipe: Recipe | None) -> list[Record]:
    """The records with PSNR and code usage."""
    codes = recipe.model.codebook_size if isinstance(recipe, Stage1Recipe) else None
    derived: list[Record] = []
    for record in records:
        new: dict[str, Any] = {name: _plain(value) for name, value in record.items()}
        for name, figure in (("l2", PSNR), ("novel_l2", NOVEL_PSNR)):
            squared_error = number(record, name)
            if squared_error is not None and squared_error > 0:
                new[figure] = 10.0 * math.log10(4.0 / squared_error)  # colours in [-1, 1]: the peak is 2
        perplexity = number(record, "perplexity")
        if perplexity is not None and codes and USAGE not in record:
            new[USAGE] = perplexity / codes
        derived.append(new)
    return derived


def _plain(value: Any) -> Any:
    """Numbers as floats, so that one of 400 digits in a damaged file is a gap."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number({"value": value}, "value")
    return value


def _curve_sections(records: Sequence[Record], recipe: Recipe | None) -> list[Section]:
    names = _curve_names(records)
    measured = [HELD_OUT_CURVES] if set(HELD_OUT_CURVES[1]) & set(names) else []
    curves = [*curve_sections(recipe), *measured]
    steps = ("Steps", _STEP, _STEP_TEXT)
    known = {name for _, figures, _ in [*curves, steps] for name in figures}
    scores = [name for name in names if name not in known and name.startswith(_DISCRIMINATOR_PREFIX)]
    rest = [name for name in names if name not in known and name not in scores]
    sections = [_curve_section(curve, records, names) for curve in curves]
    if scores or not isinstance(recipe, Stage2Recipe | DepthRecipe):
        sections.append(_discriminators(scores, records, recipe))
    sections.append(_curve_section(steps, records, names))
    if rest:
        sections.append(Section("Other figures", _row(rest, records)))
    return sections


def _discriminators(scores: Sequence[str], records: Sequence[Record], recipe: Recipe | None) -> Section:
    off = isinstance(recipe, Stage1Recipe) and not recipe.adversarial.on
    told = "This run has no discriminators." if off else "The discriminators have not started."
    text = "Scores above 0 mean real; accuracy is 0.5 by chance and 1 when the discriminator wins." if scores else told
    return Section("Discriminators", [paragraph(text), *_row(scores, records)])


def _curve_section(curve: CurveSection, records: Sequence[Record], names: Sequence[str]) -> Section:
    title, figures, text = curve
    charts = _row([name for name in figures if name in names], records)
    return Section(title, [paragraph(text if charts else "There are no figures yet."), *charts])


def _row(names: Sequence[str], records: Sequence[Record]) -> list[Html]:
    """Figures over images seen, on a logarithmic axis where early values dwarf the rest; gaps where one is missing."""
    x = [float(record["images_seen"]) for record in records]
    charts = []
    for name in names:
        y = [math.nan if record.get(name) is None else float(record[name]) for record in records]
        charts.append(line_chart(TITLES.get(name) or name, x, y, x_label="images", log_y=name in _LOG_SCALE))
    return [row(charts)] if charts else []


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


def _curve_names(records: Sequence[Record]) -> list[str]:
    """Names of figures that are numbers in every record that has them, in the order in which they appear."""
    names = dict.fromkeys(name for record in records for name in record)
    values = {name: [record[name] for record in records if record.get(name) is not None] for name in names}
    return [
        name
        for name, found in values.items()
        if found and name != "images_seen" and all(type(value) in (int, float) for value in found)
    ]


def _text(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
