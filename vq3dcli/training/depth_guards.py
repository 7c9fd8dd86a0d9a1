"""What the training of a depth network is watched for."""

from __future__ import annotations

from vq3dcli.config.schema import DepthRecipe
from vq3dcli.training.guards import gradient_guard
from vq3dcli.training.health import Guard


def depth_guards(recipe: DepthRecipe) -> tuple[Guard, ...]:
    """What a run is watched for."""
    schedule = recipe.training
    return (
        gradient_guard(schedule, "a longer training.warmup_images"),
        Guard(
            "blind network",
            "loss",
            cause="maps that do not follow the image: the loss is that of one map for all",
            remedy="a higher training.learning_rate, fewer model.frozen_blocks, and a look at the labels",
            high=1.4,  # the loss of the vertical gradient on rendered scenes
            records=5,
            from_images=max(schedule.images // 10, 10_000),
        ),
    )
