r"""What weights make of photos that they never saw: sheets to judge geometry by eye, blind for several weights.

A row a photo and weights: photo, reconstruction, disparity, and five views from -20 to 20 degrees of yaw. Of several
weights the rows of a photo come in random order; `key.json` says which is which, to be read after counting. A map is
plausible where the object stands before its background and the ground comes nearer downwards.

Beside them, figures that need no truth: PSNR of the reconstruction, spread of disparity, how much nearer the lower
third of a photo is than the upper one and its middle than its border, weight variance.

Example:
    python benchmarks/photo_geometry.py --photos folder/ --weights old.safetensors new.safetensors --out judged/
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.data.images import encode_png, resize
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.sheet import grid
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.metrics.image import psnr
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.image_sets import folder_set
from vq3dcli.rendering.cameras import canonical_camera, pivot_camera
from vq3dcli.rendering.scene import SceneView
from vq3dcli.seeding import generator
from vq3dcli.weights_file import LoadedWeights, load_weights

YAWS_DEG = (-20.0, -10.0, 0.0, 10.0, 20.0)
TILE_PX = 128
PHOTOS_A_SHEET = 10
BATCH = 20


def main() -> None:
    """Write the sheets, the key and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, nargs="+", default=[None], help="default: the embedded ones")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--samples", type=int, default=64, help="a ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make_folder(options.out)
    rows: list[list[list[Tensor]]] = []
    figures = {}
    for path in options.weights:
        weights = load_weights(path)
        size = weights.recipe.model.image_size
        photos = torch.cat(
            list(folder_set("photos", options.photos, size_px=size, count=options.count, seed=options.seed).batches())
        )
        found, figures[str(path or "embedded")] = look(weights, photos, options.samples)
        rows.append(found)
    count, several = len(rows[0]), len(rows)
    orders = [torch.randperm(several, generator=generator(options.seed, "order", i)).tolist() for i in range(count)]
    for start in range(0, count, PHOTOS_A_SHEET):
        tiles, labels = [], []
        for photo in range(start, min(start + PHOTOS_A_SHEET, count)):
            for letter, weights_number in zip("ABCDEFGH", orders[photo], strict=False):
                tiles += rows[weights_number][photo]
                labels += [f"{photo}{letter if several > 1 else ''}", "rebuilt", "disparity"]
                labels += [f"{yaw:+.0f} degrees" for yaw in YAWS_DEG]
        sheet = grid(tiles, columns=3 + len(YAWS_DEG), labels=labels)
        write_bytes(options.out / f"photos_{start:03d}.png", encode_png(sheet))
    names = list(figures)
    key = {
        f"{i}{letter}": names[n] for i, order in enumerate(orders) for letter, n in zip("ABCDEFGH", order, strict=False)
    }
    write_bytes(options.out / "key.json", json.dumps(key, indent=1).encode())
    write_bytes(options.out / "figures.json", json.dumps(figures, indent=1).encode())
    print(json.dumps(figures, indent=1))


def look(weights: LoadedWeights, photos: Tensor, samples: int) -> tuple[list[list[Tensor]], dict[str, float]]:
    """The tiles of each photo's row, and figures over all photos uint8 `[N, 3, S, S]`."""
    size, fov_rad = photos.shape[-1], math.radians(weights.recipe.camera.fov_deg)
    cameras = pivot_camera(
        torch.tensor(YAWS_DEG).deg2rad(), torch.zeros(len(YAWS_DEG)), height_px=size, width_px=size, fov_rad=fov_rad
    )
    rows, views = [], []
    for part in photos.split(BATCH):
        scenes = reconstruct_scene(weights.model, part)
        seen = scenes.render(
            canonical_camera(len(part), height_px=size, width_px=size, fov_rad=fov_rad), samples=samples
        )
        views.append(seen)
        for number, photo in enumerate(part):
            swept = scenes[number].render(cameras, samples=samples)
            colours = colour_map(seen.s[number], *display_range(seen.s[number]))
            tiles = [photo, seen.rgb[number], colours, *swept.rgb]
            rows.append([resize(tile, TILE_PX, TILE_PX) for tile in tiles])
    return rows, figures_of(SceneView(*(torch.cat(parts) for parts in zip(*views, strict=True))), photos)


def figures_of(seen: SceneView, photos: Tensor) -> dict[str, float]:
    """Means over photos of what needs no truth; disparities are s."""
    s, third = seen.s, seen.s.shape[-1] // 3
    middle = s[:, third:-third, third:-third].mean((1, 2))
    sides = torch.cat([s[:, third:-third, :third], s[:, third:-third, -third:]], -1).mean((1, 2))
    lower_minus_upper = s[:, -third:].mean((1, 2)) - s[:, :third].mean((1, 2))
    return {
        "psnr": float(psnr(seen.rgb, photos).mean()),
        "s_mean": float(s.mean()),
        "s_std": float(s.flatten(1).std(1).mean()),
        "lower_minus_upper": float(lower_minus_upper.mean()),
        "lower_nearer_share": float((lower_minus_upper > 0).float().mean()),
        "middle_minus_sides": float((middle - sides).mean()),
        "middle_nearer_share": float((middle > sides).float().mean()),
        "weight_variance": float(seen.weight_variance.mean()),
    }


if __name__ == "__main__":
    main()
