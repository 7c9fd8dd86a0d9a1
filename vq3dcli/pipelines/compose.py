"""A composition to a scene: open what it names, cut out, close holes, place; and film it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.editing.cutout import Cutout, FirstView, cut_out, point_at
from vq3dcli.editing.photo_scene import PhotoScene
from vq3dcli.editing.placement import (
    ComposedScene,
    Placement,
    Surface,
    Vector,
    carved,
    darkened,
    in_box,
    kept,
    merged,
    placed,
    placed_surface,
    recoloured,
    share_of,
    without_share,
)
from vq3dcli.errors import DataError, UsageError
from vq3dcli.meshscenes.ray_mesh import Mesh, is_mesh, read_mesh
from vq3dcli.pipelines.composition import (
    SUFFIX,
    Composition,
    Cut,
    Insert,
    Stand,
    check_place,
    read_composition,
    write_composition,
)
from vq3dcli.pipelines.film import Shot, check_shot, film, shot_camera
from vq3dcli.pipelines.geometry import field_of, first_view
from vq3dcli.pipelines.inputs import OpenedScene, Source, fitted_photo, parse_sources
from vq3dcli.pipelines.render import Detail, Look, Made, as_shown, counting_frames, staged_photo, with_geometry
from vq3dcli.pipelines.targets import Task, check_targets, input_files, plan_joint_target, refuse_stdout
from vq3dcli.rendering.cameras import Camera, project
from vq3dcli.rendering.lookup import coloured_by
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.scene import ViewOf
from vq3dcli.rendering.space import Frustum
from vq3dcli.weights_file import LoadedWeights

_MAX_PHOTO_PX = 1024
_MESH_PLACE = (0.5, 0.75)
# From the upper left, in front.
_LIGHT: Vector = (-0.5, -0.8, -0.6)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thing:
    """Something that stands in a scene.

    Attributes:
        base: Its placement, without where it stands.
        stops: Where it stands, one after the other during the video.
        width: Before scaling, in metres.
        shadow: Strength of its shadow.
        lower: With `upper` the corners of a box around it, in its own coordinates.
        shape: Its field or mesh, in its own coordinates.
    """

    base: Placement
    stops: tuple[Vector, ...]
    spin_rad: float
    width: float
    shadow: float
    lower: Vector
    upper: Vector
    shape: Field | Mesh

    @property
    def shadow_radius(self) -> float:
        """Standard deviation of its shadow in metres."""
        return 0.35 * self.width * self.base.scale

    def placement(self, progress: float) -> Placement:
        """Where it is when `progress` in [0, 1] of the video is over."""
        position = progress * (len(self.stops) - 1)
        index = min(int(position), max(0, len(self.stops) - 2))
        first, second = self.stops[index], self.stops[min(index + 1, len(self.stops) - 1)]
        x, y, z = (a + (position - index) * (b - a) for a, b in zip(first, second, strict=True))
        return replace(self.base, at=(x, y, z), yaw_rad=self.base.yaw_rad + progress * self.spin_rad)

    def touches(self, points: Tensor, placement: Placement) -> Tensor:
        """Whether it or its shadow, which ends where it cannot be seen any more, may be at points `[N, 3]`: `[N]`."""
        near = torch.zeros_like(points[:, 0], dtype=torch.bool)
        if self.shadow > 0.0:
            away = (points - points.new_tensor(placement.at)).square().sum(-1)
            near |= away < (3.5 * self.shadow_radius) ** 2
        if not isinstance(self.shape, Mesh):
            near |= in_box(placement.to_object(points), self.lower, self.upper)
        return near


@dataclass(frozen=True)
class Stage:
    """A scene whose holes are closed, and the things that stand in it.

    Attributes:
        scene: The scene without what was deleted or moved, its holes closed.
        picture: What shows the scene itself, if not its field: its photo in detail.
    """

    scene: Field
    things: tuple[Thing, ...]
    frustum: Frustum
    device: torch.device
    picture: PhotoScene | None = None

    def out_of(self, camera: Camera) -> list[int]:
        """Which things lie outside of what a camera shows, wherever they stand during the video."""
        missing = []
        for index, thing in enumerate(self.things):
            corners = torch.cartesian_prod(*(torch.tensor(ends) for ends in zip(thing.lower, thing.upper, strict=True)))
            placements = [thing.placement(stop / 8) for stop in range(9)]
            pixels, z_depth = project(camera, torch.cat([place.to_scene(corners) for place in placements])[None])
            inside = pixels[0, z_depth[0] > 0.0] / torch.tensor([camera.width_px, camera.height_px])
            if not len(inside) or bool(((inside.amax(0) < 0.0) | (inside.amin(0) > 1.0)).any()):
                missing.append(index)
        return missing

    @property
    def moving(self) -> bool:
        """Whether it changes during the video."""
        return any(len(thing.stops) > 1 or thing.spin_rad != 0.0 for thing in self.things)

    def at(self, progress: float) -> ComposedScene:
        """The scene when `progress` in [0, 1] of the video is over."""
        ground = self.scene if self.picture is None else share_of(self.scene)
        fields: list[Field] = []
        surfaces: list[Surface] = []
        standing = [(thing, thing.placement(progress)) for thing in self.things]
        for thing, placement in standing:
            if thing.shadow > 0.0:
                ground = darkened(ground, placement.at, thing.shadow_radius, thing.shadow)
            if isinstance(thing.shape, Mesh):
                surfaces.append(placed_surface(thing.shape.surface(_light_for(placement)), placement))
            else:
                own = thing.shape if self.picture is None else without_share(thing.shape)
                fields.append(placed(own, placement, lower=thing.lower, upper=thing.upper))

        def touched(points: Tensor) -> Tensor:
            near = torch.zeros_like(points[:, 0], dtype=torch.bool)
            for thing, placement in standing:
                near |= thing.touches(points, placement)
            return near

        picture = None if self.picture is None else self.picture.render
        depth_range = self.frustum.depth_range
        return ComposedScene(merged(ground, fields), tuple(surfaces), depth_range, self.device, picture, touched)

    def coloured(self) -> Field:
        """The field of the beginning in three channels, in which a photo's detail becomes the colours of the field."""
        field = self.at(0.0).field
        if self.picture is None:
            return field
        photo = self.picture.front.rgb[:, *self.picture.window]
        return recoloured(field, lambda at, rgb: rgb[..., :3] + rgb[..., 3:] * coloured_by(photo, self.frustum, at))


