"""`vq3d export` end to end, with a tiny model that was never trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.commands.export import FormatName
from vq3dcli.pipelines.export import ExportFormat

FAST = ["--size", "32", "--samples", "8", "--layers", "4", "--device", "cpu"]


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
        (["--format", "ply"], ["photo.ply"]),
        (["--format", "splat", "--axes", "opengl"], ["photo_splat.ply"]),
        (["-o", "a.glb", "--mesh", "solid"], ["a.glb"]),
        (["--format", "mpi"], ["photo_mpi/mpi.json", *(f"photo_mpi/layer_{i:02d}.png" for i in range(4))]),
        (["--format", "npz", "--views", "3"], ["photo.npz"]),
        (["--format", "depth"], ["photo_disparity.png", "photo_z_depth.pfm"]),
        (["--format", "depth", "-o", "new/a.png"], ["new/a.png", "new/a_z_depth.pfm"]),
    ],
)
def test_each_format_names_its_files(
    photo: str, weights: list[str], detail: str, options: list[str], expected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "a.glb" in expected:
        pytest.importorskip("trimesh", reason="meshes are written by trimesh")
    options = [*options, "--max-depth", "100"]
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


def test_a_toy_scene_and_a_saved_one(photo: str, weights: list[str]) -> None:
    from vq3dcli.checkpoint import load_weights
    from vq3dcli.pipelines.inputs import open_scene, parse_sources
    from vq3dcli.scene_file import save_scene

    loaded = load_weights(Path(weights[1]))
    opened = open_scene(parse_sources(["toyscene:box:3"])[0], loaded, fit="crop")
    save_scene(Path("box.vq3d.safetensors"), opened.scene, weights=loaded, provenance={}, photo=None)
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
        (["photo.jpg", "-o", "a.obj"], 2),
        (["photo.jpg", "-o", "a.glb", "--format", "ply"], 2),
        (["photo.jpg", "--size", "4096"], 2),
        (["photo.jpg", "--layers", "64"], 2),
        (["photo.jpg", "--max-depth", "nan"], 2),
        (["photo.jpg", "--format", "stl"], 2),
        (["photo.jpg", "--format", "ply", "--max-depth", "0.5"], 65),
        (["photo.jpg", "-o", "photo.jpg/a.html"], 73),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    photo: str, weights: list[str], arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = [] if "--size" in arguments or "--layers" in arguments else FAST
    assert run(["export", *arguments, *weights, *fast, "--quiet"]) == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert os.listdir() == ["photo.jpg"]
