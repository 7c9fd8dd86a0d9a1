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

from vq3dcli.rendering.cameras import FAR, NEAR, Rays, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.composite import ray_weights
from vq3dcli.rendering.ray_samples import bin_edges, uniform_s
from vq3dcli.rendering.render import Field, render_chunked

Membership = Callable[[Tensor], Tensor]
"""World points `[N, 3]` to how much of each belongs to a region, `[N]` in [0, 1]."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Placement:
    """From an object's coordinates to the scene's: x_scene = at + A_scene scale R A_object^-1 (x_object - anchor).

    A photo of any shape is squashed to a square, so that the y of its scene is stretched by A = width / height.

    Attributes:
        anchor: The point of the object, in its own coordinates, that lies at `at`.
        at: Where in the scene.
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


def empty_field(points: Tensor) -> tuple[Tensor, Tensor]:
    """A field with nothing in it."""
    return torch.zeros_like(points[..., 0]), torch.zeros_like(points)


def placed(field: Field, placement: Placement, *, lower: Vector, upper: Vector) -> Field:
    """An object's field in the scene.

    Density is per metre of the scene: a larger object is as opaque as before from side to side.

    Args:
        field: In the object's coordinates, one scene; asked only inside its bounds.
        placement: Where it goes.
        lower: Bounds of the object in its own coordinates; outside is nothing.
        upper: The other corner.
    """

    def in_scene(points: Tensor) -> tuple[Tensor, Tensor]:
        own = placement.to_object(points)
        inside = ((own >= own.new_tensor(lower)) & (own <= own.new_tensor(upper))).all(-1)
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


