"""Inputs to videos of novel views: read, reconstruct, film, one input after the other."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from vq3dcli.config.defaults import VIDEO_SAMPLES
from vq3dcli.editing.parallax import adapted_reach, covered_reach, disparity_extent, eye_distance
from vq3dcli.editing.photo_scene import PhotoScene, build_photo_scene
from vq3dcli.editing.relief import moved_to
from vq3dcli.editing.untorn import untorn
from vq3dcli.errors import UsageError, Vq3dError
from vq3dcli.pipelines.camera_file import write_cameras
from vq3dcli.pipelines.film import Eyes, Shot, StereoKind, check_limits, check_shot, film, shot_camera, whole_px
from vq3dcli.pipelines.geometry import (
    NERF,
    Geometry,
    canonical_view,
    geometry_of_map,
    geometry_of_network,
    given_s,
    open_geometry,
    photo_relief,
)
from vq3dcli.pipelines.inputs import (
    SMALLEST_PHOTO_PX,
    Fit,
    OpenedScene,
    Picture,
    Source,
    fitted_photo,
    open_scene,
    parse_sources,
    with_first_view,
    with_fov,
    with_photos_of_folders,
)
from vq3dcli.pipelines.targets import Task, adding, check_targets, plan_targets
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import ViewOf, view_fields
from vq3dcli.rendering.space import Frustum
from vq3dcli.weights_file import LoadedWeights

Detail = Literal["photo", "none"]


# How far near and far things are apart in the images of two eyes, as a part of the width: more strains them.
EYE_PARALLAX = 0.03
# A photo's own resolution is filmed up to here unless a size is asked for: 60 frames then take minutes, not hours.
DETAIL_SIZE_PX = 1024
# A zoom takes no more of a photo's pixels than this on its longer side: both layers would not fit into memory.
_MOST_PHOTO_PX = 4096
_log = logging.getLogger(__name__)


class Made(NamedTuple):
    """What a command made."""

    outputs: list[Path]
    inputs: int  # how many inputs, or things in a scene
    weights: LoadedWeights | None
    metrics: dict[str, Any]  # what is worth knowing about it, by name
    failures: Sequence[Vq3dError] = ()  # what was wrong with inputs that were left out


@dataclass(frozen=True)
class Look:
    """What is shown of an input."""

    # `photo` carries the photo's own pixels, `none` shows the plain NeRF; None takes `photo` for photos
    detail: Detail | None = None
    fit: Fit | None = None  # what is kept of a photo; None squashes with photo detail and crops without
    geometry: Geometry = NERF  # a network's own of the plain NeRF is only followed if the user gave it
    stereo: StereoKind | None = None
    write_cameras: bool = True  # whether the camera path is written beside the video
    save_scene: bool = False
    photo_fov_deg: float | None = None  # horizontal, of photos; None takes what their EXIF says, else the model's

    def detail_of(self, source: Source) -> Detail:
        """What an input is shown with: toy scenes and samples are not photos."""
        if self.detail is not None:
            return self.detail
        return "none" if source.toy is not None or source.sample is not None else "photo"

    def fit_of(self, source: Source) -> Fit:
        """What is kept of an input."""
        return self.fit or ("squash" if self.detail_of(source) == "photo" else "crop")

    def open(
        self,
        source: Source,
        weights: LoadedWeights | None,
        device: torch.device | str | None,
        picture: Picture | None = None,
    ) -> OpenedScene:
        """`inputs.open_scene` with what is kept of this input; a sample's photo is its own first view."""
        opened = open_scene(source, weights, fit=self.fit_of(source), device=device, picture=picture)
        if self.detail_of(source) == "none" or source.is_saved_scene:
            return opened
        if source.sample is not None:
            return with_first_view(opened)
        if self.photo_fov_deg is not None:
            return with_fov(opened, self.photo_fov_deg)
        if opened.fov_deg is None or not isinstance(opened.scene.model.space, Frustum):
            return opened
        _log.info("%s: field of view %.3g degrees, by its EXIF", opened.stem, opened.fov_deg)
        return with_fov(opened, opened.fov_deg)


