"""The parts beneath the library: from a photo to a video's frames, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vq3dcli.data.images import encode_png, read_image, to_square
from vq3dcli.errors import Vq3dError
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.composition import read_composition
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.rendering.trajectories import trajectory
from vq3dcli.scene_file import camera_of, load_scene, save_scene
from vq3dcli.weights_file import load_prior, load_weights


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, vq3dcli, vq3d; dir(vq3d); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["vq3d", "vq3dcli"])
def test_windows_is_refused_in_one_line(name: str) -> None:
    code = f"import sys; sys.platform = 'win32'; import {name}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "error: vq3d needs Linux or macOS, for file locks and signals; on Windows: WSL\n"


def test_a_photo_to_frames(tiny_weights: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)))
    weights = load_weights(tiny_weights)
    image = to_square(read_image(photo), weights.recipe.model.image_size, fit="crop")
    scene = reconstruct_scene(weights.model, image[None])
    view = scene.render(trajectory("orbit", 3, height_px=8, width_px=8), samples=8)
    assert view.rgb.shape == (3, 3, 8, 8)
    assert view.s.shape == (3, 8, 8)


def test_paths_may_be_text(tiny_weights: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)))
    assert torch.equal(read_image(str(photo)), read_image(photo))
    weights = load_weights(str(tiny_weights))
    scene = reconstruct_scene(weights.model, read_image(str(photo))[None])
    saved = str(tmp_path / "a.vq3d.safetensors")
    save_scene(saved, scene, camera_of(weights), weights.sha256, provenance={}, photo=None)
    assert torch.equal(load_scene(saved).scene.codes, scene.codes)
    (tmp_path / "a.toml").write_text("scene = 'photo.png'")
    assert read_composition(str(tmp_path / "a.toml")).scene == str(photo)
    for call in (load_weights, load_prior, load_scene, read_image, read_composition):
        with pytest.raises(Vq3dError, match="no such"):
            call(str(tmp_path / "none"))  # type: ignore[operator]
    with pytest.raises(TypeError, match="takes a path, not Image"):
        read_image(Image.new("RGB", (4, 4)))  # type: ignore[arg-type]


def test_what_is_no_image_is_told_with_the_remedy(tiny_weights: Path) -> None:
    model = load_weights(tiny_weights).model
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    for wrong in (
        image.permute(1, 2, 0),
        image[None],
        image.float(),
        image[0],
        Image.new("RGB", (4, 4)),
        image.numpy(),
    ):
        with pytest.raises(ValueError, match=r"uint8 tensor \[3, H, W\].*permute"):
            to_square(wrong, 8, fit="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8, not torch\.float32"):
        reconstruct_scene(model, image[None].float())
    for shape in ((3, 16, 16), (1, 3, 8, 8), (1, 3, 16, 20), (1, 1, 16, 16)):
        with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], not .*to_square\(image, 16"):
            reconstruct_scene(model, torch.zeros(shape, dtype=torch.uint8))


def test_several_scenes_from_one_camera_or_from_one_each(tiny_weights: Path) -> None:
    model = load_weights(tiny_weights).model
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    scenes = reconstruct_scene(model, images)
    size = {"height_px": 8, "width_px": 8}
    one = scenes.render(canonical_camera(1, **size), samples=4)
    each = scenes.render(canonical_camera(2, **size), samples=4)
    assert torch.equal(one.rgb, each.rgb)
    assert one.rgb.shape == (2, 3, 8, 8)
    assert torch.equal(scenes[1].render(canonical_camera(1, **size), samples=4).rgb[0], one.rgb[1])
    with pytest.raises(ValueError, match=r"2 scenes .* 3 cameras: one for all, one each, or scene by scene"):
        scenes.render(canonical_camera(3, **size), samples=4)


def test_what_is_shown_of_weights_and_scenes_is_short(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    scene = reconstruct_scene(weights.model, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert repr(scene) == f"Scene(2 of planes {list(scene.planes.shape[1:])} on cpu)"
    assert repr(weights) == f"LoadedWeights(path='{tiny_weights}', sha256='{weights.sha256}')"
    assert len(repr(load_prior())) < 300
