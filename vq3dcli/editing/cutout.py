"""An object cut out of a scene by a box on its first view, and what is left behind when it is gone.

Inside the box the surroundings are a membrane: the disparity of the box's rim, continued smoothly (the disparity of a
plane is an affine function of the image's coordinates, so a ground or a wall is continued exactly). What the field
shows in front of the membrane is the object. It ends half its width behind its front: nothing says more about the
side that the photo did not see.

Legend: G side of the view in pixels, N points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.placement import Membership, Vector
from vq3dcli.errors import DataError
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import FrustumSpace

# An object stands out by at least this much s; below, it is the noise of a reconstruction.
_LEAST_EXCESS_S = 0.015
# Edges in s are that soft: a sample or two of a video.
_SOFT_S = 0.02
_LEAST_PIXELS = 6
# What fills a hole is opaque within a centimetre.
_FILL_DENSITY = 400.0
_RELAXATIONS = 40
_VERTICAL_COST = 16.0
_PIXELS_AT_ONCE = 512


class FirstView(NamedTuple):
    """A scene as its canonical camera sees it.

    Attributes:
        rgb: `[3, G, G]` in [0, 1].
        s: `[G, G]`.
    """

    rgb: Tensor
    s: Tensor


class Box(NamedTuple):
    """A part of the first view, in fractions of its width and height: (0, 0) is the top left corner.

    Attributes:
        left: Smaller than `right`.
        top: Smaller than `bottom`.
        right: At most 1.
        bottom: At most 1.
        nearest: With `farthest`: what the box holds between these z_depths is the object, whatever surrounds it.
        farthest: See `nearest`.
    """

    left: float
    top: float
    right: float
    bottom: float
    nearest: float | None = None
    farthest: float | None = None


@dataclass(frozen=True)
class Cutout:
    """An object of a scene, in the scene's coordinates.

    Attributes:
        mask: How much of each pixel of the first view is the object, `[G, G]` in [0, 1].
        back_s: Where the object ends, `[G, G]`.
        behind: What is behind it, as far as its surroundings tell.
        space: The first view's camera.
        foot: The middle of its lower edge.
        width: In metres.
        lower: Corner of a box around it.
        upper: The other corner.
    """

    mask: Tensor
    back_s: Tensor
    behind: FirstView
    space: FrustumSpace
    foot: Vector
    width: float
    lower: Vector
    upper: Vector

    def membership(self, points: Tensor) -> Tensor:
        """How much of world points `[N, 3]` is the object."""
        return _in_front(self.space(points), self.mask, self.back_s)

    @property
    def hole_mask(self) -> Tensor:
        """What of the first view goes with the object, `[G, G]` in [0, 1]."""
        return self._mask_and(self._fringe_px)

    def hole(self) -> Membership:
        """What has to go when the object goes: everything that it and the fringe around it hide, too.

        What is behind an object is the field's own guess, mostly more of the object; `fill` takes its place.
        """
        wide = self.hole_mask

        def membership(points: Tensor) -> Tensor:
            coordinates = self.space(points)
            return _look_up(wide[None], coordinates)[0] * _in_view(coordinates)

        return membership

    def fill(self) -> Field:
        """What closes the hole: a relief of what is behind, of the colours around it."""
        wide = self._mask_and(self._fringe_px + 1)

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            coordinates = self.space(points.reshape(-1, 3))
            images = torch.cat([wide[None], self.behind.s[None], self.behind.rgb])
            covered, surface_s, *rgb = _look_up(images, coordinates)
            solid = (0.5 * (1.0 - coordinates[:, 2]) <= surface_s) & (covered > 0.5) & _in_view(coordinates)
            density = _FILL_DENSITY * solid.to(points)
            return density.reshape(points.shape[:-1]), torch.stack(rgb, -1).reshape(points.shape)

        return field

    def _mask_and(self, fringe_px: int) -> Tensor:
        """The mask, so many pixels wider."""
        return functional.max_pool2d(self.mask[None], 2 * fringe_px + 1, 1, fringe_px)[0]

    @property
    def _fringe_px(self) -> int:
        # The blur of a reconstruction carries an object's colours about a texel beyond its edge.
        return max(1, round(self.mask.shape[0] / 48))


def cut_out(view: FirstView, box: Box, space: FrustumSpace) -> Cutout:
    """Cut an object out of a scene.

    Args:
        view: The scene from the front.
        box: A little larger than the object.
        space: The camera of the view.

    Raises:
        DataError: Nothing stands out of its surroundings in the box.
    """
    side = view.s.shape[0]
    inside = _box_pixels(box, side).to(view.s.device)
    surroundings_s = smooth_continuation(view.s[None], ~inside)[0]
    z_depth = _z_depth(view.s, space)
    if box.nearest is not None and box.farthest is not None:
        strength = ((z_depth >= box.nearest) & (z_depth <= box.farthest)).to(view.s)
    else:
        excess = (view.s - surroundings_s) * inside
        threshold = max(_LEAST_EXCESS_S, 0.4 * _otsu(excess[inside]))
        strong = _without_specks(((excess - threshold) / threshold + 0.5).clamp(0.0, 1.0))
        # Where an object meets the ground it hardly stands out: there a quarter is enough, if it hangs together.
        weak = (4.0 * (excess - 0.25 * threshold) / threshold + 0.5).clamp(0.0, 1.0)
        strength = torch.maximum(strong, weak * _grown(strong > 0.5, weak > 0.5, side // 12))
    mask = _without_specks(strength * inside)
    sure = mask > 0.5
    if int(sure.sum()) < _LEAST_PIXELS:
        reason = "nothing stands out of its surroundings in the box"
        raise DataError(reason, remedy="a box a little larger, or with depths")
    rows, columns = sure.nonzero().unbind(1)
    front = z_depth[sure]
    metres_a_pixel = 2.0 * math.tan(0.5 * space.fov_rad) * float(front.median()) / side
    width = float(columns.max() - columns.min() + 1) * metres_a_pixel
    farthest = float(front.quantile(0.9)) + 0.5 * width if box.farthest is None else box.farthest
    back_s = torch.full_like(view.s, float(_s(torch.tensor(farthest), space)))
    # Never through what is behind: it stays in its own scene.
    back_s = torch.maximum(back_s, torch.where(sure, torch.minimum(surroundings_s, view.s - _SOFT_S), back_s))
    fringe = max(1, round(side / 32))
    taken = functional.max_pool2d(sure.to(view.s)[None], 2 * fringe + 1, 1, fringe)[0] > 0
    behind = FirstView(_borrowed(view.rgb, ~taken), smooth_continuation(view.s[None], ~taken)[0])
    foot = _foot(rows, columns, _z_depth(behind.s, space), space)
    lower, upper = _bounds(mask, float(front.min()), farthest, space)
    return Cutout(mask, back_s, behind, space, foot, width, lower, upper)


def painted(field: Field, photo: Tensor, space: FrustumSpace) -> Field:
    """A field with the colours of its photo, each point with those of the pixel in front of it.

    Args:
        field: Its density stays.
        photo: `[3, H, W]` in [0, 1]: what the camera of `space` saw.
        space: The first view's camera.
    """

    def coloured(points: Tensor) -> tuple[Tensor, Tensor]:
        density, _ = field(points)
        rgb = torch.stack(_look_up(photo, space(points.reshape(-1, 3))), -1)
        return density, rgb.reshape(points.shape)

    return coloured


def with_picture(field: Field, photo: Tensor, space: FrustumSpace) -> Field:
    """A field of four channels (`editing.placement.share_of`) in three: the fourth shows the photo, see `painted`."""

    def coloured(points: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(points)
        shown = torch.stack(_look_up(photo, space(points.reshape(-1, 3))), -1).reshape(points.shape)
        return density, rgb[..., :3] + rgb[..., 3:] * shown

    return coloured


def point_at(x: float, y: float, z_depth: float, space: FrustumSpace) -> Vector:
    """The world point at (x, y), in fractions of the first view, and `z_depth`."""
    reach = z_depth * math.tan(0.5 * space.fov_rad)
    return (2.0 * x - 1.0) * reach, (2.0 * y - 1.0) * reach, z_depth - space.radius


def smooth_continuation(values: Tensor, known: Tensor) -> Tensor:
    """Images `[C, G, G]` whose unknown pixels solve Laplace's equation between the known ones, coarse to fine.

    Args:
        values: Anything at unknown pixels.
        known: `[G, G]`; with none known, the result is the mean of `values`.
    """
    if not bool(known.any()):
        return values.mean((1, 2), keepdim=True).expand_as(values).clone()
    weight = known.to(values)[None]
    filled = values * weight
    if bool(known.all()):
        return values.clone()
    height, width = values.shape[1:]
    if min(height, width) > 1:
        coarse_weight = functional.avg_pool2d(weight[None], 2, ceil_mode=True, count_include_pad=False)[0]
        sums = functional.avg_pool2d(filled[None], 2, ceil_mode=True, count_include_pad=False)[0]
        coarse = smooth_continuation(sums / coarse_weight.clamp(min=1e-6), coarse_weight[0] > 0)
        guess = functional.interpolate(coarse[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    else:
        guess = (filled.sum((1, 2), keepdim=True) / weight.sum()).expand_as(values)
    result = torch.where(known, values, guess)
    for _ in range(_RELAXATIONS):
        padded = functional.pad(result[None], (1, 1, 1, 1), mode="replicate")[0]
        mean = 0.25 * (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:])
        result = torch.where(known, values, mean)
    return result


def _borrowed(rgb: Tensor, known: Tensor) -> Tensor:
    """Colours `[3, G, G]` whose unknown pixels are means of the known ones, the near ones and those beside them most.

    Scenes lie in layers, sky over wall over ground: what is beside a pixel says more than what is above or below.
    """
    at, missing = known.nonzero().to(rgb), (~known).nonzero()
    if not len(at) or not len(missing):
        return rgb.clone()
    colours = rgb[:, known].T
    result = rgb.clone()
    for part in missing.split(_PIXELS_AT_ONCE):
        away = (part[:, None].to(rgb) - at[None]).square()
        weight = (_VERTICAL_COST * away[..., 0] + away[..., 1]).square().reciprocal()
        result[:, part[:, 0], part[:, 1]] = (weight @ colours / weight.sum(1, keepdim=True)).T
    return result


def _box_pixels(box: Box, side: int) -> Tensor:
    """Which pixels `[G, G]` lie in the box; the outermost ones of the view never do, they are its rim."""
    centres = (torch.arange(side) + 0.5) / side
    rows, columns = (centres > box.top) & (centres < box.bottom), (centres > box.left) & (centres < box.right)
    inside = rows[:, None] & columns[None, :]
    rim = max(1, side // 32)
    inside[:rim], inside[-rim:], inside[:, :rim], inside[:, -rim:] = False, False, False, False
    return inside


def _otsu(values: Tensor) -> float:
    """The threshold that parts values `[N]` best in two (Otsu, 1979); 0 for none."""
    if not len(values):
        return 0.0
    ordered = values.sort().values
    count = torch.arange(1, len(ordered) + 1).to(ordered)
    below = ordered.cumsum(0)
    above_count = (len(ordered) - count).clamp(min=1)
    gap = below / count - (below[-1] - below) / above_count
    between = count * (len(ordered) - count) * gap.square()
    best = int(between.argmax())
    return float(ordered[best])


def _without_specks(mask: Tensor) -> Tensor:
    """`mask` where it is more than a few pixels wide, by opening."""
    eroded = -functional.max_pool2d(-mask[None], 3, 1, 1)
    return torch.minimum(mask, functional.max_pool2d(eroded, 5, 1, 2)[0])


def _grown(seed: Tensor, allowed: Tensor, steps: int) -> Tensor:
    """`seed` `[G, G]` and what of `allowed` is reached from it in so many steps from pixel to pixel."""
    grown = seed.float()
    for _ in range(steps):
        grown = torch.maximum(grown, functional.max_pool2d(grown[None], 3, 1, 1)[0] * allowed)
    return grown


def _foot(rows: Tensor, columns: Tensor, behind_z_depth: Tensor, space: FrustumSpace) -> Vector:
    """The middle of the lower edge of an object's pixels, on the ground that is seen there.

    A ball's lower edge is nearer than the ground behind it; ground has to come onto ground, or it would sink in.
    """
    side = behind_z_depth.shape[0]
    lowest = min(int(rows.float().quantile(0.98)) + 1, side - 1)
    middle = int(0.5 * (columns.min() + columns.max()))
    x, y = (float(columns.min() + columns.max()) + 1.0) / (2.0 * side), (lowest + 0.5) / side
    return point_at(x, y, float(behind_z_depth[lowest, middle]), space)


def _bounds(mask: Tensor, nearest: float, farthest: float, space: FrustumSpace) -> tuple[Vector, Vector]:
    """Corners of a box in the world around what the mask shows between two z_depths."""
    side = mask.shape[0]
    rows, columns = (mask > 0.0).nonzero().unbind(1)
    # A pixel more on each side, since masks are looked up bilinearly.
    left, right = (float(columns.min()) - 1.0) / side, (float(columns.max()) + 2.0) / side
    top, bottom = (float(rows.min()) - 1.0) / side, (float(rows.max()) + 2.0) / side
    nearest = max(space.near, 0.9 * nearest)
    corners = [point_at(x, y, z, space) for x in (left, right) for y in (top, bottom) for z in (nearest, farthest)]
    lower, upper = (tuple(pick(corner[k] for corner in corners) for k in range(3)) for pick in (min, max))
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2] + 0.1)


def _in_front(coordinates: Tensor, mask: Tensor, limit_s: Tensor) -> Tensor:
    """The mask at coordinates `[N, 3]` of the frustum that lie nearer than `limit_s`, with soft edges."""
    covered, limit = _look_up(torch.stack([mask, limit_s]), coordinates)
    s = 0.5 * (1.0 - coordinates[:, 2])
    return covered * ((s - limit) / _SOFT_S).clamp(0.0, 1.0) * _in_view(coordinates)


def _in_view(coordinates: Tensor) -> Tensor:
    """Whether coordinates `[N, 3]` are in the first view; outside, the border would be replicated."""
    return (coordinates[:, :2].abs() <= 1.0).all(-1)


def _look_up(images: Tensor, coordinates: Tensor) -> tuple[Tensor, ...]:
    """Bilinear samples of images `[C, G, G]` at coordinates `[N, 3]` of the frustum: C tensors `[N]`."""
    grid = coordinates[None, None, :, :2].to(images)
    sampled = functional.grid_sample(images[None], grid, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].unbind(0)


def _z_depth(s: Tensor, space: FrustumSpace) -> Tensor:
    return 1.0 / (s * (1.0 / space.near - 1.0 / space.far) + 1.0 / space.far)


def _s(z_depth: Tensor, space: FrustumSpace) -> Tensor:
    return ((1.0 / z_depth - 1.0 / space.far) / (1.0 / space.near - 1.0 / space.far)).clamp(0.0, 1.0)
