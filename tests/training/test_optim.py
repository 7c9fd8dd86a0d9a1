"""Which parameters have which optimizer, and that their states come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import RecipeError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.optim import (
    OptimizerLike,
    build_optimizer,
    optimizer_tensors,
    reset_rows,
    restore_optimizer,
    set_learning_rate,
)

Make = Callable[..., Stage1Recipe]


def _stepped(recipe: Stage1Recipe, seed: int) -> tuple[Autoencoder, OptimizerLike]:
    model = build_autoencoder(recipe)
    optimizer = build_optimizer(model, kind="muon", learning_rate=1e-2, weight_decay=0.0)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def test_muon_has_the_matrices_of_the_transformers_alone(tiny_recipe: Make) -> None:
    model, optimizer = _stepped(tiny_recipe(), 0)
    states = optimizer_tensors(optimizer, model)
    by_muon = {name.removesuffix("/momentum_buffer") for name in states if name.endswith("/momentum_buffer")}
    expected = {name for name, parameter in model.named_parameters() if parameter.ndim == 2 and ".blocks." in name}
    assert by_muon == expected
    by_adamw = {name.rsplit("/", 1)[0] for name in states if name.endswith("/exp_avg")}
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    assert not by_muon & by_adamw


def test_a_step_of_muon_is_orthogonal_and_as_large_as_one_of_adamw(tiny_recipe: Make) -> None:
    name = "encoder.blocks.0.mlp.0.weight"
    before = dict(build_autoencoder(tiny_recipe()).named_parameters())[name].detach()
    model, _ = _stepped(tiny_recipe(), 0)
    step = before - dict(model.named_parameters())[name].detach()
    values = torch.linalg.svdvals(step)
    assert values.max() / values.min() < 3  # five iterations bring singular values near to one, not to it
    assert 0.1 < step.square().mean().sqrt() / 1e-2 < 0.4  # AdamW's steps have a root mean square of 0.2 to 0.4


def test_the_state_comes_back_and_rows_are_forgotten(tiny_recipe: Make) -> None:
    model, optimizer = _stepped(tiny_recipe(), 0)
    kept = optimizer_tensors(optimizer, model)
    other_model, other = _stepped(tiny_recipe(), 1)
    restore_optimizer(other, other_model, kept)
    back = optimizer_tensors(other, other_model)
    assert kept.keys() == back.keys()
    assert all(torch.equal(kept[name], back[name]) for name in kept)
    set_learning_rate(other, 0.5)
    assert {group["lr"] for group in other.param_groups} == {0.5}
    rows = torch.zeros(other_model.quantizer.codebook.shape[0], dtype=torch.bool)
    rows[1] = True
    reset_rows(other, other_model.quantizer.codebook, rows)
    moments = optimizer_tensors(other, other_model)["quantizer.codebook/exp_avg"]
    assert (moments[1] == 0).all()
    assert (moments[0] != 0).any()


def test_an_old_pytorch_without_muon_is_told(tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    model = build_autoencoder(tiny_recipe())
    with pytest.raises(RecipeError, match=r"needs PyTorch 2\.9"):
        build_optimizer(model, kind="muon", learning_rate=1e-3, weight_decay=0.0)
