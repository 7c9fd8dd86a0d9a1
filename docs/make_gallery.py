"""Write the pictures of docs/gallery.md: `python docs/make_gallery.py`; needs trimesh, and Chromium for the viewer.

Everything is made of toy scenes by the embedded weights.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.checkpoint import LoadedWeights, load_weights
from vq3dcli.cli import run
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.compose import build_stage
from vq3dcli.pipelines.composition import Composition
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.interpolate import plan_journey
from vq3dcli.rendering.cameras import one_camera, pivot_camera
from vq3dcli.rendering.trajectories import trajectory

FOLDER = Path(__file__).resolve().parent / "gallery"
SIZE_PX = 96
SAMPLES = 64
STOPS = ("toyscene:mushroom:1", "toyscene:arch:2", "toyscene:snowman:3")
FRAMES = 9
SCENE, OTHER = "toyscene:sphere:5", "toyscene:snowman:3"
VIEWER_PX = (360, 420)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def main() -> None:
    """Make all pictures."""
    weights = load_weights()
    FOLDER.mkdir(exist_ok=True)
    _save("interpolation.png", _interpolation(weights), columns=FRAMES)
    edits: list[dict[str, Any]] = [
        {},
        {"insert": [{"object": OTHER, "at": [[0.46, 0.64]], "z_depth": 4.2, "scale": 1.3}]},
        {"insert": [{"object": OTHER, "at": [[0.5, 0.92]], "scale": 0.8}]},
        {"move": [{"at": [[0.75, 0.75]]}], "insert": [{"object": "MESH", "at": [[0.28, 0.88]], "scale": 0.6}]},
        {"delete": [{}]},
    ]
    with tempfile.TemporaryDirectory() as folder:
        mesh = _mesh(Path(folder))
        _save("composition.png", _composition(weights, edits, mesh), columns=len(edits))
        _viewer(Path(folder))


def _interpolation(weights: LoadedWeights) -> list[Tensor]:
    opened = [_open(weights, text) for text in STOPS]
    camera = trajectory("swing", FRAMES, height_px=SIZE_PX, width_px=SIZE_PX, amplitude_rad=math.radians(12.0))
    tiles = []
    for mix in ("codes", "planes"):
        journey = plan_journey(opened, weights, mix=mix, requantize=False, loop=False)
        for frame in range(FRAMES):
            view = journey.scene_at(frame, FRAMES).render(one_camera(camera, frame), samples=SAMPLES)
            tiles.append(view.rgb[0])
    return tiles


def _composition(weights: LoadedWeights, edits: list[dict[str, Any]], mesh: str) -> list[Tensor]:
    angles = torch.tensor([0.0, math.radians(15.0)])
    camera = pivot_camera(angles, torch.zeros(2), height_px=SIZE_PX, width_px=SIZE_PX)
    views = []
    for edit in edits:
        composition = Composition.model_validate({"scene": SCENE, **edit})
        inserts = [
            item.model_copy(update={"object": mesh}) if item.object == "MESH" else item for item in composition.insert
        ]
        composition = composition.model_copy(update={"insert": inserts})
        stage = build_stage(composition, _open(weights, SCENE), lambda text: _open(weights, text))
        views.append(stage.at(0.0).render(camera, samples=SAMPLES))
    disparity = [colour_map(view.s[1], 0.0, 0.7) for view in views]
    return [*(view.rgb[0] for view in views), *(view.rgb[1] for view in views), *disparity]


def _mesh(folder: Path) -> str:
    """A golden ring that stands, as other programs would write it."""
    import trimesh

    ring = trimesh.creation.torus(1.0, 0.3)
    ring.visual.vertex_colors = [235, 185, 60, 255]
    ring.export(folder / "ring.glb")
    return str(folder / "ring.glb")


def _viewer(folder: Path) -> None:
    """A photograph of the viewer page, if there is a browser to take it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return
    page = folder / "snowman.html"
    assert run(["export", OTHER, "--format", "viewer", "-o", str(page), "--quiet"]) == 0
    shot = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    size = f"--window-size={VIEWER_PX[0]},{VIEWER_PX[1]}"
    picture = f"--screenshot={FOLDER / 'viewer.png'}"
    waiting = "--virtual-time-budget=5000"
    subprocess.run(
        [browser, *shot, size, waiting, picture, page.as_uri()], check=True, timeout=120, capture_output=True
    )


def _open(weights: LoadedWeights, text: str) -> OpenedScene:
    return open_scene(parse_sources([text])[0], weights, fit="crop")


def _save(name: str, tiles: list[Tensor], *, columns: int) -> None:
    write_bytes(FOLDER / name, encode_png(grid(tiles, columns=columns)))


if __name__ == "__main__":
    main()
