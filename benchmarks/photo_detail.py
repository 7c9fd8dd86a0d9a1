r"""Photo detail measured: on photos how much of them survives, on toy scenes how close novel views come to the truth.

Photos: the PSNR of the canonical view at the photo's own resolution; how well neighbouring frames of an orbit agree
(each is warped to the next by the rendered disparity, and compared where both see the same surface); how much of the
views is filled from the layer behind or mirrored at the margins; how sharp they are beside the photo. Toy scenes: PSNR
against exact novel views, of photo detail, of the same with exact disparity, and of the plain NeRF. Seconds of a CPU
core that each step takes, by the side of a square photo.

Example:
    python benchmarks/photo_detail.py --photos folder/ --count 20 --sheet /tmp/detail.png
    python benchmarks/photo_detail.py --toy 16
    python benchmarks/photo_detail.py --seconds 64 256 512
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.defaults import VIDEO_SAMPLES
from vq3dcli.data.images import encode_png, resize, to_square
from vq3dcli.data_tools.depth.models import find_model, open_model
from vq3dcli.editing.march import camera_lines, intersect
from vq3dcli.editing.photo_scene import (
    STRETCH_FADES,
    STRETCH_GONE,
    PhotoScene,
    build_photo_scene,
)
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.metrics.image import psnr
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.geometry import Geometry, open_geometry, photo_relief
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.render import Look, staged_photo
from vq3dcli.rendering.cameras import (
    Camera,
    DepthRange,
    canonical_camera,
    image_rays,
    pivot_camera,
    project,
    s_from_z_depth,
    z_depth_from_s,
)
from vq3dcli.rendering.lookup import look_up_px
from vq3dcli.rendering.scene import SceneView, ViewOf
from vq3dcli.scene_file import camera_of
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.weights_file import LoadedWeights, load_weights

FRAMES = 60
PAIRS = ((5, 6), (25, 26), (45, 46))
SAME_SURFACE_S = 0.01
TOY_PX = 128
TOY_VIEWS_DEG = ((5.0, 0.0), (-5.0, 0.0), (0.0, 4.0))
SHEET_PX = 224


def at(camera: Camera, *index: int) -> Camera:
    """Some cameras of a batch."""
    chosen = list(index)
    return Camera(camera.cam_to_world[chosen], camera.intrinsics[chosen], camera.height_px, camera.width_px)


def warping_error(first: SceneView, second: SceneView, camera: Camera, depth_range: DepthRange) -> float:
    """Root mean square of grey levels between a frame and its neighbour carried to it; `camera` has both."""
    here, there = at(camera, 1), at(camera, 0)
    rays = image_rays(here)
    points = rays.origin + z_depth_from_s(second.s.flatten(1), depth_range)[..., None] * rays.direction
    pixels, z_depth = project(there, points)
    carried = look_up_px(first.rgb[0].float(), pixels[0], mode="bicubic")
    seen = look_up_px(first.s, pixels[0])[0]
    expected = s_from_z_depth(z_depth[0], depth_range)
    size = torch.tensor([here.width_px, here.height_px])
    inside = ((pixels[0] > 1.0) & (pixels[0] < size - 1.0)).all(-1)
    same = inside & ((seen - expected).abs() < SAME_SURFACE_S)
    difference = (carried - second.rgb[0].float().flatten(1))[:, same]
    return float(difference.square().mean().sqrt())


def edge_strength(rgb: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, uint8 `[3, H, W]`."""
    values = rgb.float()
    return float(values.diff(dim=1).abs().mean() + values.diff(dim=2).abs().mean())


def shares(scene: PhotoScene, photo: Tensor, camera: Camera) -> tuple[float, float]:
    """Parts of a view that come from the layer behind, and from beyond the photo's edges."""
    lines = camera_lines(scene.camera, camera, scene.frustum.depth_range)
    hits = intersect(scene.front.s, lines)
    margin = (torch.tensor([scene.camera.width_px, scene.camera.height_px]) - torch.tensor(photo.shape[:0:-1])) / 2
    inside = (hits.pixels > margin) & (hits.pixels < margin + torch.tensor(photo.shape[:0:-1]))
    outside = ~inside.all(-1)
    behind = (hits.stretch > 0.5 * (STRETCH_FADES + STRETCH_GONE)) & ~outside
    return float(behind.float().mean()), float(outside.float().mean())


