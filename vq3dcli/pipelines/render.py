"""Inputs to videos of novel views: read, reconstruct, film, one input after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

import torch

from vq3dcli.data.images import centre_square
from vq3dcli.data_tools.depth.models import DepthModel
from vq3dcli.errors import UsageError, Vq3dError
from vq3dcli.model.scene import CorrectedScene, Renderable
from vq3dcli.pipelines.camera_file import write_cameras
from vq3dcli.pipelines.detail import build_photo_scene, fitted_photo, photo_camera
from vq3dcli.pipelines.film import Shot, film, shot_camera
from vq3dcli.pipelines.geometry import (
    SMALLEST_PHOTO_PX,
    Geometry,
    Teacher,
    canonical_view,
    open_teacher,
    photo_relief,
    with_relief,
)
from vq3dcli.pipelines.inputs import Fit, OpenedScene, Picture, Source, check_source, open_scene
from vq3dcli.pipelines.parallax import (
    Extent,
    adapted_reach,
    covered_reach,
    covering_zoom,
    disparity_extent,
    eye_distance,
    steepest_slope,
)
from vq3dcli.pipelines.stereo import EYE_PARALLAX, StereoKind, StereoScene
from vq3dcli.pipelines.targets import Target
from vq3dcli.pipelines.user_depth import check_shape, predict_disparity, read_disparity, user_s
from vq3dcli.rendering.cameras import Camera
from vq3dcli.scene_file import save_scene
from vq3dcli.weights_file import LoadedWeights

Detail = Literal["photo", "none"]

# A photo's own resolution is filmed up to here unless a size is asked for: 60 frames then take minutes, not hours.
DETAIL_SIZE_PX = 1024
# A zoom takes no more of a photo's pixels than this on its longer side: both layers would not fit into memory.
_MOST_PHOTO_PX = 4096


@dataclass(frozen=True)
class Look:
    """What is shown of an input.

    Attributes:
        detail: `photo` carries the photo's own pixels, `none` shows the plain NeRF; None takes `photo` for photos.
        fit: What is kept of a photo; None squashes with photo detail and crops without.
        depth: A disparity map of the user's, for the one input there is.
        depth_model: An opened depth network instead, see `user_depth.open_depth_model`.
        stereo: Pairs of views.
        write_cameras: Whether the camera path is written beside the video.
        save_scene: Whether the scene is, too.
        given: The disparity map, once it is read: what it is read from may not give it twice.
        teacher: What gives photo detail its geometry, see `geometry.open_teacher`; None is the NeRF.
    """

    detail: Detail | None = None
    fit: Fit | None = None
    depth: Path | None = None
    depth_model: DepthModel | None = None
    stereo: StereoKind | None = None
    write_cameras: bool = True
    save_scene: bool = False
    given: torch.Tensor | None = None
    teacher: Teacher | None = None

    @property
    def wants_depth(self) -> bool:
        """Whether geometry comes from outside."""
        return self.depth is not None or self.depth_model is not None

    def detail_of(self, source: Source) -> Detail:
        """What an input is shown with: toy scenes and samples are not photos."""
        if self.detail is not None:
            return self.detail
        return "none" if source.toy is not None or source.sample is not None else "photo"

    def fit_of(self, source: Source) -> Fit:
        """What is kept of an input."""
        return self.fit or ("squash" if self.detail_of(source) == "photo" else "crop")


PLAIN = Look(detail="none", write_cameras=False)


@dataclass(frozen=True)
class Failure:
    """An input that could not be read."""

    source: Source
    error: Vq3dError


@dataclass(frozen=True)
class Readable:
    """An input that could.

    Attributes:
        source: The input.
        target: Where its video goes.
        picture: Kept only where the input cannot be read twice.
    """

    source: Source
    target: Target
    picture: Picture | None = None


def check_look(look: Look, sources: Sequence[Source]) -> Look:
    """Find out whether options fit each other and the inputs, and read the disparity map, if there is one.

    Returns:
        The look with its map.

    Raises:
        UsageError: Options that contradict each other or the inputs.
        InputMissingError, DataError: See `user_depth.read_disparity`.
    """
    if look.depth is not None and len(sources) > 1:
        raise UsageError("a disparity map belongs to one photo", remedy="one input, or --depth-model")
    if look.save_scene and look.wants_depth:
        raise UsageError(
            "a saved scene keeps the NeRF's own geometry", remedy="--depth again, where the saved scene is rendered"
        )
    for source in sources:
        if source.sample is not None and look.detail_of(source) == "photo":
            raise UsageError(f"a sample has no photo ({source.text})", remedy="--detail none")
        if source.sample is not None and look.depth_model is not None:
            raise UsageError(f"a sample has no photo for a depth network ({source.text})", remedy="--depth FILE")
        if source.is_saved_scene and look.save_scene:
            raise UsageError(f"this is a saved scene ({source.text})", remedy="no --save-scene")
    return look if look.depth is None else replace(look, given=read_disparity(look.depth))


def with_geometry(look: Look, sources: Sequence[Source], geometry: Geometry | None, device: str | torch.device) -> Look:
    """Open what gives the photos among some inputs their geometry.

    Args:
        look: What will be shown.
        sources: The inputs.
        geometry: As the user chose; None is the default, see `geometry.open_teacher`.
        device: Where it computes.

    Raises:
        UsageError: A choice that nothing shown follows.
        UnavailableError: There is no embedded depth network.
    """
    in_detail = any(look.detail_of(source) == "photo" for source in sources)
    if geometry is not None and look.wants_depth:
        raise UsageError("geometry comes from --geometry or from a map, not from both", remedy="one of them")
    if geometry is not None and not in_detail:
        raise UsageError("--geometry is for photo detail", remedy="--detail photo")
    if look.wants_depth or not in_detail:
        return look
    return replace(look, teacher=open_teacher(geometry, torch.device(device)))


def as_shown(opened: OpenedScene, source: Source, look: Look) -> OpenedScene:
    """A scene with the geometry that it is shown with, for what shall stand in it."""
    return with_relief(opened, look.teacher) if look.detail_of(source) == "photo" else opened


def read_all(
    sources: Sequence[Source],
    targets: Sequence[Target],
    weights: LoadedWeights | None,
    look: Look = PLAIN,
    *,
    stdin: IO[bytes] | None,
) -> tuple[list[Readable], list[Failure]]:
    """Read all inputs before any is rendered, so that what is wrong with them is known at once.

    Args:
        sources: The inputs.
        targets: One a source.
        weights: The model; None will do for saved scenes.
        look: What will be shown.
        stdin: What `-` reads.

    Returns:
        What could be read, and why the others could not.
    """
    readable: list[Readable] = []
    failures: list[Failure] = []
    for source, target in zip(sources, targets, strict=True):
        try:
            picture = check_source(source, weights, fit=look.fit_of(source), stdin=stdin)
            readable.append(Readable(source, target, picture))
        except Vq3dError as error:
            failures.append(Failure(source, error))
    return readable, failures


def render_all(
    weights: LoadedWeights | None,
    inputs: Sequence[Readable],
    shot: Shot,
    look: Look = PLAIN,
    *,
    device: str | torch.device | None = None,
    on_frames: Callable[[int], object],
) -> list[Path]:
    """Film each input; one scene is held at a time.

    Args:
        weights: The model; None will do for saved scenes.
        inputs: From `read_all`.
        shot: How to film.
        look: What to show; the plain NeRF by default.
        device: Where saved scenes go; default: where the model is.
        on_frames: Called with the number of frames just rendered.

    Returns:
        Files and folders that were written.

    Raises:
        UnavailableError, OutputError, StorageError: See `export.video.video_writer`; earlier videos are complete.
        DataError: A disparity map that does not fit.
    """
    outputs: list[Path] = []
    for item in inputs:
        opened = open_scene(item.source, weights, fit=look.fit_of(item.source), device=device, picture=item.picture)
        scene, camera = staged(opened, shot, look, detail=look.detail_of(item.source))
        film(scene, camera, item.target, fps=shot.fps, samples=shot.samples, on_frames=on_frames)
        outputs += item.target.paths
        if look.write_cameras:
            write_cameras(item.target.cameras, camera, fps=shot.fps)
            outputs.append(item.target.cameras)
        if look.save_scene and weights is not None:
            save_scene(
                item.target.scene,
                opened.scene,
                weights=weights,
                provenance=opened.provenance,
                photo=opened.photo,
                aspect=opened.camera.aspect,
            )
            outputs.append(item.target.scene)
    return outputs


def staged(opened: OpenedScene, shot: Shot, look: Look, *, detail: Detail) -> tuple[Renderable, Camera]:
    """What is filmed of a scene, and the cameras that film it.

    Args:
        opened: The scene.
        shot: How to film; with photo detail its path adapts to the scene where it says no amplitude.
        look: What to show.
        detail: Photo detail or not; not, if there is no photo, or hardly one.

    Raises:
        UsageError: A depth network for a scene without a photo.
        InputMissingError, DataError: See `user_depth`.
    """
    facts = opened.camera
    fov_deg = shot.fov_deg or facts.fov_deg
    if detail == "none" or opened.photo is None or min(opened.photo.shape[1:]) < SMALLEST_PHOTO_PX:
        return _staged_plain(opened, shot, look, fov_deg)
    output_px = _output_px(opened.photo.shape[1], opened.photo.shape[2], shot.size_px)
    # A zoom shows fewer of the photo's pixels, larger.
    zoom = max(1.0, math.tan(math.radians(0.5 * facts.fov_deg)) / math.tan(math.radians(0.5 * fov_deg)))
    zoom = min(zoom, max(1.0, _MOST_PHOTO_PX / max(output_px)))
    photo = fitted_photo(opened.photo, round(output_px[0] * zoom), round(output_px[1] * zoom))
    s = photo_relief(opened, photo, teacher=look.teacher, given_s=_given_s(opened, look, opened.scene.planes.device))
    extent = disparity_extent(s, facts)
    reach = adapted_reach(shot.path, extent, facts, fov_rad=math.radians(fov_deg), slope=steepest_slope(s))
    seen_by = None if look.stereo is None else _stereo(opened.scene, look.stereo, extent, fov_deg)
    amplitude_rad = reach.amplitude_rad if shot.amplitude_deg is None else math.radians(shot.amplitude_deg)

    def camera_of(amplitude_rad: float) -> Camera:
        going = replace(shot, amplitude_deg=math.degrees(amplitude_rad))
        return shot_camera(
            going, radius=facts.radius, fov_deg=facts.fov_deg, output_px=output_px, pivot_z=reach.pivot_z
        )

    def zoom_of(amplitude_rad: float) -> float | None:
        return covering_zoom(photo_camera(facts, *s.shape), s, facts, _seen_by(camera_of(amplitude_rad), seen_by))

    closer = 1.0
    if not shot.given and shot.fov_deg is None:
        may_shrink = shot.amplitude_deg is None and shot.view_deg is None
        amplitude_rad, closer = covered_reach(amplitude_rad, zoom_of, may_shrink=may_shrink)
    camera = camera_of(amplitude_rad)
    camera.intrinsics[:, :2, :2] *= closer
    scene = build_photo_scene(opened, photo, s, _seen_by(camera, seen_by))
    return scene if seen_by is None else replace(seen_by, scene=scene), camera


def _seen_by(camera: Camera, stereo: StereoScene | None) -> Camera:
    """All cameras that look: for stereo those of both eyes."""
    if stereo is None:
        return camera
    eyes = [stereo.eye(camera, side) for side in (-0.5, 0.5)]
    poses, intrinsics = (torch.cat(part) for part in zip(*((e.cam_to_world, e.intrinsics) for e in eyes), strict=True))
    return Camera(poses, intrinsics, camera.height_px, camera.width_px)


def _stereo(scene: Renderable, kind: StereoKind, extent: Extent, fov_deg: float) -> StereoScene:
    distance = eye_distance(extent, parallax=EYE_PARALLAX, fov_rad=math.radians(fov_deg))
    return StereoScene(scene, kind, distance, extent.middle_z)


def _staged_plain(opened: OpenedScene, shot: Shot, look: Look, fov_deg: float) -> tuple[Renderable, Camera]:
    """The NeRF itself, its surfaces moved if geometry comes from outside."""
    facts = opened.camera
    camera = shot_camera(shot, radius=facts.radius, fov_deg=facts.fov_deg, aspect=facts.aspect)
    scene: Renderable = opened.scene
    given = _given_s(opened, look, opened.scene.planes.device)
    nerf_s = canonical_view(opened).s[0] if given is not None or look.stereo is not None else None
    if given is not None:
        assert nerf_s is not None
        scene = CorrectedScene(opened.scene, nerf_s, given, math.radians(facts.fov_deg))
    if look.stereo is not None:
        seen_s = nerf_s if given is None else given
        assert seen_s is not None
        scene = _stereo(scene, look.stereo, disparity_extent(seen_s, facts), fov_deg)
    return scene, camera


def _given_s(opened: OpenedScene, look: Look, device: torch.device) -> torch.Tensor | None:
    """Geometry from outside, if it is asked for, for what the canonical camera sees."""
    shown = opened.camera.aspect
    if look.depth is not None:
        name = str(look.depth)
        disparity = read_disparity(look.depth) if look.given is None else look.given
        # A map of what is shown, or of all of a photo that was cropped.
        aspects = [shown] if opened.whole_aspect is None else [shown, opened.whole_aspect]
        if check_shape(disparity, aspects, name=name) != shown:
            top, left, side = centre_square(*disparity.shape)
            disparity = disparity[top : top + side, left : left + side]
    elif look.depth_model is not None:
        if opened.photo is None:
            raise UsageError(f"there is no photo for a depth network ({opened.stem})", remedy="--depth FILE")
        name = opened.stem
        # The network may have squashed the photo, so its map has a shape of its own.
        disparity = predict_disparity(look.depth_model, opened.photo, name=name)
    else:
        return None
    return user_s(disparity.to(device), opened.camera, name=name)


def _output_px(height_px: int, width_px: int, size_px: int | None) -> tuple[int, int]:
    """Height and width of a video with photo detail: the photo's own, or with a longer side of `size_px`."""
    longer = max(height_px, width_px)
    factor = (min(longer, DETAIL_SIZE_PX) if size_px is None else size_px) / longer
    return max(SMALLEST_PHOTO_PX, round(height_px * factor)), max(SMALLEST_PHOTO_PX, round(width_px * factor))
