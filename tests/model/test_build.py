"""Every recipe builds: on the meta device, where there are shapes without numbers."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.config.load import load_either, recipe_names
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.model.build import build_autoencoder, build_prior
from vq3dcli.training.adversary import Adversary

# The demo's files travel with the package.
_DEMO_BYTES = 33e6


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("depth-")])
def test_every_recipe_builds(name: str) -> None:
    recipe = load_either(name)
    with torch.device("meta"):
        if isinstance(recipe, Stage2Recipe):
            model: torch.nn.Module = build_prior(recipe, codebook_size=512, length=64, classes=1000)
        else:
            assert isinstance(recipe, Stage1Recipe)
            model = build_autoencoder(recipe)
            side = recipe.model.image_size * recipe.model.plane_scale
            assert model.plane_head.base.shape == (1, 3, side, side, recipe.model.plane_channels)
            adversary = Adversary(recipe, classes=1000, device=torch.device("meta"))
            assert len(adversary.discriminators) == (2 if recipe.adversarial.on else 0)
            if name.startswith("demo"):
                assert 2 * sum(p.numel() for p in model.parameters()) < _DEMO_BYTES
    assert all(p.is_meta for p in model.parameters())