@dataclass(frozen=True)
class Opened:
    """A composition whose scene is open; `open_object` opens what an insertion names, unless it is a mesh."""

    composition: Composition
    scene: OpenedScene
    open_object: Callable[[str], OpenedScene]

    def stage(self, picture: PhotoScene | None) -> Stage:
        """See `build_stage`."""
        return build_stage(self.composition, self.scene, self.open_object, picture=picture)

    @property
    def holes(self) -> int:
        """How many holes are closed."""
        return len(self.composition.delete) + len(self.composition.move)

    def staged(self, shot: Shot, look: Look, *, detail: Detail) -> tuple[Stage, Callable[[int], ViewOf], Camera]:
        """The stage, what is filmed in each frame, and the cameras that film it; raises what `build_stage` does."""
        picture, cameras = None, shot_camera(shot, self.scene.frustum)
        if detail == "photo" and self.scene.has_detail:
            picture, cameras, _ = staged_photo(self.scene, shot, look)
        stage = self.stage(picture)
        _log.info("%d things in the scene, %d holes closed", len(stage.things), self.holes)
        for index in stage.out_of(cameras[0]):
            _log.warning("thing %d lies outside of the picture", index + 1)

        view_at: Callable[[float], ViewOf] = lambda progress: partial(stage.at(progress).render, samples=shot.samples)  # noqa: E731
        whole = None if stage.moving else view_at(0.0)
        if whole is not None and shot.still:
            seen = whole(cameras[0])  # nothing moves, nor does the camera: it is rendered once
            whole = lambda _: seen  # noqa: E731
        return stage, lambda frame: whole or view_at(frame / max(1, shot.length - 1)), cameras


