"""What a training step costs, counted from the recipe: arithmetic, memory traffic and activations, an image.

Arithmetic is that of matrix products and convolutions, two operations a multiply-add; a backward pass takes twice its
forward pass, once where only inputs need a gradient. Activations are the tensors that autograd keeps for the backward
pass, added up from the model's own layers; `tests/training/test_costs.py` compares both with what PyTorch counts.

Legend: L tokens, D width, C plane channels, P plane side in texels, e bytes of a number that is multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vq3dcli.config.schema import LossSection, ModelSection, Stage1Recipe
from vq3dcli.losses.depth import MAX_PARTNERS
from vq3dcli.model.discriminator import Discriminator

# Operations and kept bytes a pixel of one pass of the trunk at 64 x 64, and parameters, as PyTorch counts them (a test
# compares). AlexNet, whose strides waste a border, takes a third less at 32 pixels and a quarter more at 128.
_PERCEPTUAL = {
    "none": (0.0, 0.0, 0),
    "lpips-vgg": (611_712.0, 1940.0, 14_714_688),
    "lpips-alex": (19_298.0, 89.0, 2_469_696),
    "efficientnet-lite0": (11_785.0, 2200.0, 777_376),
}
# Lite0 enlarges smaller images to this side.
_LITE0_LEAST_PX = 64
# Every kept number is written, read by the next operation and again in the backward pass, where its gradient is
# written and read.
PASSES = 5
# Numbers that are read and written a parameter in a step: gradient clipping, AdamW, the moving average.
UPDATE_PASSES = 13
# The discriminators' gradient norm is read and multiplied, then Adam; they have no moving average.
_JUDGES_UPDATE_PASSES = 10


class Cost(NamedTuple):
    """Of one image in one step.

    Attributes:
        flops: Operations in the training precision, forward and backward.
        flops_float32: Operations that stay in float32 whatever the precision.
        kept_bytes: Activations that wait for the backward pass.
        moved_bytes: Read and written outside matrix products.
    """

    flops: float = 0.0
    flops_float32: float = 0.0
    kept_bytes: float = 0.0
    moved_bytes: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class StepCosts(NamedTuple):
    """Costs of an image by part, and what a step needs besides.

    Attributes:
        autoencoder: Encoder, quantizer, decoder, plane head.
        rendering: Scattered rays and the squares for perceptual losses, of the main view and of a novel one.
        perceptual: The perceptual network, on either square.
        adversarial: The discriminators' views and the discriminators themselves, once they have started.
        workspace_bytes: Of an image: tensors that live at the worst moment of the backward pass only.
        update_bytes: Moved in an update of the autoencoder's weights, once a step.
        discriminators_update_bytes: The same of the discriminators', once they have started.
    """

    autoencoder: Cost
    rendering: Cost
    perceptual: Cost
    adversarial: Cost
    workspace_bytes: float
    update_bytes: float
    discriminators_update_bytes: float

    def total(self, *, adversarial: bool) -> Cost:
        """All parts together, before or after the discriminators' start."""
        total = self.autoencoder.plus(self.rendering).plus(self.perceptual)
        return total.plus(self.adversarial) if adversarial else total


def step_costs(
    recipe: Stage1Recipe, dtype: torch.dtype, parameters: int, judges: int = 0, *, on_cpu: bool = False
) -> StepCosts:
    """Count a step.

    Args:
        recipe: What is trained.
        dtype: Of matrix products: float32, or bfloat16 under autocast.
        parameters: Of the autoencoder.
        judges: Parameters of the discriminators.
        on_cpu: Where bfloat16 attends by matrix products, see `model.vit.attend`.
    """
    model, loss, adversarial = recipe.model, recipe.loss, recipe.adversarial
    e = dtype.itemsize
    remade = recipe.training.checkpoint_activations
    square = loss.perceptual_patch_px**2 if loss.any_perceptual else 0
    views = adversarial.size_px**2 * ((adversarial.main > 0) + (adversarial.novel > 0))
    largest = max(min(recipe.rendering.rays_per_image, model.image_size**2), square, views and adversarial.size_px**2)
    points = largest * _samples(recipe)
    # The widest tensors at the field: gradients at both sides of a hidden layer; or samples of the planes before they
    # are summed, and their gradient. Where activations are made again, those of one rendering or one block wait, too.
    per_point = max(2.0 * e * model.field_hidden, 24.0 * model.plane_channels)
    workspace = points * (per_point + (_kept_per_point(model, e) if remade else 0.0))
    if remade:
        tokens = (model.image_size // model.patch) ** 2
        blocks = ((model.encoder_width, model.encoder_heads), (model.decoder_width, model.decoder_heads))
        kept = (
            tokens * width * _kept_per_channel(e) + _kept_attention(tokens, heads, e, on_cpu) for width, heads in blocks
        )
        workspace = max(workspace, *kept)
    rays = min(recipe.rendering.rays_per_image, model.image_size**2)
    # As if each image had a novel view, which is the most that a step can meet.
    rendered = rays * (1 + loss.novel) + square * _squares(loss)
    return StepCosts(
        autoencoder=autoencoder_cost(model, e, remade=remade, on_cpu=on_cpu),
        rendering=rendering_cost(recipe, rendered, e).plus(_order_cost(recipe, rays)),
        perceptual=perceptual_cost(recipe),
        adversarial=rendering_cost(recipe, views, e).plus(discriminators_cost(recipe, e)),
        workspace_bytes=workspace,
        update_bytes=4.0 * UPDATE_PASSES * parameters,
        discriminators_update_bytes=4.0 * _JUDGES_UPDATE_PASSES * judges,
    )


def transformer_cost(
    tokens: int, width: int, heads: int, layers: int, e: int, *, remade: bool, on_cpu: bool = False
) -> Cost:
    """Blocks of attention and an MLP of four times the width.

    A block multiplies 24 L D^2 and attends 4 L^2 D.
    """
    forward = layers * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)
    kept = tokens * width * _kept_per_channel(e) + _kept_attention(tokens, heads, e, on_cpu)
    # The final norm keeps its input; checkpoints keep the input of each block.
    waiting = 4.0 * tokens * width * (layers + 1) if remade else layers * kept + 4.0 * tokens * width
    return Cost(
        flops=forward * (4.0 if remade else 3.0),
        kept_bytes=waiting,
        moved_bytes=layers * kept * (PASSES + 2 * remade),
    )


