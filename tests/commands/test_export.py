"""`vq3d export` end to end, with a tiny model that was never trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.commands.export import FormatName
from vq3dcli.pipelines.export import ExportFormat

FAST = ["--size", "32", "--samples", "8", "--device", "cpu"]


@pytest.fixture
def weights(tiny_weights: Path) -> list[str]:
    return ["--weights", str(tiny_weights)]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A photo, in a folder of its own that is the current one."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 48), 60.0).save("photo.jpg")
    return "photo.jpg"


def test_the_formats_are_the_library_s() -> None:
    assert FormatName == ExportFormat


@pytest.mark.parametrize("detail", ["photo", "none"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["photo.html"]),
        (["--format", "ply", "--max-depth", "100"], ["photo.ply"]),
        (["--format", "splat", "--axes", "opengl"], ["photo_splat.ply"]),
        (["-o", "a.glb", "--mesh", "solid", "--max-depth", "100"], ["a.glb"]),
        (
            ["--format", "mpi", "--layers", "4"],
            ["photo_mpi/mpi.json", *(f"photo_mpi/layer_{i:02d}.png" for i in range(4))],
        ),
        (["--format", "npz", "--views", "3"], ["photo.npz"]),
        (["-o", "a.obj"], ["a.obj", "a.mtl", "a.png"]),
        (["--format", "stl", "-o", "new/"], ["new/photo.stl"]),
        (["-o", "a.spz"], ["a.spz"]),
        (["--format", "depth"], ["photo_disparity.png", "photo_z_depth.pfm"]),
        (["--format", "depth", "-o", "new/a.png"], ["new/a.png", "new/a_z_depth.pfm"]),
    ],
)
def test_each_format_names_its_files(
    photo: str, weights: list[str], detail: str, options: list[str], expected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(["export", photo, "--detail", detail, *weights, *FAST, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["outputs"] == expected
    assert result["metrics"]["detail"] == detail
    assert (result["metrics"]["width_px"], result["metrics"]["height_px"]) == (
        (32, 24) if detail == "photo" else (32, 32)
    )
    assert all(Path(name).stat().st_size > 0 for name in expected)
    found = [os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names]
    assert sorted(os.path.normpath(name) for name in found) == sorted([*expected, photo])


def test_a_photo_keeps_its_pixels_and_its_shape(photo: str, weights: list[str]) -> None:
    assert run(["export", photo, *weights, "--format", "npz", "--device", "cpu", "--quiet"]) == 0
    with np.load("photo.npz", allow_pickle=False) as file, Image.open(photo) as original:
        assert np.array_equal(file["rgb"][0], np.array(original.convert("RGB")))
        assert file["s"].shape == (1, 48, 64)


EDITS = """
scene = "photo.jpg"
[[insert]]
object = "cube.ply"
at = [[0.5, 0.75], [0.9, 0.75]]
z_depth = 2.0
scale = 0.5
shadow = 0.0
"""


@pytest.mark.parametrize("detail", ["photo", "none"])
def test_a_composition_is_exported_as_it_is_seen(photo: str, weights: list[str], detail: str) -> None:
    """A cube stands in each format: at its distance, in its colour, on top of what is there without it."""
    cube = trimesh.creation.box((1.0, 1.0, 1.0))
    cube.visual.face_colors = [250, 0, 0, 255]
    cube.export("cube.ply")
    Path("a.toml").write_text(EDITS)
    options = [*weights, *FAST, "--detail", detail, "--quiet"]
    for kind in ("npz", "ply", "mpi", "viewer"):
        assert run(["export", "a.toml", "--format", kind, *options]) == 0
    with np.load("a.npz", allow_pickle=False) as file:
        rgb, z_depth = file["rgb"][0].astype(int), file["z_depth"][0]
    rows, columns = rgb.shape[:2]
    row, column = round(0.6 * rows), columns // 2
    assert z_depth[row, column] == pytest.approx(1.75, abs=0.15)  # haze of an untrained field is before it
    red = rgb[..., 0] - rgb[..., 1:].max(-1) > 60
    assert red[row, column]
    assert 0.05 < red.mean() < 0.3
    cloud = trimesh.load("a.ply")
    colours = np.asarray(cloud.colors).astype(int)
    of_cube = colours[:, 0] - colours[:, 1:3].max(1) > 60
    assert np.median(np.asarray(cloud.vertices)[of_cube, 2]) == pytest.approx(3.0 - 1.75, abs=0.1)
    index = json.loads(Path("a_mpi/mpi.json").read_text())
    picture = np.zeros((rows, columns, 3))
    for entry in reversed(index["layers"]):
        layer = np.array(Image.open(Path("a_mpi") / entry["file"])) / 255.0
        picture = layer[..., 3:] * layer[..., :3] + (1 - layer[..., 3:]) * picture
    drawn = picture[..., 0] - picture[..., 1:].max(-1) > 60 / 255
    assert (drawn == red).mean() > 0.97
    assert Path("a.html").stat().st_size > 0


def test_folders_and_several_inputs(photo: str, weights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("photos")
    for name in ("b.png", "a.png"):
        Image.effect_noise((40, 30), 60.0).save(f"photos/{name}")
    options = [*weights, *FAST, "-q"]
    assert run(["export", "photos", photo, "--format", "glb", "-o", "out", *options]) == 0
    assert capsys.readouterr().out.splitlines() == [f"out/{stem}.glb" for stem in ("a", "b", "photo")]
    assert run(["export", "photos", "-o", "{name}-cloud.ply", *options]) == 0
    assert run(["export", "photos", "--format", "mpi", "--layers", "2", *options]) == 0
    assert {"a-cloud.ply", "b-cloud.ply", "a_mpi", "b_mpi"} <= set(os.listdir())
    Path("photos/b.png").write_bytes(b"cut")
    capsys.readouterr()
    assert run(["export", "photos", "-o", "again/", *options]) == 65
    said = capsys.readouterr()
    assert said.out.splitlines() == ["again/a.html"]
    assert "1 of 2 inputs left out" in said.err.splitlines()[-1]
    assert run(["export", "photos", "-o", "one.html", *options]) == 2


def test_y_is_up_in_points_and_the_far_closes_the_surface(
    photo: str, weights: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vq3dcli.pipelines.export._DEFAULT_MAX_Z", 2.0)  # an untrained field has nothing at 12
    options = [*weights, *FAST, "--detail", "none", "--quiet"]
    for name in ("up.ply", "down.ply", "a.glb", "a.npz"):
        axes = ["--axes", "opencv"] if name == "down.ply" else []
        assert run(["export", photo, "-o", name, *axes, *options]) == 0
    up, down = (np.asarray(trimesh.load(name).vertices) for name in ("up.ply", "down.ply"))
    assert np.allclose(up * [1, -1, -1], down, atol=1e-6)
    with np.load("a.npz", allow_pickle=False) as file:
        assert (file["z_depth"] > 2.0).mean() > 0.1
    assert up[:, 2].min() > 3.0 - 2.6  # of cameras beside, too
    (mesh,) = trimesh.load("a.glb").geometry.values()
    assert mesh.vertices[:, 2].min() == pytest.approx(3.0 - 2.0, abs=1e-3)
    assert len(mesh.vertices) > 0.9 * 32 * 32


def test_a_toy_scene_and_a_saved_one(photo: str, weights: list[str]) -> None:
    from vq3dcli.pipelines.inputs import open_scene, parse_sources
    from vq3dcli.scene_file import save_scene
    from vq3dcli.weights_file import load_weights

    loaded = load_weights(Path(weights[1]))
    opened = open_scene(parse_sources(["toyscene:box:3"])[0], loaded, fit="crop")
    saved = Path("box.vq3d.safetensors")
    save_scene(saved, opened.scene, opened.camera, loaded.sha256, provenance={}, photo=None)
    written = []
    for source, options in (("toyscene:box:3", weights), ("box.vq3d.safetensors", [])):
        assert run(["export", source, *options, *FAST, "--format", "depth", "-o", "new.png", "--quiet"]) == 0
        written.append(np.array(Image.open("new.png")).astype(int))
    assert np.abs(written[0] - written[1]).max() <= 0.01 * 65535  # planes are saved in fp16


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["missing.jpg"], 66),
        (["photo.jpg", "-o", "-"], 2),
        (["photo.jpg", "-o", "a.fbx"], 2),
        (["photo.jpg", "-o", "a.glb", "--format", "ply"], 2),
        (["photo.jpg", "--size", "4096"], 2),
        (["photo.jpg", "--layers", "64"], 2),
        (["photo.jpg", "--format", "ply", "--layers", "8"], 2),
        (["photo.jpg", "--format", "glb", "--axes", "opengl"], 2),
        (["missing.toml"], 66),
        (["photo.jpg", "--max-depth", "nan"], 2),
        (["photo.jpg", "--format", "fbx"], 2),
        (["photo.jpg", "--format", "ply", "--max-depth", "0.5"], 65),
        (["photo.jpg", "-o", "photo.jpg/a.html"], 73),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    photo: str, weights: list[str], arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = [] if "--size" in arguments else FAST
    assert run(["export", *arguments, *weights, *fast, "--quiet"]) == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert os.listdir() == ["photo.jpg"]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (15, 40)])
def test_photos_too_small_for_photo_detail(photo: str, weights: list[str], size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 90, 10)).save("dot.png")
    small = ["--layers", "2", "--samples", "4", "--size", "16", *weights, "-q"]
    for index, export_format in enumerate(("viewer", "mpi", "npz", "splat")):
        options = small if index < 2 else [*small[2:]]
        assert run(["export", "dot.png", "--format", export_format, *options]) == 0
    assert run(["export", "dot.png", "--format", "depth", *weights, "-o", "whole.png"]) == 0
    text = "format_version = 1\nscene = 'dot.png'\n[[delete]]\nbox = [0.1, 0.1, 0.6, 0.6]\n"
    Path("dot.toml").write_text(text)
    assert run(["export", "dot.toml", "--format", "npz", *small[2:], "-o", "composed.npz"]) == 0
