"""What `vq3d demo` samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.toyscenes import CLASS_NAMES
from vq3dcli.model.build import build_prior
from vq3dcli.pipelines.quickstart.demo import total_frames
from vq3dcli.prior_checkpoint import TokenFacts, load_prior, save_prior

PHOTOS = tuple(f"n{i:08d}" for i in range(20))


@pytest.mark.parametrize(
    ("names", "shown"), [((), 1), (CLASS_NAMES, 16), (PHOTOS, 8), ((*PHOTOS[:3], "torus", *PHOTOS[3:], "arch"), 10)]
)
def test_all_classes_of_toys_are_sampled_and_some_of_photos(
    names: tuple[str, ...], shown: int, tiny_prior_recipe: Callable[..., Stage2Recipe], tmp_path: Path
) -> None:
    recipe = tiny_prior_recipe()
    facts = TokenFacts(stage1_sha256="ab" * 32, codebook_size=32, length=16, class_names=names)
    model = build_prior(recipe, codebook_size=32, length=16, classes=len(names))
    save_prior(tmp_path / "prior.safetensors", model, recipe, facts, {})
    frames = total_frames(load_prior(tmp_path / "prior.safetensors")) - total_frames(None)
    assert frames == 2 * shown + 2 * 48  # two pictures of each class, and two videos
