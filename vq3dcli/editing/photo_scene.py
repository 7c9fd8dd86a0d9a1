"""Photo detail: the photo itself, carried to novel views along its disparity.

A reconstruction from codes is soft; the photo is at hand, and its relief comes from `editing.relief`. Two layers are
the scene, both of the photo's resolution and made once, so that nothing flickers:

```
photo, relief -> front: both as they are
             `-> behind: the same, but where something stands in front of something else, the relief and the photo
                 behind it, continued
```

A ray sees the front layer; where that is pulled apart, at a step of the relief that the photo's camera did not look
behind, it fades to the layer behind. The canonical view is the photo itself.

Legend: H height_px, W width_px of the canvas: the photo with mirrored margins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.continued import continued
from vq3dcli.editing.cutout import Cutout
from vq3dcli.editing.march import Lines, camera_lines, edge_lines, intersect, longest_shift
from vq3dcli.editing.placement import FOUR_A_PIXEL
from vq3dcli.editing.relief import RELAXATIONS, box_mean, fill_holes, local_range, mean_of, resized
from vq3dcli.rendering.cameras import (
    Camera,
    pixel_centres,
    project,
    rays_at_pixels,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.scene import SceneView, joined, to_uint8
from vq3dcli.rendering.space import Frustum

# Windows as parts of the longer side.
_STEP_WINDOW = 1 / 80
_MIXED_WINDOW = 1 / 70
# The front layer fades between these factors of being pulled apart.
STRETCH_FADES, STRETCH_GONE = 1.6, 3.0
# Neighbouring rays that end so much farther apart than on a flat relief see an outline.
_OUTLINE_PX = 2.0
# Colours that differ by less than about this are alike.
_ALIKE = 0.2
# Levels of disparity whose colours continue apart, and what they weigh at others; scales that look sideways only.
_LEVELS, _BORROWED, _WIDE = 6, 1e-3, 2
# Step in which the region behind things grows.
_GROW_PX = 4
# Mirrored margins hide what the photo does not show, and the layer behind reaches behind things, but not more than
# this part of the longer side: a camera beside or behind the scene sees nothing that a photo could show.
_WIDEST_MARGIN = 0.25
# Around things that are taken out, the relief is made anew: a part of the first view's side.
_HALO = 1 / 16


@dataclass(frozen=True)
class PhotoLayer:
    """A picture with a relief."""

    rgb: Tensor  # float32 `[3, H, W]` in [0, 1]
    s: Tensor  # normalised disparity `[H, W]`


@dataclass(frozen=True)
class PhotoScene:
    """A photo in two layers, ready to be looked at from cameras near the canonical one."""

    front: PhotoLayer
    behind: PhotoLayer  # the same with things in front taken away at their edges
    camera: Camera
    frustum: Frustum
    told_s: Tensor | None = None  # `[H, W]`: the disparity of views, where it is not that of the front layer

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that are the photo: the rest are its mirrored margins."""
        window = []
        for canvas_px, axis in ((self.camera.height_px, 1), (self.camera.width_px, 0)):
            side_px = round(2.0 * self.frustum.tangent * float(self.camera.intrinsics[0, axis, axis]))
            first = (canvas_px - side_px) // 2
            window.append(slice(first, first + side_px))
        return window[0], window[1]

    def cropped(self) -> PhotoScene:
        """Without the margins, which whoever draws it can mirror again."""
        rows, columns = self.window
        front, behind = (
            PhotoLayer(part.rgb[:, rows, columns], part.s[rows, columns]) for part in (self.front, self.behind)
        )
        camera = self.frustum.camera(*front.s.shape).to(front.s.device)
        told_s = None if self.told_s is None else self.told_s[rows, columns]
        return PhotoScene(front, behind, camera, self.frustum, told_s)

    @torch.no_grad()
    def render(self, camera: Camera) -> SceneView:
        """Look at the photo from any number of cameras."""
        camera = camera.to(self.front.s.device)
        return joined([self._render_one(camera[index]) for index in range(len(camera))])

    def _render_one(self, camera: Camera) -> SceneView:
        size = (camera.height_px, camera.width_px)
        centres = pixel_centres(*size, self.front.s.device)
        rgb_s, shift = self._look(camera, centres)
        edges = _outlines(shift.T.reshape(2, *size))
        if len(edges):
            # Four rays a pixel where neighbours see different things.
            parts = [self._look(camera, centres[edges] + centres.new_tensor(offset))[0] for offset in FOUR_A_PIXEL]
            rgb_s[:, edges] = torch.stack(parts).mean(0)
        seen = rgb_s[3:].reshape(1, *size)
        return SceneView(to_uint8(rgb_s[:3].reshape(1, 3, *size)), seen, torch.zeros_like(seen))

    def _look(self, camera: Camera, seen_px: Tensor) -> tuple[Tensor, Tensor]:
        """What the rays of a camera through pixels `[N, 2]` see: colour and s in that camera, `[4, N]`.

        And how far on the canvas each ends from where it would on the farthest relief, `[N, 2]`.
        """
        depth_range = self.frustum.depth_range
        lines = camera_lines(self.camera, camera, depth_range, seen_px)
        pixels, s, stretch = intersect(self.front.s, lines)
        rgb = look_up_px(self.front.rgb, pixels, mode="bicubic")
        if self.told_s is not None:
            s = look_up_px(self.told_s[None], pixels)[0]
        share = ((stretch - STRETCH_FADES) / (STRETCH_GONE - STRETCH_FADES)).clamp(0.0, 1.0)
        share = share * share * (3.0 - 2.0 * share)
        gone = (share > 0.0).nonzero()[:, 0]
        if len(gone):
            there = intersect(self.behind.s, Lines(lines.base[gone], lines.step[gone], lines.nearest_s))
            weight = share[gone]
            filled = look_up_px(self.behind.rgb, there.pixels, mode="bicubic")
            rgb[:, gone] = (1.0 - weight) * rgb[:, gone] + weight * filled
            s[gone] = (1.0 - weight) * s[gone] + weight * there.s
            pixels[gone] = torch.where((weight > 0.5)[:, None], there.pixels, pixels[gone])
        # What lies at these places of the canvas, as far as it is from the looking camera.
        rays = rays_at_pixels(self.camera, pixels)
        world = rays.origin + z_depth_from_s(s, depth_range)[:, None] * rays.direction
        s_here = s_from_z_depth(project(camera, world)[1][0].clamp(min=1e-3), depth_range)
        return torch.cat([rgb, s_here[None]]), pixels - lines.base

    def without(self, cutouts: Sequence[Cutout]) -> PhotoScene:
        """The photo with what is behind the things, on both layers: their relief is not quite that of the field."""
        picture = self
        for cutout in cutouts:
            mask = self._on_canvas(cutout.hole_mask[None])
            # The relief follows the photo's edges only roughly: around a thing it rises, too.
            radius_px = max(1, round(_HALO * len(cutout.mask)))
            wide = functional.max_pool2d(cutout.hole_mask[None], 2 * radius_px + 1, 1, radius_px)
            known = (self._on_canvas(wide)[0] <= 0.0).float()
            rows, columns = self.window
            behind_s = fill_holes(picture.front.s[None], known, relaxations=RELAXATIONS)[0]
            hole = mask[0, rows, columns] > 0.0
            rgb = continued(picture.front.rgb[:, rows, columns], hole, behind_s[rows, columns])
            rgb = _mirrored(rgb, columns.start, rows.start)
            front, behind = (
                PhotoLayer(layer.rgb + mask * (rgb - layer.rgb), torch.lerp(behind_s, layer.s, known))
                for layer in (picture.front, picture.behind)
            )
            picture = replace(picture, front=front, behind=behind)
        return picture

    def _on_canvas(self, maps: Tensor) -> Tensor:
        """Maps `[C, G, G]` of the first view at the resolution of the photo, mirrored as it is."""
        rows, columns = self.window
        full = resized(maps, (rows.stop - rows.start, columns.stop - columns.start), smooth=False)
        return _mirrored(full, columns.start, rows.start)


