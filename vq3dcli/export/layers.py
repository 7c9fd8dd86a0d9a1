"""Layered depth images: a NeRF cut along the canonical rays into a few layers that any GPU can draw.

Each layer is a picture over a bin of normalised disparity s: colour, opacity, and where in the bin its surface lies.
That last map is what sets it apart from a multiplane image (Zhou et al., SIGGRAPH 2018): slanted surfaces stay whole
instead of becoming steps, so that 32 layers are enough.

Legend: L layers from near to far, H height_px, W width_px of the layers, V views, N rays, K samples a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.filters import fill_holes
from vq3dcli.editing.placement import Hits
from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    FAR,
    FOV_RAD,
    NEAR,
    Camera,
    canonical_camera,
    image_rays,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.composite import ray_weights
from vq3dcli.rendering.render import Field

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


@dataclass(frozen=True)
class Frustum:
    """The canonical camera, as exporters need it.

    Attributes:
        radius: Its distance from the pivot; it looks along +z.
        fov_rad: Field of view on both axes, whatever the shape of the picture.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        aspect: Width / height of what the picture shows; the world is squeezed by it where it is not 1.
    """

    radius: float = CAMERA_RADIUS
    fov_rad: float = FOV_RAD
    near: float = NEAR
    far: float = FAR
    aspect: float = 1.0

    def camera(self, height_px: int, width_px: int) -> Camera:
        """The canonical camera at a resolution; its rays span the field of view on both axes."""
        camera = canonical_camera(1, height_px=height_px, width_px=width_px, radius=self.radius, fov_rad=self.fov_rad)
        intrinsics = camera.intrinsics.clone()
        intrinsics[:, 1, 1] = 0.5 * height_px / math.tan(0.5 * self.fov_rad)
        return Camera(camera.cam_to_world, intrinsics, height_px, width_px)


@dataclass(frozen=True)
class Layers:
    """A scene as layers.

    Attributes:
        rgb: Colour, not multiplied by opacity, `[L, 3, H, W]` in [0, 1]; filled where a layer is empty.
        alpha: Opacity `[L, H, W]` in [0, 1]; 1 everywhere in the last layer.
        s: Where the surface of each texel lies, `[L, H, W]`, in or near the layer's bin; filled as the colour is.
        edges_s: `[L + 1]` from 1 to 0: layer i lies between edges i and i + 1.
        frustum: The camera whose rays the texels follow.
        margins: How much wider and higher the layers are than what that camera sees, at least 1 each.
    """

    rgb: Tensor
    alpha: Tensor
    s: Tensor
    edges_s: Tensor
    frustum: Frustum
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

    Args:
        field: A single scene.
        frustum: Its canonical camera.
        layers: How many.
        device: Where the field is evaluated.
    """
    probe = torch.linspace(1.0, 0.0, PROBE_SAMPLES + 1)
    bins = _ray_bins(field, frustum, probe, _PROBE_PX, _PROBE_PX, 1, device)
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
    *,
    height_px: int,
    width_px: int,
    samples_a_layer: int = 3,
    hits: Hits | None = None,
    device: torch.device | None = None,
) -> Layers:
    """Cut a field into layers along the canonical rays.

    Args:
        field: A single scene.
        frustum: Its canonical camera.
        edges_s: `[L + 1]`, from `choose_edges`.
        height_px: Height of the layers.
        width_px: Width of the layers.
        samples_a_layer: Samples K in each bin.
        hits: What the rays of each texel meet besides, in row-major order.
        device: Where the field is evaluated.
    """
    bins = _ray_bins(field, frustum, edges_s, height_px, width_px, samples_a_layer, device)
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
    """Draw layers from any camera: what the web viewer does, line by line.

    Args:
        layers: From near to far.
        camera: V of them.

    Returns:
        rgb `[V, 3, H, W]` in [0, 1] and the expected s in the drawing camera `[V, H, W]`, of the camera's size.
    """
    frustum = layers.frustum
    rays = image_rays(camera)
    size = (camera.cam_to_world.shape[0], camera.height_px, camera.width_px)
    origin = (rays.origin + rays.origin.new_tensor([0.0, 0.0, frustum.radius])).reshape(*size, 3).to(layers.rgb)
    direction = rays.direction.reshape(*size, 3).to(layers.rgb)
    tangent = math.tan(0.5 * frustum.fov_rad) * origin.new_tensor(layers.margins)
    colour = torch.zeros(size[0], 3, *size[1:], device=layers.rgb.device)
    disparity, passing = torch.zeros_like(colour[:, 0]), torch.ones_like(colour[:, 0])
    maps = torch.cat([layers.rgb, layers.alpha[:, None], layers.s[:, None]], 1)
    for layer, plane_s in enumerate(layers.planes_s.tolist()):
        s = torch.full_like(disparity, plane_s)
        for step in range(_SEARCH_STEPS + 1):
            z_canonical = z_depth_from_s(s, frustum.near, frustum.far)
            z_depth = (z_canonical - origin[..., 2]) / direction[..., 2]
            xy = (origin[..., :2] + z_depth[..., None] * direction[..., :2]) / (z_canonical[..., None] * tangent)
            texels = maps[layer : layer + 1].expand(size[0], -1, -1, -1)
            if step < _SEARCH_STEPS:
                s = _sample(texels[:, 4:], xy)[:, 0]
            else:
                found = _sample(texels, xy)
        weight = passing * found[:, 3] * (z_depth > 0.0)
        colour += weight[:, None] * found[:, :3]
        disparity += weight * s_from_z_depth(z_depth.clamp(min=1e-3), frustum.near, frustum.far)
        passing = passing - weight
    return colour, disparity


