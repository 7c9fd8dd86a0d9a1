"""Write docs/orbit.gif, the README's first picture: `python docs/make_orbit_gif.py`.

Rows: what the model saw, the orbit around the scene that it made of it, and that scene's disparity.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional

from vq3dcli.checkpoint import load_weights
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.export.video import video_writer
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.inputs import parse_sources, read_picture
from vq3dcli.rendering.trajectories import trajectory

PATH = Path(__file__).resolve().parent / "orbit.gif"
INPUTS = ("toyscene:mushroom:1", "toyscene:arch:2", "toyscene:snowman:3", "toyscene:tower:4", "toyscene:cone:5")
FRAMES = 20
SIZE_PX = 96
AMPLITUDE_DEG = 12.0


def main() -> None:
    """Render the scenes and write the GIF."""
    weights = load_weights()
    size = weights.recipe.model.image_size
    pictures = [read_picture(source, size, fit="crop").image for source in parse_sources(INPUTS)]
    camera = trajectory("orbit", FRAMES, height_px=SIZE_PX, width_px=SIZE_PX, amplitude_rad=math.radians(AMPLITUDE_DEG))
    views = [reconstruct_scene(weights.model, picture[None]).render(camera, samples=64) for picture in pictures]
    shown = torch.stack([functional.interpolate(p[None].float(), size=SIZE_PX, mode="nearest")[0] for p in pictures])
    inputs = shown.round().to(torch.uint8)
    with video_writer(PATH, frames=FRAMES, fps=12, video_format="gif") as writer:
        for frame in range(FRAMES):
            orbit = torch.stack([view.rgb[frame] for view in views])
            disparity = torch.stack([colour_map(view.s[frame], 0.0, 0.7) for view in views])
            writer.write(grid(torch.cat([inputs, orbit, disparity]), columns=len(pictures))[None])


if __name__ == "__main__":
    main()
