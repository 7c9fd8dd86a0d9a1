"""Several radiance fields and surfaces in one scene, with occlusion both ways.

Fields meet sample by sample along each ray: densities add, colours are weighted by density, as media that share a
place do. Surfaces (meshes) are opaque: what a ray sees of the fields ends at the nearest one. Colours may have more
than three channels, as long as all of a scene have as many.

A place in an object's own coordinates and its place in the scene belong together by a `Placement`, a rotation, a scale
and a shift. Rays keep their parameter under it, so z_depth means the same on both sides.

Legend: B scenes, N points or rays, S samples, K rays through one pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.rendering.cameras import (
    DEPTH_RANGE,
    Camera,
    DepthRange,
    Rays,
    image_rays,
    pixel_centres,
    rays_at_pixels,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import Field, along_rays, ray_weights, render
from vq3dcli.rendering.scene import SceneView, ViewOf, as_view, joined

Membership = Callable[[Tensor], Tensor]
"""World points `[N, 3]` to how much of each belongs to a region, `[N]` in [0, 1]."""

Surface = Callable[[Rays], tuple[Tensor, Tensor]]
"""Rays `[1, N]` to z_depth `[N]` (infinite: no hit) and rgb `[N, 3]` of the first hit."""

Vector = tuple[float, float, float]

# Four rays a pixel for surfaces, whose edges are sharp; fields are soft.
FOUR_A_PIXEL = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_RAYS_AT_ONCE = 1 << 14
_RAYS_OF_HITS = 512


@dataclass(frozen=True)
class Placement:
    """From an object's coordinates to the scene's: x_scene = at + A_scene scale R A_object^-1 (x_object - anchor).

    A photo of any shape is squashed to a square, so that the y of its scene is stretched by A = width / height.

    Attributes:
        anchor: The point of the object, in its own coordinates, that lies at `at`.
        scale: Above 0.
        yaw_rad: Turn about the vertical axis; positive turns the side that faces the camera to the right (+x).
        pitch_rad: Turn about the x axis after that; positive leans the top away from the camera (+z).
        roll_rad: Turn about the z axis at last; positive is clockwise in the image.
        object_aspect: A of the photo that the object comes from.
        scene_aspect: A of the scene's photo.
    """

    anchor: Vector = (0.0, 0.0, 0.0)
    at: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0
    yaw_rad: float = 0.0
    pitch_rad: float = 0.0
    roll_rad: float = 0.0
    object_aspect: float = 1.0
    scene_aspect: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0.0):
            raise ValueError(f"a scale must be above 0, got {self.scale}")

    def rotation(self, like: Tensor) -> Tensor:
        """R `[3, 3]`, of the type and on the device of `like`."""
        (cy, sy), (cp, sp), (cr, sr) = (
            (math.cos(angle), math.sin(angle)) for angle in (self.yaw_rad, self.pitch_rad, self.roll_rad)
        )
        # The side that faces the camera is at -z: yaw takes -z to +x.
        yaw = like.new_tensor([[cy, 0.0, -sy], [0.0, 1.0, 0.0], [sy, 0.0, cy]])
        # The top is at -y: pitch takes it to +z.
        pitch = like.new_tensor([[1.0, 0.0, 0.0], [0.0, cp, sp], [0.0, -sp, cp]])
        roll = like.new_tensor([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
        return roll @ pitch @ yaw

    def to_object(self, points: Tensor) -> Tensor:
        """Scene points `[..., 3]` in the object's coordinates."""
        return self._turned_back(points - points.new_tensor(self.at)) + points.new_tensor(self.anchor)

    def to_scene(self, points: Tensor) -> Tensor:
        """The object's points `[..., 3]` in the scene."""
        own = (points - points.new_tensor(self.anchor)) / points.new_tensor([1.0, self.object_aspect, 1.0])
        stretch = points.new_tensor([self.scale, self.scale * self.scene_aspect, self.scale])
        return _turn(own, self.rotation(points)) * stretch + points.new_tensor(self.at)

    def rays_to_object(self, rays: Rays) -> Rays:
        """The same rays in the object's coordinates; a z_depth on them means the same point."""
        return Rays(self.to_object(rays.origin), self._turned_back(rays.direction))

    def _turned_back(self, vectors: Tensor) -> Tensor:
        stretch = vectors.new_tensor([self.scale, self.scale * self.scene_aspect, self.scale])
        own = _turn(vectors / stretch, self.rotation(vectors).T)
        return own * vectors.new_tensor([1.0, self.object_aspect, 1.0])


