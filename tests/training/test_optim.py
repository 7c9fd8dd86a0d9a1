"""Which parameters have which optimizer, and that their states come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import Optimizer

from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder, build_prior
from vq3dcli.training import arithmetic
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.optim import (
    build_optimizer,
    is_for_muon,
    moments_bytes,
    optimizer_tensors,
    orthogonalised,
    reset_rows,
    restore_optimizer,
    set_learning_rate,
)

Make = Callable[..., Stage1Recipe]


def _stepped(recipe: Stage1Recipe, seed: int) -> tuple[Autoencoder, Optimizer]:
    model = build_autoencoder(recipe)
    schedule = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.0}
    optimizer = build_optimizer(model, recipe.training.model_copy(update=schedule))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def test_muon_has_the_matrices_of_the_transformers_alone(
    tiny_recipe: Make, tiny_prior_recipe: Callable[..., Stage2Recipe]
) -> None:
    model, optimizer = _stepped(tiny_recipe(), 0)
    states = optimizer_tensors(optimizer, model)
    by_muon = {name.removesuffix("/momentum") for name in states if name.endswith("/momentum")}
    by_adamw = {name.rsplit("/", 1)[0] for name in states if name.endswith("/exp_avg")}
    assert {"encoder.blocks.0.attention.qkv.weight", "decoder.blocks.0.mlp.2.weight"} <= by_muon
    assert {"embed_patches.weight", "quantizer.codebook", "encoder.positions", "to_code.weight"} <= by_adamw
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    assert not by_muon & by_adamw
    prior = build_prior(tiny_prior_recipe(), codebook_size=8, length=16, classes=2)
    names = {name for name, parameter in prior.named_parameters() if is_for_muon(name, parameter)}
    assert "blocks.0.attention.qkv.weight" in names
    assert not {"code_embedding.weight", "class_embedding.weight", "positions", "head.weight"} & names


def test_the_plan_counts_what_the_optimizer_keeps(tiny_recipe: Make) -> None:
    model, optimizer = _stepped(tiny_recipe(), 0)
    kept = sum(tensor.nbytes for name, tensor in optimizer_tensors(optimizer, model).items() if "/step" not in name)
    assert moments_bytes(model, "muon") == kept < moments_bytes(model, "adamw")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_whatever_the_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16)):
        left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        matrix = left @ torch.diag(torch.logspace(0, -1.5, min(shape))) @ right * 1e-3
        values = torch.linalg.svdvals(orthogonalised(matrix.to(dtype)).float())
        assert 0.5 < values.min() <= values.max() < 1.3
    assert (orthogonalised(torch.zeros(3, 4, dtype=dtype)) == 0).all()


def test_a_step_of_muon_is_orthogonal_and_as_large_as_one_of_adamw(tiny_recipe: Make) -> None:
    name = "encoder.blocks.0.mlp.0.weight"
    before = dict(build_autoencoder(tiny_recipe()).named_parameters())[name].detach()
    model, _ = _stepped(tiny_recipe(), 0)
    step = before - dict(model.named_parameters())[name].detach()
    values = torch.linalg.svdvals(step)
    assert values.max() / values.min() < 3  # five iterations bring singular values near to one, not to it
    assert 0.1 < step.square().mean().sqrt() / 1e-2 < 0.4  # AdamW's steps have a root mean square of 0.2 to 0.4


def test_muon_multiplies_in_the_precision_of_the_run(tiny_recipe: Make) -> None:
    name = "encoder.blocks.0.mlp.0.weight"
    found = []
    for precision in ("float32", "bfloat16"):
        schedule = ("optimizer=muon", "learning_rate=1", "weight_decay=0", f"precision={precision}")
        recipe = tiny_recipe(*(f"training.{each}" for each in schedule))
        model = build_autoencoder(recipe)
        optimizer = build_optimizer(model, recipe.training)
        parameter = dict(model.named_parameters())[name]
        torch.manual_seed(0)
        parameter.grad, before = torch.randn_like(parameter), parameter.detach().clone()
        direction = orthogonalised(parameter.grad.lerp(0.05 * parameter.grad, 0.95).to(getattr(torch, precision)))
        optimizer.step()
        torch.testing.assert_close(before - parameter, 0.2 * max(parameter.shape) ** 0.5 * direction.float())
        found.append(parameter.detach())
    assert 0 < (found[0] - found[1]).abs().max() < 0.1


def test_a_processor_is_asked_for_its_flags_once() -> None:
    arithmetic._cpu_has.cache_clear()
    for _ in range(50):
        resolve_precision("auto", torch.device("cpu"))
    assert arithmetic._cpu_has.cache_info().misses <= 1


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_as_before_when_training_ends(before: bool) -> None:
    def flushed() -> bool:
        return float(torch.full((1,), torch.finfo(torch.float32).tiny) * 0.5) == 0.0

    torch.set_flush_denormal(before)
    with arithmetic.denormals_flushed():
        assert flushed()
    assert flushed() is before


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
