"""A scene with other things in it: a `Renderable` like any other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.model.scene import SceneView
from vq3dcli.rendering.cameras import Camera, Rays, image_rays, pixel_centres, rays_at_pixels
from vq3dcli.rendering.compose import Hits, Surface, nearest_hits, render_composed
from vq3dcli.rendering.render import Field

# Four rays a pixel for surfaces, whose edges are sharp; fields are soft.
_OFFSETS_PX = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_POINTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ComposedScene:
    """One scene with what was inserted into it.

    Attributes:
        field: All fields in one; see `rendering.compose.merged`.
        surfaces: Meshes, in the scene's coordinates.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        device: Where the field computes.
    """

    field: Field
    surfaces: tuple[Surface, ...]
    near: float
    far: float
    device: torch.device

    @torch.no_grad()
    def render(self, camera: Camera, *, samples: int = 96, rays_per_chunk: int = 512) -> SceneView:
        """Look at the scene; see `model.scene.Scene.render`."""
        views = []
        for view in range(camera.cam_to_world.shape[0]):
            here = slice(view, view + 1)
            one = Camera(
                camera.cam_to_world[here].to(self.device),
                camera.intrinsics[here].to(self.device),
                camera.height_px,
                camera.width_px,
            )
            rgb, s, variance = render_composed(
                self.field,
                image_rays(one),
                samples,
                self._hits(one),
                rays_per_chunk=rays_per_chunk,
                near=self.near,
                far=self.far,
            )
            size = (1, camera.height_px, camera.width_px)
            image = (rgb.reshape(*size, 3).permute(0, 3, 1, 2) * 255.0).round().clamp(0, 255).to(torch.uint8)
            views.append(SceneView(image, s.reshape(size), variance.reshape(size)))
        return SceneView(*(torch.cat(part) for part in zip(*views, strict=True)))

    @torch.no_grad()
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colour `[N, 3]` and density `[N]` at world points `[N, 3]`, without meshes; see `Scene.query`."""
        parts = [self.field(part[None]) for part in points.to(self.device).split(_POINTS_AT_ONCE)]
        if not parts:
            return points.new_zeros(0, 3), points.new_zeros(0)
        return torch.cat([rgb[0] for _, rgb in parts]), torch.cat([density[0] for density, _ in parts])

    def _hits(self, camera: Camera) -> Hits | None:
        if not self.surfaces:
            return None
        centres = pixel_centres(camera.height_px, camera.width_px, self.device)
        rays = [rays_at_pixels(camera, centres + centres.new_tensor(offset)) for offset in _OFFSETS_PX]
        return nearest_hits(self.surfaces, [Rays(part.origin, part.direction) for part in rays])