def compose(added: Composition, base: Path | None, shot: Shot, look: Look, task: Task) -> Made:
    """Film a composition, and write its file beside the video.

    `added` goes on with the composition file `base`, if there is one.

    Raises:
        Vq3dError: Options or inputs that do not fit, or cannot be read; an output that cannot be written.
    """
    refuse_stdout(task.output, "compose")
    # Stdin may be the scene, or one of the objects, but not both.
    sources = composition_sources(added)
    stem = sources[0].stem if base is None else base.name.removesuffix(SUFFIX)
    files = composition_files(added, *([] if base is None else [base]), *task.kept)
    target = plan_joint_target(sources, stem, task, kind="composed", kept=files)
    written = target.video.with_name(f"{target.video.name.removesuffix(target.video.suffix)}{SUFFIX}")
    changed = base is None or added != read_composition(base)
    if changed and written.resolve() in {path.resolve() for path in files}:
        raise UsageError(f"the composition would overwrite the input ({written})", remedy="another name with -o")
    check_shot(shot, target.video_format)
    check_targets([target])
    if changed:
        check_place(written)
    task.on_replaced([*target.replaced, *([written] if changed and written.exists() else [])])
    loaded, look = task.load(sources), with_geometry(look, sources[:1], task)
    opened = open_composition(added, sources, loaded, look, task.device)
    stage, view_at, cameras = opened.staged(shot, look, detail=look.detail_of(sources[0]))
    film(view_at, cameras, target, shot, on_frames=counting_frames(task.on_progress, shot.length))
    outputs = list(target.paths)
    if changed:
        sha256 = None if loaded is None else loaded.sha256
        write_composition(written, added.model_copy(update={"weights_sha256": sha256}))
        outputs.append(written)
    figures = {"things": len(stage.things), "holes": opened.holes, "frames": shot.length}
    return Made(outputs, len(stage.things), loaded, figures)


def open_composition(
    composition: Composition, sources: list[Source], weights: LoadedWeights | None, look: Look, device: torch.device
) -> Opened:
    """Open the scene of a composition; `sources` are those of `composition_sources`."""
    if weights is not None and composition.weights_sha256 not in (None, weights.sha256):
        made_with = str(composition.weights_sha256)
        _log.warning("made with the weights %s, not with %s", made_with[:12], weights.sha256[:12])
    first, *others = sources
    by_text = {source.text: source for source in others}
    scene = as_shown(look.open(first, weights, device), first, look)
    return Opened(composition, scene, lambda text: look.open(by_text[text], weights, device))


def composition_sources(composition: Composition) -> list[Source]:
    """What a composition is made of: its scene, then the scenes that objects are cut out of. Raises `UsageError`."""
    return parse_sources([composition.scene, *(i.object for i in composition.insert if not is_mesh(i.object))])


def composition_files(composition: Composition, *more: Path) -> list[Path]:
    """The files that a composition reads, and `more`; raises `UsageError`."""
    meshes = [Path(item.object) for item in composition.insert if is_mesh(item.object)]
    return [*input_files(composition_sources(composition)), *meshes, *more]


def build_stage(
    composition: Composition,
    scene: OpenedScene,
    open_object: Callable[[str], OpenedScene],
    *,
    picture: PhotoScene | None = None,
) -> Stage:
    """Make a composition real.

    `open_object` opens what an insertion names, unless it is a mesh. With a picture, the scene's photo in detail, what
    comes from photos has their colours, too.

    Raises:
        UsageError: A distance at which nothing can be seen.
        DataError: A box without an object in it; a mesh that cannot be read.
        InputMissingError, UnavailableError: See `meshscenes.ray_mesh.read_mesh`.
    """
    view, field = first_view(scene), field_of(scene)
    source = _coloured(scene, field) if picture is not None and composition.move else field
    ground = view
    cutouts: list[Cutout] = []
    things: list[Thing] = []
    for edit in (*composition.delete, *composition.move):
        cutout = _cut(view, edit, scene)
        cutouts.append(cutout)
        field = carved(field, cutout.hole())
        gone = cutout.mask > 0.0
        ground = FirstView(*(torch.where(gone, new, old) for new, old in zip(cutout.behind, ground, strict=True)))
    frustum = scene.frustum
    for move, cutout in zip(composition.move, cutouts[len(composition.delete) :], strict=True):
        things.append(_standing(move, cutout, source, frustum, ground))
    for insert in composition.insert:
        if is_mesh(insert.object):
            things.append(_standing_mesh(insert, frustum, ground))
            continue
        opened = open_object(insert.object)
        cutout = _cut(first_view(opened), insert, opened)
        own = field_of(opened)
        things.append(_standing(insert, cutout, own if picture is None else _coloured(opened, own), frustum, ground))
    if picture is not None:
        # It shows what closes the holes, too, with a relief that goes on without a step.
        picture = picture.without(cutouts)
    field = merged(field, [cutout.fill() for cutout in cutouts])
    return Stage(field, tuple(things), frustum, scene.device, picture)


def _coloured(opened: OpenedScene, field: Field) -> Field:
    """A scene's field with the colours of its photo, if there is one: each point has those of the pixel before it."""
    if opened.photo is None:
        return field
    factor = min(1.0, _MAX_PHOTO_PX / max(opened.photo.shape[1:]))
    size = (max(1, round(side * factor)) for side in opened.photo.shape[1:])
    photo = fitted_photo(opened.photo, *size).to(opened.device).float() / 255.0
    return recoloured(field, lambda points, _: coloured_by(photo, opened.frustum, points))


