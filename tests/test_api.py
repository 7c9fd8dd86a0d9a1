"""The public API: lazy, complete, and enough to get from a photo to a video's frames."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vq3dcli


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, vq3dcli; dir(vq3dcli); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_every_public_name_is_there_and_declared_for_type_checkers() -> None:
    tree = ast.parse(Path(vq3dcli.__file__).read_text())
    declared = {
        (alias.asname or alias.name): (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(vq3dcli.__all__) == declared.keys() == vq3dcli._SOURCES.keys()
    for name, (module, source) in vq3dcli._SOURCES.items():
        assert declared[name] == (f"vq3dcli.{module}", source)
        assert getattr(vq3dcli, name) is getattr(sys.modules[f"vq3dcli.{module}"], source)
    assert set(vq3dcli.__all__) <= set(dir(vq3dcli))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scenes'"):
        _ = vq3dcli.scenes


def test_a_photo_to_frames(tiny_weights: Path, tmp_path: Path) -> None:
    from vq3dcli.data.images import encode_png

    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8)))
    weights = vq3dcli.load(tiny_weights)
    image = vq3dcli.to_square(vq3dcli.read_image(photo), weights.recipe.model.image_size, fit="crop")
    scene = vq3dcli.reconstruct_scene(weights.model, image[None])
    view = scene.render(vq3dcli.trajectory("orbit", 3, height_px=8, width_px=8), samples=8)
    assert view.rgb.shape == (3, 3, 8, 8)
    assert view.s.shape == (3, 8, 8)
