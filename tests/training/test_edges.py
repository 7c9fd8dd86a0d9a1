"""Recipes at the edge of what is legal: they train, and every figure of theirs is a number."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.errors import RecipeError
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, LABEL_RELATIVE
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.stage1 import train

_GAME = "adversarial.main=0.1 adversarial.novel=0.1 adversarial.start_images=0 adversarial.minibatch_group=1"


class _Noise:
    """Random images with labels of one kind."""

    class_names: tuple[str, ...] = ()
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, batch_size: int, kind: int) -> None:
        self.batch_size, self.kind, self.metric_labels = batch_size, kind, kind == LABEL_METRIC

    def batches(self, images_seen: int) -> Iterator[Batch]:
        size = self.batch_size
        while True:
            drawn = torch.Generator().manual_seed(images_seen)
            yield Batch(
                image=torch.randint(0, 256, (size, 3, 16, 16), generator=drawn).byte(),
                s=torch.rand(size, 16, 16, generator=drawn),
                label_kind=torch.full((size,), self.kind, dtype=torch.int8),
                class_index=torch.full((size,), -1),
                index=torch.arange(images_seen, images_seen + size),
                keys=[str(row) for row in range(size)],
            )
            images_seen += size


@pytest.mark.parametrize("kind", [LABEL_NONE, LABEL_METRIC, LABEL_RELATIVE])
@pytest.mark.parametrize(
    "overrides",
    [
        "rendering.rays_per_image=2 rendering.samples=2 rendering.importance_samples=1 loss.depth_order=1",
        "rendering.rays_per_image=2 training.batch_size=1 model.patch=16 training.quantize_from_images=0",
        "rendering.rays_per_image=2 loss.alignment=least_squares",
        "model.patch=8 model.plane_scale=0.125 model.plane_channels=1 model.codebook_size=2 model.code_dim=2",
        f"training.batch_size=1 adversarial.ramp_images=0 adversarial.r1=0 {_GAME}",
        f"adversarial.yaw_deg=180 adversarial.pitch_deg=89 adversarial.augmentation=adaptive {_GAME}",
        "loss.l2=0 loss.l1=0 loss.auxiliary=0 loss.codebook=0 loss.commitment=0 loss.depth=0",
        "loss.alignment_std=0.999 loss.alignment_mean=0.001 training.precision=bfloat16",
        "training.warmup_images=0 training.final_learning_rate_factor=0 training.ema_half_life_images=0.001",
        "training.images=8 training.gradient_clip=1e-30 training.warmup_images=1000000000000",
    ],
)
def test_a_recipe_at_an_edge_trains(
    tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path, overrides: str, kind: int
) -> None:
    recipe = tiny_recipe("training.images=16", "training.log_every_images=1", *overrides.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a deviation of one number, for example
        result = train(recipe, _Noise(recipe.training.batch_size, kind), tmp_path / "run")
    assert result.images_seen == recipe.training.images
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "l2", "depth", "gradient_norm", "perplexity"} <= line.keys() for line in lines)
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_one_ray_has_no_relief_and_is_refused(tiny_recipe: Callable[..., Stage1Recipe]) -> None:
    with pytest.raises(RecipeError, match="rays_per_image"):
        tiny_recipe("rendering.rays_per_image=1")


def test_a_figure_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"images_seen": 8, "loss": 1.0, "relief": math.nan, "chroma_ratio": math.inf})
    assert folder.last_metrics() == {"images_seen": 8, "loss": 1.0}
