"""Procedural scenes with exact disparity; `render.py` says how they are made."""

from vq3dcli.toyscenes.layout import CLASS_NAMES, ToyScenes, sample_scenes
from vq3dcli.toyscenes.render import ToyViews, render_scenes
from vq3dcli.toyscenes.varied import sample_varied_scenes

__all__ = ["CLASS_NAMES", "ToyScenes", "ToyViews", "render_scenes", "sample_scenes", "sample_varied_scenes"]
