"""Maps and multiplane images, read back by ffmpeg, NumPy and Pillow."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.errors import OutputError
from vq3dcli.export.ffmpeg import find_ffmpeg
from vq3dcli.export.layers import Frustum, bake_layers, choose_edges, flat_layers
from vq3dcli.export.maps import picture_archive, write_disparity_png, write_pfm, write_views
from vq3dcli.export.mpi import write_mpi
from vq3dcli.rendering.cameras import project, z_depth_from_s


def decoded(path: Path, pixel_format: str, kind: str) -> np.ndarray:
    """A picture of 20 x 30 pixels as ffmpeg reads it."""
    command = [find_ffmpeg(), "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", pixel_format, "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    return np.frombuffer(raw, kind).reshape(20, 30)


def test_png_and_pfm(tmp_path: Path) -> None:
    s = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    write_disparity_png(tmp_path / "a.png", s)
    assert np.abs(decoded(tmp_path / "a.png", "gray16le", "<u2") / 65535.0 - s.numpy()).max() < 1e-5
    z_depth = z_depth_from_s(s)
    write_pfm(tmp_path / "a.pfm", z_depth)
    assert np.array_equal(decoded(tmp_path / "a.pfm", "grayf32le", "<f4"), z_depth.numpy())


def test_npz_has_what_a_camera_needs(ball, look, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    frustum = Frustum()
    camera = look(frustum, 24, 24, [(0.0, 0.0), (0.2, 0.0)])
    view = ball.render(camera, samples=128)
    write_views(tmp_path / "a.npz", view, camera, frustum.depth_range)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert np.array_equal(arrays["rgb"], view.rgb.permute(0, 2, 3, 1).numpy())
    # A pixel of the first view, carried into the world and into the second view by its arrays alone.
    row, column = 12, 12
    matrix, pose = arrays["intrinsics"], arrays["cam_to_world"]
    ray = np.linalg.inv(matrix[0]) @ [column + 0.5, row + 0.5, 1.0]
    point = pose[0, :3, :3] @ (ray * arrays["z_depth"][0, row, column]) + pose[0, :3, 3]
    pixels, z_depth = project(camera, torch.from_numpy(point).float().expand(2, 1, 3))
    local = np.linalg.inv(pose[1]) @ [*point, 1.0]
    assert local[2] == pytest.approx(float(z_depth[1, 0]), abs=1e-4)
    assert (matrix[1] @ (local[:3] / local[2]))[:2] == pytest.approx(pixels[1, 0].numpy(), abs=1e-3)
    x, y = (int(value) for value in pixels[1, 0])
    assert arrays["z_depth"][1, y, x] == pytest.approx(local[2], rel=0.05)  # a pixel of the ball is that deep


def draw_mpi(folder: Path, yaw_rad: float) -> np.ndarray:
    """An MPI from the side, by the homography of each plane (Hartley and Zisserman, eq. 13.2), nearest texels."""
    index = json.loads((folder / "mpi.json").read_text())
    width, height = index["width_px"], index["height_px"]
    focal = 0.5 * width / math.tan(math.radians(index["fov_x_deg"]) / 2)
    focal_y = 0.5 * height / math.tan(math.radians(index["fov_y_deg"]) / 2)
    matrix = np.array([[focal, 0, width / 2], [0, focal_y, height / 2], [0, 0, 1]])
    c, s = math.cos(yaw_rad), math.sin(yaw_rad)
    rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])  # canonical camera to the new one
    centre = np.array([index["radius"] * s, 0.0, index["radius"] * (1 - c)])
    shift = -rotation @ centre
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], 0).reshape(3, -1)
    picture = np.zeros((height * width, 3))
    for entry in reversed(index["layers"]):
        layer = np.array(Image.open(folder / entry["file"])) / 255.0
        assert layer.shape == (height, width, 4)
        plane = matrix @ (rotation + np.outer(shift, [0.0, 0.0, 1.0]) / entry["z_depth"]) @ np.linalg.inv(matrix)
        back = np.linalg.inv(plane) @ pixels
        u, v = np.floor(back[:2] / back[2]).astype(int)
        texel = layer[v.clip(0, height - 1), u.clip(0, width - 1)]
        picture = texel[:, 3:] * texel[:, :3] + (1 - texel[:, 3:]) * picture
    return picture.reshape(height, width, 3)


def test_an_mpi_drawn_by_others_is_the_rendering(ball, field, look, psnr, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    frustum = Frustum()
    layers = bake_layers(field, frustum, choose_edges(field, frustum, 32), (64, 64))
    written = write_mpi(tmp_path / "mpi", flat_layers(layers))
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "mpi").iterdir())
    angles = [0.0, 0.1, -0.1, 0.2]
    view = ball.render(look(frustum, 64, 64, [(yaw, 0.0) for yaw in angles]), samples=128)
    for number, yaw in enumerate(angles):
        drawn = torch.from_numpy(draw_mpi(tmp_path / "mpi", yaw)).permute(2, 0, 1)
        assert psnr(drawn[:, :, 9:-9], view.rgb[number, :, :, 9:-9] / 255.0) > 28.0, yaw


def test_the_pixels_of_an_mpi_are_square(field, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Whatever the photo's shape: focal lengths in pixels are the same across and down."""
    for width, height in ((24, 12), (12, 24)):
        frustum = Frustum(aspect=width / height)
        layers = bake_layers(field, frustum, choose_edges(field, frustum, 4), (height, width))
        for margins in ((1.0, 1.0), (1.5, 1.25)):
            write_mpi(tmp_path / "mpi", flat_layers(replace(layers, margins=margins)))
            index = json.loads((tmp_path / "mpi/mpi.json").read_text())
            across, down, view_across, view_down = (
                math.tan(math.radians(index[f"{name}_deg"]) / 2)
                for name in ("fov_x", "fov_y", "view_fov_x", "view_fov_y")
            )
            assert view_across == pytest.approx(math.tan(frustum.fov_rad / 2))
            assert width / view_across == pytest.approx(height / view_down)
            assert (across / view_across, down / view_down) == pytest.approx(margins)


def test_a_file_of_pictures_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with picture_archive(tmp_path / "parts.npz", 5, 8) as add:
        for position, picture in enumerate(pictures):
            add(picture, 7 * position)
            assert not (tmp_path / "parts.npz").exists()
    np.savez(tmp_path / "whole.npz", pictures.permute(0, 2, 3, 1).contiguous().numpy(), 7 * np.arange(5))
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_an_interruption_leaves_no_file_of_pictures(tmp_path: Path) -> None:
    def interrupted() -> None:
        with picture_archive(tmp_path / "parts.npz", 5, 8) as add:
            add(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_for_pictures_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot create output"), picture_archive(tmp_path / "no" / "x.npz", 1, 8):
        pass
