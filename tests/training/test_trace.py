"""Traces of steps against real ones: operations by PyTorch's counter, activations by what autograd keeps."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.views import Views, novel_poses
from vq3dcli.losses.perceptual import Lite0Trunk, LpipsTrunk
from vq3dcli.model.build import build_autoencoder, build_prior
from vq3dcli.model.depth_network import EfficientNetLite
from vq3dcli.training import trace
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.devices import Processor
from vq3dcli.training.objective import NovelViews, Stage1Objective
from vq3dcli.training.stage2 import PriorObjective
from vq3dcli.training.trace import PERCEPTUAL, Work, prior_work, stage1_work

Make = Callable[..., Stage1Recipe]
MakePrior = Callable[..., Stage2Recipe]

# Wide enough that what belongs to a step and not to an image is small beside the rest.
_SMALL = ("model.image_size=32", "model.encoder_width=64", "model.decoder_width=96", "model.encoder_layers=2")
_ADVERSARIAL = ("adversarial.main=0.1", "adversarial.novel=0.1", "adversarial.augmentation=none")
_WIDER = ("adversarial.size_px=32", "adversarial.base_channels=16", "adversarial.max_channels=64")
LENGTH, CODES = 64, 96


def cpu(dtype: torch.dtype = torch.float32) -> Processor:
    return Processor("cpu", "cpu", 1e10, 1e10, 1e10, None, dtype, "made up", 0.0)


def work_of(recipe: Stage1Recipe, images: int, dtype: torch.dtype = torch.float32) -> Work:
    return stage1_work(recipe, cpu(dtype), images, started=recipe.adversarial.on, classes=0)


def real_objective(recipe: Stage1Recipe, count: int) -> tuple[nn.Module, tuple[object, ...]]:
    """After the discriminators' start, with codes and a view of each image."""
    model = build_autoencoder(recipe)
    model.quantizer.active.fill_(True)
    size, index, share = recipe.model.image_size, torch.arange(count), torch.tensor(1.0)
    image = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    s = torch.rand(count, size, size)
    novel = NovelViews(Views(image, s, novel_poses(0, "", index, 1)[:, 0], index), share)
    objective = Stage1Objective(model, recipe, Adversary(recipe))
    return objective, (image, s, torch.ones(count), index, share, None, recipe.adversarial.start_images, novel)


def real_prior(recipe: Stage2Recipe, count: int) -> tuple[nn.Module, tuple[object, ...]]:
    model = build_prior(recipe, codebook_size=CODES, length=LENGTH, classes=3)
    tokens = torch.randint(0, CODES, (count, LENGTH))
    return PriorObjective(model, class_dropout=0.1, seed=0), (tokens, torch.zeros(count).long(), torch.arange(count))


