"""PLY files of points and splats, read back by trimesh and by a splat renderer of a few lines."""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from vq3dcli.errors import DataError
from vq3dcli.export.points import gaussians, quaternions, surface_points, write_points, write_splats, write_spz
from vq3dcli.rendering.cameras import project, s_from_z_depth
from vq3dcli.rendering.space import Frustum


@pytest.fixture(scope="module")
def frustum() -> Frustum:
    return Frustum()


def test_points_lie_where_the_rendering_sees_them(ball, frustum, look, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    surface = surface_points(partial(ball.render, samples=128), frustum, (48, 48), beside_rad=0.0)
    write_points(tmp_path / "a.ply", surface)
    cloud = trimesh.load(tmp_path / "a.ply")
    points = torch.from_numpy(np.asarray(cloud.vertices)).float()
    assert torch.allclose(points, surface.points)
    view = ball.render(frustum.camera(48, 48), samples=128)
    pixels, z_depth = project(frustum.camera(48, 48), points[None])
    column, row = pixels[0].floor().long().unbind(-1)
    assert torch.allclose(pixels[0] % 1.0, torch.tensor(0.5), atol=1e-3)
    assert torch.equal(torch.from_numpy(np.asarray(cloud.colors))[:, :3], view.rgb[0, :, row, column].T)
    # But for the pixels between two surfaces, which go to one of them.
    own = s_from_z_depth(z_depth[0])
    assert torch.isclose(own, view.s[0, row, column], rtol=0.0, atol=1e-5).float().mean() > 0.85
    assert len(points) == 48 * 48


def test_cameras_beside_find_what_is_hidden(ball, frustum, look) -> None:  # type: ignore[no-untyped-def]
    surface = surface_points(partial(ball.render, samples=128), frustum, (48, 48))
    hidden = surface.points[surface.view > 0]
    assert len(hidden) > 20
    # What the ball hides is the wall behind it.
    assert ((hidden[:, 2] > 1.2) | (hidden.norm(dim=-1) < 0.75)).float().mean() > 0.9
    assert (hidden[:, :2].norm(dim=-1) < 1.1).float().mean() > 0.9
    near = surface_points(partial(ball.render, samples=128), frustum, (48, 48), max_z_depth=3.5)
    assert (near.points[:, 2] < 0.51).all()
    with pytest.raises(DataError, match="near enough"):
        surface_points(partial(ball.render, samples=32), frustum, (16, 16), max_z_depth=1.0)


def test_axes_and_the_photo_s_shape(ball, look) -> None:  # type: ignore[no-untyped-def]
    seen, options = partial(ball.render, samples=64), {"beside_rad": 0.0}
    opencv = surface_points(seen, Frustum(aspect=2.0), (16, 32), **options)
    opengl = surface_points(seen, Frustum(aspect=2.0), (16, 32), axes="opengl", **options)
    assert torch.allclose(opengl.points, opencv.points * torch.tensor([1.0, -1.0, -1.0]))
    z_depth = opencv.points[:, 2] + 3.0
    limit = math.tan(math.radians(20.0))
    assert (opencv.points[:, 0] / z_depth).max() == pytest.approx(limit * 31 / 32, abs=1e-3)
    assert (opencv.points[:, 1] / z_depth).max() == pytest.approx(limit / 2 * 15 / 16, abs=1e-3)


def draw_splats(path: Path, camera, number: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """EWA splatting (Zwicker et al., 2001) of a file as any viewer would do it, `[3, H, W]`; brute force."""
    raw = trimesh.load(path).metadata["_ply_raw"]["vertex"]["data"]
    columns = {name: torch.from_numpy(np.asarray(raw[name]).astype(np.float64)).flatten() for name in raw.dtype.names}
    numbered = [f"{name}_{i}" for name, count in (("scale", 3), ("rot", 4)) for i in range(count)]
    assert list(columns) == ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), "opacity", *numbered]
    stack = lambda *names: torch.stack([columns[name] for name in names], -1)  # noqa: E731
    colour = 0.5 + stack("f_dc_0", "f_dc_1", "f_dc_2") * 0.28209479177387814
    opacity = torch.sigmoid(columns["opacity"])
    w, x, y, z = stack("rot_0", "rot_1", "rot_2", "rot_3").unbind(-1)
    rotation = torch.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
         2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
         2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1
    ).reshape(-1, 3, 3)  # fmt: skip
    axes = rotation * stack("scale_0", "scale_1", "scale_2").exp()[:, None]
    pose = camera.cam_to_world[number].double()
    local = (stack("x", "y", "z") - pose[:3, 3]) @ pose[:3, :3]
    focal, middle = float(camera.intrinsics[number, 0, 0]), 0.5 * camera.width_px
    depth = local[:, 2]
    jacobian = torch.zeros(len(depth), 2, 3, dtype=torch.float64)
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = focal / depth
    jacobian[:, :, 2] = -focal * local[:, :2] / depth[:, None] ** 2
    half = jacobian @ pose[:3, :3].T @ axes
    inverse = torch.linalg.inv(half @ half.transpose(1, 2) + 1e-4 * torch.eye(2, dtype=torch.float64))
    centre = focal * local[:, :2] / depth[:, None] + middle
    order = depth.argsort()
    grid = torch.stack(torch.meshgrid(*[torch.arange(camera.width_px) + 0.5] * 2, indexing="xy"), -1).reshape(-1, 2)
    picture, passing = torch.zeros(len(grid), 3, dtype=torch.float64), torch.ones(len(grid), dtype=torch.float64)
    for part in order.split(256):
        offset = grid[:, None] - centre[part]
        across, down = offset.unbind(-1)
        a, b, c = inverse[part, 0, 0], inverse[part, 0, 1], inverse[part, 1, 1]
        falloff = torch.exp(-0.5 * (a * across**2 + 2 * b * across * down + c * down**2))
        alpha = opacity[part] * falloff
        before = torch.cumprod(torch.cat([passing[:, None], 1 - alpha], 1), 1)
        picture += (before[:, :-1] * alpha) @ colour[part]
        passing = before[:, -1]
    return picture.T.reshape(3, camera.width_px, camera.width_px).float()


