"""Meshes of every format, met by rays where geometry says, with their own colours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.data.meshes import is_mesh, read_mesh
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.rendering.cameras import Rays

trimesh = pytest.importorskip("trimesh", reason="meshes need the extra vq3d[mesh]")
LIGHT = (0.0, 0.0, -1.0)


def box(colour: tuple[int, int, int] = (200, 40, 30)) -> Any:
    """Twice as wide as deep, four times as high as deep, with y up."""
    mesh = trimesh.creation.box((2.0, 4.0, 1.0))
    mesh.visual.face_colors = [*colour, 255]
    return mesh


def along_z(*points: tuple[float, float]) -> Rays:
    """Rays from z = -3 straight away from the camera, through (x, y)."""
    origin = torch.tensor([[[x, y, -3.0] for x, y in points]])
    return Rays(origin, torch.tensor([0.0, 0.0, 1.0]).expand_as(origin))


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj", "stl"])
def test_every_format_stands_on_its_foot_at_size_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"box.{suffix}"
    box().apply_translation((7.0, -3.0, 5.0)).export(path)
    mesh = read_mesh(path)
    np.testing.assert_allclose([mesh.lower, mesh.upper], [[-0.25, -1.0, -0.125], [0.25, 0.0, 0.125]], atol=1e-6)
    z_depth, rgb = mesh.surface(LIGHT)(along_z((0.0, -0.5), (0.2, -0.9), (0.3, -0.5), (0.0, 0.1)))
    torch.testing.assert_close(z_depth, torch.tensor([2.875, 2.875, math.inf, math.inf]))
    if suffix in ("glb", "ply"):
        colour = torch.tensor([200.0, 40.0, 30.0]) / 255.0
        # glTF's colours are linear light, what we show is sRGB.
        colour = 1.055 * colour ** (1 / 2.4) - 0.055 if suffix == "glb" else colour
        torch.testing.assert_close(rgb[0], colour, atol=0.01, rtol=0)


def test_the_front_of_a_file_faces_the_camera(tmp_path: Path) -> None:
    """glTF's front looks along +z; with z up it looks along -y."""
    mesh = box()
    front = mesh.face_normals @ [0.0, 0.0, 1.0] > 0.5
    mesh.visual.face_colors[front] = [0, 0, 255, 255]
    mesh.export(tmp_path / "y.ply")
    turned = mesh.copy().apply_transform(trimesh.transformations.rotation_matrix(math.pi / 2, [1, 0, 0]))
    turned.export(tmp_path / "z.ply")
    for read in (read_mesh(tmp_path / "y.ply"), read_mesh(tmp_path / "z.ply", up="z")):
        _, rgb = read.surface(LIGHT)(along_z((0.0, -0.5)))
        torch.testing.assert_close(rgb[0], torch.tensor([0.0, 0.0, 1.0]), atol=0.02, rtol=0)


def test_light_comes_from_where_it_is(tmp_path: Path) -> None:
    box((255, 255, 255)).export(tmp_path / "box.ply")
    mesh = read_mesh(tmp_path / "box.ply")
    lit, dark = (mesh.surface(light)(along_z((0.0, -0.5)))[1][0, 0] for light in (LIGHT, (0.0, 0.0, 1.0)))
    assert float(lit) == pytest.approx(1.0, abs=0.01)
    assert 0.3 < float(dark) < 0.7


def test_a_texture_is_seen_where_it_lies(tmp_path: Path) -> None:
    """A square with a picture that is red on the left, blue on the right, green at the top."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16, 0], picture[:, 16:, 2], picture[:16, :, 1] = 255, 255, 255
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    corners = np.column_stack([uv - 0.5, np.zeros(4)])
    material = trimesh.visual.texture.SimpleMaterial(image=Image.fromarray(picture), diffuse=[255, 255, 255])
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    square = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    for name in ("square.glb", "square.obj"):
        square.export(tmp_path / name)
        _, rgb = read_mesh(tmp_path / name).surface(LIGHT)(along_z((-0.3, -0.2), (0.3, -0.2), (-0.3, -0.8)))
        expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
        torch.testing.assert_close(rgb, expected, atol=0.05, rtol=0)


def test_each_part_of_a_model_has_its_own_colours(tmp_path: Path) -> None:
    """A plain material, a texture, one tinted in linear light, and corners' colours, side by side."""
    from trimesh.visual.material import PBRMaterial

    picture = Image.fromarray(np.full((4, 4, 3), 188, np.uint8))  # half of white, as linear light
    materials = [PBRMaterial(baseColorFactor=[255, 0, 128, 255]), PBRMaterial(baseColorTexture=picture)]
    materials.append(PBRMaterial(baseColorTexture=picture, baseColorFactor=[255, 255, 0, 255]))
    scene = trimesh.Scene()
    for number, material in enumerate([*materials, None]):
        part = trimesh.creation.box((1.0, 1.0, 1.0))
        part.apply_translation([number, 0.0, 0.0])
        if material is None:
            part.visual.vertex_colors = [0, 255, 0, 255]
        else:
            part.visual = trimesh.visual.TextureVisuals(uv=np.full((8, 2), 0.5), material=material)
        scene.add_geometry(part)
    scene.export(tmp_path / "parts.glb")
    _, rgb = read_mesh(tmp_path / "parts.glb").surface(LIGHT)(along_z(*[(x / 8, -0.1) for x in (-3, -1, 1, 3)]))
    expected = [[255, 0, 188], [188, 188, 188], [188, 188, 0], [0, 255, 0]]
    torch.testing.assert_close(rgb, torch.tensor(expected) / 255.0, atol=0.02, rtol=0)


def test_points_alone_are_no_mesh(tmp_path: Path) -> None:
    trimesh.PointCloud(np.random.default_rng(0).random((9, 3))).export(tmp_path / "points.ply")
    with pytest.raises(DataError, match="no triangles"):
        read_mesh(tmp_path / "points.ply")


def test_what_is_no_mesh(tmp_path: Path) -> None:
    assert is_mesh("a/B.GLB")
    assert not is_mesh("photo.jpg")
    with pytest.raises(InputMissingError):
        read_mesh(tmp_path / "missing.glb")
    for name, data in (("empty.glb", b""), ("noise.ply", b"\x00\x01" * 50), ("words.obj", b"hello"), ("a.gltf", b"{}")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="cannot read the mesh"):
            read_mesh(tmp_path / name)
