"""Photo detail: the photo itself, carried to novel views along its disparity.

A reconstruction from codes is soft; the photo is at hand, and its relief comes from `geometry`. Two layers stand for
the scene, both of the photo's resolution and made once, so that nothing flickers:

```
photo, relief -> front: both as they are
             `-> behind: the same, but where something stands in front of something else, the relief and the photo
                 behind it, continued, changed a little by the NeRF
```

A ray sees the front layer; where that is pulled apart, at a step of the relief that the photo's camera did not look
behind, it fades to the layer behind. The canonical view is the photo itself.

Legend: H height_px, W width_px of the canvas: the photo with mirrored margins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.images import resize
from vq3dcli.editing.filters import fill_holes, local_range
from vq3dcli.editing.march import Lines, camera_lines, intersect, longest_shift, look_up
from vq3dcli.model.scene import Scene, SceneView
from vq3dcli.pipelines.geometry import DISPARITY_PX, SAMPLES
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.rendering.cameras import (
    Camera,
    camera_to,
    canonical_camera,
    image_rays,
    intrinsics_from_fov,
    one_camera,
    pixel_centres,
    z_depth_from_s,
)
from vq3dcli.rendering.composite import ray_weights
from vq3dcli.scene_file import SceneCamera

# Windows as parts of the longer side.
_STEP_WINDOW = 1 / 80
_MIXED_WINDOW = 1 / 100
# How much the NeRF may change the continued photo: more shows as the ghost of a thing that it draws out backwards.
_NERF_LIMIT = 0.02
# The front layer fades between these factors of being pulled apart.
STRETCH_FADES, STRETCH_GONE = 1.6, 3.0
# Rays that begin behind the front layer begin this much behind it.
_BEHIND_S = 0.02
# Neighbouring rays that end so much farther apart than on a flat relief see an outline; and the rays of its pixels.
_OUTLINE_PX = 2.0
_OFFSETS_PX = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
# Step in which the region behind things grows.
_GROW_PX = 4
_PIXELS_AT_ONCE = 1 << 18
# Mirrored margins hide what the photo does not show, and the layer behind reaches behind things, but not more than
# this part of the longer side: a camera beside or behind the scene sees nothing that a photo could show.
_WIDEST_MARGIN = 0.25


@dataclass(frozen=True)
class PhotoLayer:
    """A picture with a relief.

    Attributes:
        rgb: float32 `[3, H, W]` in [0, 1].
        s: Normalised disparity `[H, W]`.
    """

    rgb: Tensor
    s: Tensor


@dataclass(frozen=True)
class PhotoScene:
    """A photo in two layers, ready to be looked at from cameras near the canonical one; see `Renderable`.

    Attributes:
        front: What the photo shows.
        behind: The same with things in front taken away at their edges.
        camera: The camera of both canvases.
        facts: Radius, near and far of the scene.
    """

    front: PhotoLayer
    behind: PhotoLayer
    camera: Camera
    facts: SceneCamera

    @torch.no_grad()
    def render(self, camera: Camera, *, samples: int = 0, rays_per_chunk: int = _PIXELS_AT_ONCE) -> SceneView:
        """Look at the photo from any number of cameras; `samples` and `rays_per_chunk` have no meaning here."""
        views = [self._render_one(one_camera(camera, index)) for index in range(camera.cam_to_world.shape[0])]
        return SceneView(*(torch.stack(part) for part in zip(*views, strict=True)))

    def _render_one(self, camera: Camera) -> SceneView:
        camera = camera_to(camera, self.front.s.device)
        size = (camera.height_px, camera.width_px)
        centres = pixel_centres(*size, self.front.s.device)
        rgb_s, shift = self._look(camera, centres)
        edges = _outlines(shift.T.reshape(2, *size))
        if len(edges):
            # Four rays a pixel where neighbours see different things.
            parts = [self._look(camera, centres[edges] + centres.new_tensor(offset))[0] for offset in _OFFSETS_PX]
            rgb_s[:, edges] = torch.stack(parts).mean(0)
        image = (rgb_s[:3].reshape(3, *size) * 255.0).round().clamp(0, 255).to(torch.uint8)
        seen = rgb_s[3].reshape(size)
        return SceneView(image, seen, torch.zeros_like(seen))

    def _look(self, camera: Camera, seen_px: Tensor) -> tuple[Tensor, Tensor]:
        """What the rays of a camera through pixels `[N, 2]` see.

        Returns:
            Colour and s in that camera, `[4, N]`; and how far on the canvas each ends from where it would on the
            farthest relief, `[N, 2]`.
        """
        lines = camera_lines(self.camera, camera, near=self.facts.near, far=self.facts.far, pixels=seen_px)
        hits = intersect(self.front.s, lines)
        rgb = look_up(self.front.rgb, hits.pixels, mode="bicubic")
        pixels, s = hits.pixels, hits.s
        share = ((hits.stretch - STRETCH_FADES) / (STRETCH_GONE - STRETCH_FADES)).clamp(0.0, 1.0)
        share = share * share * (3.0 - 2.0 * share)
        gone = (share > 0.0).nonzero()[:, 0]
        if len(gone):
            there = intersect(self.behind.s, Lines(lines.base[gone], lines.step[gone], lines.nearest_s))
            weight = share[gone]
            filled = look_up(self.behind.rgb, there.pixels, mode="bicubic")
            rgb[:, gone] = (1.0 - weight) * rgb[:, gone] + weight * filled
            s[gone] = (1.0 - weight) * s[gone] + weight * there.s
            pixels[gone] = torch.where((weight > 0.5)[:, None], there.pixels, pixels[gone])
        return torch.cat([rgb, self._s_in(camera, pixels, s)[None]]), pixels - lines.base

    def _s_in(self, camera: Camera, pixels: Tensor, s: Tensor) -> Tensor:
        """Normalised disparity, as the looking camera has it, of what lies at places on the canvas at its s."""
        near, far = self.facts.near, self.facts.far
        z_depth = z_depth_from_s(s, near, far)
        matrix = self.camera.intrinsics[0]
        xy = (pixels - matrix[:2, 2]) / torch.stack([matrix[0, 0], matrix[1, 1]])
        in_photo = torch.cat([xy, torch.ones_like(xy[:, :1])], -1) * z_depth[:, None]
        world = in_photo @ self.camera.cam_to_world[0, :3, :3].T + self.camera.cam_to_world[0, :3, 3]
        forward = camera.cam_to_world[0, :3, 2]
        z_here = ((world - camera.cam_to_world[0, :3, 3]) @ forward).clamp(min=1e-3)
        return ((1.0 / z_here - 1.0 / far) / (1.0 / near - 1.0 / far)).clamp(0.0, 1.0)


def _outlines(shift: Tensor) -> Tensor:
    """Indices of pixels beside others that see another part of the photo.

    Args:
        shift: From `PhotoScene._look`, `[2, H, W]`; zero for the photo's own camera, which therefore has none.
    """
    torn = torch.zeros_like(shift[0], dtype=torch.bool)
    for axis in (1, 2):
        apart = shift.diff(dim=axis).abs().amax(0) > _OUTLINE_PX
        for start in (0, 1):
            torn.narrow(axis - 1, start, shift.shape[axis] - 1).logical_or_(apart)
    return torn.flatten().nonzero()[:, 0]


def photo_camera(facts: SceneCamera, height_px: int, width_px: int) -> Camera:
    """The camera that took the photo: its rays span the field of view on both axes."""
    fov_rad = math.radians(facts.fov_deg)
    camera = canonical_camera(1, height_px=height_px, width_px=width_px, radius=facts.radius, fov_rad=fov_rad)
    camera.intrinsics[:, 1, 1] = intrinsics_from_fov(fov_rad, height_px, height_px)[0, 0, 0]
    return camera


def fitted_photo(photo: Tensor, height_px: int, width_px: int) -> Tensor:
    """A photo, made smaller where it has more pixels than are shown: uint8 `[3, H, W]`."""
    return resize(photo, min(photo.shape[1], height_px), min(photo.shape[2], width_px))


@torch.no_grad()
def build_photo_scene(opened: OpenedScene, photo: Tensor, s: Tensor, cameras: Camera) -> PhotoScene:
    """Both layers of a photo.

    Args:
        opened: The scene of the photo, whose NeRF fills what the photo does not show.
        photo: uint8 `[3, H, W]`, from `fitted_photo`.
        s: From `geometry.photo_relief`.
        cameras: All cameras that will look at it: they say how far behind edges one sees, and how wide the margins are.
    """
    facts = opened.camera
    device = opened.scene.planes.device
    camera = camera_to(photo_camera(facts, *s.shape), device)
    reach_px, margin_px = _reach(camera, facts, cameras, s)
    rgb = photo.to(device).float() / 255.0
    s = s.to(device)
    behind = _layer_behind(opened.scene, camera, rgb, s, reach_px)
    margin = [min(margin_px, side - 1) for side in (s.shape[1], s.shape[0])]
    padding = [margin[0], margin[0], margin[1], margin[1]]
    front, behind = (
        PhotoLayer(
            functional.pad(layer.rgb[None], padding, "reflect")[0],
            functional.pad(layer.s[None, None], padding, "reflect")[0, 0],
        )
        for layer in (PhotoLayer(rgb, s), behind)
    )
    intrinsics = camera.intrinsics.clone()
    intrinsics[:, 0, 2] += margin[0]
    intrinsics[:, 1, 2] += margin[1]
    return PhotoScene(front, behind, Camera(camera.cam_to_world, intrinsics, *front.s.shape), facts)


def _reach(photo: Camera, facts: SceneCamera, cameras: Camera, s: Tensor) -> tuple[int, int]:
    """How far things move against each other, and how far beyond the photo's edges rays go, in pixels."""
    low, high = float(s.min()), float(s.max())
    reach, beyond = 1.0, 1.0
    for index in range(cameras.cam_to_world.shape[0]):
        # Rays of the corners and edges go farthest: an image of 3 x 3 pixels, stretched to have its centres there.
        camera = one_camera(cameras, index)
        scale = torch.tensor([2.0 / camera.width_px, 2.0 / camera.height_px, 1.0])
        matrix = camera.intrinsics.cpu() * scale[None, :, None]
        matrix[:, :2, 2] += 0.5
        corners = Camera(camera.cam_to_world.to(photo.intrinsics), matrix.to(photo.intrinsics), 3, 3)
        lines = camera_lines(photo, corners, near=facts.near, far=facts.far)
        reach = max(reach, longest_shift(lines, low, high))
        size = torch.tensor([photo.width_px, photo.height_px], device=lines.base.device)
        for end in (low, high):
            place = lines.base + end * lines.step
            beyond = max(beyond, float(torch.maximum(-place, place - size).max()))
    widest = _WIDEST_MARGIN * max(photo.width_px, photo.height_px)
    return math.ceil(min(reach, widest)) + 2, math.ceil(min(beyond, widest)) + 2


