"""What studies at toy scale share: data, budget, a training begun, continued or finished already, figures, sections.

A run's length is counted in images, so that resuming cannot change it. Where minutes are asked for, a short calibration
trains for some seconds and takes its speed; what follows from it is recorded beside the run, and a later call reads the
record instead of measuring again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, StoppedError, UsageError
from vq3dcli.export.page import Html, Section, media, row, table
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.evaluation.geometry import (
    PROTOCOL,
    Template,
    evaluate_geometry,
    kept_metrics,
    model_predictor,
    toy_template,
)
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.weights_file import LoadedWeights

Metrics = Mapping[str, float]
_VIDEO_WIDTH_PX = 256
DEFAULT_MINUTES = 6.0
CALIBRATION_SECONDS = 12.0
# The first steps pay for memory and thread pools, and would make the run too short.
_WARM_STEPS = 4
# What checkpoints, contact sheets and the averaging of the weights take of the time.
_USEFUL_SHARE = 0.92

AnyRecipe = TypeVar("AnyRecipe", Stage1Recipe, Stage2Recipe)


def geometry_targets(metrics: Metrics) -> list[tuple[str, str, str, bool]]:
    """Figures that a quickstart should reach: name, what it should be, what it says, and whether it is so."""
    psnr, novel, spearman, error, relief, variance = (
        metrics[name] for name in ("psnr", "novel_psnr", "spearman", "ssi_error", "relief", "weight_variance")
    )
    copied = max(metrics["copy_psnr"], metrics["flat_psnr"])
    ranked, most = metrics["template_spearman"] + 0.05, 0.57 * metrics["template_ssi_error"]
    own, others = "its own copy and flat warp", "the image-blind template's"
    return [
        ("psnr", "at least 22", "main view against the input, dB", psnr >= 22),
        ("novel_psnr", f"above {copied:.2f}, {own}", "views 10 and 20 degrees to the side, dB", novel > copied),
        ("spearman", f"at least {ranked:.3f}, {others} + 0.05", "rank correlation of disparity", spearman >= ranked),
        ("ssi_error", f"at most {most:.3f}, 0.57 of {others}", "error after the best scale and shift", error <= most),
        ("relief", "0.8 to 1.2", "rendered over true spread of disparity", 0.8 <= relief <= 1.2),
        ("weight_variance", "at most 5e-4", "spread of a ray's weights: floaters", variance <= 5e-4),
    ]


def geometry_section(metrics: Metrics, sheet: Path | None = None) -> Section:
    """Figures of `evaluate_geometry` beside what they should reach, then all of them, then a contact sheet."""
    targets = geometry_targets(metrics)
    rows: list[list[object]] = [["figure", "measured", "wanted", "what it is"]]
    rows += [[name, metrics[name], wanted, meaning] for name, wanted, meaning, _ in targets]
    marks = [met for *_, met in targets]
    blocks = [table(rows, marks), table([("figure", "measured"), *metrics.items()])]
    if sheet is not None:
        caption = "Two rows a scene, the exact one above: input, disparity, then the six evaluation views."
        blocks.append(media(sheet, caption, width_px=1040))
    return Section("Geometry on toy scenes never trained on", blocks)


def video_rows(rows: Sequence[tuple[Path, Path, Path]]) -> list[Html]:
    """A row a scene: its picture, a video and its disparity."""
    named = [((picture, picture.stem), (video, video.stem), (s, "disparity")) for picture, video, s in rows]
    return [row([media(path, name, width_px=_VIDEO_WIDTH_PX) for path, name in files]) for files in named]


def stop_between(should_stop: Callable[[], bool], folder: Path) -> None:
    """Raise `StoppedError` between two parts where that is asked for."""
    if should_stop():
        raise StoppedError(f"stopped as asked ({folder})", remedy="the same command again continues")


def make_toy_data(folder: Path, *, scenes: int, size_px: int, seed: int, counting: Counting) -> None:
    """Shards of toy scenes with exact labels, as far as they are not there."""
    with counting("making toy scenes", "scenes") as count:
        prepare_toyscenes(folder, count=scenes, size=size_px, seed=seed, progress=count)
    with counting("labelling", "scenes") as count:
        label_exact(folder, progress=count)


def train_once(run: Path, description: str, counting: Counting, train: Callable[..., object]) -> None:
    """Call `train`, which takes `report`, unless the run's folder has weights."""
    if not (run / "weights.safetensors").exists():
        with counting(description, "images") as count:
            train(report=lambda progress: count(progress.images_seen, progress.total_images))


