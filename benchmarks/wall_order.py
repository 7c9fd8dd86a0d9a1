"""What the rank correlation of toy scenes with a wall lacks: the wall's distance, its slope, or its smoothness.

Rendered disparity of the scenes of `evaluate geometry`, and what its Spearman becomes when a part of it is replaced by
the truth. Slopes of walls are changes of s over the picture's side, of a plane that is fitted to the wall's pixels.

Example:
    python benchmarks/wall_order.py --weights run/
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.metrics.geometry import spearman
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.geometry import SCENES_PER_BATCH
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.weights_file import load_weights

SIZE_PX = 64
FAR_BELOW_M = 500.0
SAME_S = 1e-4


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="default: the embedded ones")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    model = load_weights(options.weights).model
    rendered, true, wall = [], [], []
    for part in torch.arange(options.count).split(SCENES_PER_BATCH):
        rgb, s, is_wall = walls(part)
        scene = reconstruct_scene(model, rgb)
        camera = canonical_camera(len(part), height_px=SIZE_PX, width_px=SIZE_PX)
        with torch.inference_mode():
            rendered.append(scene.render(camera, samples=EVALUATION_SAMPLES).s)
        true.append(s)
        wall.append(is_wall)
    print(json.dumps(figures(torch.cat(rendered), torch.cat(true), torch.cat(wall)), indent=1))


def walls(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 `[B, 3, H, W]` of evaluation scenes, their s `[B, H, W]`, and which pixels are the wall's."""
    scenes = sample_scenes(index, seed=0, purpose="eval")
    camera = canonical_camera(len(index), height_px=SIZE_PX, width_px=SIZE_PX)
    exact = render_scenes(scenes, camera)
    below = scenes.objects.foot + torch.tensor([0.0, FAR_BELOW_M, 0.0])
    bare = replace(scenes, objects=replace(scenes.objects, foot=below), ground_y=scenes.ground_y + 0.9 * FAR_BELOW_M)
    is_wall = (exact.s - render_scenes(bare, camera).s).abs() < SAME_S
    return exact.rgb, exact.s, is_wall & scenes.has_wall[:, None, None]


def figures(s: Tensor, true: Tensor, wall: Tensor) -> dict[str, object]:
    """Rank correlations with parts replaced, and how slopes agree with the true ones over scenes."""
    with_wall = wall.any((1, 2)).nonzero()[:, 0].tolist()
    across = torch.linspace(0.0, 1.0, SIZE_PX)
    places = torch.stack(torch.meshgrid(across, across, indexing="ij")[::-1], -1)
    versions = {name: s.clone() for name in ("wall_exact", "own_mean_exact_shape", "exact_mean_own_shape", "own_plane")}
    slopes = []
    for i in with_wall:
        on = wall[i]
        own, exact = s[i][on], true[i][on]
        plane = torch.cat([torch.ones_like(own)[:, None], places[on]], 1)
        fitted, truly = (torch.linalg.lstsq(plane, values[:, None]).solution[:, 0] for values in (own, exact))
        versions["wall_exact"][i][on] = exact
        versions["own_mean_exact_shape"][i][on] = exact - exact.mean() + own.mean()
        versions["exact_mean_own_shape"][i][on] = own - own.mean() + exact.mean()
        versions["own_plane"][i][on] = plane @ fitted
        slopes.append(torch.stack([fitted[1:], truly[1:]]))
    ranks, chosen = spearman(s, true), torch.zeros(len(s), dtype=torch.bool)
    chosen[with_wall] = True
    found: dict[str, object] = {
        "spearman": float(ranks.mean()),
        "spearman_wall": float(ranks[chosen].mean()),
        "spearman_sky": float(ranks[~chosen].mean()),
    }
    found |= {f"spearman_{name}": float(spearman(changed, true).mean()) for name, changed in versions.items()}
    for axis, name in enumerate(("x", "y")):
        own, exact = torch.stack(slopes)[..., axis].unbind(1)
        found[f"slope_{name}"] = {
            "true_std": float(exact.std()),
            "error_rms": float((own - exact).square().mean().sqrt()),
            "correlation": float(torch.corrcoef(torch.stack([own, exact]))[0, 1]),
        }
    return found


if __name__ == "__main__":
    main()
