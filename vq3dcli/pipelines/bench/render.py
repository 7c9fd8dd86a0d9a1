"""Rendering beside plain ways, where every sample of every ray is computed at once.

`plain` takes our samples and gives our colours: three look-ups, MLP, alpha. `eg3d` goes as EG3D's own renderer does
(Chan et al., CVPR 2022): 48 samples, 48 more where those have weight, all sorted, and features of 32 channels
composited, of which three are the colours.

Scenes: a toy scene of the embedded weights, and the same at the size of EG3D's: its planes enlarged to 256 px, their 16
channels turned into 32, which a first layer turned likewise reads.

Legend: N rays, S samples, P plane side, C plane channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.model.field import FieldMLP, FieldModel, thickness
from vq3dcli.pipelines.bench.measure import Gate, Work, psnr_db, signal_db
from vq3dcli.pipelines.inputs import open_scene, parse_sources
from vq3dcli.rendering.cameras import Camera, Rays, image_rays, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import PLANE_AXES
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import render, render_rays
from vq3dcli.rendering.trajectories import trajectory
from vq3dcli.weights_file import load_weights

PLAIN, EG3D = "plain", "eg3d"
SUBJECT = "toyscene:snowman:3"
LEAST_PSNR_DB = 60.0
# Of gradients, whose sums over a million points go through other orders of float32.
LEAST_SIGNAL_DB = 50.0
_EG3D_SIDE, _EG3D_CHANNELS, _EG3D_SAMPLES = 256, 32, 96
# Equal samples that are the truth of both.
_DENSE = 1536


class Subject(NamedTuple):
    """A scene that is rendered: a model, planes `[1, 3, P, P, C]`, samples a ray."""

    name: str
    model: FieldModel
    planes: Tensor
    samples: int


def works(device: torch.device) -> Iterator[Work]:
    """Frames, and forward with backward."""
    rays = side_view(128, device)
    small, large = subjects(device)
    for subject in (small, large):
        name = f"{subject.name}, 128 px x {subject.samples}"
        look, plain = looking(subject), torch.no_grad()(partial(plain_way, subject, rays))
        yield Work(name, partial(look, rays), 1, "frames", PLAIN, plain, same_colours)
        fresh = lambda subject=subject: looking(subject)(rays)  # noqa: E731
        yield Work(f"{name}, a new scene", fresh, 1, "frames", PLAIN, plain, same_colours)
    name = f"{large.name}, 128 px x {large.samples}, 48 + 48"
    dense = looking(large._replace(samples=_DENSE))(rays)
    look = partial(looking(large), rays)
    yield Work(name, look, 1, "frames", EG3D, partial(eg3d_way, large, rays), partial(_no_worse, dense))
    passes = f"{large.name}, 128 px x {large.samples}, forward and backward"
    ours, theirs = (partial(gradients, large, rays, ours=ours) for ours in (True, False))
    yield Work(passes, ours, 1, "frames", PLAIN, theirs, _same_gradients)


def same_colours(ours: Tensor, theirs: Tensor) -> Gate:
    """Pictures must agree before they are rounded to grey levels."""
    return Gate("psnr_db", psnr_db(ours, theirs), LEAST_PSNR_DB)


def _no_worse(dense: Tensor, ours: Tensor, theirs: Tensor) -> Gate:
    """Nearer to a picture of many samples, in dB."""
    return Gate("psnr_gain_db", psnr_db(ours, dense) - psnr_db(theirs, dense), 0.0)


def _same_gradients(ours: Tensor, theirs: Tensor) -> Gate:
    return Gate("gradient_db", signal_db(ours, theirs), LEAST_SIGNAL_DB)


def subjects(device: torch.device) -> tuple[Subject, Subject]:
    """The scene of the embedded weights, and one at the size of EG3D's."""
    scene = open_scene(parse_sources([SUBJECT])[0], load_weights(device=device), fit="crop").scene
    model, planes = scene.model, scene.planes.float()
    channels = planes.shape[-1]
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(_EG3D_CHANNELS, channels, generator=generator))[0].to(device)  # [32, C]
    wide = functional.interpolate(planes[0].permute(0, 3, 1, 2), (_EG3D_SIDE, _EG3D_SIDE), mode="bicubic")
    first = model.field_mlp.hidden[0]
    assert isinstance(first, nn.Linear)
    mlp = FieldMLP(_EG3D_CHANNELS, first.out_features, len(model.field_mlp.hidden)).to(device)
    state = model.field_mlp.state_dict()
    state["hidden.0.weight"] = state["hidden.0.weight"] @ turned.T
    mlp.load_state_dict(state)
    large = FieldModel(mlp, model.space, model.frustum)
    enlarged = (wide.permute(0, 2, 3, 1) @ turned.T).contiguous()[None]
    return (
        Subject("embedded weights", model, planes, 64),
        Subject("size of EG3D", large.requires_grad_(False), enlarged, _EG3D_SAMPLES),
    )


