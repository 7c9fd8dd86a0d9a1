"""Layered depth images: a NeRF cut along the canonical rays into a few layers that any GPU can draw.

Each layer is a picture over a bin of normalised disparity s: colour, opacity, and where in the bin its surface lies.
That last map is what sets it apart from a multiplane image (Zhou et al., SIGGRAPH 2018): slanted surfaces stay whole
instead of becoming steps, so that 32 layers are enough.

Legend: L layers from near to far, H height_px, W width_px of the layers, V views, N rays, K samples a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.photo_scene import PhotoLayer
from vq3dcli.editing.placement import Hits
from vq3dcli.editing.relief import fill_holes, resized
from vq3dcli.rendering.cameras import Camera, image_rays, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import grid_look_up
from vq3dcli.rendering.ray_samples import samples_between
from vq3dcli.rendering.render import Field, along_rays, ray_weights
from vq3dcli.rendering.space import Frustum

MAX_LAYERS = 32
MAX_SIDE_PX = 512
_POINTS_AT_ONCE = 1 << 15
# Rays that find out where the scene lies, a side, and samples on each.
_PROBE_PX = 24
PROBE_SAMPLES = 128
# A part of the layers lies evenly in s, so that what the canonical view hides has its share.
_EVEN_SHARE = 0.3
# Steps of the search for the surface within a layer; each one divides the error by the slope of the surface.
_SEARCH_STEPS = 2
# Thinner haze is left out: most of the space would be filled with it, and cost a browser time.
_LEAST_ALPHA = 0.01
# Two neighbouring texels of a relief belong to one surface if their s differ by less.
_SAME_SURFACE_S = 0.04
# Five of them in a row span more only where one surface ends before another.
_STEP_S = 0.08
_NEAR_SURFACE_S = 0.01


@dataclass(frozen=True)
class Layers:
    """A scene as layers."""

    rgb: Tensor  # colour, not multiplied by opacity, `[L, 3, H, W]` in [0, 1]; filled where a layer is empty
    alpha: Tensor  # opacity `[L, H, W]` in [0, 1]; 1 everywhere in the last layer
    s: Tensor  # where the surface of each texel lies, `[L, H, W]`, in or near the layer's bin; filled as the colour is
    edges_s: Tensor  # `[L + 1]` from 1 to 0: layer i lies between edges i and i + 1
    frustum: Frustum  # the camera whose rays the texels follow
    # how much wider and higher the layers are than what that camera sees, at least 1 each
    margins: tuple[float, float] = (1.0, 1.0)

    def __len__(self) -> int:
        """Number of layers L."""
        return self.rgb.shape[0]

    @property
    def planes_s(self) -> Tensor:
        """The middles of the bins, `[L]`."""
        return 0.5 * (self.edges_s[1:] + self.edges_s[:-1])


@torch.no_grad()
def choose_edges(field: Field, frustum: Frustum, layers: int, device: torch.device | None = None) -> Tensor:
    """Edges of layers that are thin where surfaces are: `[L + 1]`, from 1 to 0.

    The density of layers goes with the cube root of how much is seen at an s, which is best for a mean squared error
    (Panter and Dite, 1951), mixed with an even share.
    """
    probe = torch.linspace(1.0, 0.0, PROBE_SAMPLES + 1)
    bins = _ray_bins(field, frustum, probe, (_PROBE_PX, _PROBE_PX), 1, device)
    seen = ray_weights(-torch.log1p(-bins.alpha.clamp(max=1 - 1e-6)), opaque_end=True).mean((0, 1))
    return edges_of(seen.cpu(), layers)


def edges_of(seen: Tensor, layers: int) -> Tensor:
    """Edges `[L + 1]` for how much is seen in each of equal bins of s from 1 to 0."""
    probe = torch.linspace(1.0, 0.0, len(seen) + 1)
    density = seen.clamp(min=0.0) ** (1.0 / 3.0)
    density = functional.avg_pool1d(density[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    # Nothing lies in front of the nearest surface: one layer takes all of that.
    solid = seen.cumsum(0) > 1e-3
    even = solid.float() / solid.sum().clamp(min=1)
    density = torch.where(solid, density, torch.zeros_like(density))
    share = (1.0 - _EVEN_SHARE) * density / density.sum().clamp(min=1e-9) + _EVEN_SHARE * even
    cumulative = torch.cat([torch.zeros(1), share.cumsum(0)]).double()
    cumulative /= cumulative[-1].clone()
    wanted = torch.linspace(0.0, 1.0, layers + 1, dtype=torch.float64)[1:-1]
    index = torch.searchsorted(cumulative, wanted).clamp(1, len(seen))
    low, high = cumulative[index - 1], cumulative[index]
    fraction = ((wanted - low) / (high - low).clamp(min=1e-12)).float()
    inner = probe[index - 1] + (probe[index] - probe[index - 1]) * fraction
    return torch.cat([torch.ones(1), inner, torch.zeros(1)])


@torch.no_grad()
def bake_layers(
    field: Field,
    frustum: Frustum,
    edges_s: Tensor,
    size: tuple[int, int],
    *,
    samples_a_layer: int = 3,
    hits: Hits | None = None,
    device: torch.device | None = None,
) -> Layers:
    """Cut a field into layers along the canonical rays, at the edges `[L + 1]` of `choose_edges`.

    `hits` are what the rays of each texel meet besides, in row-major order.
    """
    bins = _ray_bins(field, frustum, edges_s, size, samples_a_layer, device)
    if hits is not None:
        bins = _with_hits(bins, hits, frustum, edges_s)
    alpha = bins.alpha.permute(2, 0, 1).contiguous()
    alpha[alpha < _LEAST_ALPHA] = 0.0
    alpha[-1] = 1.0  # what passes through the whole scene ends in its last layer, as it does in the renderer
    maps = torch.cat([bins.rgb.permute(2, 3, 0, 1), bins.s.permute(2, 0, 1)[:, None]], 1)
    # The colour of an empty texel is arbitrary, and bilinear sampling would let it bleed into its neighbours.
    filled = fill_holes(maps, trust_of(alpha))
    return Layers(filled[:, :3].clamp(0.0, 1.0), alpha, filled[:, 3], edges_s, frustum)


def trust_of(alpha: Tensor) -> Tensor:
    """How far the colour of a texel is to be kept: all of it from half opaque on, and hardly that of an empty one."""
    return (4.0 * alpha.square()).clamp(1e-5, 1.0)


def flat_layers(layers: Layers) -> Layers:
    """The same as a plain multiplane image: each surface divided between the two planes around it.

    With a + b = 1 a texel at s = a plane_1 + b plane_2 gets opacity a of its own on plane_1 and all of it on plane_2,
    both in its colour: the canonical view stays as it is.
    """
    planes = layers.planes_s.to(layers.s)
    count = len(layers)
    rgb, alpha = torch.zeros_like(layers.rgb), torch.zeros_like(layers.alpha)
    mass, passing = torch.zeros_like(layers.alpha), torch.ones_like(layers.alpha)
    for layer in range(count):
        # Between which planes: the first one is nearer than the surface or is plane 0.
        ahead = (planes[:, None, None] >= layers.s[layer]).sum(0).clamp(1, max(1, count - 1)) - 1
        behind = (ahead + 1).clamp(max=count - 1)
        extent = (planes[ahead] - planes[behind]).clamp(min=1e-6)
        on_ahead = ((layers.s[layer] - planes[behind]) / extent).clamp(0.0, 1.0) * layers.alpha[layer]
        for index, opacity in ((ahead, on_ahead), (behind, layers.alpha[layer])):
            rgb.scatter_add_(0, index.expand(1, 3, *index.shape), (opacity * layers.rgb[layer])[None])
            mass.scatter_add_(0, index[None], opacity[None])
            passing.scatter_reduce_(0, index[None], (1.0 - opacity)[None], "prod")
    alpha = 1.0 - passing
    alpha[-1] = 1.0
    maps = torch.where(mass[:, None] > 1e-6, rgb / mass.clamp(min=1e-6)[:, None], layers.rgb)
    middle = planes[:, None, None].expand_as(layers.s).contiguous()
    rgb = fill_holes(maps, trust_of(alpha))
    return replace(layers, rgb=rgb, alpha=alpha, s=middle)


@torch.no_grad()
def render_layers(layers: Layers, camera: Camera) -> tuple[Tensor, Tensor]:
    """Draw layers from V cameras: what the web viewer does, line by line.

    rgb `[V, 3, H, W]` in [0, 1] and the expected s in the drawing camera `[V, H, W]`, of the camera's size.
    """
    frustum = layers.frustum
    rays = image_rays(camera)
    size = (camera.cam_to_world.shape[0], camera.height_px, camera.width_px)
    origin = (rays.origin + rays.origin.new_tensor([0.0, 0.0, frustum.radius])).reshape(*size, 3).to(layers.rgb)
    direction = rays.direction.reshape(*size, 3).to(layers.rgb)
    tangent = frustum.tangent * origin.new_tensor(layers.margins)
    colour = torch.zeros(size[0], 3, *size[1:], device=layers.rgb.device)
    disparity, passing = torch.zeros_like(colour[:, 0]), torch.ones_like(colour[:, 0])
    maps = torch.cat([layers.rgb, layers.alpha[:, None], layers.s[:, None]], 1)
    for layer, plane_s in enumerate(layers.planes_s.tolist()):
        s = torch.full_like(disparity, plane_s)
        for step in range(_SEARCH_STEPS + 1):
            z_canonical = z_depth_from_s(s, frustum.depth_range)
            z_depth = (z_canonical - origin[..., 2]) / direction[..., 2]
            xy = (origin[..., :2] + z_depth[..., None] * direction[..., :2]) / (z_canonical[..., None] * tangent)
            texels = maps[layer : layer + 1].expand(size[0], -1, -1, -1)
            if step < _SEARCH_STEPS:
                s = grid_look_up(texels[:, 4:], xy)[:, 0]
            else:
                seen = grid_look_up(texels, xy)
        weight = passing * seen[:, 3] * (z_depth > 0.0)
        colour += weight[:, None] * seen[:, :3]
        disparity += weight * s_from_z_depth(z_depth.clamp(min=1e-3), frustum.depth_range)
        passing = passing - weight
    return colour, disparity


class _Bins(NamedTuple):
    """Along the rays of H x W pixels: opacity `[H, W, L]`, rgb `[H, W, L, 3]` and s `[H, W, L]` of each bin."""

    alpha: Tensor
    rgb: Tensor
    s: Tensor


def _with_hits(bins: _Bins, hits: Hits, frustum: Frustum, edges_s: Tensor) -> _Bins:
    """The bins with surfaces in them, each in front of what else its bin holds."""
    height_px, width_px, layers = bins.alpha.shape
    s = s_from_z_depth(hits.z_depth, frustum.depth_range)
    share = hits.within(frustum.depth_range).to(s) / s.shape[1]
    index = (torch.searchsorted(-edges_s.to(s), -s) - 1).clamp(0, layers - 1)
    values = share[..., None] * torch.cat([torch.ones_like(s)[..., None], s[..., None], hits.rgb], -1)
    sums = s.new_zeros(len(s), layers, 5).scatter_add_(1, index[..., None].expand(-1, -1, 5), values)
    covered, place, colour = sums.reshape(height_px, width_px, layers, 5).split([1, 1, 3], -1)
    passing = (1.0 - covered[..., 0]) * bins.alpha
    alpha = covered[..., 0] + passing
    # A bin with nothing in it keeps the colour and the place that it has.
    rest = torch.where(alpha > 0.0, passing, torch.ones_like(alpha))
    whole = (covered[..., 0] + rest)[..., None]
    rgb = (colour + rest[..., None] * bins.rgb) / whole
    return _Bins(alpha, rgb, (place[..., 0] + rest * bins.s) / whole[..., 0])


def _ray_bins(
    field: Field,
    frustum: Frustum,
    edges_s: Tensor,
    size: tuple[int, int],
    samples_a_layer: int,
    device: torch.device | None,
) -> _Bins:
    layers = edges_s.shape[0] - 1
    part = torch.linspace(0.0, 1.0, samples_a_layer + 1)[:-1]
    inner = edges_s[:-1, None] + part * (edges_s[1:] - edges_s[:-1])[:, None]
    samples = samples_between(torch.cat([inner.reshape(-1), edges_s[-1:]]).to(device))
    lengths, by_layer = samples.lengths(frustum.depth_range), samples.s.reshape(layers, samples_a_layer)
    rays = image_rays(frustum.camera(*size).to(samples.s.device))
    parts: list[_Bins] = []
    for index in torch.arange(size[0] * size[1]).split(max(1, _POINTS_AT_ONCE // len(samples.s))):
        density, rgb, metres = (value[0] for value in along_rays(field, rays[index], samples, frustum.depth_range))
        shape = (len(index), layers, samples_a_layer)
        weights = ray_weights((density * lengths * metres[:, None]).reshape(shape), opaque_end=False)
        # An empty bin still has a colour and a place, those of its middle, for what bleeds in from its neighbours.
        share = (weights + 1e-8) / (weights + 1e-8).sum(-1, keepdim=True)
        colour = (share[..., None] * rgb.reshape(*shape, 3)).sum(-2)
        parts.append(_Bins(weights.sum(-1), colour, (share * by_layer).sum(-1)))
    alpha, rgb, s = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Bins(alpha.reshape(*size, layers), rgb.reshape(*size, layers, 3), s.reshape(*size, layers))


def layers_of_sheets(
    sheets: Sequence[PhotoLayer], frustum: Frustum, layers: int, *, margins: tuple[float, float] = (1.0, 1.0)
) -> Layers:
    """Cut pictures with reliefs into layers: from front to back a photo, and what its things in front hide."""
    steps = torch.cat([sheet.s.flatten() for sheet in sheets]).cpu()
    seen = torch.histc(1.0 - steps, PROBE_SAMPLES, 0.0, 1.0) / len(steps)
    edges_s = edges_of(seen, layers)
    last = sheets[-1]
    planes = (0.5 * (edges_s[1:] + edges_s[:-1])).to(last.s)[:, None, None].expand(layers, *last.s.shape)
    alpha = torch.zeros_like(planes)
    built = Layers(last.rgb.expand(layers, -1, -1, -1), alpha, planes, edges_s, frustum, margins)
    for sheet in reversed(sheets):
        built = add_photo(built, sheet.rgb, sheet.s)
    return built


def add_photo(layers: Layers, photo: Tensor, s: Tensor) -> Layers:
    """Put a photo on the surface that the canonical camera sees; what it hides stays the NeRF's.

    Args:
        layers: Of the NeRF, at any resolution; the result has the photo's.
        photo: `[3, H, W]` in [0, 1], what the canonical camera sees.
        s: The disparity of each of its pixels, `[H, W]`, for example the NeRF's refined by the photo's edges.
    """
    s = snap_to_surfaces(s)
    low, high = _surface_range(s)
    edges = layers.edges_s.tolist()
    count, (height, width) = len(layers), s.shape
    rgb, alpha = s.new_empty(count, 3, height, width), s.new_empty(count, height, width)
    texel_s = torch.empty_like(alpha)
    # A layer at a time: 32 layers of 512 pixels are half a gigabyte as it is.
    for layer in range(count):
        maps = torch.cat([layers.rgb[layer], layers.s[layer][None], layers.alpha[layer][None]])[None].to(s)
        maps = resized(maps[0], (height, width), smooth=False)
        # A surface that crosses from one bin into the next lies in both along the seam: no crack opens between them.
        own = (edges[layer + 1] <= high) & (edges[layer] >= low)
        in_front = edges[layer + 1] > high
        opacity = torch.where(own, torch.ones_like(s), torch.where(in_front, torch.zeros_like(s), maps[4]))
        trust = torch.where(own, torch.ones_like(s), trust_of(opacity))
        maps = torch.where(own, torch.cat([photo.to(s), s[None]]), maps[:4])
        if not (trust == trust.flatten()[0]).all():
            maps = fill_holes(maps, trust)
        alpha[layer] = torch.ones_like(s) if layer == count - 1 else opacity
        rgb[layer], texel_s[layer] = maps[:3].clamp(0.0, 1.0), maps[3]
    return replace(layers, rgb=rgb, alpha=alpha, s=texel_s)


def snap_to_surfaces(s: Tensor) -> Tensor:
    """Pixels between two surfaces, which see a mean of both, go to the nearer one in s: `[..., H, W]`, by 5 x 5."""
    maps = s.reshape(-1, 1, *s.shape[-2:])
    high = functional.max_pool2d(maps, 5, 1, 2).reshape(s.shape)
    low = -functional.max_pool2d(-maps, 5, 1, 2).reshape(s.shape)
    closest = torch.where(high - s < s - low, high, low)
    return torch.where((high - low > _STEP_S) & ((closest - s).abs() > _NEAR_SURFACE_S), closest, s)


def _surface_range(s: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest s `[H, W]` in the 3 x 3 neighbourhood of each texel that are of its own surface."""
    padded = functional.pad(s[None, None], (1, 1, 1, 1), mode="replicate")
    around = functional.unfold(padded, 3).reshape(9, *s.shape)
    around = torch.where((around - s).abs() < _SAME_SURFACE_S, around, s)
    return around.amin(0), around.amax(0)
