"""Exact pictures of a scene from other cameras, beside its sample in a shard.

A sample of a folder whose manifest says `views: V` has V of them: `{key}.view0.png`, `{key}.view0.disparity.npy`
(levels of s, as in `{key}.disparity.npy`), ..., and their cameras in the list `views` of `{key}.json`. The cameras have
the canonical camera's intrinsics, and lie around the pivot at its distance, within +-YAW_DEG and +-PITCH_DEG.

Legend: n scenes, V views a scene, B samples of a batch, M views of a batch, S side in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vq3dcli.data.images import decode_image, resize
from vq3dcli.data.shard_format import INFO_EXTENSION, ViewInfo, parse_record, view_extensions
from vq3dcli.data.shard_index import PREPARE_AGAIN
from vq3dcli.data.shard_reader import ShardFolder, decode_levels, disparity_of, resize_label
from vq3dcli.errors import DataError
from vq3dcli.rendering.cameras import pivot_pose
from vq3dcli.seeding import uniform

YAW_DEG, PITCH_DEG = 20.0, 10.0


class View(NamedTuple):
    """One picture of a scene."""

    image: Tensor  # uint8 `[3, S, S]`
    s: Tensor  # normalised disparity in its own camera, float32 `[S, S]`, in [0, 1]
    cam_to_world: Tensor  # float32 `[4, 4]`


@dataclass(frozen=True)
class Views:
    """The views of a batch, those of its first sample first; samples may have none."""

    image: Tensor  # uint8 `[M, 3, S, S]`
    s: Tensor  # exact normalised disparity in the views' own cameras, float32 `[M, S, S]`, in [0, 1]
    cam_to_world: Tensor  # float32 `[M, 4, 4]`; intrinsics are those of the main picture
    row: Tensor  # which sample of the batch a view belongs to, int64 `[M]`, from 0 to B - 1

    def of_rows(self, start: int, stop: int) -> Views:
        """Those of the samples from `start` to before `stop`, whose rows count from there."""
        here = (self.row >= start) & (self.row < stop)
        return Views(self.image[here], self.s[here], self.cam_to_world[here], self.row[here] - start)

    def to(self, device: torch.device) -> Views:
        """The same on another device."""
        tensors = (self.image, self.s, self.cam_to_world, self.row)
        return Views(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def novel_poses(seed: int, name: str, index: Tensor, count: int) -> Tensor:
    """`cam_to_world` float32 `[n, V, 4, 4]` of V views of scenes number `index`, int64 `[n]`.

    A pure function of (seed, name, index).
    """
    draws = uniform(seed, f"{name}/views", index, 2 * count).double().reshape(-1, 2)
    yaw, pitch = ((2.0 * draws[:, i] - 1.0) * math.radians(most) for i, most in ((0, YAW_DEG), (1, PITCH_DEG)))
    # In double precision, so that the last bits of a vectorised cosine are rounded away.
    return pivot_pose(yaw, pitch).float().reshape(len(index), count, 4, 4)


def read_views(folder: ShardFolder, i: int, numbers: Sequence[int], side: int) -> list[View]:
    """Views of sample `i`, resized to `side`. Raises `DataError`: they are damaged, or not there."""
    name = folder.name(i)
    extensions = [view_extensions(number) for number in numbers]
    members = folder.read(i, {INFO_EXTENSION, *(extension for pair in extensions for extension in pair)})
    views = []
    try:
        infos = json.loads(members[INFO_EXTENSION])["views"]
        for number, (picture, disparity) in zip(numbers, extensions, strict=True):
            info = parse_record(json.dumps(infos[number]).encode(), ViewInfo, name=name, remedy=PREPARE_AGAIN)
            image = decode_image(members[picture], name=name, apply_orientation=False)
            s = disparity_of(decode_levels(members[disparity], name=name), 0.0, 1.0)
            if image.shape[1:] != s.shape or image.shape[1] != image.shape[2]:
                raise DataError(f"a view that is not square, or not its disparity's ({name})", remedy=PREPARE_AGAIN)
            pose = torch.tensor(info.cam_to_world)
            views.append(View(resize(image, side, side), resize_label(s, side), pose))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"views are missing ({name})", remedy=PREPARE_AGAIN) from error
    return views


def mirrored(view: View) -> View:
    """The same view of the scene's mirror image, x to -x, which the canonical camera sees as the mirrored picture."""
    signs = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    pose = signs[:, None] * view.cam_to_world * signs
    return View(view.image.flip(-1), view.s.flip(-1), pose)


def gather_views(rows: Iterable[Sequence[View]], side: int) -> Views:
    """The views of a batch from those of each of its samples; `side` is S."""
    own = [(row, view) for row, views in enumerate(rows) for view in views]
    if not own:
        empty = torch.empty(0, dtype=torch.int64)
        return Views(torch.empty(0, 3, side, side).byte(), torch.empty(0, side, side), torch.empty(0, 4, 4), empty)
    image, s, cam_to_world = map(torch.stack, zip(*(view for _, view in own), strict=True))
    return Views(image, s, cam_to_world, torch.tensor([row for row, _ in own]))
