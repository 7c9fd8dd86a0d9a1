"""Make the pictures of docs/gallery.md and of README's table with the embedded weights: `make gallery`.

One picture of cars is of a prior that is not in the package: `python docs/make_gallery.py PRIOR` makes it, too.
Needs trimesh, scikit-image for its CC0 photos, and Chromium for the picture of the viewer. Where a thing must be known
exactly a toy scene, drawn with many pixels, stands for a photo.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
import trimesh
from PIL import Image

import vq3d
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.inputs import parse_sources, read_picture

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "gallery"
PHOTOS = Path(skimage.data.__file__).parent
TILE_PX, PHOTO_PX, GAP_PX = 128, 384, 2
# Seen from the side by so much: scenes of our own, and photos, whose own orbits go as far.
BESIDE_DEG, PHOTO_DEG = 12.0, 4.0
SAMPLED = "elephant,horse,ship,car,chair,temple,person,torus,mushroom,arch"
CARS = 8
CAR_SIDES_DEG = (-BESIDE_DEG, 0.0, BESIDE_DEG)
STOPS = ["toyscene:torus:3", "toyscene:snowman:3"]
FRAMES = 7
# The scene and its ball; what is cut out of another one, and where it is there.
SCENE, BALL = "sphere:5", (0.12, 0.38, 0.66, 0.92)
OTHER, OTHER_BOX = "snowman:3", (0.2, 0.1, 0.9, 0.98)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SHOT = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SHOT += ["--force-prefers-reduced-motion", "--virtual-time-budget=5000", "--window-size=420,330"]

Tiles = list[Image.Image]


def main() -> None:
    """Make all pictures."""
    model = vq3d.load()
    FOLDER.mkdir(exist_ok=True)
    save("samples", *sampled(model, SAMPLED))
    save("cars", *sampled(model, "car", CAR_SIDES_DEG, CARS))
    for prior in sys.argv[1:]:
        racing = vq3d.load(prior=prior)
        save("racing-cars", *sampled(racing, ",".join(racing.classes[:CARS]), CAR_SIDES_DEG))
    cat = model.reconstruct(PHOTOS / "chelsea.png")
    save("reconstruction", *(reconstructed(model.reconstruct(PHOTOS / name)) for name in ("rocket.jpg", "coffee.png")))
    first, last = model.reconstruct(list(STOPS))
    way = vq3d.interpolate(first, last)
    steps = [(way.at(i / (FRAMES - 1)), BESIDE_DEG * (2 * i / (FRAMES - 1) - 1)) for i in range(FRAMES)]
    views = [scene.view(yaw=yaw, size=TILE_PX) for scene, yaw in steps]
    save("interpolation", [view.image for view in views], [coloured(view) for view in views])
    with tempfile.TemporaryDirectory() as folder:
        save("manipulation", *manipulated(model, Path(folder)))
    save("depth-loss", *depth_loss())
    page = FOLDER / "cat.html"
    cat.export(page, size=PHOTO_PX)
    photograph(page)


def sampled(
    model: vq3d.Model, classes: str, sides_deg: Sequence[float] = (0.0, BESIDE_DEG), each: int = 1
) -> list[Tiles]:
    """Samples of each class, not chosen: seen from these sides, and their disparity from the front."""
    scenes = model.sample(classes, n=each, seed=0)
    sides = [[scene.view(yaw=yaw, size=TILE_PX) for scene in scenes] for yaw in sides_deg]
    front = sides[list(sides_deg).index(0.0)]
    return [*([view.image for view in side] for side in sides), [coloured(view) for view in front]]


def reconstructed(scene: vq3d.Scene) -> Tiles:
    """A photo, two novel views, and its disparity."""
    left, front, right = (scene.view(yaw=yaw, size=PHOTO_PX // 2) for yaw in (-PHOTO_DEG, 0.0, PHOTO_DEG))
    return [front.image, left.image, right.image, coloured(front)]


def manipulated(model: vq3d.Model, folder: Path) -> list[Tiles]:
    """A scene, and edits of it, from the front and from the side."""
    scene, other = (model.reconstruct(as_photo(folder, name)) for name in (SCENE, OTHER))
    ring = trimesh.creation.torus(1.0, 0.3)
    ring.visual.vertex_colors = [235, 185, 60, 255]
    ring.export(folder / "ring.glb")
    moved = vq3d.compose(scene, move={BALL: (0.75, 0.75)})
    edits = [
        scene,
        vq3d.compose(scene, other, box=OTHER_BOX, at=(0.5, 0.62), distance=4.2, scale=1.3),
        vq3d.compose(scene, other, box=OTHER_BOX, at=(0.6, 0.92), scale=0.8),
        vq3d.compose(moved, folder / "ring.glb", at=(0.28, 0.88), scale=0.6),
        vq3d.compose(scene, delete=[BALL]),
    ]
    return [[edit.view(yaw=yaw, size=TILE_PX).image for edit in edits] for yaw in (0.0, PHOTO_DEG * 2)]


def as_photo(folder: Path, name: str) -> Path:
    """A toy scene as a photo of many pixels."""
    path = folder / f"{name.replace(':', '-')}.png"
    write_bytes(path, encode_png(read_picture(parse_sources([f"toyscene:{name}"])[0], PHOTO_PX, fit="crop").image))
    return path


def depth_loss() -> list[Tiles]:
    """Of the figure of `vq3d evaluate ablation`, which takes an hour to make: input, both losses, and the truth."""
    figure = Image.open(DOCS / "notes" / "ablation" / "ablation.webp").convert("RGB")
    side, step, top = 128, 130, (16, 160, 304)
    columns = (0, 1, 4, 7)
    return [[figure.crop((2 + c * step, y, 2 + c * step + side, y + side)) for c in columns] for y in top[1:]]


def coloured(view: vq3d.View) -> Image.Image:
    """The disparity of a view as a picture."""
    s = torch.from_numpy(view.disparity)
    return Image.fromarray(np.asarray(colour_map(s, 0.0, max(0.3, float(s.max()))).permute(1, 2, 0)))


def save(name: str, *rows: Tiles) -> None:
    """Tiles of one size a row to `gallery/NAME.webp`."""
    width = max(sum(tile.width + GAP_PX for tile in row) for row in rows) - GAP_PX
    picture = Image.new("RGB", (width, sum(row[0].height + GAP_PX for row in rows) - GAP_PX), "white")
    y = 0
    for row in rows:
        x = 0
        for tile in row:
            picture.paste(tile, (x, y))
            x += tile.width + GAP_PX
        y += row[0].height + GAP_PX
    picture.save(FOLDER / f"{name}.webp", quality=80, method=6)


def photograph(page: Path) -> None:
    """The viewer's page in a browser, if there is one."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "viewer.png"
        command = [browser, *SHOT, f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        save("viewer", [Image.open(shot).convert("RGB")])


if __name__ == "__main__":
    main()
