"""The count of a step against PyTorch's own: operations by its counter, activations by what autograd keeps."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vq3dcli.config.load import load_recipe, recipe_names
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.views import Views, novel_poses
from vq3dcli.losses.perceptual import Lite0Trunk, LpipsTrunk
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.costs import (
    Cost,
    build_discriminators,
    discriminators_cost,
    perceptual_cost,
    perceptual_parameters,
    step_costs,
)
from vq3dcli.training.objective import NovelViews, Stage1Objective

Make = Callable[..., Stage1Recipe]

# Wide enough that what the count leaves out (norms, positions, the images themselves) is small beside the rest.
_SMALL = ("model.image_size=32", "model.encoder_width=64", "model.decoder_width=96", "model.encoder_layers=2")


def _batch(recipe: Stage1Recipe, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None, int, NovelViews]:
    """After the discriminators' start, with a view of each image."""
    size, index, share = recipe.model.image_size, torch.arange(count), torch.tensor(1.0)
    image = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    s = torch.rand(count, size, size)
    novel = NovelViews(Views(image, s, novel_poses(0, "", index, 1)[:, 0], index), share)
    return image, s, torch.ones(count), index, share, None, recipe.adversarial.start_images, novel


def _kept_bytes(recipe: Stage1Recipe, dtype: torch.dtype, count: int) -> int:
    """Bytes of all storages that autograd keeps for `count` images, weights aside."""
    model = build_autoencoder(recipe)
    adversary = Adversary(recipe)
    objective = Stage1Objective(model, recipe, adversary)
    modules = [model, *(each.discriminator for each in adversary.discriminators)]
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        objective(*_batch(recipe, count))
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.image_size=64", "model.patch=4"),  # tokens enough for attention to count
        ("model.plane_head=linear", "model.field_layers=3", "rendering.samples=24"),
        ("model.plane_head=convolution", "rendering.rays_per_image=256", "model.auxiliary_head=false"),
        ("loss.depth_order=1", "rendering.rays_per_image=600", "rendering.samples=4"),
        ("loss.novel_l2=1", "rendering.samples=48"),
    ],
)
def test_activations_are_those_that_autograd_keeps(
    tiny_recipe: Make, overrides: tuple[str, ...], dtype: torch.dtype
) -> None:
    recipe = tiny_recipe(*_SMALL, *overrides)
    # Of two batches, so that what belongs to a step and not to an image cancels.
    measured = _kept_bytes(recipe, dtype, 3) - _kept_bytes(recipe, dtype, 1)
    counted = 2 * step_costs(recipe, dtype, 0, on_cpu=True).total(adversarial=False).kept_bytes
    assert counted == pytest.approx(measured, rel=0.1)


_ADVERSARIAL = ("adversarial.main=0.1", "adversarial.novel=0.1", "adversarial.augmentation=none")
_WIDER = ("adversarial.size_px=32", "adversarial.base_channels=16", "adversarial.max_channels=64")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", [(), _WIDER, (*_WIDER, "adversarial.main=0.0", "rendering.importance_samples=8")])
def test_activations_with_discriminators(tiny_recipe: Make, overrides: tuple[str, ...], dtype: torch.dtype) -> None:
    recipe = tiny_recipe(*_SMALL, *_ADVERSARIAL, *overrides)
    measured = _kept_bytes(recipe, dtype, 8) - _kept_bytes(recipe, dtype, 4)
    counted = 4 * step_costs(recipe, dtype, 0, on_cpu=True).total(adversarial=True).kept_bytes
    assert counted == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize("overrides", [(), _WIDER])
def test_operations_with_discriminators(tiny_recipe: Make, overrides: tuple[str, ...]) -> None:
    """The forward pass alone, of what they add: views and scores."""
    recipe = tiny_recipe(*_SMALL, *_ADVERSARIAL, *overrides, "adversarial.r1=0.0")
    adversary = Adversary(recipe)
    objective = Stage1Objective(build_autoencoder(recipe), recipe, adversary)
    forward = {}
    for seen in (0, recipe.adversarial.start_images):
        with FlopCounterMode(display=False) as counter:
            image, s, kind, index, share, *_ = _batch(recipe, 4)
            views = objective(image, s, kind, index, share, images_seen=seen).views
        forward[seen] = counter.get_total_flops()
    # Eight passes of the discriminators: forward and back to the views here; both kinds of images, forward and back to
    # weights and images, in their own step. Three of the renderer.
    scores = discriminators_cost(recipe, 4).flops / 8.0
    rendered = (step_costs(recipe, torch.float32, 0).adversarial.flops - 8.0 * scores) / 3.0
    added = forward[recipe.adversarial.start_images] - forward[0]
    assert 4 * (rendered + scores) == pytest.approx(added, rel=0.1)
    assert views is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for each, pair in zip(adversary.discriminators, (views.main, views.novel), strict=True):
            assert pair is not None
            each.discriminator(pair.fake.rgb, views.index)
    assert 4 * scores == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_r1_adds_some_passes_in_float32(tiny_recipe: Make) -> None:
    """The gradient of a gradient, every so many steps."""
    every = discriminators_cost(tiny_recipe(*_ADVERSARIAL, "adversarial.r1_every_steps=1"), 2)
    rarely = discriminators_cost(tiny_recipe(*_ADVERSARIAL, "adversarial.r1_every_steps=16"), 2)
    assert every.flops_float32 == pytest.approx(16 * rarely.flops_float32)
    assert every.flops == rarely.flops == pytest.approx(8 / 5 * every.flops_float32)


