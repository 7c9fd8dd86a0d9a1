"""An object cut out of a scene by a box on its first view, and what is left behind when it is gone.

Inside the box the surroundings are a membrane: the disparity of the box's rim, continued smoothly (the disparity of a
plane is an affine function of the image's coordinates, so a ground or a wall is continued exactly). What the field
shows in front of the membrane is the object. It ends half its width behind its front: nothing says more about the
side that the photo did not see.

Legend: G side of the view in pixels, N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.matte import matte
from vq3dcli.editing.placement import Membership, Vector
from vq3dcli.editing.relief import RELAXATIONS, fill_holes
from vq3dcli.errors import DataError
from vq3dcli.rendering.cameras import s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.lookup import look_up
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import Frustum

# An object stands out by at least this much s; below, it is the noise of a reconstruction.
_LEAST_EXCESS_S = 0.015
# Edges in s are that soft: a sample or two of a video.
_SOFT_S = 0.02
_LEAST_PIXELS = 6
# What fills a hole is opaque within a centimetre.
_FILL_DENSITY = 400.0
_VERTICAL_COST = 16.0
_PIXELS_AT_ONCE = 512


class FirstView(NamedTuple):
    """A scene as its canonical camera sees it."""

    rgb: Tensor  # `[3, G, G]` in [0, 1]
    s: Tensor  # `[G, G]`


@dataclass(frozen=True)
class Cutout:
    """An object of a scene, in the scene's coordinates."""

    mask: Tensor  # how much of each pixel of the first view is the object, `[G, G]` in [0, 1]
    gone: Tensor  # what goes with it when it is taken away, `[G, G]`
    back_s: Tensor  # where the object ends, `[G, G]`
    behind: FirstView  # what is behind it, as far as its surroundings tell
    frustum: Frustum
    foot: Vector  # the middle of its lower edge
    width: float  # in metres
    share: tuple[float, float]  # of the view's width and height
    lower: Vector  # corner of a box around it
    upper: Vector

    def membership(self, points: Tensor) -> Tensor:
        """How much of world points `[N, 3]` is the object."""
        coordinates = self.frustum(points)
        covered, limit_s = look_up(torch.stack([self.mask, self.back_s]), coordinates[:, :2])
        s = 0.5 * (1.0 - coordinates[:, 2])
        return covered * ((s - limit_s) / _SOFT_S).clamp(0.0, 1.0) * _in_view(coordinates)

    @property
    def hole_mask(self) -> Tensor:
        """What of the first view goes with the object, `[G, G]` in [0, 1]: also what the fringe around it hides."""
        return _widened(self.gone, self._fringe_px)

    def hole(self) -> Membership:
        """What has to go when the object goes: everything that it and the fringe around it hide, too.

        What is behind an object is the field's own guess, mostly more of the object; `fill` takes its place.
        """
        wide = self.hole_mask[None]

        def membership(points: Tensor) -> Tensor:
            coordinates = self.frustum(points)
            return look_up(wide, coordinates[:, :2])[0] * _in_view(coordinates)

        return membership

    def fill(self) -> Field:
        """What closes the hole: a relief of what is behind, of the colours around it."""
        wide = _widened(self.gone, self._fringe_px + 1)
        images = torch.cat([wide[None], self.behind.s[None], self.behind.rgb])

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            coordinates = self.frustum(points.reshape(-1, 3))
            covered, surface_s, *rgb = look_up(images, coordinates[:, :2])
            solid = (0.5 * (1.0 - coordinates[:, 2]) <= surface_s) & (covered > 0.5) & _in_view(coordinates)
            density = _FILL_DENSITY * solid.to(points)
            return density.reshape(points.shape[:-1]), torch.stack(rgb, -1).reshape(points.shape)

        return field

    @property
    def _fringe_px(self) -> int:
        # The blur of a reconstruction carries an object's colours about a texel beyond its edge.
        return max(1, round(self.mask.shape[0] / 48))


