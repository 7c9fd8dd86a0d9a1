"""Rays in, colour and disparity out. The renderer takes a field callable and knows no model.

```
rays + samples_s -> points -> field -> density, rgb -> tau = density * length -> weights -> sums over samples
```

Legend: B scenes, N rays, S samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.rendering.cameras import FAR, NEAR, Rays, z_depth_from_s
from vq3dcli.rendering.composite import ray_weights
from vq3dcli.rendering.ray_samples import bin_edges, importance_s, merge_s, uniform_s

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""World points `[B, N, 3]` to density `[B, N]` (per metre) and rgb `[B, N, 3]` in [0, 1]."""


class Rendering(NamedTuple):
    """What rays see.

    Attributes:
        rgb: `[B, N, 3]` in [0, 1].
        s: Expected normalised disparity `[B, N]`.
        weight_variance: Variance of s under the weights `[B, N]`; a clean surface has almost none.
        weights: `[B, N, S]`.
        samples_s: `[B, N, S]`.
    """

    rgb: Tensor
    s: Tensor
    weight_variance: Tensor
    weights: Tensor
    samples_s: Tensor


def render_rays(
    field: Field, rays: Rays, samples_s: Tensor, *, near: float = NEAR, far: float = FAR, opaque_end: bool = True
) -> Rendering:
    """Volume-render rays with given samples.

    Args:
        field: The scene or batch of scenes.
        rays: `[B, N]` rays.
        samples_s: `[B, N, S]` from near to far.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        opaque_end: Scenes end in an opaque last sample; objects on nothing do not.
    """
    batch, count, samples = samples_s.shape
    z_depth = z_depth_from_s(samples_s, near, far)
    points = rays.origin[:, :, None] + z_depth[..., None] * rays.direction[:, :, None]
    density, rgb = field(points.reshape(batch, count * samples, 3))
    # t = z_depth * |direction| is metric distance: the corners of an image look along longer rays.
    length = rays.direction.square().sum(-1).sqrt()
    tau = density.reshape(batch, count, samples).float() * interval_lengths(samples_s, near, far) * length[..., None]
    weights = ray_weights(tau, opaque_end=opaque_end)
    s = (weights * samples_s).sum(-1)
    variance = (weights * (samples_s - s[..., None]).square()).sum(-1)
    colour = (weights[..., None] * rgb.reshape(batch, count, samples, rgb.shape[-1]).float()).sum(-2)
    return Rendering(colour, s, variance, weights, samples_s)


def interval_lengths(samples_s: Tensor, near: float = NEAR, far: float = FAR) -> Tensor:
    """Extent in z_depth of the interval of each sample, `[..., S]`."""
    edges = z_depth_from_s(bin_edges(samples_s), near, far)
    return edges[..., 1:] - edges[..., :-1]


def render_with_importance(
    field: Field, rays: Rays, coarse_s: Tensor, jitter: Tensor, *, near: float = NEAR, far: float = FAR
) -> Rendering:
    """Two passes: `coarse_s` `[B, N, S]` finds the surface, `jitter` `[B, N, M]` places M more samples there."""
    with torch.no_grad(), _uncached_casts():
        coarse = render_rays(field, rays, coarse_s, near=near, far=far)
    fine_s = importance_s(coarse_s, coarse.weights, jitter)
    return render_rays(field, rays, merge_s(coarse_s, fine_s), near=near, far=far)


@contextlib.contextmanager
def _uncached_casts() -> Iterator[None]:
    """Autocast keeps its casts of weights for later passes: one made without a graph would cut them off for good."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def render_chunked(
    field: Field,
    rays: Rays,
    samples: int,
    *,
    rays_per_chunk: int = 512,
    near: float = NEAR,
    far: float = FAR,
    opaque_end: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render many rays without gradients, samples at the middles of equal bins, in chunks that fit the cache.

    On a CPU, as many chunks at a time as PyTorch has threads.

    Rays are independent: any `rays_per_chunk` gives the same bits if the field is independent by point.

    Returns:
        rgb `[B, N, 3]`, s `[B, N]`, weight_variance `[B, N]`.
    """
    batch, count, _ = rays.origin.shape
    positions = uniform_s(samples, rays.origin.device)

    @torch.no_grad()  # a thread does not inherit the caller's mode
    def render_chunk(start: int) -> tuple[Tensor, Tensor, Tensor]:
        chunk = Rays(rays.origin[:, start : start + rays_per_chunk], rays.direction[:, start : start + rays_per_chunk])
        samples_s = positions.expand(batch, chunk.origin.shape[1], samples)
        rendering = render_rays(field, chunk, samples_s, near=near, far=far, opaque_end=opaque_end)
        return rendering.rgb, rendering.s, rendering.weight_variance

    starts = range(0, count, rays_per_chunk)
    # The operations of a chunk that fits the cache are too small for PyTorch to split among its threads.
    threads = torch.get_num_threads() if rays.origin.device.type == "cpu" else 1
    if threads == 1 or len(starts) == 1:
        outputs = [render_chunk(start) for start in starts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            outputs = list(pool.map(render_chunk, starts))
    rgb, s, variance = (torch.cat(parts, 1) for parts in zip(*outputs, strict=True))
    return rgb, s, variance
