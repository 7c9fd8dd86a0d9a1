"""Stereo: a scene seen by two eyes, side by side or as an anaglyph.

Legend: B views, H height_px, W width_px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vq3dcli.model.scene import Renderable, SceneView
from vq3dcli.rendering.cameras import Camera

StereoKind = Literal["sbs", "anaglyph"]

# How far near and far things are apart in the two images, as a part of the width: more strains the eyes.
EYE_PARALLAX = 0.03


@dataclass(frozen=True)
class StereoScene:
    """A scene whose views are pairs; see `Renderable`.

    Attributes:
        scene: What is looked at.
        kind: `sbs`: left and right image side by side, each of full width; `anaglyph`: red from the left one, green
            and blue from the right one.
        eye_distance: Between the two cameras, along x.
        focus_z: z_depth at which both images agree: what is nearer stands before the screen.
    """

    scene: Renderable
    kind: StereoKind
    eye_distance: float
    focus_z: float

    def render(self, camera: Camera, *, samples: int, rays_per_chunk: int = 512) -> SceneView:
        """Views `[B, 3, H, 2 W]` side by side, or `[B, 3, H, W]`; s is the left eye's, or both side by side."""
        left, right = (
            self.scene.render(self.eye(camera, side), samples=samples, rays_per_chunk=rays_per_chunk)
            for side in (-0.5, 0.5)
        )
        if self.kind == "sbs":
            return SceneView(*(torch.cat(pair, -1) for pair in zip(left, right, strict=True)))
        return SceneView(torch.cat([left.rgb[:, :1], right.rgb[:, 1:]], 1), left.s, left.weight_variance)

    def eye(self, camera: Camera, side: float) -> Camera:
        """The cameras of an eye, `side` eye distances to the right, its image shifted so that the focus agrees."""
        shift = side * self.eye_distance
        pose, matrix = camera.cam_to_world.clone(), camera.intrinsics.clone()
        pose[:, :3, 3] += shift * pose[:, :3, 0]
        matrix[:, 0, 2] += matrix[:, 0, 0] * shift / self.focus_z
        return Camera(pose, matrix, camera.height_px, camera.width_px)
