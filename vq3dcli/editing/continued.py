"""What is behind a thing that is taken out of a photo: its surroundings, continued patch by patch.

Every patch that overlaps the hole looks like some patch outside of it, of about the same disparity, so that ground
goes on as ground and sky as sky (Wexler, Shechtman and Irani, PAMI 2007). Which one, a random search finds (Barnes,
Shechtman, Finkelstein and Goldman, "PatchMatch", SIGGRAPH 2009), from a small picture to the full one.

Legend: H height_px, W width_px; values have C channels, colours and disparity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli.compiled import compiled
from vq3dcli.editing.relief import fill_holes, local_range, resized

# Half the side of a patch, without its middle.
_HALF = 3
_SMALLEST_PX = 24
# Rounds of search and vote at the smallest size, and at every larger one.
_FIRST_ROUNDS, _ROUNDS = 12, 2
# How far around the place that a smaller size found, larger ones look.
_REACH_PX = 8
# All of s, and all of the height, count as so many times the difference of black and white in one channel: scenes
# lie in layers, and what is beside a pixel says more than what is above or below.
_DEPTH_WEIGHT, _HEIGHT_WEIGHT = 1.0, 0.5
# Of the mean distance of patches: a worse one hardly votes.
_VOTE_WIDTH = 0.5


def continued(rgb: Tensor, hole: Tensor, s: Tensor, foreign: Tensor | None = None) -> Tensor:
    """Colours `[3, H, W]` in [0, 1] with a hole `[H, W]` (bool) closed by what is around it.

    Args:
        s: Disparity of what is seen there, and shall be seen in the hole, `[H, W]`: it says what belongs together.
        foreign: What shall not continue, `[H, W]` (bool).
    """
    if not bool(hole.any()) or bool(hole.all()):
        return rgb.clone()
    height = torch.linspace(0.0, _HEIGHT_WEIGHT, len(s))[:, None].expand(s.shape)
    values = torch.cat([rgb.cpu(), _DEPTH_WEIGHT * s[None].cpu(), height[None]]).float()
    hole = hole.cpu()
    barred = hole if foreign is None else hole | foreign.cpu()
    sizes = [(hole.shape[0], hole.shape[1])]
    while min(sizes[-1]) >= 2 * _SMALLEST_PX and _thickness(hole, sizes[-1]) > 2 * _HALF:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    coarser = None
    for level, size in enumerate(reversed(sizes)):
        at_size = values if size == hole.shape else resized(values, size)
        missing = hole if size == hole.shape else resized(hole.float(), size) > 0.0
        usable = _usable(barred if size == hole.shape else resized(barred.float(), size) > 0.0).numpy()
        if not usable.any():
            continue
        if coarser is None:
            at_size[:3] = torch.where(missing, fill_holes(at_size[:3], (~missing).float()), at_size[:3])
            field = np.zeros((*size, 2), np.int32) - 1
        else:
            grown, nearest = coarser
            at_size[:3] = torch.where(missing, resized(grown, size, smooth=False), at_size[:3])
            field = _larger(nearest, size)
        pixels = np.ascontiguousarray(at_size.permute(1, 2, 0).numpy())
        places = np.argwhere(usable).astype(np.int32)
        near = local_range(missing.float(), _HALF)[1].numpy() > 0
        rounds, reach = (_FIRST_ROUNDS, max(size)) if coarser is None else (_ROUNDS, _REACH_PX)
        for number in range(rounds):
            distance = _search(pixels, near, usable, places, field, reach, 1 + number + 100 * level)
            said = _vote(pixels, near, field, distance, _VOTE_WIDTH)
            pixels[missing.numpy(), :3] = said[missing.numpy()]
        coarser = torch.from_numpy(said).permute(2, 0, 1), field
    if coarser is None:
        return fill_holes(rgb, (~hole).to(rgb))
    return torch.where(hole, coarser[0], rgb.cpu()).to(rgb)


def _thickness(hole: Tensor, size: tuple[int, ...]) -> float:
    """About how wide a hole is at a size, in pixels."""
    return float(hole.float().mean()) ** 0.5 * min(size)


def _usable(missing: Tensor) -> Tensor:
    """Middles `[H, W]` of the patches that are known and lie within the picture."""
    known = local_range(missing.float(), _HALF)[1] <= 0.0
    known[:_HALF], known[-_HALF:], known[:, :_HALF], known[:, -_HALF:] = False, False, False, False
    return known


def _larger(nearest: Any, size: tuple[int, ...]) -> Any:
    """A field of places at a larger size."""
    rows = (np.arange(size[0]) * nearest.shape[0]) // size[0]
    columns = (np.arange(size[1]) * nearest.shape[1]) // size[1]
    old = nearest[rows][:, columns].astype(np.float32)
    grown = np.round(old * np.array([size[0] / nearest.shape[0], size[1] / nearest.shape[1]], np.float32))
    # Neighbours that had one place have places that differ as they do.
    grown += np.stack(np.meshgrid(np.arange(size[0]) % 2, np.arange(size[1]) % 2, indexing="ij"), -1)
    return np.where(old < 0, -1, grown).astype(np.int32)


@compiled
def _apart(pixels: Any, y: int, x: int, v: int, u: int, most: float) -> float:
    """Mean squared difference of the patches around two places, cut at the border of the picture."""
    height, width, channels = pixels.shape
    total, count = 0.0, 0
    for dy in range(-3, 4):
        if y + dy < 0 or y + dy >= height:
            continue
        for dx in range(-3, 4):
            if x + dx < 0 or x + dx >= width:
                continue
            for c in range(channels):
                difference = pixels[y + dy, x + dx, c] - pixels[v + dy, u + dx, c]
                total += difference * difference
            count += 1
        if total > most * 49:
            return most * 50.0
    return total / count


@compiled
def _search(pixels: Any, near: Any, usable: Any, places: Any, field: Any, widest: int, seed: int) -> Any:
    """One round forth and one back: each patch looks where its neighbours found theirs, and at random around."""
    height, width = near.shape
    distance = np.full((height, width), np.float32(1e9))
    np.random.seed(seed)
    for y in range(height):
        for x in range(width):
            if near[y, x]:
                v, u = field[y, x]
                if v < 0 or v >= height or u >= width or not usable[v, u]:
                    v, u = places[np.random.randint(len(places))]
                    field[y, x, 0], field[y, x, 1] = v, u
                distance[y, x] = _apart(pixels, y, x, v, u, 1e9)
    for way in (1, -1):
        for i in range(height):
            y = i if way == 1 else height - 1 - i
            for j in range(width):
                x = j if way == 1 else width - 1 - j
                if not near[y, x]:
                    continue
                best, v, u = distance[y, x], field[y, x, 0], field[y, x, 1]
                for axis in range(2):
                    b, a = (y - way, x) if axis == 0 else (y, x - way)
                    if 0 <= b < height and 0 <= a < width and near[b, a]:
                        p, q = field[b, a, 0] + y - b, field[b, a, 1] + x - a
                        if 0 <= p < height and 0 <= q < width and usable[p, q]:
                            apart = _apart(pixels, y, x, p, q, best)
                            if apart < best:
                                best, v, u = apart, p, q
                reach = widest
                while reach >= 1:
                    p = v + np.random.randint(-reach, reach + 1)
                    q = u + np.random.randint(-reach, reach + 1)
                    if 0 <= p < height and 0 <= q < width and usable[p, q]:
                        apart = _apart(pixels, y, x, p, q, best)
                        if apart < best:
                            best, v, u = apart, p, q
                    reach //= 2
                distance[y, x], field[y, x, 0], field[y, x, 1] = best, v, u
    return distance


@compiled
def _vote(pixels: Any, near: Any, field: Any, distance: Any, width_share: float) -> Any:
    """What the patches over each pixel that is near the hole say, the good ones most, `[H, W, 3]`."""
    height, width = near.shape
    said = pixels[..., :3].copy()
    total, count = 0.0, 0
    for y in range(height):
        for x in range(width):
            if near[y, x]:
                total += distance[y, x]
                count += 1
    scale = max(width_share * total / max(count, 1), 1e-6)
    for y in range(height):
        for x in range(width):
            if not near[y, x]:
                continue
            red, green, blue, weights = 0.0, 0.0, 0.0, 0.0
            for dy in range(-3, 4):
                for dx in range(-3, 4):
                    b, a = y + dy, x + dx
                    if 0 <= b < height and 0 <= a < width and near[b, a]:
                        weight = np.exp(-distance[b, a] / scale) + 1e-9
                        v, u = field[b, a, 0] - dy, field[b, a, 1] - dx
                        red += weight * pixels[v, u, 0]
                        green += weight * pixels[v, u, 1]
                        blue += weight * pixels[v, u, 2]
                        weights += weight
            said[y, x, 0], said[y, x, 1], said[y, x, 2] = red / weights, green / weights, blue / weights
    return said