def measure_once(
    path: Path,
    weights: LoadedWeights,
    *,
    count: int,
    seed: int,
    identity: Mapping[str, object],
    description: str,
    counting: Counting,
    template: Template | None = None,
    sheet: Path | None = None,
) -> dict[str, float]:
    """Figures of weights on evaluation scenes, measured once and kept."""
    identity = {"protocol": PROTOCOL, "weights": weights.sha256, "count": count, **identity}
    known = kept_metrics(path, identity)
    if known is not None:
        return known
    size_px = weights.recipe.model.image_size
    with counting(description, "scenes") as progress:
        result = evaluate_geometry(
            model_predictor(weights),
            count=count,
            seed=seed,
            size_px=size_px,
            template=template or toy_template(size_px),
            on_progress=adding(progress, count),
        )
    if sheet is not None:
        assert result.sheet is not None
        write_bytes(sheet, encode_png(result.sheet))
    write_sealed_json(path, {**identity, "metrics": result.metrics, "views": result.views})
    return result.metrics


@dataclass(frozen=True)
class Budget:
    """How long a run is and why."""

    minutes: float  # what was asked for
    images_per_second: float  # what the calibration measured
    images: int  # what follows, a multiple of the batch size
    seed: int  # of the run


def recorded_budget(path: Path, *, minutes: float | None, seed: int) -> Budget | None:
    """The budget in a file, None if there is none yet. Raises `UsageError` for another one, `DataError` for damage."""
    if not path.exists():
        return None
    try:
        budget = Budget(**read_sealed_json(path, what="record", remedy="another --out"))
    except TypeError as error:  # of something else
        raise DataError(f"damaged record ({path}): {error}", remedy="another --out") from error
    if (minutes is not None and minutes != budget.minutes) or seed != budget.seed:
        raise UsageError(
            f"this run was begun with --minutes {budget.minutes:g} --seed {budget.seed} ({path.parent})",
            remedy="the same options, or another --out",
        )
    return budget


def measured_rate(
    train: Callable[..., object],
    scratch: Path,
    batch_size: int,
    *,
    seconds: float = CALIBRATION_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Images that are trained a second, by a run of so many seconds in a folder `scratch`, which is thrown away.

    Args:
        train: Trains what will be trained, but for its length, in a folder; takes `report` and `should_stop`.

    Raises `StoppedError`: `should_stop` became true.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    moments: list[float] = []

    def enough() -> bool:
        return should_stop() or (len(moments) > _WARM_STEPS and moments[-1] - moments[0] > seconds)

    try:
        train(scratch, report=lambda step: moments.append(clock()), should_stop=enough)
    except StoppedError:
        if should_stop():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    warm = moments[min(_WARM_STEPS, len(moments) - 2) :]
    return batch_size * (len(warm) - 1) / (warm[-1] - warm[0])


def budget_of(minutes: float, images_per_second: float, *, batch_size: int, seed: int) -> Budget:
    """The budget for a measured speed: at least 20 steps, whole steps."""
    steps = int(minutes * 60.0 * images_per_second * _USEFUL_SHARE / batch_size)
    return Budget(minutes, round(images_per_second, 3), max(20, steps) * batch_size, seed)


def with_budget(recipe: AnyRecipe, images: int, images_per_second: float) -> AnyRecipe:
    """`recipe` for a run of so many images: the parts of its schedule keep their share, and none gets longer.

    Checkpoints come once a minute and contact sheets three times, since both take seconds.
    """
    old = recipe.training
    share = min(1.0, images / old.images)
    changes: dict[str, Any] = {
        "images": images,
        "warmup_images": int(old.warmup_images * share),
        "ema_half_life_images": old.ema_half_life_images * share,
        "log_every_images": max(old.batch_size, images // 100),
        "sheet_every_images": max(old.batch_size, images // 3),
        "checkpoint_every_images": max(old.batch_size, int(60 * images_per_second)),
    }
    sections: dict[str, Any] = {}
    if isinstance(recipe, Stage1Recipe):
        changes["quantize_from_images"] = int(recipe.training.quantize_from_images * share)
        later = {name: int(getattr(recipe.adversarial, name) * share) for name in ("start_images", "ramp_images")}
        sections["adversarial"] = recipe.adversarial.model_copy(update=later)
    return recipe.model_copy(update={**sections, "training": old.model_copy(update=changes)})