def autoencoder_cost(model: ModelSection, e: int, *, remade: bool, on_cpu: bool = False) -> Cost:
    """From pixels to planes."""
    tokens = (model.image_size // model.patch) ** 2
    pixels = 3 * model.patch**2
    encoder = transformer_cost(
        tokens, model.encoder_width, model.encoder_heads, model.encoder_layers, e, remade=remade, on_cpu=on_cpu
    )
    decoder = transformer_cost(
        tokens, model.decoder_width, model.decoder_heads, model.decoder_layers, e, remade=remade, on_cpu=on_cpu
    )
    linear = pixels * model.encoder_width + (model.encoder_width + model.decoder_width) * model.code_dim
    linear += model.decoder_width * pixels if model.auxiliary_head else 0
    nearest = 2.0 * tokens * model.code_dim * model.codebook_size  # without gradients, in float32
    ends = Cost(
        flops=6.0 * tokens * linear,
        flops_float32=nearest,
        kept_bytes=tokens * (e * (pixels + model.encoder_width) + 4.0 * pixels + 16.0 * model.code_dim),
        moved_bytes=12.0 * tokens * model.codebook_size,  # the similarities to all codes
    )
    return encoder.plus(decoder).plus(ends).plus(plane_head_cost(model, tokens, e))


def plane_head_cost(model: ModelSection, tokens: int, e: int) -> Cost:
    """Unpatchify, convolve within each plane."""
    plane_patch = round(model.patch * model.plane_scale)
    texels = tokens * plane_patch**2
    outer = 3 * model.plane_channels
    inner = outer * (2 if model.plane_head == "convolution" else 1)
    forward = 2.0 * texels * model.decoder_width * inner
    kept = 4.0 * texels * outer + e * tokens * model.decoder_width
    if model.plane_head != "linear":
        forward += 2.0 * 9.0 * texels * (inner + outer) * model.plane_channels
        # Before each of two convolutions its input in float32, since padding wants that under autocast, and padded;
        # the rectified values between them are kept once.
        kept += texels * (inner * (4.0 + e) + outer * (4.0 + e + (e if e < 4 else 0)))
    return Cost(flops=3.0 * forward, kept_bytes=kept, moved_bytes=PASSES * kept)


def rendering_cost(recipe: Stage1Recipe, rays: int, e: int) -> Cost:
    """Volume rendering of some rays of an image, with gradients; the first of two passes has none."""
    model, rendering = recipe.model, recipe.rendering
    hidden, layers = model.field_hidden, model.field_layers
    forward = 2.0 * (model.plane_channels * hidden + (layers - 1) * hidden**2 + 4 * hidden)
    points = float(rays * _samples(recipe))
    first = float(rays * rendering.samples) if rendering.importance_samples else 0.0
    kept = _kept_per_point(model, e)
    # Twelve texels a point are read, and in the backward pass read and written.
    texels = 3.0 * 12.0 * 4.0 * model.plane_channels
    remade = recipe.training.checkpoint_activations
    return Cost(
        flops=forward * (points * (4.0 if remade else 3.0) + first),
        kept_bytes=0.0 if remade else points * kept,
        moved_bytes=points * (PASSES * kept + texels) + first * (2.0 * kept + texels / 3.0),
    )


def _order_cost(recipe: Stage1Recipe, rays: int) -> Cost:
    """The loss on the order of pairs of rays."""
    if recipe.loss.depth_order == 0:
        return Cost()
    kept = 3.0 * 4.0 * rays * min(rays // 2, MAX_PARTNERS)  # differences, what divides them, and how wrong they are
    return Cost(kept_bytes=kept, moved_bytes=PASSES * kept)


def perceptual_cost(recipe: Stage1Recipe) -> Cost:
    """The frozen network on a square of the rendering and of the photo, in float32; gradients for one of them."""
    squares = _squares(recipe.loss)
    flops, kept, _ = _PERCEPTUAL[recipe.loss.perceptual_network]
    side = recipe.loss.perceptual_patch_px
    if recipe.loss.perceptual_network == "efficientnet-lite0":
        side = max(side, _LITE0_LEAST_PX)
    pixels = squares * side**2
    return Cost(
        flops_float32=3.0 * flops * pixels, kept_bytes=kept * pixels, moved_bytes=(PASSES + 2.0) * kept * pixels
    )


def _squares(loss: LossSection) -> int:
    """Squares of an image that the perceptual network sees."""
    return (loss.perceptual > 0) + (loss.novel_perceptual > 0)


def perceptual_parameters(recipe: Stage1Recipe) -> int:
    """Of the frozen network, if there is one."""
    return _PERCEPTUAL[recipe.loss.perceptual_network][2] if recipe.loss.any_perceptual else 0


def build_discriminators(recipe: Stage1Recipe, classes: int = 0) -> dict[str, Discriminator]:
    """The recipe's discriminators by name, on the meta device: shapes without numbers.

    Args:
        recipe: What is trained.
        classes: Number of classes of the data, for class-conditional ones.
    """
    with torch.device("meta"):
        return _discriminators(recipe, classes)


def _discriminators(recipe: Stage1Recipe, classes: int) -> dict[str, Discriminator]:
    settings = recipe.adversarial
    return {
        name: Discriminator(
            size_px=settings.size_px,
            channels=4 if name == "novel" and settings.novel_sees_disparity else 3,
            base_channels=settings.base_channels,
            max_channels=settings.max_channels,
            minibatch_group=settings.minibatch_group,
            classes=classes if settings.class_conditional else 0,
        )
        for name, weight in (("main", settings.main), ("novel", settings.novel))
        if weight > 0
    }


def discriminators_cost(recipe: Stage1Recipe, e: int) -> Cost:
    """The discriminators' part in both steps, by running them on tensors without storage.

    In the autoencoder's step one pass with gradients for its input; in their own step real and fake images; every
    `r1_every_steps` the gradient's gradient in float32, about five passes.
    """
    # Fake tensors, since a discriminator asks autocast about its device, and autocast knows no meta device.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    total, settings = Cost(), recipe.adversarial
    group = settings.minibatch_group
    shapes_only = FakeTensorMode()
    with shapes_only:
        built = _discriminators(recipe, classes=1)
    for discriminator in built.values():
        kept: dict[int, torch.UntypedStorage] = {}
        weights = {p.untyped_storage()._cdata for p in discriminator.parameters()}

        def keep(tensor: torch.Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
            return tensor

        channels = discriminator.from_image.weight.shape[1]
        with (
            shapes_only,
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            images = torch.zeros(group, channels, settings.size_px, settings.size_px, requires_grad=True)
            index = torch.zeros(group, dtype=torch.int64)
            discriminator(images, index, index)
        forward = counter.get_total_flops() / group
        scaled = 4.0 * sum(p.numel() for p in discriminator.parameters())
        kept_bytes = sum(s.nbytes() for key, s in kept.items() if key not in weights) - scaled
        kept_bytes *= e / 4.0 / group
        total = total.plus(
            Cost(
                flops=8.0 * forward,
                flops_float32=5.0 * forward / settings.r1_every_steps if settings.r1 > 0 else 0.0,
                kept_bytes=kept_bytes,
                moved_bytes=3.0 * PASSES * kept_bytes,
            )
        )
    return total


def _samples(recipe: Stage1Recipe) -> int:
    return recipe.rendering.samples + recipe.rendering.importance_samples


def _kept_attention(tokens: int, heads: int, e: int, on_cpu: bool) -> float:
    """Bytes of the attention weights that a block keeps: of the fused kernels none."""
    return float(e * heads * tokens**2) if on_cpu and e < 4 else 0.0


def _kept_per_channel(e: int) -> float:
    """What a block keeps a token and channel.

    In float32 the inputs of both norms; in e bytes the norms' outputs, queries, keys, values, what was attended, and
    the inner layer of the MLP (four times the width) before and after its GELU.
    """
    return 2 * 4.0 + (2 + 4 + 8) * e


def _kept_per_point(model: ModelSection, e: int) -> float:
    """Plane coordinates, features and hidden layers in e bytes; the last of them again, colour and compositing in 4."""
    last_again = 4.0 * model.field_hidden if e < 4 else 0.0
    return 24.0 + e * (model.plane_channels + model.field_hidden * model.field_layers) + last_again + 12.0 + 48.0
