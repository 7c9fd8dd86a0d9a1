"""The fused renderer of training against tensor operations, which are its oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vq3dcli.model.field import FieldMLP, FieldModel
from vq3dcli.rendering.cameras import Rays, image_rays
from vq3dcli.rendering.fused_training import FusedTrainedField, look_along
from vq3dcli.rendering.ray_samples import RaySamples, stratified_samples, uniform_samples
from vq3dcli.rendering.render import Rendering, TrainedField, exact_rendering, render_rays
from vq3dcli.rendering.space import ContractedSpace, Frustum, Space
from vq3dcli.rendering.trajectories import trajectory

SPACES = [Frustum(), ContractedSpace()]
SHAPES = [(16, 64, 1), (12, 24, 2), (32, 96, 3)]  # channels, units, hidden layers
SIZE, SCENES, SAMPLES = 6, 2, 12


def model_and_planes(shape: tuple[int, int, int], space: Space, *, sharp: float = 1.0) -> tuple[FieldModel, Tensor]:
    """Fields of waves: with a large `sharp`, of surfaces and empty space."""
    channels, units, layers = shape
    generator = torch.Generator().manual_seed(channels)
    torch.manual_seed(units)
    mlp = FieldMLP(channels, units, layers)
    with torch.no_grad():
        mlp.out.weight[0] *= sharp
    coarse = torch.randn(SCENES * 3, channels, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (10, 10), mode="bicubic")
    planes = fine.reshape(SCENES, 3, channels, 10, 10).permute(0, 1, 3, 4, 2)
    return FieldModel(mlp, space, Frustum()), planes


def some_rays() -> tuple[Rays, RaySamples]:
    rays = image_rays(trajectory("orbit", SCENES, height_px=SIZE, width_px=SIZE))
    generator = torch.Generator().manual_seed(0)
    return rays, stratified_samples(torch.rand(SCENES, SIZE * SIZE, SAMPLES, generator=generator))


def loss_of(rendering: Rendering) -> Tensor:
    """Of all that training looks at, with weights that differ."""
    colour = torch.linspace(-1.0, 2.0, rendering.rgb.numel()).reshape(rendering.rgb.shape)
    sample = torch.linspace(1.0, -1.0, rendering.weights.numel()).reshape(rendering.weights.shape).sin()
    apart = (rendering.samples_s - 0.3).abs()
    return (
        (rendering.rgb * colour).sum() + (rendering.weights * apart * sample).sum()
        + rendering.s.square().sum() + rendering.weight_variance.sum()
    )  # fmt: skip


def gradients(model: FieldModel, planes: Tensor, rays: Rays, samples: RaySamples) -> tuple[Rendering, list[Tensor]]:
    planes = planes.detach().requires_grad_()
    rendering = render_rays(model.field(planes), rays, samples)
    return rendering, list(torch.autograd.grad(loss_of(rendering), [planes, *model.parameters()]))


@pytest.mark.parametrize("space", SPACES, ids=["frustum", "contracted"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sharp", [1.0, 20.0], ids=["mist", "surfaces"])
def test_colours_weights_and_gradients_are_those_of_the_oracle(
    shape: tuple[int, int, int], space: Space, sharp: float
) -> None:
    model, planes = model_and_planes(shape, space, sharp=sharp)
    rays, samples = some_rays()
    assert isinstance(model.field(planes), TrainedField)
    rendering, found = gradients(model, planes, rays, samples)
    with exact_rendering():
        expected, right = gradients(model, planes, rays, samples)
    torch.testing.assert_close(rendering.rgb, expected.rgb, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(rendering.weights, expected.weights, rtol=0.0, atol=1e-4)
    for ours, theirs in zip(found, right, strict=True):
        # A unit that is off in one and on in the other, since it is nearly 0, may change a few numbers.
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-3
        assert float((ours - theirs).abs().median()) < 2e-5 * float(theirs.abs().max())


def test_samples_that_all_rays_share_and_rays_that_end_at_the_first() -> None:
    model, planes = model_and_planes((16, 64, 1), Frustum())
    rays, _ = some_rays()
    with exact_rendering():
        expected, right = gradients(model, planes, rays, uniform_samples(8))
    shared, found = gradients(model, planes, rays, uniform_samples(8))
    torch.testing.assert_close(shared.weights, expected.weights, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        model.field_mlp.out.bias[0] = 100.0
    wall, of_wall = gradients(model, planes, rays, uniform_samples(8))
    assert (wall.weights[..., 0] == 1.0).all() and (wall.weights[..., 1:] == 0.0).all()
    assert not of_wall[-1][0].any() and of_wall[-1][1:].all()  # density moves nothing any more, colour does


def test_scenes_have_the_same_bits_on_any_number_of_threads_and_alone() -> None:
    model, planes = model_and_planes((16, 64, 1), Frustum(), sharp=4.0)
    rays, samples = some_rays()
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(gradients(model, planes, rays, samples))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(one, two)
    alone = render_rays(model.field(planes[1:]), Rays(rays.origin[1:], rays.direction[1:]),
                        RaySamples(*(part[1:] for part in samples)))  # fmt: skip
    assert torch.equal(alone.rgb[0], runs[0][0].rgb[1]) and torch.equal(alone.weights[0], runs[0][0].weights[1])


def test_numbers_that_are_none_show() -> None:
    model, planes = model_and_planes((16, 64, 1), Frustum())
    rendering, found = gradients(model, planes * math.nan, *some_rays())
    assert rendering.rgb.isnan().all() and rendering.s.isnan().all() and found[-1].isnan().all()


def test_rays_with_gradients_and_other_numbers_go_through_tensor_operations() -> None:
    model, planes = model_and_planes((16, 64, 1), Frustum())
    rays, samples = some_rays()
    moved = Rays(rays.origin, rays.direction.clone().requires_grad_())
    loss_of(render_rays(model.field(planes), moved, samples)).backward()
    assert moved.direction.grad is not None and moved.direction.grad.any()
    assert not isinstance(model.field(planes.bfloat16()), TrainedField)


def test_the_operation_keeps_what_pytorch_asks_of_one() -> None:
    model, planes = model_and_planes((16, 64, 1), ContractedSpace())
    rays, samples = some_rays()
    field = model.field(planes.requires_grad_())
    assert isinstance(field, FusedTrainedField)
    inputs = (field.planes, field.layers, field.out, rays.origin, rays.direction, samples.s, samples.edges_s)
    tensors = [part.detach().requires_grad_(part.requires_grad) for part in inputs]
    torch.library.opcheck(
        look_along, (*tensors, field.inputs, field.numbers), test_utils=["test_schema", "test_faketensor"]
    )