def _layer_behind(scene: Scene, camera: Camera, rgb: Tensor, s: Tensor, reach_px: int) -> PhotoLayer:
    """What lies behind things, within `reach_px` of their edges."""
    radius_px = max(2, round(_STEP_WINDOW * max(s.shape)) + 1)
    low, high = local_range(s, radius_px)
    # Slopes that the farthest camera pulls apart; a ground that recedes is none.
    down, right = torch.gradient(s)
    pixels_per_s = reach_px / max(float(s.max() - s.min()), 1e-6)
    torn = torch.hypot(down, right) * pixels_per_s > STRETCH_FADES - 1.0
    _, near_torn = local_range(torn.float(), radius_px // 2)
    # All but the foot of such a slope hides something; its mixed colours go with what is in front.
    hidden = (near_torn > 0) & (s > low + 0.25 * (high - low))
    if not hidden.any():
        return PhotoLayer(rgb, s)
    # From each edge inwards over what is as near, as far as it will be uncovered: the level behind it, and the middle
    # of its step.
    level = torch.where(hidden, low, torch.ones_like(low))
    middle = torch.where(hidden, 0.5 * (low + high), torch.ones_like(low))
    for distance_px in range(_GROW_PX, reach_px + _GROW_PX, _GROW_PX):
        level_beside, _ = local_range(level, _GROW_PX)
        middle_beside, _ = local_range(middle, _GROW_PX)
        joins = (level == 1.0) & (s > middle_beside) & ((s - level_beside) * pixels_per_s >= distance_px - _GROW_PX)
        level, middle = torch.where(joins, level_beside, level), torch.where(joins, middle_beside, middle)
    in_front = level < 1.0
    # A few pixels beside an edge are mixed of both sides: they are no part of what lies behind.
    mixed_px = max(2, round(_MIXED_WINDOW * max(s.shape)))
    _, beside = local_range(in_front.float(), mixed_px)
    hidden = beside > 0
    # What is known of the layer behind: pixels beside the hidden ones that are not in front of anything.
    around_px = mixed_px + reach_px // 2
    _, near_hidden = local_range(hidden.float(), around_px)
    _, middle_nearby = local_range(torch.where(in_front, middle, torch.zeros_like(middle)), around_px)
    known = ~hidden & (near_hidden > 0) & (s <= middle_nearby)
    # With nothing known around, a guess looks worse than the slope pulled apart.
    _, supported = local_range(known.float(), mixed_px + reach_px)
    hidden = hidden & (supported > 0)
    weight = known.float()
    s_behind = torch.where(hidden, torch.minimum(fill_holes(s[None], weight)[0], s), s)
    nerf = nerf_behind(scene, camera, torch.where(hidden, s_behind, s))
    # The photo around continues behind; the NeRF says how what is there differs from its own continuation, which
    # meets the photo without an edge. More than a limit is a thing drawn out backwards, not something behind it.
    own = (nerf - fill_holes(nerf, weight)).clamp(-_NERF_LIMIT, _NERF_LIMIT)
    filled = (fill_holes(rgb, weight) + own).clamp(0.0, 1.0)
    return PhotoLayer(torch.where(hidden, filled, rgb), s_behind)


def nerf_behind(scene: Scene, camera: Camera, s: Tensor) -> Tensor:
    """Colours of a NeRF along the rays of the canonical camera, from the surface `s` on.

    Args:
        scene: A single one.
        camera: The canonical camera, one, of the size of `s`.
        s: Where the rays begin, `[H, W]`; a little more, so that the surface itself is seen.

    Returns:
        `[3, H, W]` in [0, 1]; found at a lower resolution, which is the NeRF's.
    """
    side_px = min(DISPARITY_PX, scene.planes.shape[2])
    # The farthest of each cell: what is in front of it must not bleed in.
    cells = -functional.adaptive_max_pool2d(-s[None, None], side_px)[0, 0]
    scale = torch.tensor([side_px / camera.width_px, side_px / camera.height_px, 1.0], device=s.device)
    small = Camera(camera.cam_to_world, camera.intrinsics * scale[None, :, None], side_px, side_px)
    rays = image_rays(small)
    model = scene.model
    bins = torch.arange(SAMPLES + 1, device=s.device) / SAMPLES
    first = (cells.flatten() + _BEHIND_S).clamp(max=1.0)
    edges = first[:, None] * (1.0 - bins)
    field = model.frozen_field(scene.planes)
    parts = []
    for start in range(0, len(first), 512):
        some = slice(start, start + 512)
        z_edges = z_depth_from_s(edges[some], model.near, model.far)
        middles = 0.5 * (edges[some, 1:] + edges[some, :-1])
        z_depth = z_depth_from_s(middles, model.near, model.far)
        direction = rays.direction[0, some]
        points = rays.origin[0, some, None] + z_depth[..., None] * direction[:, None]
        density, rgb = field(points.reshape(1, -1, 3))
        length = direction.square().sum(-1).sqrt()[:, None] * (z_edges[:, 1:] - z_edges[:, :-1])
        weights = ray_weights(density.reshape(z_depth.shape) * length, opaque_end=True)
        parts.append((weights[..., None] * rgb.reshape(*z_depth.shape, 3)).sum(1))
    image = torch.cat(parts).reshape(side_px, side_px, 3).permute(2, 0, 1)
    return functional.interpolate(image[None], size=s.shape, mode="bicubic", align_corners=False)[0].clamp(0.0, 1.0)
