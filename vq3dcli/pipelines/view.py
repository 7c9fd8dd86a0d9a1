"""A scene to look around in while it is rendered: small pictures as the camera moves, whole ones where it rests.

`view_server` shows it as a page. Legend: H height_px, W width_px.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_SAMPLES
from vq3dcli.errors import UsageError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.video import video_writer
from vq3dcli.files import cut_name, make_folder
from vq3dcli.pipelines.camera_file import MOST_CAMERAS, write_cameras
from vq3dcli.pipelines.export import Wish, wished_photo_scene
from vq3dcli.pipelines.export_layers import Vantage, turned_cameras
from vq3dcli.pipelines.film import MAX_SIZE_PX, check_limits, output_size
from vq3dcli.pipelines.inputs import OpenedScene, parse_sources
from vq3dcli.pipelines.render import DETAIL_SIZE_PX, Detail, Look, with_geometry
from vq3dcli.pipelines.targets import Task, refuse_stdout
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import SceneView
from vq3dcli.rendering.trajectories import PATHS
from vq3dcli.weights_file import LoadedWeights

# The longer side while the camera moves, and of the plain NeRF where it rests; samples a ray while it moves.
MOVING_PX, PLAIN_PX = 192, 512
_MOVING_SAMPLES = 64
MOST_ZOOM = 4.0
# Rows after which somebody may have moved the camera on.
_BAND_PX = 64
# What the page rounds may lie this much beyond the bound.
_ROUNDING_RAD = 1e-6
_log = logging.getLogger(__name__)


class Gaze(BaseModel):
    """Whence and how one looks; the page sends it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    yaw: float = Field(ge=-math.pi, le=math.pi)  # to the right around the pivot, in radians
    pitch: float = Field(ge=-math.pi, le=math.pi)  # up
    zoom: float = Field(default=1.0, ge=1.0, le=MOST_ZOOM)  # how much closer than at first
    detail: Detail
    disparity: bool = False  # whether disparity is shown instead of colours


class Way(NamedTuple):
    """One of the ways to show a scene."""

    render: Callable[[Camera, bool], SceneView]  # what a camera sees; the second argument says whether it moves
    vantage: Vantage
    size: tuple[int, int]  # height and width where it rests
    in_bands: bool  # whether parts of a picture are the same as in the whole one
    shown: tuple[float, float]  # the range of s that the colours of disparity span


@dataclass(frozen=True)
class LiveScene:
    """A scene, the ways to show it (the first one at first), and where what one saves of it goes."""

    opened: OpenedScene
    ways: dict[Detail, Way]
    folder: Path
    weights: LoadedWeights | None

    def facts(self) -> dict[str, Any]:
        """What the page must know, as JSON values."""
        return {
            "bounds_rad": {detail: way.vantage.bound_rad for detail, way in self.ways.items()},
            "most_zoom": MOST_ZOOM,
            "fps": VIDEO_FPS,
            "most_cameras": MOST_CAMERAS,
        }

    def picture(self, gaze: Gaze, *, whole: bool, wanted: Callable[[], bool] = lambda: True) -> Tensor | None:
        """What is seen, uint8 `[3, H, W]`: whole, or small and at once; None when it is `wanted` no more.

        Raises `UsageError`: see `camera`.
        """
        way, camera = self.ways[self._known(gaze)], self.camera(gaze, whole=whole)
        rows = _BAND_PX if whole and way.in_bands else camera.height_px
        views = []
        for top in range(0, camera.height_px, rows):
            if not wanted():
                return None
            views.append(way.render(_band(camera, top, rows), not whole))
        if gaze.disparity:
            return colour_map(torch.cat([view.s[0] for view in views]), *way.shown)
        return torch.cat([view.rgb[0] for view in views], 1)

    def camera(self, gaze: Gaze, *, whole: bool = True) -> Camera:
        """The camera of a gaze. Raises `UsageError`: it lies beyond the bound, or there is no such detail."""
        way = self.ways[self._known(gaze)]
        bound_rad, angle_rad = way.vantage.bound_rad, math.hypot(gaze.yaw, gaze.pitch)
        if angle_rad > bound_rad + _ROUNDING_RAD:
            raise UsageError(f"the camera turns by {angle_rad:.3f} rad, at most {bound_rad:.3f}")
        size = way.size
        if not whole and max(size) > MOVING_PX:
            size = output_size(MOVING_PX, self.opened.frustum.aspect)
        turns = [(gaze.yaw / bound_rad, gaze.pitch / bound_rad)]
        camera = turned_cameras(self.opened.frustum, way.vantage, turns, size)
        camera.intrinsics[:, :2, :2] *= way.vantage.zoom * gaze.zoom
        return camera

    def save_still(self, gaze: Gaze) -> Path:
        """Save the whole picture as a PNG of a new name. Raises `UsageError`: see `camera`."""
        picture = self.picture(gaze, whole=True)
        assert picture is not None
        path = self._free_name("_view", ".png")
        with video_writer(path, frames=1, fps=VIDEO_FPS, video_format="png") as write:
            write(picture[None])
        _log.info("saved %s", path)
        return path

    def save_path(self, gazes: Sequence[Gaze]) -> Path:
        """Save cameras, `VIDEO_FPS` a second, as what `vq3d render --path` reads. Raises as `save_still` does."""
        cameras = [self.camera(gaze) for gaze in gazes]
        poses, matrices = (
            torch.cat(parts) for parts in zip(*((c.cam_to_world, c.intrinsics) for c in cameras), strict=True)
        )
        path = self._free_name("_cameras", ".json")
        write_cameras(path, replace(cameras[0], cam_to_world=poses, intrinsics=matrices), fps=VIDEO_FPS)
        _log.info("saved %s: vq3d render INPUT --path %s", path, path)
        return path

    def _known(self, gaze: Gaze) -> Detail:
        if gaze.detail not in self.ways:
            raise UsageError(f"there is no detail {gaze.detail!r} here")
        return gaze.detail

    def _free_name(self, kind: str, suffix: str) -> Path:
        make_folder(self.folder)
        stem = cut_name(self.opened.stem)
        names = (self.folder / f"{stem}{kind}_{number}{suffix}" for number in itertools.count(1))
        return next(path for path in names if not path.exists() and not path.is_symlink())