def _turn(points: Tensor, rotation: Tensor) -> Tensor:
    """R x, as a sum of products: a point's bits do not depend on how many points there are."""
    return (rotation * points[..., None, :]).sum(-1)


def in_box(points: Tensor, lower: Vector, upper: Vector) -> Tensor:
    """Which points `[..., 3]` lie between two corners, `[...]`."""
    return ((points >= points.new_tensor(lower)) & (points <= points.new_tensor(upper))).all(-1)


def empty_field(points: Tensor) -> tuple[Tensor, Tensor]:
    """A field with nothing in it."""
    return torch.zeros_like(points[..., 0]), torch.zeros_like(points)


def placed(field: Field, placement: Placement, *, lower: Vector, upper: Vector) -> Field:
    """An object's field in the scene; it is asked only between the corners `lower` and `upper` of its own coordinates.

    Density is per metre of the scene: a larger object is as opaque as before from side to side.
    """

    def in_scene(points: Tensor) -> tuple[Tensor, Tensor]:
        own = placement.to_object(points)
        inside = in_box(own, lower, upper)
        density, rgb = empty_field(points)
        if bool(inside.any()):
            inner_density, inner_rgb = field(own[inside][None])
            density[inside] = inner_density[0].to(density) / placement.scale
            rgb = rgb.new_zeros(*rgb.shape[:-1], inner_rgb.shape[-1])
            rgb[inside] = inner_rgb[0].to(rgb)
        return density, rgb

    return in_scene


def merged(scene: Field, objects: Sequence[Field]) -> Field:
    """One field of a scene and any objects in it; the order of the objects does not matter.

    Where nothing has density the colour is the scene's: an opaque last sample may show it.
    """
    if not objects:
        return scene

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = scene(points)
        parts = [part for part in (thing(points) for thing in objects) if bool(part[0].any())]
        if not parts:
            return density, rgb
        total = torch.stack([density.float(), *(part for part, _ in parts)]).sum(0)
        # A fraction of exactly 1 where one thing is alone keeps every bit of its colour.
        mixed = (density / total)[..., None] * rgb.float()
        for part, colour in parts:
            mixed = mixed + (part / total)[..., None] * colour
        return total, torch.where((total > 0.0)[..., None], mixed, rgb.float())

    return field


