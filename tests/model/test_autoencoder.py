"""The autoencoder: shapes, bits, learning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import interpolate

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.model.build import build_autoencoder, build_canonical_camera
from vq3dcli.model.field import RAW_GAIN, FieldMLP, FieldModel, thickness
from vq3dcli.model.scene import Scene, reconstruct_scene
from vq3dcli.model.vit import Transformer, patchify, unpatchify
from vq3dcli.rendering.cameras import FAR, NEAR, image_rays
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import render, render_rays
from vq3dcli.rendering.space import Frustum

Make = Callable[..., Stage1Recipe]


def test_patches_round_trip() -> None:
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4, 3), images)
    first = images[:, :, :4, 4:8].reshape(2, -1)
    assert torch.equal(patchify(images, 4)[:, 1], first)


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(tiny_recipe: Make) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = build_autoencoder(tiny_recipe())
    assert torch.equal(torch.rand(3), expected)
    two = build_autoencoder(tiny_recipe())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = build_autoencoder(tiny_recipe("training.seed=1"))
    assert not torch.equal(one.embed_patches.weight, other.embed_patches.weight)


@pytest.mark.parametrize("head", ["linear", "residual", "convolution"])
@pytest.mark.parametrize(("space", "scale", "side"), [("frustum", 1.0, 16), ("contracted", 1.5, 24)])
def test_planes_have_the_size_that_the_recipe_says(
    tiny_recipe: Make, head: str, space: str, scale: float, side: int
) -> None:
    recipe = tiny_recipe(f"model.plane_head={head}", f"model.space={space}", f"model.plane_scale={scale}")
    encoded = build_autoencoder(recipe)(torch.zeros(2, 3, 16, 16))
    assert encoded.planes.shape == (2, 3, side, side, 8)
    assert encoded.auxiliary is not None
    assert encoded.auxiliary.shape == (2, 3, 16, 16)


def test_a_residual_head_starts_as_a_linear_one(tiny_recipe: Make) -> None:
    head = build_autoencoder(tiny_recipe()).plane_head
    assert head.convolutions is not None
    tokens = torch.randn(1, 16, 32)
    with_convolutions = head(tokens)
    head.convolutions, head.kind = None, "linear"
    assert torch.equal(with_convolutions, head(tokens))


def test_an_untrained_transformer_passes_its_tokens_on() -> None:
    transformer = Transformer(4, 32, layers=3, heads=2)
    tokens = torch.randn(2, 4, 32)
    expected = torch.nn.functional.layer_norm(tokens + transformer.positions, (32,))
    torch.testing.assert_close(transformer(tokens), expected)


def test_density_gives_equal_thickness_to_equal_steps_of_s() -> None:
    """sigma dz / ds is the same at every distance: 24 softplus(gain raw - 2.5)."""
    z = torch.tensor([NEAR, 2.0, 5.0, 20.0, FAR])
    model = FieldModel(FieldMLP(1, 1, 1), Frustum(), Frustum())
    sigma = model.density(thickness(torch.full((5,), 2.5 / RAW_GAIN), torch.zeros(5)), z)
    dz_ds = z.square() * (1 / NEAR - 1 / FAR)
    torch.testing.assert_close(sigma * dz_ds, torch.full((5,), 24 * torch.log(torch.tensor(2.0)).item()))


def test_the_frozen_field_agrees_with_the_training_field_and_chunks_to_the_bit(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    model = build_autoencoder(recipe).eval()
    scene = reconstruct_scene(model, torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8))
    rays = image_rays(build_canonical_camera(recipe, 16))
    frozen, trained = (
        model.frozen_field(scene.planes),
        render_rays(model.field(scene.planes), rays, uniform_samples(24)),
    )
    for field, error in ((frozen, 1 / 255), (frozen.exact, 1e-4)):
        whole = render(field, rays, 24, rays_per_chunk=256)
        for rays_per_chunk in (1, 50, 100):
            parts = render(field, rays, 24, rays_per_chunk=rays_per_chunk)
            assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
        torch.testing.assert_close(whole[0], trained.rgb, atol=error, rtol=0)


def test_a_scene_in_a_batch_renders_as_it_does_alone(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    model = build_autoencoder(recipe).eval()
    scenes = Scene(model, torch.randn(3, 3, 16, 16, 8), torch.zeros(3, 16, dtype=torch.int64))
    together = scenes.render(build_canonical_camera(recipe, 16, 3), samples=16)
    alone = scenes[1].render(build_canonical_camera(recipe, 16), samples=16)
    assert torch.equal(together.rgb[1], alone.rgb[0])
    assert torch.equal(together.s[1], alone.s[0])


def test_planes_from_codes_are_the_planes_of_the_quantised_pass(tiny_recipe: Make) -> None:
    model = build_autoencoder(tiny_recipe()).eval()
    model.quantizer.active.fill_(True)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(model.planes_from_codes(model.codes(images)), model(images).planes, atol=1e-5, rtol=1e-4)


def test_the_encoder_sees_what_a_frozen_depth_network_sees(tiny_recipe: Make) -> None:
    """A short reference: the network's map at its own side, standardised, beside the image's channels."""
    recipe = tiny_recipe("model.depth_input=depth-lite0")
    model = build_autoencoder(recipe).train()
    network = model.depth_network
    assert network is not None and not any(module.training for module in network.modules())
    images = torch.randint(0, 256, (2, 3, 16, 16)).float()
    with torch.no_grad():
        shown = interpolate(images, (192, 192), mode="bicubic", antialias=True).clamp(0, 255)
        disparity = interpolate(network(shown)[:, None], (16, 16), mode="bilinear", antialias=True)
        flat = disparity.flatten(1)
        standard = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).reshape(2, 1, 16, 16)
        seen = torch.cat([images / 127.5 - 1, standard.clamp(-4, 4)], 1)
        expected = model.to_code(model.encoder(model.embed_patches(patchify(seen, 4))))
    torch.testing.assert_close(model.encode(images / 127.5 - 1), expected, atol=1e-4, rtol=1e-4)
    in_use = network.standardised(images)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        assert torch.equal(network.standardised(images), in_use)
    before = [value.clone() for value in network.state_dict().values()]
    model(images / 127.5 - 1).planes.square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert model.embed_patches.weight.grad is not None
    blind = build_autoencoder(tiny_recipe())
    assert blind.depth_network is None
    assert torch.equal(blind.decoder.positions, model.decoder.positions)  # the rest starts alike
