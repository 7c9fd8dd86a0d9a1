"""Sheets of a prior in training show what `vq3d sample` draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.model.build import build_prior
from vq3dcli.pipelines.sampling.record import SampleWish
from vq3dcli.pipelines.sampling.sample import draw_samples, sharpening_of
from vq3dcli.training.sheets import sheet_codes
from vq3dcli.weights_file import TokenFacts, load_prior, save_weights


def test_a_tile_of_a_sheet_can_be_drawn_again(tiny_prior_recipe: Callable[..., Stage2Recipe], tmp_path: Path) -> None:
    recipe = tiny_prior_recipe("sampling.guidance=1.5", "sampling.top_k=20")
    torch.manual_seed(0)
    prior = build_prior(recipe, codebook_size=32, length=16, classes=3).eval()
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = ("ant", "bee", "cow")
    facts = TokenFacts(stage1_sha256="ab" * 32, codebook_size=32, length=16, class_names=names)
    save_weights(tmp_path / "prior.safetensors", prior, recipe, {}, facts)
    chosen, codes = sheet_codes(prior, 3, recipe.sampling, 5)
    assert chosen.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len({tuple(row.tolist()) for row in codes}) == 12
    loaded = load_prior(tmp_path / "prior.safetensors")
    for class_index in range(3):
        drawn = draw_samples(loaded, SampleWish([class_index], 4, 5, sharpening_of(loaded)))
        for sample, row in zip(drawn, codes[chosen == class_index], strict=True):
            assert torch.equal(sample.codes, row)


def test_a_sheet_without_classes(tiny_prior_recipe: Callable[..., Stage2Recipe]) -> None:
    recipe = tiny_prior_recipe()
    prior = build_prior(recipe, codebook_size=32, length=16, classes=0)
    chosen, codes = sheet_codes(prior, 0, recipe.sampling, 0)
    assert chosen.tolist() == [-1] * 4
    assert codes.shape == (4, 16)
