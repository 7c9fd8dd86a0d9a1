"""Codes that start anew have no past: when, from what, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.codes import update_codes
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Objective
from vq3dcli.training.optim import build_optimizer
from vq3dcli.training.state import RunState, average_of

Make = Callable[..., Stage1Recipe]
CODES = 32


@pytest.fixture
def state(tiny_recipe: Make) -> RunState:
    """After a step of random gradients: every moment and the average differ from nothing."""
    recipe = tiny_recipe("training.learning_rate=1e-3", "training.weight_decay=0")
    model = build_autoencoder(recipe)
    optimizer = build_optimizer(model, recipe.training)
    state = RunState(model, average_of(model), optimizer)
    torch.manual_seed(0)
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    return state


def _update(state: RunState, recipe: Stage1Recipe, codes: torch.Tensor) -> torch.Tensor:
    outputs = torch.nn.functional.normalize(torch.randn(*codes.shape, 8), dim=-1)
    none = torch.zeros(())
    step = Objective(none, {}, none, codes, outputs, outputs + 1, ())
    counts = update_codes(state, recipe.training, step, Ranks())
    assert torch.equal(counts, torch.bincount(codes.flatten(), minlength=CODES).float())
    return outputs.flatten(0, 1)


def _have_no_past(state: RunState, fresh: torch.Tensor, outputs: torch.Tensor) -> None:
    """Codes of the mask are encoder outputs, in the average, too, and without moments; others are as they were."""
    model, average = state.model.quantizer.codebook.detach(), state.average.quantizer.codebook
    is_output = (model[:, None] == outputs).all(-1).any(-1)
    assert torch.equal(is_output, fresh)
    assert torch.equal((model == average).all(-1), fresh)
    for moment in ("exp_avg", "exp_avg_sq"):
        values = state.optimizer.state[state.model.quantizer.codebook][moment]
        assert torch.equal((values == 0).all(-1), fresh)


@pytest.mark.parametrize(("chroma", "images_seen", "starts"), [(0.6, 16, True), (0.4, 16, False), (0.4, 64, True)])
def test_quantisation_starts_with_colour_or_with_patience(
    tiny_recipe: Make, state: RunState, chroma: float, images_seen: int, starts: bool
) -> None:
    state.chroma, state.images_seen = chroma, images_seen
    outputs = _update(state, tiny_recipe(), torch.zeros(8, 16, dtype=torch.int64))
    assert bool(state.model.quantizer.active) == starts
    _have_no_past(state, torch.full((CODES,), starts), outputs)


def test_only_codes_that_nothing_uses_start_anew(tiny_recipe: Make, state: RunState) -> None:
    state.model.quantizer.active.fill_(True)
    state.images_seen = 40
    _update(state, tiny_recipe(), torch.arange(128).reshape(8, 16) % 20)
    _have_no_past(state, torch.zeros(CODES, dtype=torch.bool), torch.zeros(1, 8))  # too few tokens to judge by
    outputs = _update(state, tiny_recipe(), torch.arange(8000).reshape(20, 400) % 20)
    _have_no_past(state, torch.arange(CODES) >= 20, outputs)


def test_statistics_follow_the_encoder_in_the_first_half(tiny_recipe: Make, state: RunState) -> None:
    codes = torch.zeros(8, 16, dtype=torch.int64)
    for images_seen, moves in ((32, True), (40, False)):
        state.images_seen, before = images_seen, state.model.quantizer.mean.clone()
        _update(state, tiny_recipe(), codes)
        assert torch.equal(state.model.quantizer.mean, before) != moves
