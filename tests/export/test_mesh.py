"""GLB, OBJ and STL files, read back by pygltflib and trimesh."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vq3dcli.errors import DataError
from vq3dcli.export.mesh import relief_mesh, write_mesh
from vq3dcli.rendering.cameras import project, s_from_z_depth
from vq3dcli.rendering.space import Frustum

pygltflib = pytest.importorskip("pygltflib", reason="pygltflib reads the files back")


def read_glb(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, texture coordinates, triangles and picture of a file with one mesh."""
    file = pygltflib.GLTF2().load(str(path))
    blob = file.binary_blob()

    def values(index: int, kind: str, width: int) -> np.ndarray:
        accessor = file.accessors[index]
        start = file.bufferViews[accessor.bufferView].byteOffset + (accessor.byteOffset or 0)
        return np.frombuffer(blob, kind, accessor.count * width, start).reshape(-1, width)

    (primitive,) = file.meshes[0].primitives
    view = file.bufferViews[file.images[0].bufferView]
    picture = np.array(Image.open(io.BytesIO(blob[view.byteOffset : view.byteOffset + view.byteLength])).convert("RGB"))
    assert file.extensionsUsed == ["KHR_materials_unlit"]
    assert file.materials[primitive.material].extensions == {"KHR_materials_unlit": {}}
    assert file.accessors[primitive.indices].componentType == pygltflib.UNSIGNED_INT
    return (
        values(primitive.attributes.POSITION, "<f4", 3),
        values(primitive.attributes.TEXCOORD_0, "<f4", 2),
        values(primitive.indices, "<u4", 1).reshape(-1, 3),
        picture,
    )


@pytest.fixture(scope="module")
def view(ball):  # type: ignore[no-untyped-def]
    return ball.render(Frustum().camera(40, 40), samples=128)


def test_a_relief_is_the_canonical_view(view, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_mesh([tmp_path / "a.glb"], relief_mesh(view.rgb[0], view.s[0], Frustum()))
    positions, uv, faces, picture = read_glb(tmp_path / "a.glb")
    assert np.array_equal(picture, view.rgb[0].permute(1, 2, 0).numpy())
    # Back from glTF's axes: y down, z forward.
    points = torch.from_numpy(positions * np.array([1.0, -1.0, -1.0], np.float32))
    pixels, z_depth = project(Frustum().camera(40, 40), points[None])
    assert np.allclose(pixels[0].numpy(), uv * 40, atol=1e-2)
    column, row = torch.from_numpy(np.floor(uv * 40)).long().unbind(-1)
    # But for the pixels between two surfaces, which go to one of them.
    own = s_from_z_depth(z_depth[0])
    assert torch.isclose(own, view.s[0, row, column], rtol=0.0, atol=1e-5).float().mean() > 0.85
    # All triangles that are not nearly edge-on face the camera, which stands at z = 3.
    corners = positions[faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    towards = np.array([0.0, 0.0, 3.0]) - corners.mean(1)
    assert ((normal * towards).sum(-1) > 0.0).all()
    # Torn around the ball: its outline hangs together with nothing behind it.
    assert 0.8 * 2 * 39 * 39 < len(faces) < 2 * 39 * 39


def test_a_relief_seen_from_the_side(view, ball, look, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mesh = relief_mesh(view.rgb[0], view.s[0], Frustum())
    camera = look(Frustum(), 40, 40, [(0.15, 0.0)])
    seen = ball.render(camera, samples=192)
    points = mesh.vertices * torch.tensor([1.0, -1.0, -1.0])
    pixels, z_depth = project(camera, points[None])
    inside = ((pixels[0] > 1.0) & (pixels[0] < 39.0)).all(-1)
    column, row = pixels[0, inside].floor().long().unbind(-1)
    error = (s_from_z_depth(z_depth[0, inside]) - seen.s[0, row, column]).abs()
    assert error.median() < 0.01


def test_a_solid_is_watertight(view, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_mesh([tmp_path / "a.glb"], relief_mesh(view.rgb[0], view.s[0], Frustum(), max_z_depth=4.2, solid=True))
    (mesh,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0.0
    assert mesh.bounds[0, 2] == pytest.approx(3.0 - 4.2, abs=1e-4)
    assert mesh.visual.material.doubleSided


def test_the_far_can_be_left_out(view) -> None:  # type: ignore[no-untyped-def]
    mesh = relief_mesh(view.rgb[0], view.s[0], Frustum(), max_z_depth=3.5)
    assert (mesh.vertices[:, 2] > -0.51).all()
    assert int(mesh.faces.max()) == len(mesh.vertices) - 1
    with pytest.raises(DataError, match="near enough"):
        relief_mesh(view.rgb[0], view.s[0], Frustum(), max_z_depth=1.0)


def test_obj_and_stl_are_the_same_surface(view, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mesh = relief_mesh(view.rgb[0], view.s[0], Frustum(aspect=2.0), max_z_depth=4.2, solid=True)
    paths = [tmp_path / f"a photo.{end}" for end in ("obj", "mtl", "png")]
    write_mesh(paths, mesh)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert "map_Kd a photo.png" in paths[1].read_text()
    read = trimesh.load_mesh(paths[0], process=False)
    assert np.allclose(read.vertices, mesh.vertices.numpy(), atol=1e-6)
    assert np.array_equal(read.faces, mesh.faces.numpy())
    # Its pixels, from below as OBJ counts.
    assert np.allclose(1.0 - read.visual.uv[:, 1], mesh.uv[:, 1].numpy(), atol=1e-6)
    assert np.array_equal(np.array(read.visual.material.image), view.rgb[0].permute(1, 2, 0).numpy())
    before = [path.read_bytes() for path in paths]
    write_mesh(paths, mesh)
    assert [path.read_bytes() for path in paths] == before
    write_mesh([tmp_path / "a.stl"], mesh)
    printed = trimesh.load_mesh(tmp_path / "a.stl")
    assert printed.is_watertight
    assert printed.volume == pytest.approx(read.volume, rel=1e-4)
    # It stands: what was up, y, is z, and what looked at the camera looks along -y.
    assert np.allclose(printed.bounds[:, 2], mesh.vertices[:, 1].aminmax())
    assert np.allclose(-printed.bounds[::-1, 1], mesh.vertices[:, 2].aminmax())
