"""Rays in, colour and disparity out. The renderer takes a field callable and knows no model.

```
rays + samples -> points -> field -> density, rgb -> tau = density * length -> weights -> sums over samples
```

`render` is what videos, pictures and figures go through; `render_rays` is one pass that keeps what losses need.

Legend: B scenes, N rays, S samples, C channels of colour, which are 3 but in compositions.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import DEPTH_RANGE, DepthRange, Rays, z_depth_from_s
from vq3dcli.rendering.ray_samples import RaySamples, uniform_samples, with_importance

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""World points `[B, N, 3]` to density `[B, N]` (per metre) and rgb `[B, N, 3]` in [0, 1]."""


class Density(NamedTuple):
    """Of raw density: scale softplus(gain raw + slope (middle - s) - shift) is optical thickness a unit of s."""

    scale: float
    gain: float
    slope: float
    middle: float
    shift: float


class RayField(ABC):
    """A `Field` of one scene that looks along rays by itself, faster and within a grey level of what `render` does."""

    exact: Field  # the same field by tensor operations

    @abstractmethod
    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""

    @abstractmethod
    def along(self, rays: Rays, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `render`, for rays `[1, N]`."""


class TrainedField(ABC):
    """A `Field` of scenes that looks along rays by itself, with gradients to what it is made of."""

    exact: Field  # the same field by tensor operations, for rays that have a gradient, too

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        return self.exact(points)

    @abstractmethod
    def composited(self, rays: Rays, samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Colours `[B, N, 3]` and weights `[B, N, S]` of `render_rays`; the last sample is opaque."""


_log = logging.getLogger(__name__)
_exact = ContextVar("exact", default=False)


@contextlib.contextmanager
def exact_rendering() -> Iterator[None]:
    """Within it all is rendered by tensor operations: all samples of all rays, as figures are measured."""
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def is_exact() -> bool:
    """Whether this is within `exact_rendering`."""
    return _exact.get()


@functools.cache  # once a reason
def note_slower(why: str) -> None:
    """Log that a GPU has no fused renderer."""
    _log.warning("on this GPU scenes are rendered by tensor operations, which is slower: no Triton kernel (%s)", why)


# Points of a chunk of rays: what fits the cache of a CPU.
_POINTS_AT_ONCE = 1 << 15
# On a GPU more, in a quarter of what is free, until more would not be faster.
_MOST_POINTS_AT_ONCE = 1 << 21
_BYTES_A_POINT = 1 << 12


def _points_at_once(device: torch.device) -> int:
    """What fits."""
    if device.type != "cuda":
        return _POINTS_AT_ONCE
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(max(free // (4 * _BYTES_A_POINT), _POINTS_AT_ONCE), _MOST_POINTS_AT_ONCE)


class Rendering(NamedTuple):
    """What rays see."""

    rgb: Tensor  # `[B, N, C]` in [0, 1]
    s: Tensor  # expected normalised disparity `[B, N]`
    weight_variance: Tensor  # variance of s under the weights `[B, N]`; a clean surface has almost none
    weights: Tensor  # `[B, N, S]`
    samples_s: Tensor  # `[B, N, S]`


def ray_weights(tau: Tensor, *, opaque_end: bool) -> Tensor:
    """Rendering weights from optical thickness (Max, 1995; Mildenhall et al., ECCV 2020, eq. 3), in float32.

    With T_i = exp(-sum_{j<i} tau_j), the weight of sample i is T_i (1 - exp(-tau_i)): `[..., S]`, at least 0, summing
    to at most 1. `tau` is density times metric length of each interval, at least 0. An `opaque_end` gives what passes
    through all samples to the last one, so that the weights sum to 1.
    """
    tau = tau.float()
    # exp(-80) is nothing to see and still a normal float32; denormal numbers are slow on some CPUs.
    thickness_before = (torch.cumsum(tau, -1) - tau).clamp(max=80.0)
    transmittance = torch.exp(-thickness_before)
    # expm1 keeps thin media exact where 1 - exp(-tau) would round to zero.
    opacity = -torch.expm1(-tau)
    if opaque_end:
        opacity = torch.cat([opacity[..., :-1], torch.ones_like(opacity[..., -1:])], -1)
    return transmittance * opacity


def along_rays(
    field: Field, rays: Rays, samples: RaySamples, depth_range: DepthRange = DEPTH_RANGE
) -> tuple[Tensor, Tensor, Tensor]:
    """What lies on rays `[B, N]`, in float32: density `[B, N, S]` and colour `[B, N, S, C]` of each sample.

    Also how many metres a unit of z_depth is on each ray, `[B, N]`: the corners of an image look along longer rays.
    """
    shape = (*rays.direction.shape[:2], samples.s.shape[-1])
    z_depth = z_depth_from_s(samples.s, depth_range)
    points = rays.origin[:, :, None] + z_depth[..., None] * rays.direction[:, :, None]
    density, rgb = field(points.reshape(shape[0], -1, 3))
    metres = rays.direction.square().sum(-1).sqrt()
    return density.reshape(shape).float(), rgb.reshape(*shape, rgb.shape[-1]).float(), metres


def render_rays(
    field: Field,
    rays: Rays,
    samples: RaySamples,
    depth_range: DepthRange = DEPTH_RANGE,
    *,
    opaque_end: bool = True,
    importance: Tensor | None = None,
) -> Rendering:
    """Volume-render rays with given samples `[B, N, S]`, or what expands to it.

    Scenes end in an opaque last sample; objects on nothing do not. Uniform numbers `importance` `[B, N, M]` place M
    more samples where a first pass finds the surface.
    """
    if importance is not None:
        with torch.no_grad(), _uncached_casts():
            coarse = render_rays(field, rays, samples, depth_range)
        samples = with_importance(samples, coarse.weights, importance)
    if isinstance(field, TrainedField) and opaque_end and not is_exact() and not rays.direction.requires_grad:
        seen, weights = field.composited(rays, samples)
    else:
        density, rgb, metres = along_rays(field, rays, samples, depth_range)
        tau = density * samples.lengths(depth_range) * metres[..., None]
        weights = ray_weights(tau, opaque_end=opaque_end)
        seen = (weights[..., None] * rgb).sum(-2)
    samples_s = samples.s.expand_as(weights)
    s = (weights * samples_s).sum(-1)
    variance = (weights * (samples_s - s[..., None]).square()).sum(-1)
    return Rendering(seen, s, variance, weights, samples_s)


@contextlib.contextmanager
def _uncached_casts() -> Iterator[None]:
    """Autocast keeps its casts of weights for later passes: one made without a graph would cut them off for good."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def render(
    field: Field,
    rays: Rays,
    samples: int | RaySamples,
    depth_range: DepthRange = DEPTH_RANGE,
    *,
    opaque_end: bool = True,
    rays_per_chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rays without gradients, in chunks that fit the cache: rgb `[B, N, C]`, s `[B, N]`, weight_variance `[B, N]`.

    On a CPU as many chunks at a time as it has threads. Rays are independent: any `rays_per_chunk` gives the same bits
    if the field is independent by point; by default they have 2^15 samples, on a GPU as fit its memory. Samples are how
    many a ray, at the middles of equal bins of s; or `[B, N, S]`, or `[S]` for all rays.
    """
    if isinstance(field, RayField):
        if isinstance(samples, int) and opaque_end and not is_exact():
            return field.along(rays, samples)
        field = field.exact if is_exact() else field
    count = rays.origin.shape[1]
    given = uniform_samples(samples, rays.origin.device) if isinstance(samples, int) else samples
    chunk = rays_per_chunk or max(1, _points_at_once(rays.origin.device) // given.s.shape[-1])

    @torch.no_grad()  # a thread does not inherit the caller's mode
    def render_chunk(start: int) -> Rendering:
        here = slice(start, start + chunk)
        own = given if given.s.ndim == 1 else RaySamples(*(part[:, here] for part in given))
        return render_rays(field, rays[here], own, depth_range, opaque_end=opaque_end)

    starts = range(0, count, chunk)
    # The operations of a chunk that fits the cache are too small for PyTorch to split among its threads.
    threads = torch.get_num_threads() if rays.origin.device.type == "cpu" else 1
    if threads == 1 or len(starts) == 1:
        outputs = [render_chunk(start) for start in starts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            outputs = list(pool.map(render_chunk, starts))
    rgb, s, variance = (torch.cat(parts, 1) for parts in zip(*(part[:3] for part in outputs), strict=True))
    return rgb, s, variance
