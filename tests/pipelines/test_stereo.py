"""Which eye sees what: crossed disparity before the screen, uncrossed behind it, red to the left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq3dcli.pipelines.film import Eyes
from vq3dcli.rendering.cameras import Camera, canonical_camera, project
from vq3dcli.rendering.scene import SceneView

FOCUS_Z = 3.0


class _Post:
    """A white post, one pixel wide, at a z_depth of the canonical camera."""

    def __init__(self, z_depth: float) -> None:
        self.point = torch.tensor([[[0.0, 0.0, z_depth - 3.0]]])

    def render(self, camera: Camera) -> SceneView:
        pixels, _ = project(camera, self.point)
        s = torch.zeros(1, camera.height_px, camera.width_px)
        s[..., int(pixels[0, 0, 0])] = 1.0
        return SceneView((s[:, None] * 255).to(torch.uint8).expand(-1, 3, -1, -1), s, s)


def _column(image: Tensor) -> int:
    """Where the post stands in `[H, W]`."""
    return int(image[0].argmax())


@pytest.mark.parametrize("z_depth", [2.0, 8.0])
def test_near_things_stand_further_right_for_the_left_eye(z_depth: float) -> None:
    camera = canonical_camera(1, height_px=4, width_px=100)
    seen = {kind: Eyes(kind, 0.4, FOCUS_Z).see(_Post(z_depth).render)(camera) for kind in ("sbs", "anaglyph")}
    pair = seen["sbs"].rgb[0]
    assert pair.shape == (3, 4, 200)
    left, right = _column(pair[0, :, :100]), _column(pair[0, :, 100:])
    assert (left > right) == (z_depth < FOCUS_Z)
    # A pinhole's disparity: focal length times baseline times the difference of inverse depths.
    shift = float(camera.intrinsics[0, 0, 0]) * 0.4 * (1 / z_depth - 1 / FOCUS_Z)
    assert left - right == pytest.approx(shift, abs=1.01)
    red, green, blue = seen["anaglyph"].rgb[0]
    assert (_column(red), _column(green), _column(blue)) == (left, right, right)
    assert _column(seen["anaglyph"].s[0]) == _column(seen["sbs"].s[0]) == left