def side_view(size_px: int, device: torch.device) -> Rays:
    """The rays of a camera beside the photo's, `[1, N]`."""
    return image_rays(side_camera(size_px).to(device))


def side_camera(size_px: int) -> Camera:
    """A camera on the orbit."""
    return trajectory("orbit", 8, height_px=size_px, width_px=size_px)[1]


def looking(subject: Subject) -> Callable[[Rays], Tensor]:
    """Our way: prepares a scene, and gives the colours `[N, 3]` that rays `[1, N]` see of it."""
    field = subject.model.frozen_field(subject.planes)
    return lambda rays: render(field, rays, subject.samples, subject.model.frustum.depth_range)[0][0]


def plain_way(subject: Subject, rays: Rays) -> Tensor:
    """Colours `[N, 3]`."""
    bins = uniform_samples(subject.samples, subject.planes.device)
    raw, rgb = _evaluated(subject, rays, bins.s)
    weights = _weights(_density(subject, rays, bins.s, raw), bins.lengths(subject.model.frustum.depth_range), rays)
    return (weights[..., None] * rgb).sum(-2)


@torch.no_grad()
def eg3d_way(subject: Subject, rays: Rays) -> Tensor:
    """Colours `[N, 3]`, by half of the samples and as many where those have weight."""
    count = subject.samples // 2
    bins = uniform_samples(count, subject.planes.device)
    coarse_s = bins.s.expand(rays.origin.shape[1], count)
    coarse = _evaluated(subject, rays, coarse_s, wide=True)
    weights, _ = _marched(subject, rays, coarse_s, *coarse)
    fine_s = _drawn(coarse_s, weights, count)
    fine = _evaluated(subject, rays, fine_s, wide=True)
    s, order = torch.cat([coarse_s, fine_s], -1).sort(-1, descending=True)
    raw = torch.cat([coarse[0], fine[0]], -1).gather(-1, order)
    features = torch.cat([coarse[1], fine[1]], -2).gather(-2, order[..., None].expand(-1, -1, _EG3D_CHANNELS))
    return _marched(subject, rays, s, raw, features)[1][:, :3]