def kept_bytes(objective: nn.Module, batch: tuple[object, ...], dtype: torch.dtype) -> int:
    """Bytes of all storages that autograd keeps for a batch."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        objective(*batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ((), torch.float32),
        (("model.image_size=64", "model.patch=4"), torch.bfloat16),  # tokens enough for attention to count
        (("model.plane_head=convolution", "rendering.rays_per_image=256"), torch.bfloat16),
        (("loss.depth_order=1", "rendering.rays_per_image=600", "rendering.samples=4"), torch.float32),
        (("loss.novel_l2=1", "rendering.samples=48"), torch.float32),
        ((*_ADVERSARIAL, *_WIDER, "rendering.importance_samples=8"), torch.float32),
    ],
)
def test_what_lives_is_what_autograd_keeps(tiny_recipe: Make, overrides: tuple[str, ...], dtype: torch.dtype) -> None:
    recipe = tiny_recipe(*_SMALL, *overrides)
    # Of two batches, so that what belongs to a step and not to an image cancels.
    measured = kept_bytes(*real_objective(recipe, 8), dtype) - kept_bytes(*real_objective(recipe, 4), dtype)
    traced = work_of(recipe, 8, dtype).kept - work_of(recipe, 4, dtype).kept
    assert traced == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("overrides", [(), ("rendering.importance_samples=8",), ("loss.novel_depth=1",)])
def test_operations_are_those_that_pytorch_counts(tiny_recipe: Make, overrides: tuple[str, ...]) -> None:
    # Without grouped convolutions: the counter takes their backward passes for dense ones.
    recipe = tiny_recipe(*_SMALL, "model.plane_head=linear", *overrides)
    objective, batch = real_objective(recipe, 2)
    # By matrix products: the counter knows the fused kernels of some processors only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(*batch).loss.backward()
    assert work_of(recipe, 2).flops == pytest.approx(counter.get_total_flops(), rel=0.04)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prior_is_traced(tiny_prior_recipe: MakePrior, dtype: torch.dtype) -> None:
    recipe = tiny_prior_recipe("model.width=64", "model.layers=3", "model.heads=2", "model.dropout=0.0")
    six, two = (
        prior_work(recipe, cpu(dtype), images, length=LENGTH, codebook_size=CODES, classes=3) for images in (6, 2)
    )
    measured = kept_bytes(*real_prior(recipe, 6), dtype) - kept_bytes(*real_prior(recipe, 2), dtype)
    assert six.kept - two.kept == pytest.approx(measured, rel=0.15)
    objective, batch = real_prior(recipe, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(*batch).backward()
    assert two.flops == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_grouped_convolutions_cost_as_much_back_as_forth_twice() -> None:
    images, weight = torch.zeros(2, 6, 8, 8, requires_grad=True), torch.zeros(6, 2, 3, 3, requires_grad=True)
    with trace.Tracer(cpu()) as tracer:
        nn.functional.conv2d(images, weight, groups=3).sum().backward()
    assert tracer.flops == 3 * 2 * (2 * 6 * 6 * 6) * (2 * 3 * 3)


def test_activations_that_are_made_again_are_not_kept(tiny_recipe: Make) -> None:
    kept, remade = (
        work_of(tiny_recipe(*_SMALL, f"training.checkpoint_activations={again}"), 4) for again in ("false", "true")
    )
    assert remade.kept < 0.5 * kept.kept
    assert remade.kept + remade.extra < kept.kept + kept.extra
    assert kept.flops < remade.flops < 1.4 * kept.flops


def test_losses_cost_what_they_add(tiny_recipe: Make) -> None:
    both, one, none = (
        work_of(tiny_recipe(*_SMALL, *losses), 4) for losses in (_ADVERSARIAL, ("adversarial.novel=0.1",), ())
    )
    assert none.flops < one.flops < both.flops and none.seconds < one.seconds < both.seconds
    named = "loss.perceptual_network=lpips-vgg"
    on = [f"loss.{name}=1" for name in ("perceptual", "novel_perceptual")]
    works = [
        work_of(tiny_recipe("model.image_size=32", named, "loss.novel_l2=1", *more), 1) for more in ((), on[:1], on)
    ]
    network = 3 * PERCEPTUAL["lpips-vgg"][0] * 16**2
    assert works[1].flops - works[0].flops >= network and works[2].flops - works[1].flops >= network
    assert work_of(tiny_recipe("training.freeze_codes=true"), 4).flops < work_of(tiny_recipe(), 4).flops


def test_many_layers_follow_from_few(tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("model.encoder_layers=14", "model.decoder_layers=13")
    followed = work_of(recipe, 2)
    monkeypatch.setattr(trace, "_MOST_LAYERS", 100)
    assert followed == pytest.approx(work_of(recipe, 2), rel=0.01)


@pytest.mark.parametrize("network", ["lpips-vgg", "lpips-alex", "efficientnet-lite0"])
def test_perceptual_networks_are_as_the_table_says(network: str) -> None:
    side = 64
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        if network == "efficientnet-lite0":
            trunk: nn.Module = Lite0Trunk(EfficientNetLite(network))
        else:
            try:
                package = importlib.import_module("lpips")
            except (ImportError, RuntimeError) as error:  # a torchvision for another PyTorch raises RuntimeError
                pytest.skip(f"lpips: {error}")
            name = network.removeprefix("lpips-")
            whole = package.LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
            trunk = LpipsTrunk(package.ScalingLayer(), whole.net).to("meta")
    trunk.eval().requires_grad_(False)
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
    flops, kept_a_pixel, parameters = PERCEPTUAL[network]
    assert flops * side**2 == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert kept_a_pixel * side**2 == pytest.approx(bytes_kept + compared, rel=0.3)
    assert parameters == sum(p.numel() for p in trunk.parameters())
