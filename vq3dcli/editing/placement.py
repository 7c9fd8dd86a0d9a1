"""Several radiance fields and surfaces in one scene, with occlusion both ways.

Fields meet sample by sample along each ray: densities add, colours are weighted by density, as media that share a
place do. Surfaces are opaque: what a ray sees of the fields ends at the nearest one. A picture may take the place of
the fields: surfaces hide it, and it hides them, by its disparity.

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
# Of those that meet something: more take more memory, and give the same.
_RAYS_AT_ONCE = 512


@dataclass(frozen=True)
class Placement:
    """From an object's coordinates to the scene's: x_scene = at + A_scene scale R A_object^-1 (x_object - anchor).

    A photo of any shape is squashed to a square, so that the y of its scene is stretched by A = width / height.
    """

    anchor: Vector = (0.0, 0.0, 0.0)  # the point of the object, in its own coordinates, that lies at `at`
    at: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0  # above 0
    # turn about the vertical axis; positive turns the side that faces the camera to the right (+x)
    yaw_rad: float = 0.0
    pitch_rad: float = 0.0  # turn about the x axis after that; positive leans the top away from the camera (+z)
    roll_rad: float = 0.0  # turn about the z axis at last; positive is clockwise in the image
    object_aspect: float = 1.0  # a of the photo that the object comes from
    scene_aspect: float = 1.0  # a of the scene's photo

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


def empty_field(points: Tensor) -> tuple[Tensor, Tensor]:
    """A field with nothing in it."""
    return torch.zeros_like(points[..., 0]), torch.zeros_like(points)


def placed(field: Field, placement: Placement, *, lower: Vector, upper: Vector) -> Field:
    """An object's field in the scene; it is asked only between the corners `lower` and `upper` of its own coordinates.

    Density is per metre of the scene: a larger object is as opaque as before from side to side.
    """

    def in_scene(points: Tensor) -> tuple[Tensor, Tensor]:
        own = placement.to_object(points)
        inside = ((own >= own.new_tensor(lower)) & (own <= own.new_tensor(upper))).all(-1)
        density, rgb = empty_field(points)
        if bool(inside.any()):
            inner_density, inner_rgb = field(own[inside][None])
            density[inside] = inner_density[0].to(density) / placement.scale
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


class Shadow(NamedTuple):
    """A soft round shadow around a place: a Gaussian, half as far upwards as to the sides."""

    centre: Vector
    radius: float  # its standard deviation in metres
    strength: float  # how much darker it is in the middle, 0 to 1

    def left(self, points: Tensor) -> Tensor:
        """What is left of the light at points `[..., 3]`, `[...]`."""
        away = (points - points.new_tensor(self.centre)) / (self.radius * points.new_tensor([1.0, 0.5, 1.0]))
        return 1.0 - self.strength * torch.exp(-0.5 * away.square().sum(-1))


def darkened(field: Field, shadow: Shadow) -> Field:
    """A field with a shadow on it."""
    return recoloured(field, lambda points, rgb: rgb * shadow.left(points)[..., None])


class Hits(NamedTuple):
    """Where rays first meet a surface."""

    z_depth: Tensor  # `[N, K]` in the rendering camera, infinite where a ray meets nothing
    rgb: Tensor  # `[N, K, 3]` in [0, 1]

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
    field: Field, rays: Rays, samples: int, hits: Hits | None = None, depth_range: DepthRange = DEPTH_RANGE
) -> tuple[Tensor, Tensor, Tensor]:
    """Render one scene's field along rays `[1, N]`, with surfaces in it; see `rendering.render.render`.

    `hits` are what the K rays of each pixel meet; the pixel is their mean.
    """
    if hits is None:
        return render(field, rays, samples, depth_range)
    met = hits.within(depth_range).any(-1)
    free, ended = (~met).nonzero()[:, 0], met.nonzero()[:, 0]
    parts = [render(field, rays[free], samples, depth_range)] if len(free) else []
    for index in ended.split(_RAYS_AT_ONCE) if len(ended) else ():
        parts.append(_render_to_hits(field, rays[index], samples, hits.among(index), depth_range))
    order = torch.cat([free, ended]).argsort()
    rgb, s, variance = (torch.cat(part, 1)[:, order] for part in zip(*parts, strict=True))
    return rgb, s, variance


@torch.no_grad()
def _render_to_hits(
    field: Field, rays: Rays, count: int, hits: Hits, depth_range: DepthRange
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
    all_s = torch.cat([samples.s.expand(*met.shape, count), last_s[..., None]], -1)
    s = (weights * all_s).sum(-1)
    variance = (weights * (all_s - s[..., None]).square()).sum(-1)
    colour = (weights[..., :-1, None] * rgb[:, None]).sum(-2) + weights[..., -1:] * last
    return colour.mean(1)[None], s.mean(1)[None], variance.mean(1)[None]


class Standing(NamedTuple):
    """A surface in a scene."""

    surface: Surface
    # how far behind what a picture shows it may lie, in metres, and still be seen: its foot is on a ground whose
    # distance is a guess
    give: float = 0.0


@dataclass(frozen=True)
class ComposedScene:
    """One scene with what was inserted into it."""

    field: Field  # all fields in one, see `merged`
    surfaces: tuple[Standing, ...]  # in the scene's coordinates
    depth_range: DepthRange
    device: torch.device
    picture: ViewOf | None = None  # what shows the scene instead of its field; only surfaces stand in a picture
    shadows: tuple[Shadow, ...] = ()  # what is darker in the picture; the field has its own

    @torch.no_grad()
    def render(self, camera: Camera, *, samples: int = 96) -> SceneView:
        """Look at the scene from any number of cameras."""
        camera = camera.to(self.device)
        return joined([self._render_one(camera[index], samples) for index in range(len(camera))])

    def _render_one(self, camera: Camera, samples: int) -> SceneView:
        if self.picture is not None:
            return self._on_picture(camera, self.picture(camera))
        rays = image_rays(camera)
        return as_view(camera, *render_composed(self.field, rays, samples, self.hits(camera), self.depth_range))

    def _on_picture(self, camera: Camera, seen: SceneView) -> SceneView:
        """A picture with the shadows and the surfaces."""
        rays, s = image_rays(camera), seen.s.flatten()
        z_depth, rgb = z_depth_from_s(s, self.depth_range), seen.rgb[0].flatten(1).T / 255.0
        for shadow in self.shadows:
            rgb = rgb * shadow.left(rays.origin[0] + z_depth[:, None] * rays.direction[0])[:, None]
        hits = self.hits(camera, z_depth)
        if hits is not None:
            met = hits.within(self.depth_range)
            rgb = torch.where(met[..., None], hits.rgb, rgb[:, None]).mean(1)
            nearest = torch.where(met, hits.z_depth, torch.inf).amin(1)
            s = torch.where(met.float().mean(1) < 0.5, s, s_from_z_depth(nearest, self.depth_range))
        return as_view(camera, rgb[None], s[None], seen.weight_variance.reshape(1, -1))

    def hits(self, camera: Camera, behind: Tensor | None = None) -> Hits | None:
        """What the rays of one camera meet of the surfaces, four a pixel; None without surfaces.

        `behind` is the z_depth `[N]` that a picture shows at each pixel, which hides what lies farther.
        """
        if not self.surfaces:
            return None
        centres = pixel_centres(camera.height_px, camera.width_px, self.device)
        rays = [rays_at_pixels(camera, centres + centres.new_tensor(offset)) for offset in FOUR_A_PIXEL]
        return nearest_hits([_shown(*standing, behind) for standing in self.surfaces], rays)


def _shown(surface: Surface, give: float, behind: Tensor | None) -> Surface:
    """A surface as far as it is not hidden behind what a picture shows, at z_depth `[N]`."""
    if behind is None:
        return surface

    def seen(rays: Rays) -> tuple[Tensor, Tensor]:
        z_depth, rgb = surface(rays)
        return torch.where(z_depth < behind + give, z_depth, torch.inf), rgb

    return seen
