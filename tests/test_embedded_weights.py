"""The weights that come with the package."""

from __future__ import annotations

import torch

from vq3dcli.checkpoint import embedded_weights_path, load_weights
from vq3dcli.data.toyscenes import CLASS_NAMES, render_scenes, sample_scenes
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.metrics.geometry import spearman
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene, to_model_range
from vq3dcli.prior_checkpoint import embedded_prior_path, load_prior


def test_they_are_small_and_say_what_they_are() -> None:
    assert embedded_weights_path().stat().st_size + embedded_prior_path().stat().st_size < 25_000_000
    for card in (load_weights().card, load_prior().card):
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


def test_the_prior_knows_the_codes_and_the_classes_of_scenes_that_it_never_saw() -> None:
    """Loose bounds: the figures are in docs/measurements.md; counting codes takes about 9.7 bits a code."""
    stage1, prior = load_weights(), load_prior()
    prior.check_stage1(stage1)
    names = prior.tokens.class_names
    toys = torch.tensor([names.index(name) for name in CLASS_NAMES])
    scenes = sample_scenes(torch.arange(24), seed=1, purpose="eval")
    views = render_scenes(scenes, build_canonical_camera(stage1.recipe, stage1.recipe.model.image_size, 24))
    with torch.inference_mode():
        codes = stage1.model.codes(to_model_range(views.rgb))
        right, wrong = (
            token_nats(prior.model(codes, given), codes).sum(1).mean() * BITS_PER_NAT
            for given in (toys[scenes.class_index], toys[(scenes.class_index + 5) % len(CLASS_NAMES)])
        )
    assert right / codes.shape[1] < 5
    assert right < wrong - 1
