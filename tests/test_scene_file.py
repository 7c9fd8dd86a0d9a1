"""Saved scenes: what is read back renders as what was saved, and damaged files are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError, UsageError, Vq3dError
from vq3dcli.model.scene import Scene, reconstruct_scene
from vq3dcli.rendering.cameras import pivot_camera
from vq3dcli.scene_file import camera_of, load_scene, save_scene
from vq3dcli.tensor_file import read_tensors, write_tensors
from vq3dcli.weights_file import LoadedWeights, load_weights

CAMERA = pivot_camera(torch.tensor([0.0, 0.2]), torch.tensor([0.0, -0.1]), height_px=12, width_px=16)


@pytest.fixture(scope="module")
def weights(tiny_weights: Path) -> LoadedWeights:
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def scene(weights: LoadedWeights) -> Scene:
    image = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return reconstruct_scene(weights.model, image)


def test_a_scene_renders_without_its_weights(tmp_path: Path, scene: Scene, weights: LoadedWeights) -> None:
    path = tmp_path / "a.vq3d.safetensors"
    photo = torch.randint(0, 256, (3, 20, 30)).to(torch.uint8)
    digest = save_scene(
        path, scene, camera_of(weights, 1.5), weights.sha256, provenance={"input": "a.jpg"}, photo=photo
    )
    loaded = load_scene(path)
    assert loaded.sha256 == digest
    assert loaded.provenance == {"input": "a.jpg"}
    assert loaded.weights_sha256 == weights.sha256
    assert loaded.camera.aspect == 1.5
    assert loaded.photo is not None and torch.equal(loaded.photo, photo)
    assert torch.equal(loaded.scene.codes, scene.codes)
    before, after = scene.render(CAMERA, samples=24), loaded.scene.render(CAMERA, samples=24)
    # Planes are rounded to fp16: a level or two of 255.
    assert (before.rgb.int() - after.rgb.int()).abs().max() <= 2
    assert (before.s - after.s).abs().max() < 2e-3
    again = tmp_path / "b.vq3d.safetensors"
    assert (
        save_scene(again, scene, camera_of(weights, 1.5), weights.sha256, provenance={"input": "a.jpg"}, photo=photo)
        == digest
    )


def test_query_is_the_field(scene: Scene) -> None:
    points = torch.rand(50, 3) * 2.0 - 1.0
    rgb, density = scene.query(points)
    expected_density, expected_rgb = scene.model.frozen_field(scene.planes)(points[None])
    assert torch.equal(rgb, expected_rgb[0]) and torch.equal(density, expected_density[0])
    assert [tuple(part.shape) for part in scene.query(points[:0])] == [(0, 3), (0,)]


def rewrite(path: Path, change: str) -> None:
    """Write a scene again with something odd in it, and its right hash."""
    header, tensors, _ = read_tensors(path, what="scene")
    camera, field = dict(header["camera"]), dict(header["field"])
    header = {**header, "camera": camera, "field": field}
    if change == "no header":
        header = {"format": "scene"}
    elif change == "newer":
        header["format_version"] = 99
    elif change == "endless":
        camera["far"] = 1e300
    elif change == "wide":
        camera["aspect"] = 1e300
    elif change == "far in front":
        camera["near"] = 1e3
    elif change == "huge field":  # a terabyte, if it were believed
        field |= {"hidden": 65536, "layers": 64}
    elif change == "no planes":
        del tensors["planes"]
    elif change == "narrow planes":
        tensors["planes"] = tensors["planes"][:, :, :3].contiguous()
    elif change == "not finite":
        tensors["planes"][0, 0, 0, 0] = math.nan
    elif change == "odd codes":
        tensors["codes"][3] = -1
    elif change == "codes of floats":
        tensors["codes"] = tensors["codes"].float()
    write_tensors(path, tensors, header)


DAMAGES = (
    "no header",
    "newer",
    "endless",
    "wide",
    "far in front",
    "huge field",
    "no planes",
    "narrow planes",
    "not finite",
)
DAMAGES += ("odd codes", "codes of floats")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("missing", InputMissingError),
        ("pickle", UnsafeFileError),
        ("cut", DataError),
        ("text", DataError),
        *((change, DataError) for change in DAMAGES),
    ],
)
def test_files_that_are_no_scene(
    tmp_path: Path, scene: Scene, weights: LoadedWeights, change: str, error: type[Vq3dError]
) -> None:
    path = tmp_path / "a.vq3d.safetensors"
    save_scene(path, scene, camera_of(weights), weights.sha256, provenance={}, photo=None)
    if change == "missing":
        path.unlink()
    elif change == "pickle":
        torch.save({}, path)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif change == "text":
        path.write_text("A scene, so it says.")
    else:
        rewrite(path, change)
    with pytest.raises(error) as caught:
        load_scene(path)
    assert "scene" in caught.value.message


def test_weights_are_no_scene(tmp_path: Path, tiny_weights: Path) -> None:
    path = tmp_path / "a.vq3d.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    with pytest.raises(DataError, match="not a saved scene"):
        load_scene(path)


def test_names_and_planes_without_codes(tmp_path: Path, scene: Scene, weights: LoadedWeights) -> None:
    with pytest.raises(UsageError, match="is called NAME"):
        save_scene(tmp_path / "a.safetensors", scene, camera_of(weights), weights.sha256, provenance={}, photo=None)
    bare = Scene(scene.model, scene.planes, scene.codes[:, :0])
    path = tmp_path / "a.vq3d.safetensors"
    save_scene(path, bare, camera_of(weights), weights.sha256, provenance={}, photo=None)
    assert load_scene(path).scene.codes.shape == (1, 0)