def measure_photo(path: Path, weights: LoadedWeights, geometry: Geometry, tiles: list[Tensor]) -> dict[str, Any]:
    """Figures of one photo; views for the sheet go into `tiles`."""
    opened = open_scene(parse_sources([str(path)])[0], weights, fit="squash")
    assert opened.photo is not None
    start = time.process_time()
    scene, camera, _ = staged_photo(opened, Shot("orbit", FRAMES), Look(geometry=geometry))
    built = time.process_time()
    scene = replace(scene, told_s=None)  # disparity of what is shown
    still, still_camera, _ = staged_photo(opened, Shot(view_deg=(0.0, 0.0), size_px=max(opened.photo.shape)), Look())
    canonical = psnr(still.render(still_camera).rgb, opened.photo[None])
    began = time.process_time()
    pairs = [scene.render(at(camera, *pair)) for pair in PAIRS]
    frame_s = (time.process_time() - began) / (2 * len(PAIRS))
    errors = []
    for pair, view in zip(PAIRS, pairs, strict=True):
        one, other = (SceneView(*(part[i : i + 1] for part in view)) for i in (0, 1))
        errors.append(warping_error(one, other, at(camera, *pair), opened.frustum.depth_range))
    side = FRAMES // 4
    filled, mirrored = shares(scene, opened.photo, at(camera, side))
    views = scene.render(at(camera, side, 3 * side))
    low, high = float(views.s.min()), float(views.s.max())
    for tile in (opened.photo, views.rgb[0], views.rgb[1], colour_map(views.s[0], low, max(high, low + 0.1))):
        factor = SHEET_PX / max(tile.shape[1:])
        tiles.append(resize(tile.cpu(), round(tile.shape[1] * factor), round(tile.shape[2] * factor)))
    pose = camera.cam_to_world[side]
    own = opened.frustum.camera(camera.height_px, camera.width_px).intrinsics[0, 0, 0]
    return {
        "photo": path.name,
        "size_px": [opened.photo.shape[2], opened.photo.shape[1]],
        "amplitude_deg": math.degrees(math.asin(float(pose[0, 2].abs()))),
        "zoom": float(camera.intrinsics[0, 0, 0] / own),
        "canonical_psnr": float(canonical),
        "warping_error": sum(errors) / len(errors),
        "sharpness": edge_strength(views.rgb[0]) / edge_strength(opened.photo),
        "from_behind": filled,
        "mirrored": mirrored,
        "build_cpu_s": built - start,
        "frame_cpu_s": frame_s,
    }


def measure_toy(index: int, weights: LoadedWeights) -> dict[str, float]:
    """Figures of one toy scene."""
    scene = sample_scenes(torch.tensor([index]), seed=0, purpose="eval")
    front = canonical_camera(1, height_px=TOY_PX, width_px=TOY_PX)
    exact = render_scenes(scene, front)
    image = to_square(exact.rgb[0], weights.recipe.model.image_size, fit="squash")
    nerf = reconstruct_scene(weights.model, image[None])
    opened = OpenedScene(nerf, exact.rgb[0], "toy", camera_of(weights), {})
    yaw, pitch = (torch.tensor([view[i] for view in TOY_VIEWS_DEG]) * math.pi / 180.0 for i in (0, 1))
    camera = pivot_camera(yaw, pitch, height_px=TOY_PX, width_px=TOY_PX)
    several = scene.select(torch.zeros(len(yaw), dtype=torch.int64))
    truth = render_scenes(several, camera)
    relief = photo_relief(opened, exact.rgb[0])
    detail, known_scene = (build_photo_scene(opened.frustum, exact.rgb[0], s, camera) for s in (relief, exact.s[0]))
    candidates: dict[str, ViewOf] = {
        "detail": detail.render,
        "detail_exact_disparity": known_scene.render,
        "nerf": partial(nerf.render, samples=32),
    }
    figures = {name: float(psnr(view_of(camera).rgb, truth.rgb).mean()) for name, view_of in candidates.items()}
    figures["unmoved_photo"] = float(psnr(exact.rgb.expand_as(truth.rgb), truth.rgb).mean())
    # Where the photo's camera did not look: what is filled.
    errors = []
    for i, view in enumerate(known_scene.render(camera).rgb):
        lines = camera_lines(known_scene.camera, camera[i], opened.frustum.depth_range)
        hits = intersect(known_scene.front.s, lines)
        gone = (hits.stretch > STRETCH_GONE).reshape(TOY_PX, TOY_PX)
        if gone.any():
            errors.append(float((view.float() - truth.rgb[i].float())[:, gone].square().mean()))
    if errors:
        figures["filled_rms"] = math.sqrt(sum(errors) / len(errors))
    return figures


