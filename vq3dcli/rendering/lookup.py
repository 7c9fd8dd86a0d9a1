"""Bilinear look-ups: in pictures, and in tri-planes, three feature images whose samples are summed.

Coordinates -1 and 1 are the outer edges of the border texels (`align_corners=False`); outside, the border is
replicated. Planes are channels-last, `[batch, 3, height, width, channels]`, in the order xy, xz, yz: three different
pairs of axes. The first axis of a pair runs along the width, the second along the height.

Legend: B batch, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

PLANE_AXES = ((0, 1), (0, 2), (1, 2))


def grid_look_up(images: Tensor, grid: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Values `[B, C, h, w]` of images `[B, C, H, W]` at coordinates `[B, h, w, 2]`."""
    return functional.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def look_up(image: Tensor, coordinates: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Values `[C, N]` of one image `[C, H, W]` at coordinates `[N, 2]` in [-1, 1]."""
    return grid_look_up(image[None], coordinates[None, None].to(image), mode=mode)[0, :, 0]


def look_up_px(image: Tensor, pixels: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Values `[C, N]` of one image `[C, H, W]` at pixels `[N, 2]`, whose centres lie at +0.5."""
    size = torch.tensor([image.shape[2], image.shape[1]], dtype=pixels.dtype, device=pixels.device)
    return look_up(image, pixels * (2.0 / size) - 1.0, mode=mode)


def coloured_by(photo: Tensor, space: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Colours `[..., C]` of a photo `[C, H, W]` in front of points `[..., 3]`; `space` is the frustum of its camera."""
    return look_up(photo, space(points.reshape(-1, 3))[:, :2]).T.reshape(*points.shape[:-1], len(photo))


def sample_planes(planes: Tensor, coordinates: Tensor) -> Tensor:
    """Sum `[B, N, C]` of the three samples of planes `[B, 3, H, W, C]` at `[B, N, 3]`: the path for training."""
    batch, _, height, width, channels = planes.shape
    along = coordinates.unbind(-1)  # an index of a list would be copied to a GPU, which waits
    grid = torch.stack([torch.stack([along[axis] for axis in axes], -1) for axes in PLANE_AXES], 1)
    images = planes.reshape(batch * 3, height, width, channels).permute(0, 3, 1, 2)
    # float32 whatever the planes are: bfloat16 coordinates would be a quarter of a texel off on 64 texels.
    features = grid_look_up(images.float(), grid.reshape(batch * 3, 1, -1, 2).float())
    return features.reshape(batch, 3, channels, -1).sum(1).transpose(1, 2)


def gather_planes(planes: Tensor, coordinates: Tensor) -> Tensor:
    """The same as `sample_planes` by one weighted lookup of 12 rows a point: faster on a CPU, forward only."""
    batch, _, height, width, channels = planes.shape
    size = coordinates.new_tensor([width, height])
    limit = size - 1.0
    plane_offset = torch.arange(3, device=planes.device) * (height * width)
    rows, weights = [], []
    for plane, axes in enumerate(PLANE_AXES):
        texel = ((coordinates[..., list(axes)] + 1.0) * (0.5 * size) - 0.5).clamp(
            min=torch.zeros_like(limit), max=limit
        )
        lower = texel.floor().clamp(max=(limit - 1.0).clamp(min=0.0))
        column, row = lower.to(torch.int64).unbind(-1)
        right, bottom = (texel - lower).unbind(-1)
        next_column, next_row = (column + 1).clamp(max=width - 1), (row + 1).clamp(max=height - 1)
        for row_index, row_weight in ((row, 1.0 - bottom), (next_row, bottom)):
            for column_index, column_weight in ((column, 1.0 - right), (next_column, right)):
                rows.append(plane_offset[plane] + row_index * width + column_index)
                weights.append(row_weight * column_weight)
    scene_offset = torch.arange(batch, device=planes.device)[:, None, None] * (3 * height * width)
    table = planes.reshape(-1, channels)
    index = (torch.stack(rows, -1) + scene_offset).reshape(-1, 12)
    weight = torch.stack(weights, -1).reshape(-1, 12).to(table.dtype)
    features = functional.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    return features.reshape(batch, -1, channels)
