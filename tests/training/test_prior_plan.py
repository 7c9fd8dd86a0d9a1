"""Plans of Stage 2: counts against PyTorch's own, sums, scaling, what they refuse, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vq3dcli.cli import run
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import UsageError
from vq3dcli.model.build import build_prior
from vq3dcli.training.devices import Processor, named_processor
from vq3dcli.training.prior_plan import Codes, codes_of, plan_prior, prior_cost, prior_table
from vq3dcli.training.stage2 import PriorObjective

Make = Callable[..., Stage2Recipe]
CODES = Codes(64, 96, "a test", classes=3, images=10)


@pytest.fixture(scope="module")
def imagenet() -> Stage2Recipe:
    return load_recipe("imagenet256-prior", Stage2Recipe)


@pytest.fixture
def recipe(tiny_prior_recipe: Make) -> Stage2Recipe:
    return tiny_prior_recipe("model.width=64", "model.layers=3", "model.heads=2", "model.dropout=0.0")


def loss_of(recipe: Stage2Recipe, images: int) -> tuple[PriorObjective, tuple[Tensor, ...]]:
    model = build_prior(recipe, codebook_size=CODES.codebook_size, length=CODES.length, classes=3)
    model.checkpoint_activations = recipe.training.checkpoint_activations
    tokens = torch.randint(0, CODES.codebook_size, (images, CODES.length))
    return PriorObjective(model, class_dropout=0.1, seed=0), (tokens, torch.zeros(images).long(), torch.arange(images))


def kept_bytes(recipe: Stage2Recipe, dtype: torch.dtype, images: int) -> int:
    objective, batch = loss_of(recipe, images)
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        objective(*batch)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_keeps(recipe: Stage2Recipe, dtype: torch.dtype) -> None:
    # Of two batches, so that what belongs to a step and not to an image cancels.
    measured = kept_bytes(recipe, dtype, 6) - kept_bytes(recipe, dtype, 2)
    assert 4 * prior_cost(recipe, CODES, dtype, on_cpu=True).kept_bytes == pytest.approx(measured, rel=0.1)


def test_operations_are_those_that_pytorch_counts(recipe: Stage2Recipe) -> None:
    objective, batch = loss_of(recipe, 2)
    # By matrix products: the counter knows the fused kernels of some processors only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(*batch).backward()
    assert 2 * prior_cost(recipe, CODES, torch.float32).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_memory_adds_up_and_checkpoints_take_less_of_it(imagenet: Stage2Recipe) -> None:
    codes, h100 = codes_of("imagenet256-prior", None, None), named_processor("h100", "auto")
    assert (codes.length, codes.codebook_size) == (1024, 8192)
    plan = plan_prior(imagenet, h100, codes, gpus=8)
    memory = plan["memory"]
    purposes = ("weights", "gradients", "optimizer", "average", "activations", "workspace", "process")
    assert memory["total"] == sum(memory[name] for name in purposes)
    assert 1.3e9 < plan["parameters"]["total"] < 1.5e9
    assert plan["micro_batch"] == 8
    remade = imagenet.training.model_copy(update={"checkpoint_activations": True})
    less = plan_prior(imagenet.model_copy(update={"training": remade}), h100, codes, gpus=8)
    assert less["memory"]["activations"] + less["memory"]["workspace"] < 0.3 * memory["activations"]
    assert less["speed"]["training"] < plan["speed"]["training"]
    assert any(row[0] == "codes of an image" and row[1] == "1024 of 8192" for row in prior_table(plan))
    with pytest.raises(UsageError, match="cannot be shared"):
        plan_prior(imagenet, h100, codes, gpus=7)


def test_advice_leads_to_a_plan_that_fits(recipe: Stage2Recipe) -> None:
    cpu = Processor("cpu", "cpu", 1e10, 1e10, 1e10, None, torch.float32, "made up")
    needed = plan_prior(recipe, cpu, CODES)["memory"]["needed"]
    plan = plan_prior(recipe, replace(cpu, memory_bytes=int(needed / 0.9)), CODES)
    assert plan["memory"]["state"] == "tight"
    plan = plan_prior(recipe, replace(cpu, memory_bytes=int(needed * 3)), CODES)
    assert (plan["memory"]["state"], plan["memory"]["advice"]) == ("fits", "")


def test_a_dry_run_takes_the_codes_of_what_there_is(
    tiny_weights: Path, write_store: Callable[..., TokenStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "store")
    command = ["train-stage2", "toy-cpu-prior", "--dry-run", "--device-name", "h100", "--json"]
    found = []
    for more in ([], ["--weights", str(tiny_weights)], ["--data", str(store.path)]):
        assert run([*command, *more]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        found.append((metrics["tokens"], metrics["codebook_size"], metrics["class_embeddings"]))
    assert found == [(64, 512, False), (16, 32, False), (16, store.codebook_size, True)]
    own = tmp_path / "own.toml"
    assert run(["recipes", "copy", "toy-cpu-prior", str(own)]) == 0
    assert run(["train-stage2", str(own), "--dry-run", "--device-name", "h100"]) == 2
    assert run(["train-stage2", "toy-cpu-prior", "--data", str(store.path)]) == 2
    assert "--data and --out are needed" in capsys.readouterr().err