def open_live(text: str, look: Look, task: Task, *, size_px: int | None, amplitude_deg: float | None) -> LiveScene:
    """Open an input to look around in: a photo with its own pixels and as the plain NeRF, all else as the NeRF.

    `look` may leave the photo's own pixels out, and the output of `task` is a folder.
    """
    refuse_stdout(task.output, "view")
    check_limits((("--size", size_px, 16, MAX_SIZE_PX), ("--amplitude", amplitude_deg, 0.5, 60.0)))
    (source,) = parse_sources([text])
    look = with_geometry(look, [source], task)
    loaded = task.load([source])
    opened = look.open(source, loaded, task.device)
    detail, aspect = look.detail_of(source), opened.frustum.aspect
    ways: dict[Detail, Way] = {}
    vantage = Vantage(0.0, opened.frustum.radius)
    if detail == "photo" and opened.has_detail and opened.photo is not None:
        size = output_size(size_px or min(DETAIL_SIZE_PX, max(opened.photo.shape[1:])), aspect)
        wish = Wish("viewer", amplitude_deg=amplitude_deg, geometry=look.geometry)
        photo, vantage = wished_photo_scene(opened, wish, size)
        assert photo is not None
        shown = display_range(photo.front.s if photo.told_s is None else photo.told_s)
        ways["photo"] = Way(lambda camera, _: photo.render(camera), vantage, size, False, shown)
    # From the same cameras, so that one can compare; only their bound is that of the plain NeRF.
    vantage = vantage._replace(bound_rad=math.radians(PATHS["orbit"] if amplitude_deg is None else amplitude_deg))
    size = output_size(size_px or PLAIN_PX, aspect)

    def render(camera: Camera, moving: bool) -> SceneView:
        return opened.scene.render(camera, samples=_MOVING_SAMPLES if moving else VIDEO_SAMPLES)

    shown = display_range(render(opened.frustum.camera(MOVING_PX, MOVING_PX), True).s[0])
    ways["none"] = Way(render, vantage, size, True, shown)
    return LiveScene(opened, ways, Path(task.output or "."), loaded)


def _band(camera: Camera, top: int, rows: int) -> Camera:
    """A camera that sees only some rows of another's picture."""
    matrix = camera.intrinsics.clone()
    matrix[:, 1, 2] -= top
    return replace(camera, intrinsics=matrix, height_px=min(rows, camera.height_px - top))