def _mirrored(maps: Tensor, beside_px: int, above_px: int) -> Tensor:
    """Maps `[C, H, W]` with mirrored margins."""
    return functional.pad(maps, [beside_px, beside_px, above_px, above_px], "reflect")


def _outlines(shift: Tensor) -> Tensor:
    """Indices of pixels beside others that see another part of the photo, by the shift of `_look` `[2, H, W]`."""
    torn = torch.zeros_like(shift[0], dtype=torch.bool)
    for axis in (1, 2):
        apart = shift.diff(dim=axis).abs().amax(0) > _OUTLINE_PX
        for start in (0, 1):
            torn.narrow(axis - 1, start, shift.shape[axis] - 1).logical_or_(apart)
    return torn.flatten().nonzero()[:, 0]


@torch.no_grad()
def build_photo_scene(
    frustum: Frustum, photo: Tensor, s: Tensor, cameras: Camera, told_s: Tensor | None = None
) -> PhotoScene:
    """Both layers of a photo uint8 `[3, H, W]` of relief `s` `[H, W]`.

    `cameras` are all that will look at it: they say how far behind edges one sees, and how wide the margins are. Views
    have the disparity of `told_s` `[H, W]`, of a relief with steps, where `s` is one without.
    """
    camera = frustum.camera(*s.shape).to(s.device)
    reach_px, margin_px = _reach(camera, frustum, cameras.to(s.device), s)
    front = PhotoLayer(photo.to(s.device).float() / 255.0, s)
    behind = _layer_behind(front, reach_px)
    beside_px, above_px = (min(margin_px, side - 1) for side in (s.shape[1], s.shape[0]))
    front, behind = (
        PhotoLayer(_mirrored(layer.rgb, beside_px, above_px), _mirrored(layer.s[None], beside_px, above_px)[0])
        for layer in (front, behind)
    )
    told_s = None if told_s is None or told_s is s else _mirrored(told_s[None], beside_px, above_px)[0]
    camera.intrinsics[:, :2, 2] += torch.tensor([beside_px, above_px], device=s.device)
    return PhotoScene(front, behind, Camera(camera.cam_to_world, camera.intrinsics, *front.s.shape), frustum, told_s)


