"""Meshes of every format, met by rays where geometry says, with their own colours."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.meshscenes.ray_mesh import is_mesh, read_mesh
from vq3dcli.rendering.cameras import Rays

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


def test_files_of_a_model_may_be_links_out_of_its_folder(tmp_path: Path) -> None:
    """As in caches of the Hub, git-annex and DVC."""
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).save(tmp_path / "kept.png")
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.png").symlink_to(tmp_path / "kept.png")
    (model / "a.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd a.png\n")
    corners = "v -1 -1 0\nv 1 -1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\n"
    (model / "a.obj").write_text(f"mtllib a.mtl\n{corners}usemtl m\nf 1/1 2/2 3/3\n")
    _, rgb = read_mesh(model / "a.obj").surface(LIGHT)(along_z((0.0, 0.0)))
    assert rgb[0, 0] > 0.3 and rgb[0, 1:].max() < 0.05


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


def seen_colour(path: Path, at: tuple[float, float] = (0.0, -0.5)) -> torch.Tensor:
    """What a ray into the middle of a mesh sees, lit from the front."""
    return read_mesh(path).surface(LIGHT)(along_z(at))[1][0]


def gltf_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a GLB file, and all that follows."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[20 + length :]


def write_glb(path: Path, tree: object, rest: bytes) -> Path:
    text = (tree if isinstance(tree, str) else json.dumps(tree)).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest)) + struct.pack("<I4s", len(text), b"JSON")
    path.write_bytes(head + text + rest)
    return path


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    box().export(tmp_path / "box.obj", include_color=False, header="")
    shape = [line for line in (tmp_path / "box.obj").read_text().splitlines() if line[:2] in ("v ", "f ")]
    lines = ["# gr\xfcn", "mtllib St\xfchle.mtl", "usemtl blau\xe4", *shape]
    (tmp_path / "chair.obj").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "St\xfchle.mtl").write_bytes("# St\xfchle\nnewmtl blau\xe4\nKd 0.1 0.2 0.9\n".encode("latin-1"))
    torch.testing.assert_close(seen_colour(tmp_path / "chair.obj"), torch.tensor([0.1, 0.2, 0.9]), atol=0.01, rtol=0)


def test_the_files_that_a_mesh_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names as web addresses, names that lead nowhere, and names that lead out of the folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    image = Image.new("RGB", (4, 4), (200, 40, 30))
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    plane.visual = trimesh.visual.TextureVisuals(
        uv, material=trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    )
    files = trimesh.exchange.gltf.export_gltf(plane.scene())
    tree = json.loads(files.pop("model.gltf"))
    (picture,) = (entry for entry in tree["images"] if "bufferView" in entry)
    for entry in tree["buffers"]:
        (folder / f"my {entry['uri']}").write_bytes(files[entry["uri"]])
        entry["uri"] = f"my%20{entry['uri']}"
    image.save(folder / "the tex.png")
    picture.pop("bufferView")
    picture["uri"] = "the%20tex.png"
    (folder / "a.gltf").write_text(json.dumps(tree))
    red = torch.tensor([200, 40, 30]) / 255.0
    torch.testing.assert_close(seen_colour(folder / "a.gltf"), red, atol=0.01, rtol=0)
    assert not caplog.records
    (folder / "the tex.png").rename(tmp_path / "out.png")
    for name in ("the%20tex.png", "../out.png", str(tmp_path / "out.png")):
        picture["uri"] = name
        (folder / "b.gltf").write_text(json.dumps(tree))
        caplog.clear()
        assert not torch.allclose(seen_colour(folder / "b.gltf"), red, atol=0.1)
        assert f"there is no {name} beside it" in caplog.text
        assert "Traceback" not in caplog.text
    ply = trimesh.exchange.ply.export_ply(box()).split(b"\n", 2)
    (folder / "c.ply").write_bytes(b"\n".join([*ply[:2], b"comment TextureFile ../out.png", ply[2]]))
    caplog.clear()
    read_mesh(folder / "c.ply")
    assert all(record.name.startswith("vq3dcli") and record.exc_info is None for record in caplog.records)
    tree["buffers"][0]["uri"] = "none.bin"
    (folder / "d.gltf").write_text(json.dumps(tree))
    with pytest.raises(InputMissingError, match=r"none\.bin.*d\.gltf names"):
        read_mesh(folder / "d.gltf")


def test_what_a_gltf_file_needs_and_we_cannot_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box().export(tmp_path / "box.glb")
    tree, rest = gltf_of(tmp_path / "box.glb")
    for name in ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "SOME_geometry"):
        with pytest.raises(DataError, match=rf"{name}.*without compression"):
            read_mesh(write_glb(tmp_path / "a.glb", {**tree, "extensionsRequired": [name]}, rest))
    for key in ("extensionsRequired", "extensionsUsed"):
        for name in ("KHR_texture_transform", "KHR_materials_pbrSpecularGlossiness"):
            caplog.clear()
            read_mesh(write_glb(tmp_path / "a.glb", {**tree, key: [name]}, rest))
            assert name in caplog.text
    caplog.clear()
    read_mesh(write_glb(tmp_path / "a.glb", {**tree, "extensionsUsed": ["KHR_materials_unlit"]}, rest))
    assert not caplog.records


def test_gltf_files_that_claim_what_they_do_not_have(tmp_path: Path) -> None:
    box().export(tmp_path / "box.glb")
    tree, rest = gltf_of(tmp_path / "box.glb")
    for index in range(len(tree["accessors"])):
        for count in (-1, -36, 10**8, 10**30, 1.5, "x", None, True):
            changed = json.loads(json.dumps(tree))
            changed["accessors"][index]["count"] = count
            with pytest.raises(DataError, match="damaged glTF"):
                read_mesh(write_glb(tmp_path / "a.glb", changed, rest))
            changed["accessors"][index] = {"componentType": 5126, "type": "VEC3", "count": count}
            with pytest.raises(DataError, match="cannot read the mesh"):
                read_mesh(write_glb(tmp_path / "a.glb", changed, rest))
    copies = {**tree, "nodes": [{"mesh": 0}] * 2_000_000}
    with pytest.raises(DataError, match="more than 10 million points and triangles"):
        read_mesh(write_glb(tmp_path / "a.glb", copies, rest))
    for text in ("[" * 100_000, "[]", '{"accessors": [5]}', "{"):
        with pytest.raises(DataError, match="cannot read the mesh"):
            read_mesh(write_glb(tmp_path / "a.glb", text, rest))
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    with pytest.raises(DataError, match="cannot read the mesh"):
        read_mesh(tmp_path / "a.obj")