def darkened(field: Field, centre: Vector, radius: float, strength: float) -> Field:
    """A field with a soft round shadow: colours within about `radius` of `centre` darkened by up to `strength`.

    Args:
        field: Colours change, density does not.
        centre: Where the shadow is darkest.
        radius: Standard deviation of its Gaussian, in metres; half as much upwards.
        strength: In [0, 1].
    """

    def shadowed(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        away = (points - points.new_tensor(centre)) / points.new_tensor([radius, 0.5 * radius, radius])
        return density, rgb * (1.0 - strength * torch.exp(-0.5 * away.square().sum(-1)))[..., None]

    return shadowed


def share_of(field: Field) -> Field:
    """A field that shows only how much of it is seen: colour 0, and a fourth channel of 1.

    Composed with others, whose fourth channel is 0 (`without_share`), the channel says how much of a ray's colour a
    picture of the field alone shall have.
    """

    def share(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        return density, torch.cat([torch.zeros_like(rgb), torch.ones_like(rgb[..., :1])], -1)

    return share


def without_share(field: Field) -> Field:
    """A field with a fourth channel of 0; see `share_of`."""

    def four(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        return density, torch.cat([rgb, torch.zeros_like(rgb[..., :1])], -1)

    return four


class Hits(NamedTuple):
    """Where rays first meet a surface.

    Attributes:
        z_depth: `[N, K]` in the rendering camera, infinite where a ray meets nothing.
        rgb: `[N, K, 3]` in [0, 1].
    """

    z_depth: Tensor
    rgb: Tensor


Surface = Callable[[Rays], tuple[Tensor, Tensor]]
"""Rays `[1, N]` to z_depth `[N]` (infinite: no hit) and rgb `[N, 3]` of the first hit."""


def placed_surface(surface: Surface, placement: Placement) -> Surface:
    """A surface in the scene."""
    return lambda rays: surface(placement.rays_to_object(rays))


def nearest_hits(surfaces: Sequence[Surface], rays_of_pixels: Sequence[Rays]) -> Hits:
    """The nearest hit of each ray on any surface.

    Args:
        surfaces: At least one.
        rays_of_pixels: K sets of rays `[1, N]`, each with one ray a pixel.
    """
    columns = []
    for rays in rays_of_pixels:
        found = [surface(rays) for surface in surfaces]
        z_depth, first = torch.stack([z for z, _ in found]).min(0)
        rgb = torch.stack([colour for _, colour in found])
        columns.append((z_depth, rgb.gather(0, first[None, :, None].expand(1, -1, rgb.shape[-1]))[0]))
    return Hits(torch.stack([z for z, _ in columns], 1), torch.stack([rgb for _, rgb in columns], 1))


def render_composed(
    field: Field,
    rays: Rays,
    samples: int,
    hits: Hits | None = None,
    *,
    rays_per_chunk: int = 512,
    near: float = NEAR,
    far: float = FAR,
    opaque_end: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render one scene's field with surfaces in it, without gradients, samples at the middles of equal bins.

    Args:
        field: From `merged`.
        rays: `[1, N]`.
        samples: Samples a ray.
        hits: What the K rays of each pixel meet; the pixel is their mean.
        rays_per_chunk: Rays at once; changes memory, not the result.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        opaque_end: Whether the last sample hides what is behind, where no surface does.

    Returns:
        rgb `[1, N, 3]`, s `[1, N]`, weight_variance `[1, N]`.
    """
    seen = torch.zeros_like(rays.origin[0, :, 0], dtype=torch.bool)
    if hits is not None:
        seen = ((hits.z_depth >= near) & (hits.z_depth < far)).any(-1)
    options = {"near": near, "far": far, "opaque_end": opaque_end}
    if hits is None or not bool(seen.any()):
        return render_chunked(field, rays, samples, rays_per_chunk=rays_per_chunk, **options)  # type: ignore[arg-type]
    flat = torch.zeros_like(rays.origin[..., 0])
    out = (rays.origin.new_zeros(*flat.shape, hits.rgb.shape[-1]), flat, flat.clone())
    free = Rays(rays.origin[:, ~seen], rays.direction[:, ~seen])
    if free.origin.shape[1]:
        rendered = render_chunked(field, free, samples, rays_per_chunk=rays_per_chunk, **options)  # type: ignore[arg-type]
        for whole, part in zip(out, rendered, strict=True):
            whole[:, ~seen] = part
    for index in seen.nonzero()[:, 0].split(rays_per_chunk):
        chunk = Rays(rays.origin[:, index], rays.direction[:, index])
        of_chunk = Hits(hits.z_depth[index], hits.rgb[index])
        rendered = _render_to_hits(field, chunk, samples, of_chunk, near=near, far=far, opaque_end=opaque_end)
        for whole, part in zip(out, rendered, strict=True):
            whole[0, index] = part
    return out


@torch.no_grad()
def _render_to_hits(
    field: Field, rays: Rays, samples: int, hits: Hits, *, near: float, far: float, opaque_end: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours `[N, 3]`, s and variance `[N]` of rays whose fields end at a surface, exactly where it is."""
    samples_s = uniform_s(samples, rays.origin.device)
    z_depth = z_depth_from_s(samples_s, near, far)
    points = rays.origin[0, :, None] + z_depth[:, None] * rays.direction[0, :, None]
    density, rgb = field(points.reshape(1, -1, 3))
    count = rays.origin.shape[1]
    density, rgb = density.reshape(count, 1, samples).float(), rgb.reshape(count, 1, samples, rgb.shape[-1]).float()
    edges = z_depth_from_s(bin_edges(samples_s), near, far)
    met = (hits.z_depth >= near) & (hits.z_depth < far)
    end = torch.where(met, hits.z_depth, far)[..., None]
    # Of the interval that the surface lies in, only the part in front of it.
    length = (torch.minimum(edges[1:], end) - edges[:-1]).clamp(min=0.0)
    tau = density * length * rays.direction[0].square().sum(-1).sqrt()[:, None, None]
    # One more sample takes what is left: the surface, or without one the colour of the last sample.
    tau = torch.cat([tau, torch.zeros_like(tau[..., :1])], -1)
    weights = ray_weights(tau, opaque_end=True)
    last = torch.where(met[..., None], hits.rgb, rgb[:, :, -1])
    last_s = torch.where(met, s_from_z_depth(hits.z_depth, near, far), samples_s[-1])
    if not opaque_end:
        weights = torch.cat([weights[..., :-1], weights[..., -1:] * met[..., None]], -1)
    all_s = torch.cat([samples_s.expand(*met.shape, samples), last_s[..., None]], -1)
    colour = (weights[..., :-1, None] * rgb).sum(-2) + weights[..., -1:] * last
    s = (weights * all_s).sum(-1)
    variance = (weights * (all_s - s[..., None]).square()).sum(-1)
    return colour.mean(1), s.mean(1), variance.mean(1)


def _turn(points: Tensor, rotation: Tensor) -> Tensor:
    """R x, as a sum of products: a point's bits do not depend on how many points there are."""
    return (rotation * points[..., None, :]).sum(-1)
