"""Filming: sizes, cameras, streaming; with a scene in closed form instead of a model."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.config.defaults import VIDEO_SAMPLES
from vq3dcli.errors import UsageError
from vq3dcli.export.video import VideoFormat
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.film import Shot, check_shot, film, output_size, shot_camera, shot_of
from vq3dcli.pipelines.inputs import open_scene, parse_sources
from vq3dcli.pipelines.targets import Target
from vq3dcli.rendering.cameras import Camera, image_rays, pivot_camera, s_from_z_depth
from vq3dcli.rendering.scene import SceneView
from vq3dcli.rendering.space import Frustum
from vq3dcli.weights_file import load_weights


class Wall:
    """The plane z = 1 with a coloured ramp on it; counts how many frames it is asked for at once."""

    def __init__(self) -> None:
        self.largest_batch = 0

    def render(self, camera: Camera) -> SceneView:
        rays = image_rays(camera)
        z_depth = (1.0 - rays.origin[..., 2]) / rays.direction[..., 2]
        point = rays.origin + z_depth[..., None] * rays.direction
        size = (camera.cam_to_world.shape[0], camera.height_px, camera.width_px)
        rgb = (point.clamp(-1.0, 1.0) * 100.0 + 120.0).to(torch.uint8).reshape(*size, 3).permute(0, 3, 1, 2)
        self.largest_batch = max(self.largest_batch, size[0])
        s = s_from_z_depth(z_depth).reshape(size)
        return SceneView(rgb, s, torch.zeros_like(s))


@pytest.mark.parametrize(
    ("size_px", "aspect", "expected"),
    [
        (128, 1.0, (128, 128)),
        (63, 1.0, (63, 63)),
        (128, 4 / 3, (96, 128)),
        (128, 3 / 4, (128, 96)),
        (100, 1.5, (66, 100)),
        (256, 65500.0, (16, 256)),
    ],
)
def test_output_size(size_px: int, aspect: float, expected: tuple[int, int]) -> None:
    assert output_size(size_px, aspect) == expected


def test_a_squashed_picture_is_spanned_on_both_axes() -> None:
    camera = shot_camera(Shot("swing", frames=1, size_px=60), Frustum(aspect=2.0))
    assert (camera.height_px, camera.width_px) == (30, 60)
    half = math.tan(math.radians(20.0))
    torch.testing.assert_close(camera.intrinsics[0, 0, 0], torch.tensor(30.0 / half))
    torch.testing.assert_close(camera.intrinsics[0, 1, 1], torch.tensor(15.0 / half))


def test_the_field_of_view_zooms() -> None:
    near, far = (shot_camera(Shot("swing", frames=1, fov_deg=fov_deg), Frustum()) for fov_deg in (20.0, None))
    assert float(near.intrinsics[0, 0, 0]) > 2.0 * float(far.intrinsics[0, 0, 0])


@pytest.mark.parametrize("video_format", ["mp4", "frames"])
def test_video_and_disparity(tmp_path: Path, video_format: VideoFormat) -> None:
    target = Target(tmp_path / "a", tmp_path / "b", video_format)
    scene = Wall()
    seen: list[int] = []
    camera = shot_camera(Shot("dolly", frames=7, size_px=128), Frustum())
    film(lambda _: scene.render, camera, target, Shot(), on_frames=seen.append)
    assert sum(seen) == 7
    assert scene.largest_batch == 1
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    if video_format == "frames":
        with Image.open(tmp_path / "a" / "frame_00000.png") as image:
            assert np.array_equal(np.asarray(image), scene.render(camera).rgb[0].permute(1, 2, 0))
        with (
            Image.open(tmp_path / "b" / "frame_00000.png") as first,
            Image.open(tmp_path / "b" / "frame_00003.png") as near,
        ):
            # The same colours all along: the wall gets brighter as the camera comes near.
            assert np.asarray(near).mean() > np.asarray(first).mean() + 10


def test_disparity_beside_the_picture(tmp_path: Path) -> None:
    camera, wall = shot_camera(Shot(frames=2, amplitude_deg=0.0, size_px=32), Frustum()), Wall()
    film(lambda _: wall.render, camera, Target(tmp_path / "a", None, "frames", beside=True), Shot(), on_frames=str)
    film(lambda _: wall.render, camera, Target(tmp_path / "b", tmp_path / "c", "frames"), Shot(), on_frames=str)
    both, rgb, s = (np.asarray(Image.open(tmp_path / name / "frame_00001.png")) for name in "abc")
    assert np.array_equal(both, np.concatenate([rgb, s], 1))


def test_a_shape_is_cut_out_of_the_middle() -> None:
    """Each pixel of what is left has the ray that it had."""
    whole = shot_camera(Shot("swing", frames=3, size_px=120), Frustum(aspect=1.5))
    tall = shot_camera(shot_of("swing", frames=3, size_px=80, aspect="1:2"), Frustum(aspect=1.5))
    assert (tall.height_px, tall.width_px) == (80, 40)
    rays, cut = image_rays(whole).direction.reshape(3, 80, 120, 3), image_rays(tall).direction.reshape(3, 80, 40, 3)
    torch.testing.assert_close(cut, rays[:, :, 40:80])
    wide = shot_camera(shot_of("orbit", size_px=64, aspect="16:9"), Frustum())
    assert (wide.height_px, wide.width_px) == (36, 64)
    for aspect in ("9", "0:1", "1:0", "a:b", "100:1", "-1:2"):
        with pytest.raises(UsageError, match="no shape of a video"):
            shot_of("orbit", aspect=aspect)


def test_seconds_are_frames() -> None:
    assert shot_of("orbit", seconds=2.0, fps=30.0).length == 60
    assert shot_of("orbit").length == 60
    assert shot_of("orbit", seconds=0.01).length == 1
    with pytest.raises(UsageError, match="one of them"):
        shot_of("orbit", seconds=1.0, frames=24)
    for seconds in (0.0, math.nan, math.inf, -1.0):
        with pytest.raises(UsageError, match="seconds is"):
            shot_of("orbit", seconds=seconds)


def test_a_scene_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Wall):
        def render(self, camera: Camera) -> SceneView:
            if self.largest_batch:
                raise RuntimeError("out of memory")
            return super().render(camera)

    broken, camera = Broken(), shot_camera(Shot(frames=5, size_px=128), Frustum())
    target = Target(tmp_path / "a.mp4", tmp_path / "b.mp4", "mp4")
    with pytest.raises(RuntimeError, match="memory"):
        film(lambda _: broken.render, camera, target, Shot(), on_frames=lambda count: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "shot",
    [
        Shot(frames=0),
        Shot(fps=0.0),
        Shot(fps=math.nan),
        Shot(size_px=2049),
        Shot(size_px=1),
        Shot(fov_deg=0.0),
        Shot(fov_deg=179.0),
        Shot(amplitude_deg=-1.0),
        Shot(amplitude_deg=math.inf),
        Shot(samples=1),
    ],
)
def test_values_out_of_range(shot: Shot) -> None:
    with pytest.raises(UsageError):
        check_shot(shot, "mp4")


def test_gif_is_slower() -> None:
    check_shot(Shot(fps=60.0), "mp4")
    with pytest.raises(UsageError, match="gif"):
        check_shot(Shot(fps=60.0), "gif")


def test_a_video_s_samples_show_hardly_any_slices_of_the_embedded_model() -> None:
    weights = load_weights()
    (source,) = parse_sources(["toyscene:snowman"])
    scene = open_scene(source, weights, fit="crop").scene
    camera = pivot_camera(torch.tensor([math.radians(20.0)]), torch.zeros(1), height_px=64, width_px=64)
    views = [scene.render(camera, samples=samples).rgb for samples in (VIDEO_SAMPLES, 512)]
    assert psnr(*views) > 50.0  # 32 samples, whose slices show, are 37 dB from 192