def _sample(maps: Tensor, xy: Tensor) -> Tensor:
    return functional.grid_sample(maps, xy, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class _Bins:
    """Along the rays of H x W pixels: opacity `[H, W, L]`, rgb `[H, W, L, 3]` and s `[H, W, L]` of each bin."""

    alpha: Tensor
    rgb: Tensor
    s: Tensor


def _with_hits(bins: _Bins, hits: Hits, frustum: Frustum, edges_s: Tensor) -> _Bins:
    """The bins with surfaces in them, each in front of what else its bin holds."""
    height_px, width_px, layers = bins.alpha.shape
    s = s_from_z_depth(hits.z_depth, frustum.near, frustum.far)
    share = ((hits.z_depth >= frustum.near) & (hits.z_depth < frustum.far)).to(s) / s.shape[1]
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
    height_px: int,
    width_px: int,
    samples_a_layer: int,
    device: torch.device | None,
) -> _Bins:
    layers = edges_s.shape[0] - 1
    part = torch.linspace(0.0, 1.0, samples_a_layer + 1)
    extent = edges_s[1:] - edges_s[:-1]
    inner = edges_s[:-1, None] + part[:-1] * extent[:, None]
    fine = torch.cat([inner.reshape(-1), edges_s[-1:]]).to(device)
    samples_s = 0.5 * (fine[1:] + fine[:-1])
    z_edges = z_depth_from_s(fine, frustum.near, frustum.far)
    z_depth, length = z_depth_from_s(samples_s, frustum.near, frustum.far), z_edges[1:] - z_edges[:-1]
    rays = image_rays(frustum.camera(height_px, width_px))
    origin, direction = rays.origin[0].to(fine), rays.direction[0].to(fine)
    at_once = max(1, _POINTS_AT_ONCE // samples_s.shape[0])
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, origin.shape[0], at_once):
        towards = direction[start : start + at_once]
        points = origin[start : start + at_once, None] + z_depth[:, None] * towards[:, None]
        density, rgb = field(points.reshape(1, -1, 3))
        shape = (towards.shape[0], layers, samples_a_layer)
        tau = (density.reshape(towards.shape[0], -1).float() * length * towards.norm(dim=-1, keepdim=True)).reshape(
            shape
        )
        weights = ray_weights(tau, opaque_end=False)
        alpha = weights.sum(-1)
        # An empty bin still has a colour and a place, those of its middle, for what bleeds in from its neighbours.
        share = (weights + 1e-8) / (weights + 1e-8).sum(-1, keepdim=True)
        colour = (share[..., None] * rgb.reshape(*shape, 3).float()).sum(-2)
        place = (share * samples_s.reshape(layers, samples_a_layer)).sum(-1)
        parts.append((alpha, colour, place))
    alpha, colour, place = (torch.cat(values) for values in zip(*parts, strict=True))
    size = (height_px, width_px, layers)
    return _Bins(alpha.reshape(size), colour.reshape(*size, 3), place.reshape(size))