def cut_out(
    view: FirstView,
    frustum: Frustum,
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    z_range: tuple[float, float] | None = None,
    *,
    of_photo: bool = False,
    texture: Tensor | None = None,
) -> Cutout:
    """Cut an object out of a scene.

    Args:
        of_photo: Whether the view is a photo, whose edges say more about the object's than its relief does: no field
            is carved, so what is behind has no colours, and the object stands where its own lower edge is.
        texture: What a network says of each place of the photo, `[C, h, w]`; it tells apart what has the same colours.
        box: A little larger than the object: left, top, right, bottom in fractions of the view.
        z_range: Nearest and farthest z_depth: what the box holds between them is the object, whatever surrounds it.

    Raises `DataError`: nothing stands out of its surroundings in the box.
    """
    side = view.s.shape[0]
    inside = _box_pixels(box, side, rim=not of_photo).to(view.s.device)
    surroundings_s = _continued(view.s, ~inside)
    z_depth = z_depth_from_s(view.s, frustum.depth_range)
    if z_range is not None:
        strength = ((z_depth >= z_range[0]) & (z_depth <= z_range[1])).to(view.s)
    else:
        excess = (view.s - surroundings_s) * inside
        threshold = max(_LEAST_EXCESS_S, 0.4 * _otsu(excess[inside]))
        strong = _without_specks(((excess - threshold) / threshold + 0.5).clamp(0.0, 1.0))
        # Where an object meets the ground it hardly stands out: there a quarter is enough, if it hangs together.
        weak = (4.0 * (excess - 0.25 * threshold) / threshold + 0.5).clamp(0.0, 1.0)
        strength = torch.maximum(strong, weak * _grown(strong > 0.5, weak > 0.5, side // 12))
    mask = gone = _without_specks(strength * inside)
    if of_photo and z_range is None and bool((mask > 0.5).any()):
        mask, gone = matte(view.rgb, mask, inside, texture)
    sure = mask > 0.5
    if int(sure.sum()) < _LEAST_PIXELS:
        reason = "nothing stands out of its surroundings in the box"
        raise DataError(reason, remedy="a box a little larger, or with depths")
    rows, columns = sure.nonzero().unbind(1)
    front = z_depth[sure]
    metres_a_pixel = 2.0 * frustum.tangent * float(front.median()) / side
    width = float(columns.max() - columns.min() + 1) * metres_a_pixel
    farthest = float(front.quantile(0.9)) + 0.5 * width if z_range is None else z_range[1]
    back_s = torch.full_like(view.s, float(s_from_z_depth(torch.tensor(farthest), frustum.depth_range)))
    # Never through what is behind: it stays in its own scene.
    back_s = torch.maximum(back_s, torch.where(sure, torch.minimum(surroundings_s, view.s - _SOFT_S), back_s))
    taken = _widened((gone > 0.5).to(view.s), max(1, round(side / 32))) > 0
    behind = FirstView(view.rgb if of_photo else _borrowed(view.rgb, ~taken), _continued(view.s, ~taken))
    ground = z_depth if of_photo else z_depth_from_s(behind.s, frustum.depth_range)
    foot = _foot(rows, columns, ground, frustum, own=of_photo)
    lower, upper = _bounds(mask, float(front.min()), farthest, frustum)
    share = float(columns.max() - columns.min() + 1) / side, float(rows.max() - rows.min() + 1) / side
    return Cutout(mask, gone, back_s, behind, frustum, foot, width, share, lower, upper)


def point_at(x: float, y: float, z_depth: float, frustum: Frustum) -> Vector:
    """The world point at (x, y), in fractions of the first view, and `z_depth`."""
    reach = z_depth * frustum.tangent
    return (2.0 * x - 1.0) * reach, (2.0 * y - 1.0) * reach, z_depth - frustum.radius


def _continued(s: Tensor, known: Tensor) -> Tensor:
    """Disparity `[G, G]` continued smoothly from where it is known."""
    return fill_holes(s[None], known.to(s), relaxations=RELAXATIONS)[0]


def _widened(mask: Tensor, by_px: int) -> Tensor:
    """A mask `[G, G]`, so many pixels wider."""
    return functional.max_pool2d(mask[None], 2 * by_px + 1, 1, by_px)[0]


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


def _box_pixels(box: tuple[float, float, float, float], side: int, *, rim: bool) -> Tensor:
    """Which pixels `[G, G]` lie in the box; with a rim, the outermost ones of the view never do."""
    left, top, right, bottom = box
    centres = (torch.arange(side) + 0.5) / side
    inside = ((centres > top) & (centres < bottom))[:, None] & (centres > left) & (centres < right)
    if rim or bool(inside.all()):
        rim_px = max(1, side // 32)
        inside[:rim_px], inside[-rim_px:], inside[:, :rim_px], inside[:, -rim_px:] = False, False, False, False
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


def _foot(rows: Tensor, columns: Tensor, z_depth: Tensor, frustum: Frustum, *, own: bool) -> Vector:
    """The middle of the lower edge of an object's pixels, on the ground behind it, or at its `own` distance.

    A ball's lower edge is nearer than the ground behind it; ground has to come onto ground, or a field would sink in.
    """
    side = z_depth.shape[0]
    lowest = min(int(rows.float().quantile(0.98)) + 1, side - 1)
    middle = int(0.5 * (columns.min() + columns.max()))
    x, y = (float(columns.min() + columns.max()) + 1.0) / (2.0 * side), (lowest + 0.5) / side
    low = rows > rows.float().quantile(0.85)
    distance = z_depth[rows, columns][low].median() if own and bool(low.any()) else z_depth[lowest, middle]
    return point_at(x, y, float(distance), frustum)


def _bounds(mask: Tensor, nearest: float, farthest: float, frustum: Frustum) -> tuple[Vector, Vector]:
    """Corners of a box in the world around what the mask shows between two z_depths."""
    side = mask.shape[0]
    rows, columns = (mask > 0.0).nonzero().unbind(1)
    # A pixel more on each side, since masks are looked up bilinearly.
    left, right = (float(columns.min()) - 1.0) / side, (float(columns.max()) + 2.0) / side
    top, bottom = (float(rows.min()) - 1.0) / side, (float(rows.max()) + 2.0) / side
    nearest = max(frustum.depth_range.near, 0.9 * nearest)
    corners = [point_at(x, y, z, frustum) for x in (left, right) for y in (top, bottom) for z in (nearest, farthest)]
    lower, upper = (tuple(pick(corner[k] for corner in corners) for k in range(3)) for pick in (min, max))
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2] + 0.1)


def _in_view(coordinates: Tensor) -> Tensor:
    """Whether coordinates `[N, 3]` are in the first view; outside, the border would be replicated."""
    return (coordinates[:, :2].abs() <= 1.0).all(-1)
