"""What a Stage 2 run is watched for: the guards of `training.health`, over the records of `training/stage2.py`."""

from __future__ import annotations

from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.training.guards import gradient_guard
from vq3dcli.training.health import Guard, Record, number

# Codes of new images that cost a quarter more than those of training: the prior knows its images, not their kind.
_MEMORISED = 1.25


def stage2_guards(recipe: Stage2Recipe) -> tuple[Guard, ...]:
    """The guards of a run with this recipe."""
    schedule = recipe.training
    return (
        gradient_guard(schedule, "a longer training.warmup_images"),
        Guard(
            "overfitting",
            "held_out_bits",
            cause="a prior that learns its images by heart: held-out bits are far above those of training",
            remedy="fewer training.images, a higher model.dropout, a smaller model.width, vq3d tokenize --views 2",
            high=_MEMORISED,
            records=2,
            from_images=schedule.warmup_images,
            measure=_memorised,
        ),
        Guard(
            "nothing learnt",
            "held_out_share",
            cause="a prior that predicts no better than the frequencies of codes do",
            remedy="a higher training.learning_rate, more training.images, and a look at the tokens",
            high=1.0,
            records=1,
            from_images=max(schedule.images // 2, schedule.warmup_images),
        ),
    )


def _memorised(record: Record) -> float | None:
    held_out, bits = number(record, "held_out_bits"), number(record, "bits")
    return held_out / bits if held_out is not None and bits else None
