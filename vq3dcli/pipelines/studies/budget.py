"""Minutes to images, once: a run's length is counted in images, so that resuming cannot change it.

A short calibration trains for some seconds and takes its speed; what follows from it is recorded beside the run, and
a later call reads the record instead of measuring again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.errors import DataError, StoppedError, UsageError
from vq3dcli.sealed import read_sealed_json, write_sealed_json

DEFAULT_MINUTES = 6.0
CALIBRATION_SECONDS = 12.0
# The first steps pay for memory and thread pools, and would make the run too short.
_WARM_STEPS = 4
# What checkpoints, contact sheets and the averaging of the weights take of the time.
_USEFUL_SHARE = 0.92

AnyRecipe = TypeVar("AnyRecipe", Stage1Recipe, Stage2Recipe)


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


def measure_budget(
    path: Path,
    train: Callable[..., object],
    *,
    minutes: float,
    batch_size: int,
    seed: int,
    seconds: float = CALIBRATION_SECONDS,
    should_stop: Callable[[], bool] = lambda: False,
) -> Budget:
    """Train for some seconds beside `path`, throw that away, and record the budget in `path`.

    Args:
        train: Trains what will be trained, but for its length, in a folder; takes `report` and `should_stop`.

    Raises `StoppedError`: `should_stop` became true.
    """
    folder = path.parent / "calibration"
    shutil.rmtree(folder, ignore_errors=True)
    moments: list[float] = []

    def enough() -> bool:
        return should_stop() or (len(moments) > _WARM_STEPS and moments[-1] - moments[0] > seconds)

    try:
        train(folder, report=lambda step: moments.append(time.perf_counter()), should_stop=enough)
    except StoppedError:
        if should_stop():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    warm = moments[min(_WARM_STEPS, len(moments) - 2) :]
    rate = batch_size * (len(warm) - 1) / (warm[-1] - warm[0])
    budget = budget_of(minutes, rate, batch_size=batch_size, seed=seed)
    write_sealed_json(path, asdict(budget))
    return budget


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