def test_splats_drawn_by_others_are_the_rendering(ball, frustum, look, psnr, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    surface = surface_points(partial(ball.render, samples=128), frustum, (48, 48), outside=True)
    write_splats(tmp_path / "a.ply", surface)
    camera = look(frustum, 48, 48, [(0.0, 0.0), (0.1, 0.0), (0.0, -0.15)])
    view = ball.render(camera, samples=128)
    for number, least in enumerate((27.0, 24.0, 23.0)):
        inner = (slice(None), slice(6, -6), slice(6, -6))
        drawn = draw_splats(tmp_path / "a.ply", camera, number)
        assert psnr(drawn[inner], view.rgb[number][inner] / 255.0) > least, number


def test_compressed_splats_are_the_splats(ball, frustum, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    seen = partial(ball.render, samples=64)
    surface = surface_points(seen, frustum, (24, 24), outside=True, axes="opengl")
    write_splats(tmp_path / "a.ply", surface)
    write_spz(tmp_path / "a.spz", surface)
    assert (tmp_path / "a.spz").stat().st_size < (tmp_path / "a.ply").stat().st_size / 4
    data, count = gzip.decompress((tmp_path / "a.spz").read_bytes()), len(surface.points)
    magic, version, found, degree, bits, flags, reserved = struct.unpack_from("<4sIIBBBB", data)
    assert (magic, version, found, degree, flags, reserved) == (b"NGSP", 2, count, 0, 0, 0)
    assert len(data) == 16 + 19 * count
    table = np.frombuffer(data, np.uint8, offset=16)
    position, alpha, colour, scale, turn = (
        part.reshape(count, -1).astype(np.int32) for part in np.split(table, np.cumsum([9, 1, 3, 3]) * count)
    )
    whole = position.reshape(count, 3, 3) @ np.array([1, 1 << 8, 1 << 16])
    points = (whole - (whole >> 23 << 24)) / 2.0**bits
    assert np.abs(points - surface.points.numpy()).max() < 1e-4
    assert np.allclose(alpha / 255.0, 0.98, atol=0.01)
    rgb = 0.5 + 0.28209479177387814 * (colour / 255.0 - 0.5) / 0.15
    assert np.abs(rgb - surface.rgb.numpy() / 255.0).max() < 0.005
    deviations, quaternions = gaussians(surface)
    assert np.abs(scale / 16.0 - 10.0 - deviations.log().numpy()).max() < 0.04
    xyz = turn / 127.5 - 1.0
    w = np.sqrt(np.clip(1.0 - (xyz**2).sum(1, keepdims=True), 0.0, 1.0))
    assert np.abs((np.concatenate([w, xyz], 1) * quaternions.numpy()).sum(1)).min() > 0.99


def test_quaternions_turn_as_their_matrices() -> None:
    axes, _ = torch.linalg.qr(torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    axes[torch.linalg.det(axes) < 0, :, 0] *= -1.0
    half_turns = torch.diag_embed(
        torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], dtype=torch.float64)
    )
    rotation = torch.cat([axes, half_turns])
    q = quaternions(rotation)
    assert torch.allclose(q.norm(dim=-1), torch.ones(len(q), dtype=torch.float64))
    for matrix, quaternion in zip(rotation, q, strict=True):
        expected = trimesh.transformations.quaternion_matrix(quaternion.numpy())[:3, :3]
        assert np.allclose(matrix.numpy(), expected, atol=1e-9)