def _cut(view: FirstView, cut: Cut, opened: OpenedScene) -> Cutout:
    try:
        return cut_out(view, opened.frustum, cut.box or (0.0, 0.0, 1.0, 1.0), cut.z_range)
    except DataError as error:
        raise DataError(f"{error.message} ({opened.stem})", remedy=error.remedy) from error


def _standing(stand: Stand, cutout: Cutout, field: Field, frustum: Frustum, ground: FirstView) -> Thing:
    """What was cut out of a field, where it shall stand in the scene of `frustum`."""
    stops = _stops(stand, frustum, ground) or (cutout.foot,)
    if not stand.at and stand.z_depth is not None:
        far = stand.z_depth / (cutout.foot[2] + frustum.radius)
        stops = ((cutout.foot[0] * far, cutout.foot[1] * far, stand.z_depth - frustum.radius),)
    # Nothing but the side that the photo saw is known: it faces the camera at the first stop, too.
    before, after = _line_of_sight(cutout.foot, cutout.frustum), _line_of_sight(stops[0], frustum)
    yaw_rad, pitch_rad, roll_rad = _turns(stand)
    base = Placement(
        cutout.foot,
        scale=stand.scale,
        yaw_rad=before[0] - after[0] + yaw_rad,
        pitch_rad=after[1] - before[1] + pitch_rad,
        roll_rad=roll_rad,
        object_aspect=cutout.frustum.aspect,
        scene_aspect=frustum.aspect,
    )
    own = kept(field, cutout.membership)
    spin_rad = math.radians(stand.spin_deg)
    return Thing(base, stops, spin_rad, cutout.width, stand.shadow, cutout.lower, cutout.upper, own)


def _standing_mesh(insert: Insert, frustum: Frustum, ground: FirstView) -> Thing:
    stops = _stops(insert.model_copy(update={"at": insert.at or [_MESH_PLACE]}), frustum, ground)
    mesh = read_mesh(Path(insert.object), up=insert.up)
    yaw_rad, pitch_rad, roll_rad = _turns(insert)
    base = Placement(
        scale=insert.scale, yaw_rad=yaw_rad, pitch_rad=pitch_rad, roll_rad=roll_rad, scene_aspect=frustum.aspect
    )
    width, spin_rad = mesh.upper[0] - mesh.lower[0], math.radians(insert.spin_deg)
    return Thing(base, stops, spin_rad, width, insert.shadow, mesh.lower, mesh.upper, mesh)


def _turns(stand: Stand) -> tuple[float, float, float]:
    """Yaw, pitch and roll that are asked for, in radians."""
    turns = stand.rotate_deg if isinstance(stand.rotate_deg, tuple) else (stand.rotate_deg, 0.0, 0.0)
    return math.radians(turns[0]), math.radians(turns[1]), math.radians(turns[2])


def _stops(stand: Stand, frustum: Frustum, ground: FirstView) -> tuple[Vector, ...]:
    """Where a foot stands: at the wanted z_depth, or on what is seen there. Raises `UsageError`."""
    near, far = frustum.depth_range
    if stand.z_depth is not None and not near < stand.z_depth < far:
        reason = f"nothing is seen at a distance of {stand.z_depth:g}"
        raise UsageError(reason, remedy=f"a distance (z_depth) between {near:g} and {far:g}")
    side = ground.s.shape[0]
    stops = []
    for x, y in stand.at:
        row, column = (min(max(round(place * side - 0.5), 0), side - 1) for place in (y, x))
        around = ground.s[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].median()
        z_depth = stand.z_depth or 1.0 / (float(around) * frustum.depth_range.extent + 1.0 / far)
        stops.append(point_at(x, y, z_depth, frustum))
    return tuple(stops)


def _line_of_sight(point: Vector, frustum: Frustum) -> tuple[float, float]:
    """How far to the right of the canonical camera's axis a point lies, and how far below it, in radians."""
    ahead = point[2] + frustum.radius
    return math.atan2(point[0], ahead), math.atan2(point[1] / frustum.aspect, math.hypot(point[0], ahead))


def _light_for(placement: Placement) -> Vector:
    """The light's direction in an object's own coordinates."""
    light = torch.tensor(_LIGHT, dtype=torch.float64)
    turned = placement.rotation(light).T @ light
    return float(turned[0]), float(turned[1]), float(turned[2])
