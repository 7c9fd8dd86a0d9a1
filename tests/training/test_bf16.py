"""Mixed precision: whatever is trained has a gradient, also where a pass without gradients casts the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.model.build import build_prior
from vq3dcli.rendering.cameras import canonical_camera, image_rays
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import render_rays
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.stage1 import build_state, take_step
from vq3dcli.training.stage2 import PriorObjective

CPU = torch.device("cpu")


class _CachingField(nn.Module):
    """Casts its weight as autocast of older PyTorch does: once, with or without a graph, while caching is on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.2, 0.3]]))
        self.cast: Tensor | None = None

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        cast = self.weight.bfloat16() if self.cast is None else self.cast
        if torch.is_autocast_cache_enabled():
            self.cast = cast
        return (points.bfloat16() @ cast.T)[..., 0].float().exp(), points.sigmoid()


def test_the_pass_that_places_samples_keeps_no_cast_of_a_weight() -> None:
    field = _CachingField()
    rays = image_rays(canonical_camera(1, height_px=2, width_px=2))
    coarse, jitter = uniform_samples(8), torch.full((1, 4, 4), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_cache_enabled()
        render_rays(field, rays, coarse, importance=jitter).s.sum().backward()
        assert torch.is_autocast_cache_enabled()
    assert field.weight.grad is not None
    assert (field.weight.grad != 0).all()


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_every_parameter_of_stage_1_has_a_gradient(
    tiny_recipe: Callable[..., Stage1Recipe], adversarial: float
) -> None:
    recipe = tiny_recipe(
        "training.precision=bfloat16",
        "rendering.importance_samples=8",
        "training.quantize_from_images=0",
        "model.auxiliary_head=true",
        f"adversarial.main={adversarial}",
        f"adversarial.novel={adversarial}",
        "adversarial.start_images=0",
        "adversarial.ramp_images=0",
    )
    state = build_state(recipe, classes=0, device=CPU, ranks=Ranks())
    assert state.adversary is not None
    objective = Stage1Objective(state.model, recipe, state.adversary)
    drawn = torch.Generator().manual_seed(0)
    batch = Batch(
        image=torch.randint(0, 256, (8, 3, 16, 16), generator=drawn).byte(),
        s=torch.rand(8, 16, 16, generator=drawn),
        label_kind=torch.ones(8, dtype=torch.int8),
        class_index=torch.full((8,), -1),
        index=torch.arange(8),
        keys=[str(row) for row in range(8)],
    )
    # What starts at zero hides what lies before it from the first gradient.
    moved = set()
    for _ in range(3):
        take_step(recipe, state, objective, batch, device=CPU, ranks=Ranks())
        moved |= {name for name, p in state.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {name for name, _ in state.model.named_parameters()}
    for each in state.adversary.discriminators:
        still = [name for name, p in each.discriminator.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []


def test_every_parameter_of_stage_2_has_a_gradient(tiny_prior_recipe: Callable[..., Stage2Recipe]) -> None:
    recipe = tiny_prior_recipe()
    torch.manual_seed(0)
    model = build_prior(recipe, codebook_size=32, length=16, classes=3)
    model.checkpoint_activations = True
    objective = PriorObjective(model, class_dropout=0.5, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = set()
    for step in range(3):
        optimizer.zero_grad()
        index = torch.arange(12) + 12 * step
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(torch.randint(0, 32, (12, 16)), index % 3, index)
        loss.backward()
        optimizer.step()
        moved |= {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {name for name, _ in model.named_parameters()}
