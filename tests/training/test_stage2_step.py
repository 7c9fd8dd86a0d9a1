"""Training of the prior against the same steps written out in plain PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.token_store import TokenBatch, TokenLoader, TokenStore
from vq3dcli.model.build import build_prior
from vq3dcli.seeding import uniform
from vq3dcli.training.optim import orthogonalised
from vq3dcli.training.stage2 import token_facts, train_prior
from vq3dcli.weights_file import load_prior, save_weights

Make = Callable[..., Stage2Recipe]

BATCH, IMAGES = 4, 64
OVERRIDES = (
    f"training.images={IMAGES}",
    f"training.batch_size={BATCH}",
    "training.precision=float32",
    "training.learning_rate=3e-4",
    "training.warmup_images=8",
    "training.final_learning_rate_factor=0.1",
    "training.weight_decay=0.5",
    "training.gradient_clip=1.6",  # some gradients are longer, some are not
    "training.ema_half_life_images=2",  # less than a twentieth of the images since the tenth step
    "training.class_dropout=0.4",
    "training.log_every_images=4",
    "training.sheet_every_images=64",
    "training.checkpoint_every_images=64",
)


class _ByHand:
    """A run of Stage 2, written out."""

    def __init__(self, recipe: Stage2Recipe, weights: Path) -> None:
        self.recipe, self.seen = recipe, 0
        self.model = load_prior(weights).model.train().requires_grad_(True)
        self.trained = dict(self.model.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.trained.items()}

    def learning_rate(self) -> float:
        peak = self.recipe.training.learning_rate
        if self.seen < 8:
            return peak * (self.seen + 1) / 9
        return peak * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * (self.seen - 8) / (IMAGES - 8))))

    @torch.no_grad()
    def step(self, batch: TokenBatch) -> tuple[float, float]:
        """One step; bits per code and the gradient's norm."""
        schedule, rate, count = self.recipe.training, self.learning_rate(), self.seen // BATCH + 1
        with torch.enable_grad():
            loss = self._loss(batch)
            gradients = torch.autograd.grad(loss, list(self.trained.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for (name, parameter), gradient in zip(self.trained.items(), gradients, strict=True):
            gradient = gradient * min(1.0, schedule.gradient_clip / float(norm))
            first, second = self.moments[name]
            if parameter.ndim > 1 and name != "positions":
                parameter *= 1 - rate * schedule.weight_decay
            if schedule.optimizer == "muon" and name.startswith("blocks.") and parameter.ndim == 2:
                first.copy_(0.95 * first + 0.05 * gradient)
                way = orthogonalised(0.95 * first + 0.05 * gradient)
                parameter -= 0.2 * math.sqrt(max(parameter.shape)) * rate * way
            else:
                first.copy_(0.9 * first + 0.1 * gradient)
                second.copy_(0.95 * second + 0.05 * gradient**2)
                parameter -= rate * first / (1 - 0.9**count) / ((second / (1 - 0.95**count)).sqrt() + 1e-8)
        self.seen += BATCH
        keep = 0.5 ** (BATCH / min(schedule.ema_half_life_images, self.seen / 20))
        for name, parameter in self.trained.items():
            self.average[name] = keep * self.average[name] + (1 - keep) * parameter
        return float(loss) / math.log(2.0), float(norm)

    def _loss(self, batch: TokenBatch) -> Tensor:
        lost = uniform(0, "class-dropout", batch.index, 1)[:, 0] < 0.4
        given = torch.where(lost, self.model.classes, batch.class_index)
        logits = self.model(batch.tokens, given)
        return -logits.log_softmax(-1).gather(-1, batch.tokens[..., None]).mean()


@pytest.mark.parametrize(
    "overrides", [(), ("training.accumulate=2", "training.optimizer=muon", "training.ema_half_life_images=100")]
)
def test_a_run_is_the_steps_that_are_written_out(
    tiny_prior_recipe: Make, write_store: Callable[..., TokenStore], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    store = write_store(tmp_path / "store")
    first = build_prior(tiny_prior_recipe("training.seed=3"), codebook_size=32, length=16, classes=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # branches that end in zeros would let little through
    save_weights(tmp_path / "start.safetensors", first, tiny_prior_recipe(), {}, token_facts(store))
    recipe = tiny_prior_recipe(*OVERRIDES, f"training.init={tmp_path / 'start.safetensors'}", *overrides)
    by_hand = _ByHand(recipe, tmp_path / "start.safetensors")
    before = {name: value.detach().clone() for name, value in by_hand.trained.items()}

    train_prior(recipe, store, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in lines]
    assert len(lines) == IMAGES // BATCH and min(norms) < recipe.training.gradient_clip < max(norms), norms
    loader = TokenLoader(store, batch_size=BATCH, seed=0, held_out=recipe.training.held_out)
    for line in lines:
        assert line["learning_rate"] == pytest.approx(by_hand.learning_rate(), rel=1e-6)
        bits, norm = by_hand.step(loader.batch_at(by_hand.seen))
        assert (line["bits"], line["gradient_norm"]) == pytest.approx((bits, norm), rel=1e-3), line["images_seen"]

    [newest] = (tmp_path / "run/checkpoints").iterdir()
    parts, _ = read_checkpoint(newest)
    assert parts["weights"].keys() == by_hand.trained.keys()
    weights, average = parts["weights"], parts["average"]
    for name, value in by_hand.trained.items():
        way, lag = value - before[name], by_hand.average[name] - value
        assert (weights[name] - before[name] - way).norm() <= 0.03 * way.norm(), name
        assert (average[name] - weights[name] - lag).norm() <= 0.03 * lag.norm() + 1e-6, name
    for name, (moment, _) in by_hand.moments.items():
        found = parts["optimizer"].get(f"{name}/momentum", parts["optimizer"].get(f"{name}/exp_avg"))
        torch.testing.assert_close(found, moment, rtol=0.01, atol=0.01 * float(moment.abs().max()))
