"""What can be looked at and filmed: `Scene`.

Legend: H height_px, W width_px.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vq3d.words import in_own_words
from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_SAMPLES
from vq3dcli.errors import UsageError
from vq3dcli.export.video import Quality
from vq3dcli.model.scene import Scene as Nerf
from vq3dcli.pipelines.compose import Opened
from vq3dcli.pipelines.export import ExportFormat, export_scene, plan_wish
from vq3dcli.pipelines.film import Shot, StereoKind, check_shot, film, shot_of
from vq3dcli.pipelines.geometry import NERF, Geometry, GeometryName, open_geometry
from vq3dcli.pipelines.inputs import STDIN, OpenedScene, Source
from vq3dcli.pipelines.render import Detail, Look, staged
from vq3dcli.pipelines.targets import Disparity, Task, adding, check_targets, plan_targets
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import ViewOf
from vq3dcli.weights_file import LoadedWeights

OnFrame = Callable[[int, int], object]
"""Called with how many frames are done, and of how many."""

ViewAt = Callable[[int], ViewOf]
"""What is filmed in a frame."""


@dataclass(frozen=True, repr=False, eq=False)
class View:
    """What one camera sees.

    Attributes:
        image: The picture, RGB, H x W pixels.
        disparity: float32 `[H, W]` in [0, 1]: 1 at the near plane, 0 infinitely far (`s` of docs/conventions.md).

    >>> import vq3d
    >>> view = vq3d.load().reconstruct("toyscene:snowman").view(size=32)
    >>> view, view.disparity.shape
    (View(32 x 32 px), (32, 32))
    """

    image: Image.Image
    disparity: NDArray[np.float32]

    def __repr__(self) -> str:
        return f"View({self.image.width} x {self.image.height} px)"


class Film(ABC):
    """What can be filmed."""

    name: str
    _source: Source

    @in_own_words
    def save_video(
        self,
        path: str | Path,
        *,
        camera: str | Path = "orbit",
        frames: int | None = None,
        seconds: float | None = None,
        fps: float = VIDEO_FPS,
        size: int | None = None,
        aspect: str | None = None,
        fov: float | None = None,
        amplitude: float | None = None,
        samples: int = VIDEO_SAMPLES,
        quality: Quality = "good",
        disparity: Disparity = False,
        stereo: StereoKind | None = None,
        on_frame: OnFrame = lambda done, total: None,
    ) -> list[Path]:
        """Film it; the files that were written.

        Args:
            path: `NAME.mp4`, `.webm` or `.gif`; `.png`, a contact sheet; without suffix a folder of PNG frames.
            camera: `orbit`, `swing`, `spiral`, `dolly`, `dolly-zoom`, `still`, or a JSON file of cameras.
            frames: Of the video, which loops; default: 60. A file of cameras has its own number.
            seconds: The same in seconds.
            fps: Frames a second.
            size: Longer side in pixels; default: the photo's, at most 1024, or 256 without photo detail.
            aspect: Shape of the video, as `9:16` or `1:1`, cut out of the middle; default: that of the photo.
            fov: Field of view in degrees; default: the model's.
            amplitude: How far the camera goes, in degrees; default: what suits the scene.
            samples: Samples a ray of the plain NeRF.
            quality: Of mp4 and webm: `small`, `good` or `best`.
            disparity: True also writes `NAME_disparity`, where near is bright; `beside` shows it on the right.
            stereo: `sbs`, left and right view side by side, or `anaglyph`.
            on_frame: Called with frames done and all frames.

        Raises:
            Vq3dError: A value out of range; a file that cannot be read or written.

        >>> import vq3d
        >>> scene = vq3d.load().reconstruct("toyscene:snowman")
        >>> scene.save_video("orbit.gif", frames=2, size=32, disparity=True)
        [PosixPath('orbit.gif'), PosixPath('orbit_disparity.gif')]
        """
        of_video: dict[str, Any] = {"frames": frames, "seconds": seconds, "fps": fps, "aspect": aspect}
        of_view: dict[str, Any] = {"size_px": size, "fov_deg": fov, "samples": samples, "quality": quality}
        shot = shot_of(str(camera), amplitude, **of_video, **of_view)
        place = str(path) if Path(path).suffix else f"{path}/"
        task = Task(torch.device("cpu"), place, disparity=disparity)
        (target,) = plan_targets([self._source], task, path="video")
        check_shot(shot, target.video_format)
        check_targets([target])
        view_at, cameras = self._staged(shot, stereo)
        count = adding(lambda done, total, _: on_frame(done, total), shot.length)
        film(view_at, cameras, target, shot, on_frames=count)
        return target.paths

    @abstractmethod
    def _staged(self, shot: Shot, stereo: StereoKind | None) -> tuple[ViewAt, Camera]:
        """What is filmed in each frame, and the cameras that film it."""


class Scene(Film):
    """A 3D scene: a photo's, a sample's, a saved one, or one with things put into it.

    Attributes:
        name: What it is called after: the photo's file, the sample.
        nerf: The NeRF itself, with its tri-planes and codes.
        weights: What made it; None where it was opened without them.
        detail: `photo` where the photo's own pixels are carried to novel views, `none` for the plain NeRF.
    """

    def __init__(
        self,
        opened: OpenedScene,
        *,
        detail: Detail,
        geometry: GeometryName | None = None,
        weights: LoadedWeights | None = None,
        source: Source | None = None,
    ) -> None:
        if geometry is not None and detail == "none":
            raise UsageError("a geometry is for photo detail", remedy='detail="photo"')
        self.name, self.weights = opened.stem, weights
        self.detail: Detail = detail if opened.has_detail else "none"
        self._opened, self._geometry = opened, geometry
        self._edits: Opened | None = None
        self._objects: Mapping[str, OpenedScene] = {}
        self._source = source or Source(STDIN, opened.stem)

    def __repr__(self) -> str:
        what = "plain NeRF" if self.detail == "none" else "photo detail"
        edits = "" if self._edits is None else ", composed"
        return f"Scene({self.name!r}, {what}{edits})"

    @property
    def nerf(self) -> Nerf:
        """The NeRF without edits: `planes` `[1, 3, P, P, C]`, `codes` `[1, L]`, `query(points)`.

        Points are in metres, x right, y down, z away from the first camera, around the middle of the scene
        (docs/conventions.md); `query` raises `UsageError` for another shape than `[N, 3]`.

        >>> import torch, vq3d
        >>> nerf = vq3d.load().reconstruct("toyscene:snowman").nerf
        >>> rgb, density = nerf.query(torch.zeros(2, 3))  # colours in [0, 1], and density a metre
        >>> rgb.shape, density.shape
        (torch.Size([2, 3]), torch.Size([2]))
        """
        return self._opened.scene

    @in_own_words
    def view(
        self,
        yaw: float = 0.0,
        pitch: float = 0.0,
        *,
        size: int | None = None,
        fov: float | None = None,
        samples: int = VIDEO_SAMPLES,
    ) -> View:
        """Look at it from one place.

        Args:
            yaw: Degrees to the right, around the middle of the scene.
            pitch: Degrees up.
            size: Longer side in pixels; default: the photo's, at most 1024, or 256 without photo detail.
            fov: Field of view in degrees; default: the model's.
            samples: Samples a ray of the plain NeRF.

        Raises:
            UsageError: A value out of range.

        >>> import vq3d
        >>> scene = vq3d.load().reconstruct("toyscene:snowman")
        >>> view = scene.view(yaw=5, pitch=2, size=32)
        >>> view.image.size, view.disparity.dtype
        ((32, 32), dtype('float32'))
        """
        shot = Shot(view_deg=(yaw, pitch), size_px=size, fov_deg=fov, samples=samples)
        check_shot(shot, "png")
        view_at, camera = self._staged(shot, None)
        seen = view_at(0)(camera)
        pixels = seen.rgb[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return View(Image.fromarray(pixels), seen.s[0].float().cpu().numpy())

    @in_own_words
    def export(
        self,
        path: str | Path,
        format: ExportFormat | None = None,
        *,
        size: int | None = None,
        layers: int = 32,
        samples: int = 96,
        views: int = 1,
        amplitude: float | None = None,
        mesh: Literal["relief", "solid"] | None = None,
        axes: Literal["opencv", "opengl"] | None = None,
        max_depth: float | None = None,
    ) -> list[Path]:
        """Write it for other programs; the files that were written. docs/exports.md says what each holds.

        Args:
            path: `NAME.html`, a page to look around in; `.glb` or `.obj`, a textured mesh; `.stl`, one for printers;
                `.ply`, points; `.spz`, splats; `.npz`, pictures, disparities and cameras.
            format: `viewer`, `ply`, `glb`, `obj`, `stl`, `splat`, `spz`, `mpi`, `npz` or `depth`, where the name does
                not tell it.
            size: Longer side in pixels of what is sampled; default: what suits the format.
            layers: Of viewer and mpi, at most 32.
            samples: Samples a ray of the NeRF.
            views: Of npz: 1 is the first view, more lie on an orbit.
            amplitude: How far the viewer's camera turns or the orbit of npz goes, in degrees.
            mesh: `relief`, the visible surface, or `solid`, closed; default: `relief`, for stl `solid`.
            axes: Of ply and splat: `opencv`, y down, or `opengl`, y up; default: `opengl` for ply, `opencv` for splat.
            max_depth: Leave out what is farther from the camera, of points, meshes and splats; default: nothing, but
                in points and meshes what is farther than 12 stands there.

        Raises:
            UsageError: An option that the format has no use for, or a value out of range.
            DataError: Nothing is near enough to be exported.
            OutputError, StorageError: What cannot be written.

        >>> import vq3d
        >>> scene = vq3d.load().reconstruct("toyscene:snowman")
        >>> scene.export("snowman.ply", size=32)
        [PosixPath('snowman.ply')]
        """
        wish, paths = plan_wish(
            self._source,
            str(path),
            format,
            detail=self.detail == "photo",
            geometry=self._look(None).geometry,
            size_px=size,
            layers=layers,
            samples=samples,
            views=views,
            amplitude_deg=amplitude,
            mesh=mesh,
            axes=axes,
            max_z_depth=max_depth,
        )
        opened = self._opened if self._edits is None else self._edits.scene
        written, _ = export_scene(opened, wish, paths, self._edits)
        return written

    @in_own_words
    def save(self, path: str | Path) -> Path:
        """Write it as `NAME.vq3d.safetensors`, which `vq3d.open` and every command take; returns the path.

        Raises:
            UsageError: Another suffix, or a composed scene, which is not the planes of one model.
            OutputError, StorageError: It cannot be written.

        >>> import vq3d
        >>> scene = vq3d.load().reconstruct("toyscene:snowman")
        >>> vq3d.open(scene.save("snowman.vq3d.safetensors"))
        Scene('snowman', plain NeRF)
        """
        if self._edits is not None:
            raise UsageError(
                f"a composed scene is not the planes of one model ({self.name})", remedy="save_video or export"
            )
        self._opened.save(path)
        return Path(path)

    def _composed(self, edits: Opened, objects: Mapping[str, OpenedScene]) -> Scene:
        """The same with edits; `objects` are what they name."""
        composed = copy.copy(self)
        composed._edits, composed._objects = edits, objects
        return composed

    def _staged(self, shot: Shot, stereo: StereoKind | None) -> tuple[ViewAt, Camera]:
        look = self._look(stereo)
        if self._edits is not None:
            if stereo is not None:
                raise UsageError("no stereo of a composed scene", remedy="no stereo")
            _, view_at, cameras = self._edits.staged(shot, look, detail=self.detail)
            return view_at, cameras
        view_of, cameras = staged(self._opened, shot, look, detail=self.detail)
        return lambda _: view_of, cameras

    def _look(self, stereo: StereoKind | None) -> Look:
        geometry = NERF if self.detail == "none" else _geometry(self._geometry, self._opened.device)
        return Look(self.detail, geometry=geometry, stereo=stereo, write_cameras=False)


@functools.lru_cache(maxsize=2)
def _geometry(name: GeometryName | None, device: torch.device) -> Geometry:
    """The embedded depth network is opened once."""
    return open_geometry(name, device)