def measure_seconds(side_px: int, weights: LoadedWeights) -> dict[str, float]:
    """Process time of each step for a square photo of a toy scene."""
    photo = render_scenes(
        sample_scenes(torch.tensor([0]), seed=0, purpose="eval"),
        canonical_camera(1, height_px=side_px, width_px=side_px),
    ).rgb[0]
    image = to_square(photo, weights.recipe.model.image_size, fit="squash")[None]
    nerf = reconstruct_scene(weights.model, image)  # the first call also warms up
    began = time.process_time()
    nerf = reconstruct_scene(weights.model, image)
    reconstructed = time.process_time()
    opened = OpenedScene(nerf, photo, "toy", camera_of(weights), {})
    scene, camera, _ = staged_photo(opened, Shot("orbit", FRAMES, size_px=side_px), Look())
    built = time.process_time()
    scene.render(at(camera, *PAIRS[0]))
    shown = time.process_time()
    nerf.render(camera[0], samples=VIDEO_SAMPLES)
    return {
        "side_px": float(side_px),
        "reconstruct_cpu_s": reconstructed - began,
        "build_cpu_s": built - reconstructed,
        "frame_cpu_s": (shown - built) / len(PAIRS[0]),
        "nerf_frame_cpu_s": time.process_time() - shown,
    }


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each figure, over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0, help="leave the first ones out, to measure in parts")
    parser.add_argument("--sheet", type=Path, help="write photo, two views and disparity of each here")
    parser.add_argument("--toy", type=int, default=0)
    parser.add_argument("--seconds", type=int, nargs="+", default=[], metavar="SIDE_PX")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--geometry", choices=("nerf", "teacher", "both"), help="of photos")
    parser.add_argument("--network", type=Path, help="what vq3d train-depth made, instead of the embedded network")
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    if arguments.network is not None:
        own = open_model(find_model(str(arguments.network)), torch.device("cpu"), flip=True)
        geometry = Geometry(arguments.geometry or "both", own)
    else:
        geometry = open_geometry(arguments.geometry, torch.device("cpu"))
    tiles: list[Tensor] = []
    if arguments.photos is not None:
        paths = sorted(p for p in arguments.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        count = min(arguments.count, len(paths))
        rows = []
        for path in [paths[i * len(paths) // count] for i in range(count)][arguments.skip :]:
            rows.append(measure_photo(path, weights, geometry, tiles))
            print(json.dumps(rows[-1]), flush=True)
            if arguments.sheet is not None:
                write_bytes(arguments.sheet, encode_png(grid(tiles, columns=4)))
        report("photos", rows)
    if arguments.toy:
        report("toy scenes", [measure_toy(index, weights) for index in range(arguments.toy)])
    for side_px in arguments.seconds:
        print(json.dumps(measure_seconds(side_px, weights)), flush=True)


def report(what: str, rows: list[dict[str, Any]]) -> None:
    """Print the means."""
    print(json.dumps({"of": what, "count": len(rows), "mean": means(rows), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
