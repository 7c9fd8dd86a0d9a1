"""Write the pictures of docs/gallery.md: `python docs/make_gallery.py`; needs trimesh, and Chromium for the viewer.

Everything is made of toy scenes by the embedded weights. Pictures with photo detail take a toy scene, drawn with many
pixels, for a photo.
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
from torch.nn import functional

from vq3dcli.cli import run
from vq3dcli.data.images import encode_png
from vq3dcli.editing.photo_scene import build_photo_scene
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.export.video import video_writer
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.compose import build_stage
from vq3dcli.pipelines.composition import Composition
from vq3dcli.pipelines.geometry import photo_relief
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources, read_picture
from vq3dcli.pipelines.interpolate import way_between
from vq3dcli.rendering.cameras import pivot_camera
from vq3dcli.rendering.trajectories import trajectory
from vq3dcli.weights_file import LoadedWeights, load_weights

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "gallery"
TOYS = ("toyscene:mushroom:1", "toyscene:arch:2", "toyscene:snowman:3", "toyscene:tower:4", "toyscene:cone:5")
SIZE_PX = 96
SAMPLES = 64
ORBIT_FRAMES, ORBIT_DEG = 20, 12.0
STOPS = TOYS[:3]
FRAMES = 9
# As photos: the scene, what is cut out of another one, and where it is there.
SCENE, OTHER, OTHER_BOX = "toyscene:sphere:5", "toyscene:snowman:3", [0.2, 0.1, 0.9, 0.98]
PHOTO_PX = 384
TILE_PX = 176
BESIDE_DEG = 8.0
VIEWER_PX = (440, 520)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def main() -> None:
    """Make all pictures."""
    weights = load_weights()
    FOLDER.mkdir(exist_ok=True)
    _orbit(weights)
    _save("interpolation.png", _interpolation(weights), columns=FRAMES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mesh, scene, other = _mesh(folder), _photo(folder, SCENE), _photo(folder, OTHER)
        cut = {"object": other, "box": OTHER_BOX}
        edits: list[dict[str, Any]] = [
            {},
            {"insert": [{**cut, "at": [[0.5, 0.62]], "z_depth": 4.2, "scale": 1.3}]},
            {"insert": [{**cut, "at": [[0.6, 0.92]], "scale": 0.8}]},
            {"move": [{"at": [[0.75, 0.75]]}], "insert": [{"object": mesh, "at": [[0.28, 0.88]], "scale": 0.6}]},
            {"delete": [{}]},
        ]
        _save("composition.png", _composition(weights, scene, edits), columns=len(edits))
        _viewer(folder, scene)


def _photo(folder: Path, text: str) -> str:
    """A toy scene as a photo of many pixels."""
    path = folder / f"{text.split(':')[1]}.png"
    write_bytes(path, encode_png(read_picture(parse_sources([text])[0], PHOTO_PX, fit="crop").image))
    return str(path)


def _orbit(weights: LoadedWeights) -> None:
    """What the model saw, the orbit around the scene that it made of it, and that scene's disparity."""
    opened = [_open(weights, text) for text in TOYS]
    amplitude_rad = math.radians(ORBIT_DEG)
    camera = trajectory("orbit", ORBIT_FRAMES, height_px=SIZE_PX, width_px=SIZE_PX, amplitude_rad=amplitude_rad)
    views = [item.scene.render(camera, samples=SAMPLES) for item in opened]
    photos = torch.stack([item.photo for item in opened if item.photo is not None])
    inputs = functional.interpolate(photos.float(), size=SIZE_PX, mode="nearest").to(torch.uint8)
    with video_writer(DOCS / "orbit.gif", frames=ORBIT_FRAMES, fps=12, video_format="gif") as writer:
        for frame in range(ORBIT_FRAMES):
            orbit = torch.stack([view.rgb[frame] for view in views])
            disparity = torch.stack([colour_map(view.s[frame], 0.0, 0.7) for view in views])
            writer(grid(torch.cat([inputs, orbit, disparity]), columns=len(views))[None])


def _interpolation(weights: LoadedWeights) -> list[Tensor]:
    opened = [_open(weights, text) for text in STOPS]
    camera = trajectory("swing", FRAMES, height_px=SIZE_PX, width_px=SIZE_PX, amplitude_rad=math.radians(12.0))
    tiles = []
    for mix in ("codes", "planes"):
        scene_at = way_between(opened, weights, mix=mix, requantize=False, loop=False)
        for frame in range(FRAMES):
            view = scene_at(frame, FRAMES).render(camera[frame], samples=SAMPLES)
            tiles.append(view.rgb[0])
    return tiles


def _composition(weights: LoadedWeights, scene: str, edits: list[dict[str, Any]]) -> list[Tensor]:
    angles = torch.tensor([0.0, math.radians(BESIDE_DEG)])
    camera = pivot_camera(angles, torch.zeros(2), height_px=TILE_PX, width_px=TILE_PX)
    opened = _open(weights, scene)
    assert opened.photo is not None
    s = photo_relief(opened, opened.photo)
    picture = build_photo_scene(opened.field, opened.frustum, opened.photo, s, camera)
    views = []
    for edit in edits:
        composition = Composition.model_validate({"scene": scene, **edit})
        stage = build_stage(composition, opened, lambda text: _open(weights, text), picture=picture)
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


def _viewer(folder: Path, scene: str) -> None:
    """A photograph of the viewer page, if there is a browser to take it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return
    page = folder / "sphere.html"
    assert run(["export", scene, "--format", "viewer", "-o", str(page), "--quiet"]) == 0
    # Still: while things move, software rendering gives up pixels.
    shot = [
        "--headless",
        "--force-prefers-reduced-motion",
        "--no-sandbox",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ]
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