def _trunk(network: str) -> nn.Module:
    """The network of a perceptual loss on the meta device."""
    module = "efficientnet_lite_pytorch" if network == "efficientnet-lite0" else "lpips"
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            package = importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # a torchvision for another PyTorch raises RuntimeError
            pytest.skip(f"{module}: {error}")
        if network == "efficientnet-lite0":
            return Lite0Trunk(package.EfficientNet.from_name(network)).eval()
        whole = package.LPIPS(net=network.removeprefix("lpips-"), pretrained=False, pnet_rand=True, verbose=False)
        return LpipsTrunk(package.ScalingLayer(), whole.net).to("meta").eval()


@pytest.mark.parametrize("network", ["lpips-vgg", "lpips-alex", "efficientnet-lite0"])
def test_the_perceptual_network_is_counted(tiny_recipe: Make, network: str) -> None:
    side = 64
    overrides = ("loss.perceptual=0.1", f"loss.perceptual_network={network}", f"loss.perceptual_patch_px={side}")
    recipe = tiny_recipe("model.image_size=64", *overrides)
    trunk = _trunk(network).requires_grad_(False)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    weights = {t.untyped_storage()._cdata for t in (*trunk.parameters(), *trunk.buffers())}
    images = torch.zeros(1, 3, side, side, device="meta", requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        stages = trunk(images)
    bytes_kept = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    # And of each stage, scaled to unit length, its difference from the other image's.
    compared = sum(4.0 * stage.numel() for stage in stages)
    cost = perceptual_cost(recipe)
    assert cost.flops_float32 == pytest.approx(3 * counter.get_total_flops(), rel=0.05)
    assert cost.kept_bytes == pytest.approx(bytes_kept + compared, rel=0.3)
    assert perceptual_parameters(recipe) == sum(p.numel() for p in trunk.parameters())


@pytest.mark.parametrize(
    "overrides", [(), ("rendering.importance_samples=8",), ("model.plane_head=linear",), ("loss.novel_depth=1",)]
)
def test_operations_are_those_that_pytorch_counts(tiny_recipe: Make, overrides: tuple[str, ...]) -> None:
    """The forward pass alone: the counter takes backward passes of grouped convolutions for dense ones."""
    recipe = tiny_recipe(*_SMALL, *overrides)
    objective = Stage1Objective(build_autoencoder(recipe), recipe)
    # By matrix products: the counter knows the fused kernels of some processors only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(*_batch(recipe, 2))
    cost = step_costs(recipe, torch.float32, 0).total(adversarial=False)
    rendering = recipe.rendering
    first = rendering.samples * rendering.rays_per_image if rendering.importance_samples else 0
    model = recipe.model
    alone = 2.0 * first * model.field_hidden * (model.plane_channels + 4)  # a first pass has no backward pass
    forward = (cost.flops - alone) / 3.0 + alone + cost.flops_float32
    assert 2 * forward == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_activations_that_are_made_again_are_not_kept(tiny_recipe: Make) -> None:
    kept = step_costs(tiny_recipe(*_SMALL), torch.float32, 0)
    remade = step_costs(tiny_recipe(*_SMALL, "training.checkpoint_activations=true"), torch.float32, 0)
    before, after = kept.total(adversarial=False), remade.total(adversarial=False)
    assert after.kept_bytes < 0.5 * before.kept_bytes
    assert before.flops < after.flops < 1.4 * before.flops


def test_losses_that_are_off_cost_nothing(tiny_recipe: Make) -> None:
    costs = step_costs(tiny_recipe(), torch.float32, 0)
    assert costs.perceptual == Cost()
    named = "loss.perceptual_network=lpips-vgg"
    both = [f"loss.{name}=1" for name in ("perceptual", "novel_perceptual")]
    found = [perceptual_cost(tiny_recipe("model.image_size=32", named, *on)) for on in ((), both[:1], both[1:], both)]
    assert found[0] == Cost() and found[1] == found[2] and found[1].plus(found[2]) == found[3]
    assert costs.adversarial == Cost()
    both = step_costs(tiny_recipe("adversarial.main=0.1", "adversarial.novel=0.1"), torch.float32, 0)
    one = step_costs(tiny_recipe("adversarial.novel=0.1"), torch.float32, 0)
    assert 0 < one.adversarial.flops < both.adversarial.flops
    assert both.adversarial.flops_float32 > 0


@pytest.mark.parametrize(
    "name", [name for name in recipe_names() if not name.endswith("-prior") and not name.startswith("depth-")]
)
def test_every_recipe_builds(name: str) -> None:
    """On the meta device: shapes without numbers."""
    recipe = load_recipe(name, Stage1Recipe)
    with torch.device("meta"):
        model = build_autoencoder(recipe)
    side = recipe.model.image_size * recipe.model.plane_scale
    assert model.plane_head.base.shape == (1, 3, side, side, recipe.model.plane_channels)
    weights_bytes = 2 * sum(p.numel() for p in model.parameters())
    if name.startswith("demo"):
        assert weights_bytes < 25e6
    judges = build_discriminators(recipe, classes=1000)
    assert set(judges) == ({"main", "novel"} if recipe.adversarial.on else set())
    assert all(p.is_meta for judge in judges.values() for p in judge.parameters())