def render(
    texts: Sequence[str],
    shot: Shot,
    look: Look,
    task: Task,
    *,
    depth: Path | None = None,
    depth_model: str | None = None,
    kept: Sequence[Path] = (),
) -> Made:
    """Film inputs and folders of photos, each into its own video.

    Args:
        depth: The user's own geometry, a disparity map, instead of that of the task.
        depth_model: The same by a network (`geometry.geometry_of_network`).
        kept: What else is read, and must not be overwritten.

    Raises `Vq3dError`: options or files that do not fit; no input that can be used. What is wrong with single inputs
    among several is logged, and in the result.
    """
    sources = parse_sources(with_photos_of_folders(texts))
    targets = plan_targets(
        sources,
        task,
        path=shot.name,
        default="png" if shot.view_deg is not None else "mp4",
        kept=[*kept, *([] if depth is None else [depth])],
        cameras=look.write_cameras,
        save_scene=look.save_scene,
    )
    check_shot(shot, targets[0].video_format)
    if depth is not None and depth_model is not None:
        raise UsageError("geometry comes from --depth or from --depth-model, not from both")
    network = None if depth_model is None else geometry_of_network(depth_model, task.device)
    check_look(look, sources, has_map=depth is not None, has_network=network is not None)
    given = network if depth is None else geometry_of_map(depth)
    look = with_geometry(replace(look, geometry=given or NERF), sources, task)
    check_targets(targets)
    task.on_replaced([file for target in targets for file in target.replaced])
    weights = task.load(sources)
    seen_deg: set[float] = set()
    outputs: list[Path] = []
    failures: list[Vq3dError] = []
    on_frames = adding(task.on_progress, shot.length * len(sources))
    for source, target in zip(sources, targets, strict=True):
        status = source.stem if len(sources) > 1 else ""
        try:
            opened = look.open(source, weights, task.device)
        except Vq3dError as error:
            if len(sources) == 1:
                raise
            _log.warning("left out: %s", error)
            failures.append(error)
            on_frames(shot.length, status)
            continue
        seen_deg.add(shot.fov_deg or round(opened.camera.fov_deg, 6))
        if not outputs:
            _say(shot, look, sources, weights, *seen_deg)
        view_of, camera = staged(opened, shot, look, detail=look.detail_of(source))
        film(lambda _, view_of=view_of: view_of, camera, target, shot, on_frames=partial(on_frames, status=status))  # type: ignore[misc]
        if look.write_cameras:
            write_cameras(target.cameras, camera, fps=shot.fps)
        if look.save_scene:
            opened.save(target.scene)
        outputs += [*target.paths, *target.more]
    if not outputs:
        first = failures[0]
        raise type(first)(f"none of {len(failures)} inputs can be used: {first.message}", remedy=first.remedy)
    fov_deg = min(seen_deg) if len(seen_deg) == 1 else None
    figures = {"path": shot.name, "frames": shot.length, "fps": shot.fps, "fov_deg": fov_deg, "failed": len(failures)}
    return Made(outputs, len(sources) - len(failures), weights, figures, failures)


def _say(
    shot: Shot, look: Look, sources: Sequence[Source], weights: LoadedWeights | None, first_fov_deg: float
) -> None:
    """Say what is made, before it takes its time."""
    said = [f"{shot.name} of {shot.length} frames" if shot.length > 1 else shot.name]
    if len(sources) == 1 or shot.fov_deg is not None:
        said.append(f"field of view {first_fov_deg:.3g} degrees")
    said += [f"geometry {look.geometry.kind}"] if look.geometry.kind in ("teacher", "both") else []
    said += [] if weights is None else [f"weights {weights.path}"]
    _log.info(", ".join(said))
    if shot.samples != VIDEO_SAMPLES and all(look.detail_of(source) == "photo" for source in sources):
        _log.info("--samples changes the plain NeRF (--detail none), and leaves photo detail as it is")


def check_look(look: Look, sources: Sequence[Source], *, has_map: bool, has_network: bool) -> None:
    """Raise `UsageError` for options that contradict each other or the inputs."""
    if has_map and len(sources) > 1:
        raise UsageError("a disparity map belongs to one photo", remedy="one input, or --depth-model")
    if look.save_scene and (has_map or has_network):
        raise UsageError(
            "a saved scene keeps the NeRF's own geometry", remedy="--depth again, where the saved scene is rendered"
        )
    for source in sources:
        if source.sample is not None and has_network and look.detail_of(source) == "none":
            raise UsageError(f"a sample has no photo for a depth network ({source.text})", remedy="--depth FILE")
        if source.is_saved_scene and look.save_scene:
            raise UsageError(f"this is a saved scene ({source.text})", remedy="no --save-scene")


def check_fov(look: Look, sources: Sequence[Source]) -> None:
    """Raise `UsageError` for a photo's field of view that is out of range, or of what is no photo with detail."""
    check_limits((("--photo-fov", look.photo_fov_deg, 5.0, 120.0),))
    for source in sources if look.photo_fov_deg is not None else ():
        if look.detail_of(source) == "none" or source.sample is not None or source.is_saved_scene:
            raise UsageError(
                f"--photo-fov is for photos with photo detail ({source.text})", remedy="--fov, which zooms"
            )


def with_geometry(look: Look, sources: Sequence[Source], task: Task) -> Look:
    """Open what gives the photos among some inputs their geometry, unless the look has the user's.

    Raises `UsageError`: a choice that nothing shown follows; `UnavailableError`: there is no embedded depth network.
    """
    check_fov(look, sources)
    in_detail = any(look.detail_of(source) == "photo" for source in sources)
    if task.geometry is not None and look.geometry.is_given:
        raise UsageError("geometry comes from --geometry or from a map, not from both", remedy="one of them")
    if task.geometry is not None and not in_detail:
        raise UsageError("--geometry is for photo detail", remedy="--detail photo")
    if look.geometry.is_given or not in_detail:
        return look
    return replace(look, geometry=open_geometry(task.geometry, task.device))