def _marched(subject: Subject, rays: Rays, s: Tensor, raw: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[N, S - 1]` and sums of features, of the middles between neighbouring samples `[N, S]`."""
    depth_range = subject.model.frustum.depth_range
    middle_features = (features[:, :-1] + features[:, 1:]) / 2
    middle_raw, middle_s = (raw[:, :-1] + raw[:, 1:]) / 2, (s[:, :-1] + s[:, 1:]) / 2
    weights = _weights(_density(subject, rays, middle_s, middle_raw), z_depth_from_s(s, depth_range).diff(dim=-1), rays)
    return weights, (weights[..., None] * middle_features).sum(-2)


def _evaluated(subject: Subject, rays: Rays, s: Tensor, *, wide: bool = False) -> tuple[Tensor, Tensor]:
    """Raw density `[N, S]` and colours `[N, S, 3]` at samples `[S]` or `[N, S]`; `wide`: as EG3D's decoder works.

    That has 32 channels, here zero behind the colours, and softplus, here as sharp as ReLU.
    """
    model = subject.model
    places = model.space(_points(subject, rays, s))
    images = subject.planes[0].permute(0, 3, 1, 2)
    looked_up = [
        functional.grid_sample(
            images[plane : plane + 1], places[None, ..., list(axes)], padding_mode="border", align_corners=False
        )
        for plane, axes in enumerate(PLANE_AXES)
    ]
    hidden = (looked_up[0] + looked_up[1] + looked_up[2])[0].permute(1, 2, 0)
    for layer in model.field_mlp.hidden:
        hidden = functional.softplus(layer(hidden), beta=200.0) if wide else functional.relu(layer(hidden))
    weight: Tensor = model.field_mlp.out.weight
    bias: Tensor = model.field_mlp.out.bias
    if wide:
        more = _EG3D_CHANNELS - 3
        weight, bias = functional.pad(weight, (0, 0, 0, more)), functional.pad(bias, (0, more))
    output = functional.linear(hidden, weight, bias)
    return output[..., 0], torch.sigmoid(output[..., 1:])


def _points(subject: Subject, rays: Rays, s: Tensor) -> Tensor:
    """World points `[N, S, 3]` at samples `[S]` or `[N, S]`."""
    z_depth = z_depth_from_s(s, subject.model.frustum.depth_range)
    return rays.origin[0, :, None] + z_depth[..., None] * rays.direction[0, :, None]


def _density(subject: Subject, rays: Rays, s: Tensor, raw: Tensor) -> Tensor:
    """A metre, `[N, S]`, of raw density at samples."""
    frustum = subject.model.frustum
    seen_from = frustum.z_depth(_points(subject, rays, s))
    prior = 8.0 * (0.45 - s_from_z_depth(seen_from, frustum.depth_range))
    return subject.model.density(thickness(raw, prior), seen_from)


def _drawn(s: Tensor, weights: Tensor, count: int) -> Tensor:
    """S `[N, count]` at equal steps of the weights `[N, S - 1]` between samples `[N, S]` (Mildenhall et al., 2020)."""
    mass = weights + 1e-5
    upto = functional.pad((mass / mass.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    steps = ((torch.arange(count, device=weights.device) + 0.5) / count).expand(len(weights), -1).contiguous()
    index = torch.searchsorted(upto, steps, right=True).clamp(1, weights.shape[-1])
    low, high = upto.gather(-1, index - 1), upto.gather(-1, index)
    start, end = s.gather(-1, index - 1), s.gather(-1, index)
    return start + (end - start) * ((steps - low) / (high - low).clamp(min=1e-8)).clamp(0.0, 1.0)


def _weights(density: Tensor, lengths: Tensor, rays: Rays) -> Tensor:
    """By the product of what passes, the last sample opaque; `[N, S]`."""
    alpha = 1.0 - torch.exp(-density * lengths * rays.direction[0].norm(dim=-1, keepdim=True))
    alpha = torch.cat([alpha[:, :-1], torch.ones_like(alpha[:, -1:])], -1)
    return torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha[:, :-1]], -1), -1) * alpha


def gradients(subject: Subject, rays: Rays, *, ours: bool) -> Tensor:
    """Of the mean of squared colours with respect to planes and weights, in one row."""
    planes = subject.planes.detach().requires_grad_()
    mlp = subject.model.field_mlp.requires_grad_()
    if ours:
        samples = uniform_samples(subject.samples, planes.device)
        rgb = render_rays(subject.model.field(planes), rays, samples).rgb[0]
    else:
        rgb = plain_way(subject._replace(planes=planes), rays)
    derivatives = torch.autograd.grad(rgb.square().mean(), [planes, *mlp.parameters()])
    mlp.requires_grad_(False)
    return torch.cat([each.flatten() for each in derivatives])
