"""The z-buffer against rays and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from vq3dcli.meshscenes.builder import Builder
from vq3dcli.meshscenes.models import Texture, make_texture
from vq3dcli.meshscenes.raster import NOTHING, Textures, Triangles, Visible, visible
from vq3dcli.meshscenes.render import pose_at
from vq3dcli.meshscenes.shading import Light, ShadowMap, Sky, mean_of_blocks, shade

FOCAL = 40.0
HERE = pose_at(0.0, 0.0)  # at (0, 0, -3), looking along +z


def table(*textures: Texture) -> Textures:
    builder = Builder()
    for texture in textures:
        builder.texture(texture, mirrored=False)
    return builder.textures()


def triangles(corners: np.ndarray, uv: np.ndarray | None = None, texture: int = NOTHING) -> Triangles:
    count = len(corners)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return Triangles(
        corners.astype(np.float32),
        np.repeat(normal[:, None], 3, 1).astype(np.float32),
        (np.zeros((count, 3, 2)) if uv is None else uv).astype(np.float32),
        np.full((count, 3, 3), 255, np.uint8),
        np.full(count, texture, np.int32),
        np.zeros(count, np.int32),
    )


def quad(z_depth: float, half: float) -> np.ndarray:
    """Two triangles that face the camera, at a z_depth."""
    a, b, c, d = ([x, y, z_depth - 3.0] for x, y in ((-half, -half), (half, -half), (half, half), (-half, half)))
    return np.array([[a, b, c], [a, c, d]])


QUAD_UV = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]], np.float32)


def plain_light(seen: Triangles, textures: Textures, view: Visible, size: int) -> np.ndarray:
    """Colours in white light from everywhere."""
    none, white = np.zeros(3), np.ones(3)
    light = Light(np.array([0.0, -1.0, 0.0]), none, white / 0.8, 1.0, 1.0, np.inf)
    shadows = ShadowMap(np.zeros((4, 4)), np.eye(4), 1.0, 0.0)
    sky = Sky(none, none, np.array([0.0, -1.0, 0.0]), NOTHING, 1.0, np.zeros(2), 1.0)
    return shade(seen, textures, view, HERE, FOCAL, light, shadows, sky)


def test_a_lamp_is_half_as_bright_at_its_distance():
    wall = triangles(quad(5.0, 4.0))
    view = visible(wall, table(), HERE, FOCAL, 40, 40)
    none, white, up = np.zeros(3), np.ones(3), np.array([0.0, -1.0, 0.0])
    shadows = ShadowMap(np.zeros((4, 4)), np.eye(4), 1.0, 0.0)
    sky = Sky(none, none, up, NOTHING, 1.0, np.zeros(2), 1.0)
    even = Light(up, none, white, 1.0, 1.0, np.inf)
    lamp = even._replace(lamp=np.array([0.0, 0.0, 1.5]), lamp_m=0.5)
    rgb = [shade(wall, table(), view, HERE, FOCAL, each, shadows, sky) for each in (even, lamp)]
    place = ((np.arange(40) + 0.5) - 20.0) / FOCAL * 5.0
    away = place[:, None] ** 2 + place**2 + 0.5**2  # the wall is at z = 2 in the world
    np.testing.assert_allclose(rgb[1], rgb[0] / (1.0 + away / 0.25)[..., None], rtol=1e-5)
    assert rgb[1].max() == pytest.approx(0.5 * rgb[0].max(), rel=0.05)


def picture(texture: Texture) -> Textures:
    return table(texture)


def test_a_square_in_front_is_as_large_and_as_far_as_it_is():
    found = visible(triangles(quad(5.0, 0.5)), table(), HERE, FOCAL, 20, 20)
    # Half a metre at 5 m is 4 pixels at a focal length of 40.
    expected = np.zeros((20, 20))
    expected[6:14, 6:14] = 1.0 / 5.0
    np.testing.assert_allclose(found.inverse_z, expected, atol=1e-7)
    assert set(np.unique(found.triangle[6:14, 6:14])) == {0, 1}


def test_random_triangles_agree_with_rays_that_are_cut_with_each():
    random = np.random.default_rng(0)
    corners = random.normal(size=(40, 3, 3)) * 2.0
    corners[:4] *= 20.0  # these reach behind the camera
    pose = pose_at(17.0, -8.0)
    found = visible(triangles(corners), table(), pose, FOCAL, 33, 21)
    corners = corners.astype(np.float32).astype(np.float64)
    y, x = np.mgrid[0:33, 0:21] + 0.5
    rays = np.stack([(x - 10.5) / FOCAL, (y - 16.5) / FOCAL, np.ones_like(x)], -1) @ pose[:3, :3].T
    nearest = np.zeros((33, 21))
    for a, b, c in corners:
        # origin + z ray = a + v (b - a) + w (c - a), solved by Cramer's rule.
        first, second, gap = b - a, c - a, pose[:3, 3] - a
        across = np.cross(rays, second)
        determinant = across @ first
        v = across @ gap / determinant
        w = rays @ np.cross(gap, first) / determinant
        z = second @ np.cross(gap, first) / determinant
        inside = (v >= 0) & (w >= 0) & (v + w <= 1) & (z > 0)
        nearest = np.maximum(nearest, np.where(inside, 1.0 / z, 0.0))
    assert (nearest > 0).mean() > 0.3
    np.testing.assert_allclose(found.inverse_z, nearest, rtol=1e-6, atol=1e-9)


def test_triangles_that_share_an_edge_leave_no_gap():
    random = np.random.default_rng(1)
    inner = np.array([0.013, 0.027, 0.0]) + 0.0 * random.normal(size=3)
    ring = [np.array([np.cos(t), np.sin(t), 0.3 * np.sin(5 * t)]) * 3.0 for t in np.linspace(0, 2 * np.pi, 23)]
    fan = np.array([[inner, ring[i], ring[i + 1]] for i in range(22)])
    assert (visible(triangles(fan), table(), HERE, 60.0, 64, 64).triangle >= 0).all()


def test_a_texture_is_seen_upright_and_in_perspective():
    random = np.random.default_rng(2)
    rgba = np.concatenate([random.integers(0, 255, (4, 4, 3)), np.full((4, 4, 1), 255)], -1).astype(np.uint8)
    corners, textures = quad(2.0, 1.0), picture(make_texture(rgba))
    view = visible(triangles(corners, QUAD_UV, 0), textures, HERE, FOCAL, 40, 40)
    rgb = plain_light(triangles(corners, QUAD_UV, 0), textures, view, 40)
    np.testing.assert_allclose(rgb[5::10, 5::10] * 255.0, rgba[..., :3], atol=60.0)
    # At the texels' centres bilinear weights are 1; pixel 4.5 of 10 is 0.05 texels away.
    np.testing.assert_allclose(rgb[4:36:10, 4:36:10] * 255.0, rgba[..., :3], atol=0.1 * 255.0)
    # A floor: the row of pixel y meets it at z = h f / y, and u, v are linear in the world, not in the picture.
    floor = np.array([[[-9, 1, 0], [9, 1, 0], [9, 1, 18]], [[-9, 1, 0], [9, 1, 18], [-9, 1, 18]]], float) - [0, 0, 3]
    stripes = np.zeros((64, 1, 4), np.uint8)
    stripes[..., 3], stripes[:, 0, 0] = 255, np.arange(64) * 4
    textures = picture(Texture(stripes.reshape(-1, 4), [(1, 64)], 0))
    view = visible(triangles(floor, QUAD_UV, 0), textures, HERE, FOCAL, 40, 40)
    rgb = plain_light(triangles(floor, QUAD_UV, 0), textures, view, 40)
    rows = np.arange(24, 40)
    z = FOCAL / (rows + 0.5 - 20.0)
    # What looks up gets all of the light from everywhere, what looks aside 0.8 of it.
    np.testing.assert_allclose(rgb[24:, 20, 0] * 0.8 * 255.0, (z / 18.0 * 64.0 - 0.5) * 4.0, atol=0.05)


def test_what_is_cut_out_lets_rays_pass():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :, 0], rgba[:, 4:, 3] = 200, 255
    textures = picture(make_texture(rgba, cutoff=128))
    both = np.concatenate([quad(2.0, 1.0), quad(4.0, 2.0)])
    seen = triangles(both, np.concatenate([QUAD_UV, QUAD_UV]), 0)
    seen = seen._replace(texture=np.array([0, 0, NOTHING, NOTHING], np.int32))
    found = visible(seen, textures, HERE, FOCAL, 40, 40)
    np.testing.assert_allclose(found.inverse_z[:, 1:19], 0.25, atol=1e-7)
    np.testing.assert_allclose(found.inverse_z[:, 21:39], 0.5, atol=1e-7)


def test_smaller_sizes_are_means_and_what_is_cut_out_does_not_colour_them():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[1, 1] = (240, 100, 20, 255), (200, 60, 20, 255)
    rgba[0, 1, :3] = 255  # not there
    texture = make_texture(rgba)
    assert texture.sizes == [(2, 2), (1, 1)]
    assert texture.texels[-1].tolist() == [220, 80, 20, 128]
    assert make_texture(np.full((5, 3, 4), 9, np.uint8)).sizes == [(3, 5), (2, 3), (1, 2), (1, 1)]
    assert make_texture(np.full((600, 20, 4), 9, np.uint8), largest_px=256).sizes[0] == (5, 150)


def test_far_textures_are_their_mean():
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[::2, ::2, :3] = rgba[1::2, 1::2, :3] = 0
    textures = picture(make_texture(rgba))
    seen = triangles(quad(100.0, 10.0), QUAD_UV, 0)
    view = visible(seen, textures, HERE, FOCAL, 12, 12)
    rgb = plain_light(seen, textures, view, 12)
    np.testing.assert_allclose(rgb[3:9, 3:9], 0.5, atol=0.01)


def test_blocks_are_averaged():
    rgb = np.arange(48, dtype=np.float32).reshape(4, 4, 3) / 48.0
    np.testing.assert_allclose(mean_of_blocks(rgb, 2, 1.0), rgb.reshape(2, 2, 2, 2, 3).mean((1, 3)), rtol=1e-6)
    assert mean_of_blocks(rgb, 2, 10.0).max() == 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_triangles_beside_and_behind_the_camera_are_no_harm(axis: int):
    corners = np.zeros((2, 3, 3))
    corners[0, :, axis] = [-4.0, -5.0, -6.0]  # without area
    corners[1] = [[-3.0, 0.5, -3.0], [3.0, 0.5, -3.0], [0.0, 0.5, 9.0]]  # two corners in the camera's plane
    found = visible(triangles(corners), table(), HERE, FOCAL, 16, 16)
    assert np.isfinite(found.inverse_z).all()
    np.testing.assert_allclose(found.inverse_z[15, 8], 7.5 / FOCAL / 0.5, rtol=1e-6)