def kept(field: Field, membership: Membership) -> Field:
    """What of a field belongs to a region."""

    def inside(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        return density * membership(points.reshape(-1, 3)).reshape(density.shape), rgb

    return inside


def carved(field: Field, membership: Membership) -> Field:
    """What of a field does not belong to a region."""
    return kept(field, lambda points: 1.0 - membership(points))


def recoloured(field: Field, colour: Callable[[Tensor, Tensor], Tensor]) -> Field:
    """A field of the same density whose colours are a function of points and of its own colours."""

    def other(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        return density, colour(points, rgb)

    return other


def darkened(field: Field, centre: Vector, radius: float, strength: float) -> Field:
    """A field with a soft round shadow: colours darkened by up to `strength` in [0, 1] at `centre`.

    Its Gaussian has a standard deviation of `radius` metres, half as much upwards.
    """

    def shadowed(points: Tensor, rgb: Tensor) -> Tensor:
        away = (points - points.new_tensor(centre)) / points.new_tensor([radius, 0.5 * radius, radius])
        return rgb * (1.0 - strength * torch.exp(-0.5 * away.square().sum(-1)))[..., None]

    return recoloured(field, shadowed)


def share_of(field: Field) -> Field:
    """A field that shows only how much of it is seen: colour 0, and a fourth channel of 1.

    Composed with others, whose fourth channel is 0 (`without_share`), the channel says how much of a ray's colour a
    picture of the field alone shall have.
    """
    return recoloured(field, lambda _, rgb: torch.cat([torch.zeros_like(rgb), torch.ones_like(rgb[..., :1])], -1))


def without_share(field: Field) -> Field:
    """A field with a fourth channel of 0; see `share_of`."""
    return recoloured(field, lambda _, rgb: functional.pad(rgb, (0, 1)))


class Hits(NamedTuple):
    """Where rays first meet a surface.

    Attributes:
        z_depth: `[N, K]` in the rendering camera, infinite where a ray meets nothing.
        rgb: `[N, K, 3]` in [0, 1].
    """

    z_depth: Tensor
    rgb: Tensor

    def among(self, index: Tensor) -> Hits:
        """Those of some pixels."""
        return Hits(self.z_depth[index], self.rgb[index])

    def within(self, depth_range: DepthRange) -> Tensor:
        """Which are seen, `[N, K]`."""
        return (self.z_depth >= depth_range.near) & (self.z_depth < depth_range.far)


def placed_surface(surface: Surface, placement: Placement) -> Surface:
    """A surface in the scene."""
    return lambda rays: surface(placement.rays_to_object(rays))


def nearest_hits(surfaces: Sequence[Surface], rays_of_pixels: Sequence[Rays]) -> Hits:
    """The nearest hit on any surface, of K sets of rays `[1, N]`, each with one ray a pixel."""
    columns = []
    for rays in rays_of_pixels:
        z_depths, colours = zip(*(surface(rays) for surface in surfaces), strict=True)
        z_depth, first = torch.stack(z_depths).min(0)
        rgb = torch.stack(colours)
        columns.append((z_depth, rgb.gather(0, first[None, :, None].expand(1, -1, rgb.shape[-1]))[0]))
    return Hits(*(torch.stack(part, 1) for part in zip(*columns, strict=True)))


def render_composed(
    field: Field,
    rays: Rays,
    samples: int,
    hits: Hits | None = None,
    depth_range: DepthRange = DEPTH_RANGE,
    *,
    opaque_end: bool = True,
    rays_per_chunk: int = _RAYS_OF_HITS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render one scene's field with surfaces in it; see `rendering.render.render`.

    Args:
        rays: `[1, N]`.
        hits: What the K rays of each pixel meet; the pixel is their mean.
        opaque_end: Whether the last sample hides what is behind, where no surface does.
        rays_per_chunk: Rays that meet something at once; changes memory, not the result.
    """
    if hits is None:
        return render(field, rays, samples, depth_range, opaque_end=opaque_end)
    met = hits.within(depth_range).any(-1)
    free, ended = (~met).nonzero()[:, 0], met.nonzero()[:, 0]
    parts = [render(field, rays[free], samples, depth_range, opaque_end=opaque_end)] if len(free) else []
    for index in ended.split(rays_per_chunk) if len(ended) else ():
        parts.append(_render_to_hits(field, rays[index], samples, hits.among(index), depth_range, opaque_end))
    order = torch.cat([free, ended]).argsort()
    rgb, s, variance = (torch.cat(part, 1)[:, order] for part in zip(*parts, strict=True))
    return rgb, s, variance


@torch.no_grad()
def _render_to_hits(
    field: Field, rays: Rays, count: int, hits: Hits, depth_range: DepthRange, opaque_end: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for rays whose fields end at a surface, exactly where it is."""
    samples = uniform_samples(count, rays.origin.device)
    density, rgb, metres = (part[0] for part in along_rays(field, rays, samples, depth_range))
    edges = z_depth_from_s(samples.edges_s, depth_range)
    met = hits.within(depth_range)
    end = torch.where(met, hits.z_depth, depth_range.far)[..., None]
    # Of the interval that the surface lies in, only the part in front of it.
    length = (torch.minimum(edges[1:], end) - edges[:-1]).clamp(min=0.0)
    # One more sample takes what is left: the surface, or without one the colour of the last sample.
    tau = functional.pad(density[:, None] * length * metres[:, None, None], (0, 1))
    weights = ray_weights(tau, opaque_end=True)
    last = torch.where(met[..., None], hits.rgb, rgb[:, None, -1])
    last_s = torch.where(met, s_from_z_depth(hits.z_depth, depth_range), samples.s[-1])
    if not opaque_end:
        weights = torch.cat([weights[..., :-1], weights[..., -1:] * met[..., None]], -1)
    all_s = torch.cat([samples.s.expand(*met.shape, count), last_s[..., None]], -1)
    s = (weights * all_s).sum(-1)
    variance = (weights * (all_s - s[..., None]).square()).sum(-1)
    colour = (weights[..., :-1, None] * rgb[:, None]).sum(-2) + weights[..., -1:] * last
    return colour.mean(1)[None], s.mean(1)[None], variance.mean(1)[None]


@dataclass(frozen=True)
class ComposedScene:
    """One scene with what was inserted into it.

    Attributes:
        field: All fields in one, see `merged`; with a picture its colours have four channels, see `share_of`.
        surfaces: Meshes, in the scene's coordinates.
        picture: A sharper picture of the scene, shown wherever and as far as the scene itself is seen.
        touched: Whether anything but the scene may be at world points: rays that nothing else touches show the picture
            and cost nothing.
    """

    field: Field
    surfaces: tuple[Surface, ...]
    depth_range: DepthRange
    device: torch.device
    picture: ViewOf | None = None
    touched: Membership = lambda points: points[:, 0] < -torch.inf

    @torch.no_grad()
    def render(self, camera: Camera, *, samples: int = 96) -> SceneView:
        """Look at the scene from any number of cameras."""
        camera = camera.to(self.device)
        return joined([self._render_one(camera[index], samples) for index in range(len(camera))])

    def _render_one(self, camera: Camera, samples: int) -> SceneView:
        rays, hits = image_rays(camera), self.hits(camera)
        if self.picture is None:
            return as_view(camera, *render_composed(self.field, rays, samples, hits, self.depth_range))
        behind = self.picture(camera)
        rgb = behind.rgb[0].flatten(1).T[None].float() / 255.0
        s, variance = behind.s.reshape(1, -1).clone(), behind.weight_variance.reshape(1, -1).clone()
        index = self._touched_rays(rays, hits, samples)
        if len(index):
            some = None if hits is None else hits.among(index)
            front, front_s, front_variance = render_composed(self.field, rays[index], samples, some, self.depth_range)
            share = front[..., 3:]
            rgb[:, index] = front[..., :3] + share * rgb[:, index]
            mostly = share[..., 0] < 0.5
            s[:, index] = torch.where(mostly, front_s, s[:, index])
            variance[:, index] = torch.where(mostly, front_variance, variance[:, index])
        return as_view(camera, rgb, s, variance)

    def _touched_rays(self, rays: Rays, hits: Hits | None, samples: int) -> Tensor:
        """Which rays `[M]` may see anything but the scene."""
        z_depth = z_depth_from_s(uniform_samples(samples, self.device).s, self.depth_range)[:, None]
        touched = []
        for index in torch.arange(rays.origin.shape[1], device=self.device).split(_RAYS_AT_ONCE):
            points = rays.origin[0, index, None] + z_depth * rays.direction[0, index, None]
            touched.append(self.touched(points.reshape(-1, 3)).reshape(len(index), samples).any(-1))
        seen = torch.cat(touched)
        if hits is not None:
            seen |= torch.isfinite(hits.z_depth).any(-1)
        return seen.nonzero()[:, 0]

    def hits(self, camera: Camera) -> Hits | None:
        """What the rays of one camera meet of the surfaces, four a pixel; None without surfaces."""
        if not self.surfaces:
            return None
        centres = pixel_centres(camera.height_px, camera.width_px, self.device)
        rays = [rays_at_pixels(camera, centres + centres.new_tensor(offset)) for offset in FOUR_A_PIXEL]
        hits = nearest_hits(self.surfaces, rays)
        # Of the fourth channel, the scene's share, a mesh has nothing.
        return hits if self.picture is None else Hits(hits.z_depth, functional.pad(hits.rgb, (0, 1)))