def staged(opened: OpenedScene, shot: Shot, look: Look, *, detail: Detail) -> tuple[ViewOf, Camera]:
    """What is filmed of a scene, and the cameras that film it; without a photo, or with hardly one, the plain NeRF.

    With photo detail a path adapts to the scene where the shot says no amplitude.

    Raises `UsageError`: a depth network for a scene without a photo; `DataError`: see `geometry.given_s`.
    """
    if detail == "photo" and opened.has_detail:
        picture, camera, eyes = staged_photo(opened, shot, look)
        return picture.render if eyes is None else eyes.see(picture.render), camera
    return _staged_plain(opened, shot, look)


def staged_photo(
    opened: OpenedScene, shot: Shot, look: Look, *, in_layers: bool = False
) -> tuple[PhotoScene, Camera, Eyes | None]:
    """A photo in detail, the cameras that film it, and the eyes in their places for stereo.

    `in_layers` keeps where things end, for what shall stand between them; so does a relief of the user's.
    """
    assert opened.photo is not None
    frustum = opened.frustum
    fov_rad = math.radians(shot.fov_deg) if shot.fov_deg else frustum.fov_rad
    height, width = opened.photo.shape[1:]
    longer_px = None if shot.size_px is None else whole_px(shot, shot.size_px, width / height)
    output_px = _output_px(height, width, longer_px)
    # A zoom shows fewer of the photo's pixels, larger.
    zoom = min(max(1.0, frustum.tangent / math.tan(0.5 * fov_rad)), max(1.0, _MOST_PHOTO_PX / max(output_px)))
    photo = fitted_photo(opened.photo, round(output_px[0] * zoom), round(output_px[1] * zoom))
    s = photo_relief(opened, photo, look.geometry)
    in_layers = in_layers or look.geometry.is_given
    reach = adapted_reach(shot.path, s, photo if in_layers else None, frustum, fov_rad=fov_rad)
    eyes = None if look.stereo is None else _eyes(look.stereo, s, opened, fov_rad)
    amplitude_rad, closer = reach.amplitude_rad, 1.0
    if shot.amplitude_deg is not None:
        amplitude_rad = math.radians(shot.amplitude_deg)

    def filmed(amplitude_rad: float) -> Camera:
        going = replace(shot, amplitude_deg=math.degrees(amplitude_rad))
        return shot_camera(going, frustum, output_px=output_px, pivot_z=reach.pivot_z)

    def seen_by(amplitude_rad: float) -> Camera:
        return filmed(amplitude_rad) if eyes is None else eyes.both(filmed(amplitude_rad))

    shown_s = s if in_layers else untorn(s, photo, frustum, seen_by(amplitude_rad))
    if not shot.given and shot.fov_deg is None:
        may_shrink = shot.amplitude_deg is None and shot.view_deg is None
        amplitude_rad, closer = covered_reach(amplitude_rad, shown_s, frustum, seen_by, may_shrink=may_shrink)
    camera = filmed(amplitude_rad)
    camera.intrinsics[:, :2, :2] *= closer
    looking = camera if eyes is None else eyes.both(camera)
    return build_photo_scene(frustum, photo, shown_s, looking, told_s=s), camera, eyes


def _staged_plain(opened: OpenedScene, shot: Shot, look: Look) -> tuple[ViewOf, Camera]:
    """The NeRF itself, its surfaces moved if geometry comes from outside."""
    frustum, camera = opened.frustum, shot_camera(shot, opened.frustum)
    view_of: ViewOf = partial(opened.scene.render, samples=shot.samples)
    s = given_s(opened, look.geometry)
    if s is not None:
        moved = moved_to(opened.field, canonical_view(opened).s[0], s, frustum)
        view_of = lambda camera: view_fields(  # noqa: E731
            lambda _: moved, camera.to(opened.device), shot.samples, frustum.depth_range
        )
    if look.stereo is not None:
        fov_rad = math.radians(shot.fov_deg) if shot.fov_deg else frustum.fov_rad
        seen_s = canonical_view(opened).s[0] if s is None else s
        view_of = _eyes(look.stereo, seen_s, opened, fov_rad).see(view_of)
    return view_of, camera


def _eyes(kind: StereoKind, s: torch.Tensor, opened: OpenedScene, fov_rad: float) -> Eyes:
    extent = disparity_extent(s, opened.frustum.depth_range)
    return Eyes(kind, eye_distance(extent, parallax=EYE_PARALLAX, fov_rad=fov_rad), extent.middle_z)


def _output_px(height_px: int, width_px: int, size_px: int | None) -> tuple[int, int]:
    """Height and width of a video with photo detail: the photo's own, or with a longer side of `size_px`."""
    longer = max(height_px, width_px)
    factor = (min(longer, DETAIL_SIZE_PX) if size_px is None else size_px) / longer
    return max(SMALLEST_PHOTO_PX, round(height_px * factor)), max(SMALLEST_PHOTO_PX, round(width_px * factor))