def _reach(photo: Camera, frustum: Frustum, cameras: Camera, s: Tensor) -> tuple[int, int]:
    """How far things move against each other, and how far beyond the photo's edges rays go, in pixels."""
    low, high = float(s.min()), float(s.max())
    size = torch.tensor([photo.width_px, photo.height_px], device=s.device)
    reach, beyond = 1.0, 1.0
    for lines in edge_lines(photo, cameras, frustum.depth_range):
        reach = max(reach, longest_shift(lines, low, high))
        for end in (low, high):
            place = lines.base + end * lines.step
            beyond = max(beyond, float(torch.maximum(-place, place - size).max()))
    widest = _WIDEST_MARGIN * max(photo.width_px, photo.height_px)
    return math.ceil(min(reach, widest)) + 2, math.ceil(min(beyond, widest)) + 2


def _layer_behind(front: PhotoLayer, reach_px: int) -> PhotoLayer:
    """What lies behind things, within `reach_px` of their edges."""
    rgb, s = front.rgb, front.s
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
        return front
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
    # The level behind, whatever stands between: a mean of all that is known around would slope from one to the other.
    level, _ = local_range(torch.minimum(level, s), mixed_px)
    s_behind = torch.where(hidden, torch.minimum(mean_of(level[None], hidden.float(), mixed_px)[0], s), s)
    # The colours of these strips continue what is around them smoothly; only their texture is found by patches.
    alike = continued(rgb, hidden, s_behind, in_front)
    texture = alike - mean_of(alike, (hidden | known).float(), 2 * mixed_px)
    filled = (_smooth(rgb, s, known.float(), s_behind) + texture).clamp(0.0, 1.0)
    # Where the photo looks alike at the edge itself it stays, so that no seam shows there.
    within, _ = local_range(in_front.float(), mixed_px // 2)
    alike = torch.exp(-((filled - rgb).square().sum(0) / _ALIKE**2)) * (1.0 - box_mean(within[None], mixed_px // 2)[0])
    return PhotoLayer(torch.where(hidden, torch.lerp(filled, rgb, alike), rgb), s_behind)


def _smooth(rgb: Tensor, s: Tensor, known: Tensor, s_behind: Tensor) -> Tensor:
    """Colours `[3, H, W]` where they are known (1) continued to where they are not, at each level of s by its own.

    Sideways more than up and down: what lies behind things is wider than high.
    """
    low, high = float(s.min()), float(s.max())
    levels = torch.linspace(low, high, _LEVELS, device=s.device)[:, None, None]
    spacing = max(high - low, 1e-6) / (_LEVELS - 1)
    here, wanted = ((1.0 - (each - levels).abs() / spacing).clamp(min=0.0) for each in (s, s_behind))
    weighted = torch.cat([rgb, torch.ones_like(rgb[:1])]) * (here[:, None] + _BORROWED)
    sums = (wanted[:, None] * fill_holes(weighted, known.expand(here.shape), wide=_WIDE)).sum(0)
    return sums[:3] / sums[3:].clamp(min=1e-6)
