"""Photos in detail without the things that were taken out of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.cutout import Cutout, smooth_continuation
from vq3dcli.pipelines.detail import PhotoLayer, PhotoScene

# Of the first view's side.
_HALO = 1 / 16


def photo_window(picture: PhotoScene) -> tuple[slice, slice]:
    """Rows and columns of the canvas that are the photo: the rest are its mirrored margins."""
    focal, tangent = picture.camera.intrinsics[0], math.tan(math.radians(0.5 * picture.facts.fov_deg))
    window = []
    for canvas_px, axis in ((picture.camera.height_px, 1), (picture.camera.width_px, 0)):
        side_px = round(2.0 * tangent * float(focal[axis, axis]))
        first = (canvas_px - side_px) // 2
        window.append(slice(first, first + side_px))
    return window[0], window[1]


def retouched(picture: PhotoScene, cutouts: Sequence[Cutout]) -> PhotoScene:
    """The photo with what is behind the things, on both layers: their relief is not quite that of the field.

    Args:
        picture: The photo.
        cutouts: What was taken away.
    """
    for cutout in cutouts:
        mask = _on_canvas(cutout.hole_mask[None], picture)[0]
        # The relief follows the photo's edges only roughly: around a thing it rises, too.
        radius_px = max(1, round(_HALO * len(cutout.mask)))
        wide = functional.max_pool2d(cutout.hole_mask[None], 2 * radius_px + 1, 1, radius_px)
        known = _on_canvas(wide, picture)[0] <= 0.0
        rgb = _on_canvas(cutout.behind.rgb, picture)
        front, behind = (
            PhotoLayer(layer.rgb + mask * (rgb - layer.rgb), smooth_continuation(layer.s[None], known)[0])
            for layer in (picture.front, picture.behind)
        )
        picture = replace(picture, front=front, behind=behind)
    return picture


def _on_canvas(maps: Tensor, picture: PhotoScene) -> Tensor:
    """Maps `[C, G, G]` of the first view at the resolution of the photo, mirrored as it is."""
    rows, columns = photo_window(picture)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    full = functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)
    padding = [columns.start, columns.start, rows.start, rows.start]
    return functional.pad(full, padding, "reflect")[0]
