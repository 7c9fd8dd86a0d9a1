"""Toy scenes with exact images and disparities: what geometry is measured against.

Legend: B scenes of a batch, V evaluation views, H height_px, W width_px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.metrics.warp import evaluation_cameras
from vq3dcli.rendering.cameras import Camera, canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes

TEMPLATE_SCENES = 500
SCENES_PER_BATCH = 16
_TEMPLATE_BATCH = 125


@dataclass(frozen=True)
class ExactScenes:
    """B evaluation scenes, seen from the canonical camera and from the V cameras of `EVALUATION_VIEWS_DEG`.

    Images uint8, `rgb` `[B, 3, H, W]` and `novel_rgb` `[B, V, 3, H, W]`, and normalised disparities float32.
    """

    rgb: Tensor
    s: Tensor
    camera: Camera
    novel_rgb: Tensor
    novel_s: Tensor
    novel_cameras: list[Camera]


def exact_batches(count: int, *, seed: int, size_px: int) -> Iterator[ExactScenes]:
    """Evaluation scenes 0 to `count` - 1 of `seed` in batches, `size_px` x `size_px`, never scenes of training."""
    for start in range(0, count, SCENES_PER_BATCH):
        index = torch.arange(start, min(start + SCENES_PER_BATCH, count))
        scenes = sample_scenes(index, seed=seed, purpose="eval")
        camera = canonical_camera(len(index), height_px=size_px, width_px=size_px)
        novel_cameras = evaluation_cameras(len(index), height_px=size_px, width_px=size_px)
        # All views in one call: the tracer is fastest on many rays at once.
        cameras = [camera, *novel_cameras]
        views = render_scenes(scenes.select(torch.arange(len(index)).repeat(len(cameras))), _joined(cameras))
        rgb = views.rgb.reshape(len(cameras), len(index), 3, size_px, size_px).transpose(0, 1)
        s = views.s.reshape(len(cameras), len(index), size_px, size_px).transpose(0, 1)
        yield ExactScenes(rgb[:, 0], s[:, 0], camera, rgb[:, 1:], s[:, 1:], novel_cameras)


def _joined(cameras: list[Camera]) -> Camera:
    """One batch of cameras from several of the same image size."""
    return Camera(
        torch.cat([camera.cam_to_world for camera in cameras]),
        torch.cat([camera.intrinsics for camera in cameras]),
        cameras[0].height_px,
        cameras[0].width_px,
    )


@dataclass(frozen=True)
class Template:
    """What a model can know that never looks at its input: means over training scenes from the canonical camera.

    Toy scenes resemble each other (ground below, background above), so that their mean disparity already ranks pixels
    well. A figure says something only as far as it is better than the template's.

    `rgb` is the mean image `[3, H, W]` in [0, 1], `s` the mean normalised disparity `[H, W]`, both float32.
    """

    rgb: Tensor
    s: Tensor


def toy_template(size_px: int, *, scenes: int = TEMPLATE_SCENES, seed: int = 0) -> Template:
    """Average the first `scenes` training scenes of `seed` at `size_px` x `size_px`."""
    rgb_sum = torch.zeros(3, size_px, size_px, dtype=torch.float64)
    s_sum = torch.zeros(size_px, size_px, dtype=torch.float64)
    for start in range(0, scenes, _TEMPLATE_BATCH):
        index = torch.arange(start, min(start + _TEMPLATE_BATCH, scenes))
        camera = canonical_camera(len(index), height_px=size_px, width_px=size_px)
        # A mean over many scenes is smooth by itself: supersampling would only cost time.
        views = render_scenes(sample_scenes(index, seed=seed, purpose="train"), camera, supersample=1)
        rgb_sum += views.rgb.double().sum(0) / 255.0
        s_sum += views.s.double().sum(0)
    return Template((rgb_sum / scenes).float(), (s_sum / scenes).float())
