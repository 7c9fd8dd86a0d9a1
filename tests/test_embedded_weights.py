"""The weights that come with the package."""

from __future__ import annotations

import torch

from vq3dcli.checkpoint import embedded_weights_path, load_weights
from vq3dcli.data.toyscenes import render_scenes, sample_scenes
from vq3dcli.metrics.geometry import spearman
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene


def test_they_are_small_and_say_what_they_are() -> None:
    assert embedded_weights_path().stat().st_size < 25_000_000
    card = load_weights().card
    assert card["images_seen"] > 0
    assert {"data", "command", "figures", "limits", "licence"} <= card.keys()


def test_they_reconstruct_scenes_that_they_never_saw() -> None:
    """Loose bounds: the figures are in docs/measurements.md; a broken file scores about 8 dB and 0."""
    loaded = load_weights()
    size = loaded.recipe.model.image_size
    camera = build_canonical_camera(loaded.recipe, size, 4)
    views = render_scenes(sample_scenes(torch.arange(4), seed=1, purpose="eval"), camera)
    seen = reconstruct_scene(loaded.model, views.rgb).render(camera, samples=48)
    assert psnr(seen.rgb, views.rgb).mean() > 20
    assert spearman(seen.s, views.s).mean() > 0.6
