"""A scene with other things in it: a `Renderable` like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.placement import Hits, Surface, nearest_hits, render_composed
from vq3dcli.model.scene import Renderable, SceneView
from vq3dcli.rendering.cameras import Camera, Rays, image_rays, pixel_centres, rays_at_pixels, z_depth_from_s
from vq3dcli.rendering.ray_samples import uniform_s
from vq3dcli.rendering.render import Field

# Four rays a pixel for surfaces, whose edges are sharp; fields are soft.
_OFFSETS_PX = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_POINTS_AT_ONCE = 1 << 16
_RAYS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Backdrop:
    """A sharper picture of the scene, shown wherever and as far as the scene itself is seen.

    Attributes:
        picture: What shows it, from the same cameras.
        touched: Whether anything but the scene may be at world points `[N, 3]`: `[N]`. Rays that nothing else
            touches show the picture and cost nothing.
    """

    picture: Renderable
    touched: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ComposedScene:
    """One scene with what was inserted into it.

    Attributes:
        field: All fields in one, see `editing.placement.merged`; with a backdrop its colours have four channels, see
            `editing.placement.share_of`.
        surfaces: Meshes, in the scene's coordinates.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        device: Where the field computes.
        backdrop: See there.
    """

    field: Field
    surfaces: tuple[Surface, ...]
    near: float
    far: float
    device: torch.device
    backdrop: Backdrop | None = None

    @torch.no_grad()
    def render(self, camera: Camera, *, samples: int = 96, rays_per_chunk: int = 512) -> SceneView:
        """Look at the scene; see `model.scene.Scene.render`."""
        views = []
        for view in range(camera.cam_to_world.shape[0]):
            here = slice(view, view + 1)
            pose, matrix = camera.cam_to_world[here].to(self.device), camera.intrinsics[here].to(self.device)
            one = Camera(pose, matrix, camera.height_px, camera.width_px)
            views.append(self._render_one(one, samples, rays_per_chunk))
        return SceneView(*(torch.cat(part) for part in zip(*views, strict=True)))

    @torch.no_grad()
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colour `[N, 3]` and density `[N]` at world points `[N, 3]` of the fields alone; see `Scene.query`."""
        parts = [self.field(part[None]) for part in points.to(self.device).split(_POINTS_AT_ONCE)]
        if not parts:
            return points.new_zeros(0, 3), points.new_zeros(0)
        return torch.cat([rgb[0, :, :3] for _, rgb in parts]), torch.cat([density[0] for density, _ in parts])

    def _render_one(self, camera: Camera, samples: int, rays_per_chunk: int) -> SceneView:
        rays = image_rays(camera)
        hits = self.hits(camera)
        size = (1, camera.height_px, camera.width_px)
        if self.backdrop is None:
            rgb, s, variance = self._compose(rays, hits, samples, rays_per_chunk)
        else:
            behind = self.backdrop.picture.render(camera, samples=samples, rays_per_chunk=rays_per_chunk)
            rgb = behind.rgb[0].flatten(1).T[None].float() / 255.0
            s, variance = behind.s.reshape(1, -1).clone(), behind.weight_variance.reshape(1, -1).clone()
            index = self._touched_rays(rays, hits, samples, self.backdrop)
            if len(index):
                some = Rays(rays.origin[:, index], rays.direction[:, index])
                of_some = None if hits is None else Hits(hits.z_depth[index], hits.rgb[index])
                front, front_s, front_variance = self._compose(some, of_some, samples, rays_per_chunk)
                share = front[..., 3:]
                rgb[:, index] = front[..., :3] + share * rgb[:, index]
                mostly = share[..., 0] < 0.5
                s[:, index] = torch.where(mostly, front_s, s[:, index])
                variance[:, index] = torch.where(mostly, front_variance, variance[:, index])
        image = (rgb.reshape(*size, 3).permute(0, 3, 1, 2) * 255.0).round().clamp(0, 255).to(torch.uint8)
        return SceneView(image, s.reshape(size), variance.reshape(size))

    def _compose(
        self, rays: Rays, hits: Hits | None, samples: int, rays_per_chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return render_composed(
            self.field, rays, samples, hits, rays_per_chunk=rays_per_chunk, near=self.near, far=self.far
        )

    def _touched_rays(self, rays: Rays, hits: Hits | None, samples: int, backdrop: Backdrop) -> Tensor:
        """Which rays `[M]` may see anything but the scene."""
        z_depth = z_depth_from_s(uniform_s(samples, self.device), self.near, self.far)[:, None]
        touched = []
        for origin, direction in zip(
            rays.origin[0].split(_RAYS_AT_ONCE), rays.direction[0].split(_RAYS_AT_ONCE), strict=True
        ):
            points = origin[:, None] + z_depth * direction[:, None]
            touched.append(backdrop.touched(points.reshape(-1, 3)).reshape(len(origin), samples).any(-1))
        found = torch.cat(touched)
        if hits is not None:
            found |= torch.isfinite(hits.z_depth).any(-1)
        return found.nonzero()[:, 0]

    def hits(self, camera: Camera) -> Hits | None:
        """What the rays of one camera meet of the surfaces, four a pixel; None without surfaces."""
        if not self.surfaces:
            return None
        centres = pixel_centres(camera.height_px, camera.width_px, self.device)
        rays = [rays_at_pixels(camera, centres + centres.new_tensor(offset)) for offset in _OFFSETS_PX]
        hits = nearest_hits(self.surfaces, rays)
        # Of the fourth channel, the scene's share, a mesh has nothing.
        return hits if self.backdrop is None else Hits(hits.z_depth, functional.pad(hits.rgb, (0, 1)))
