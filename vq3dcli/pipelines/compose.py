"""A composition to a scene: open what it names, cut out, close holes, place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.data.images import resize
from vq3dcli.editing.composed import Backdrop, ComposedScene
from vq3dcli.editing.cutout import Box, Cutout, FirstView, cut_out, painted, point_at, with_picture
from vq3dcli.editing.placement import (
    Membership,
    Placement,
    Surface,
    Vector,
    carved,
    darkened,
    kept,
    merged,
    placed,
    placed_surface,
    share_of,
    without_share,
)
from vq3dcli.errors import DataError, UsageError
from vq3dcli.meshscenes.ray_mesh import Mesh, is_mesh, read_mesh
from vq3dcli.model.scene import Renderable, SceneView
from vq3dcli.pipelines.composition import Composition, Cut, Insert, Stand
from vq3dcli.pipelines.detail import PhotoScene
from vq3dcli.pipelines.geometry import field_of, first_view
from vq3dcli.pipelines.inputs import OpenedScene, Source, parse_sources
from vq3dcli.pipelines.retouch import photo_window, retouched
from vq3dcli.rendering.cameras import Camera, project
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import FrustumSpace

_MAX_PHOTO_PX = 1024
_WHOLE = (0.0, 0.0, 1.0, 1.0)
_MESH_PLACE = (0.5, 0.75)
# From the upper left, in front.
_LIGHT: Vector = (-0.5, -0.8, -0.6)


@dataclass(frozen=True)
class Thing:
    """Something that stands in a scene.

    Attributes:
        base: Its placement, without where it stands.
        stops: Where it stands, one after the other during the video.
        spin_rad: How far it turns meanwhile.
        width: Before scaling, in metres.
        shadow: Strength of its shadow.
        field: In its own coordinates, if it is one; with the corners of a box around it.
        lower: See `field`.
        upper: See `field`.
        mesh: If it is one.
    """

    base: Placement
    stops: tuple[Vector, ...]
    spin_rad: float
    width: float
    shadow: float
    lower: Vector
    upper: Vector
    field: Field | None = None
    mesh: Mesh | None = None

    @property
    def shadow_radius(self) -> float:
        """Standard deviation of its shadow in metres."""
        return 0.35 * self.width * self.base.scale

    def placement(self, progress: float) -> Placement:
        """Where it is when `progress` in [0, 1] of the video is over."""
        position = progress * (len(self.stops) - 1)
        index = min(int(position), max(0, len(self.stops) - 2))
        first, second = self.stops[index], self.stops[min(index + 1, len(self.stops) - 1)]
        at = tuple(a + (position - index) * (b - a) for a, b in zip(first, second, strict=True))
        yaw_rad = self.base.yaw_rad + progress * self.spin_rad
        return replace(self.base, at=(at[0], at[1], at[2]), yaw_rad=yaw_rad)


@dataclass
class Unchanging:
    """What looks the same in each frame: nothing moves, nor does the camera. It is rendered once.

    Attributes:
        scene: What is rendered.
        view: What the first frame showed.
    """

    scene: Renderable
    view: SceneView | None = None

    def render(self, camera: Camera, *, samples: int, rays_per_chunk: int = 512) -> SceneView:
        """See `Renderable`; always from the camera of the first frame."""
        if self.view is None:
            self.view = self.scene.render(camera, samples=samples, rays_per_chunk=rays_per_chunk)
        return self.view


@dataclass(frozen=True)
class Stage:
    """A scene whose holes are closed, and the things that stand in it.

    Attributes:
        scene: The scene without what was deleted or moved.
        holes: Where something was taken away.
        fills: What closes the holes.
        things: What stands in it.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        device: Where fields compute.
        picture: What shows the scene itself, if not its field: its photo in detail.
    """

    scene: Field
    holes: tuple[Membership, ...]
    fills: tuple[Field, ...]
    things: tuple[Thing, ...]
    near: float
    far: float
    device: torch.device
    picture: Renderable | None = None

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
        in_detail = self.picture is not None
        scene = share_of(self.scene) if in_detail else self.scene
        ground: Field = merged(scene, [without_share(fill) if in_detail else fill for fill in self.fills])
        fields: list[Field] = []
        surfaces: list[Surface] = []
        placements = [thing.placement(progress) for thing in self.things]
        for thing, placement in zip(self.things, placements, strict=True):
            if thing.shadow > 0.0:
                ground = darkened(ground, placement.at, thing.shadow_radius, thing.shadow)
            if thing.field is not None:
                own = without_share(thing.field) if in_detail else thing.field
                fields.append(placed(own, placement, lower=thing.lower, upper=thing.upper))
            if thing.mesh is not None:
                surfaces.append(placed_surface(thing.mesh.surface(_light_for(placement)), placement))
        backdrop = None if self.picture is None else Backdrop(self.picture, self._touched(placements))
        return ComposedScene(merged(ground, fields), tuple(surfaces), self.near, self.far, self.device, backdrop)

    def _touched(self, placements: list[Placement]) -> Membership:
        """Whether anything but the scene may be at points; shadows end where they cannot be seen any more."""

        def touched(points: Tensor) -> Tensor:
            found = torch.zeros_like(points[:, 0], dtype=torch.bool)
            for hole in self.holes:
                found |= hole(points) > 0.0
            for thing, placement in zip(self.things, placements, strict=True):
                if thing.shadow > 0.0:
                    away = (points - points.new_tensor(placement.at)).square().sum(-1)
                    found |= away < (3.5 * thing.shadow_radius) ** 2
                if thing.field is not None:
                    own = placement.to_object(points)
                    found |= ((own >= own.new_tensor(thing.lower)) & (own <= own.new_tensor(thing.upper))).all(-1)
            return found

        return touched


def composition_sources(composition: Composition) -> list[Source]:
    """What a composition is made of: its scene, then the scenes that objects are cut out of. Raises `UsageError`."""
    return parse_sources([composition.scene, *(i.object for i in composition.insert if not is_mesh(i.object))])


def composition_files(composition: Composition, *more: Path) -> list[Path]:
    """The files that a composition reads, and `more`; raises `UsageError`."""
    files = [source.path for source in composition_sources(composition) if source.is_file]
    return [*files, *(Path(item.object) for item in composition.insert if is_mesh(item.object)), *more]


def build_stage(
    composition: Composition,
    scene: OpenedScene,
    open_object: Callable[[str], OpenedScene],
    *,
    picture: Renderable | None = None,
) -> Stage:
    """Make a composition real.

    Args:
        composition: What to do.
        scene: Its scene, opened.
        open_object: Opens what an insertion names, unless it is a mesh.
        picture: The scene's photo in detail; what comes from photos then has their colours, too.

    Raises:
        UsageError: A distance at which nothing can be seen.
        DataError: A box without an object in it; a mesh that cannot be read.
        InputMissingError, UnavailableError: See `meshscenes.ray_mesh.read_mesh`.
    """
    view, space = first_view(scene)
    aspect = scene.camera.aspect
    field = whole = field_of(scene)
    in_detail = picture is not None
    fills: list[Field] = []
    holes: list[Membership] = []
    things: list[Thing] = []
    ground = view
    moved: list[tuple[Stand, Cutout]] = []
    taken: list[Cutout] = []
    for edit in (*composition.delete, *composition.move):
        cutout = _cut(view, edit, space, scene.stem)
        taken.append(cutout)
        holes.append(cutout.hole())
        field = carved(field, holes[-1])
        fills.append(cutout.fill())
        gone = cutout.mask > 0.0
        ground = FirstView(
            torch.where(gone, cutout.behind.rgb, ground.rgb), torch.where(gone, cutout.behind.s, ground.s)
        )
        if isinstance(edit, Stand):
            moved.append((edit, cutout))
    source = _colours_of(scene, whole, space) if in_detail and moved else whole
    things += [_standing(edit, cutout, source, space, ground, (aspect, aspect)) for edit, cutout in moved]
    for insert in composition.insert:
        if is_mesh(insert.object):
            things.append(_standing_mesh(insert, space, ground, aspect))
            continue
        opened = open_object(insert.object)
        source_view, source_space = first_view(opened)
        cutout = _cut(source_view, insert, source_space, opened.stem)
        source = field_of(opened)
        if in_detail:
            source = _colours_of(opened, source, source_space)
        things.append(_standing(insert, cutout, source, space, ground, (opened.camera.aspect, aspect)))
    if isinstance(picture, PhotoScene):
        # It shows what closes the holes, too, with a relief that goes on without a step.
        picture = retouched(picture, taken)
        field, holes, fills = merged(field, fills), [], []
    model = scene.scene.model
    device = scene.scene.planes.device
    return Stage(field, tuple(holes), tuple(fills), tuple(things), model.near, model.far, device, picture)


def _colours_of(opened: OpenedScene, field: Field, space: FrustumSpace) -> Field:
    """A scene's field with the colours of its photo, if there is one."""
    if opened.photo is None:
        return field
    height_px, width_px = opened.photo.shape[1:]
    factor = min(1.0, _MAX_PHOTO_PX / max(height_px, width_px))
    photo = resize(opened.photo, max(1, round(height_px * factor)), max(1, round(width_px * factor)))
    return painted(field, photo.to(opened.scene.planes.device).float() / 255.0, space)


def field_with_photo(composed: ComposedScene, opened: OpenedScene) -> Field:
    """The field of a composition in three channels, in which a photo's detail becomes the colours of the field.

    Args:
        composed: From `Stage.at`.
        opened: Its scene.
    """
    if composed.backdrop is None:
        return composed.field
    picture = composed.backdrop.picture
    assert isinstance(picture, PhotoScene)
    rows, columns = photo_window(picture)
    facts = opened.camera
    space = FrustumSpace(facts.radius, math.radians(facts.fov_deg), facts.near, facts.far)
    return with_picture(composed.field, picture.front.rgb[:, rows, columns], space)


def _cut(view: FirstView, cut: Cut, space: FrustumSpace, name: str) -> Cutout:
    box = Box(*(cut.box or _WHOLE), *(cut.z_range or ()))
    try:
        return cut_out(view, box, space)
    except DataError as error:
        raise DataError(f"{error.message} ({name})", remedy=error.remedy) from error


def _standing(
    stand: Stand,
    cutout: Cutout,
    field: Field,
    space: FrustumSpace,
    ground: FirstView,
    aspects: tuple[float, float],
) -> Thing:
    """What was cut out of a field, where it shall stand; `aspects` are those of its photo and of the scene's."""
    _check_distance(stand, space)
    stops = tuple(_foot_at(x, y, stand, space, ground) for x, y in stand.at) or (cutout.foot,)
    if not stand.at and stand.z_depth is not None:
        far = stand.z_depth / (cutout.foot[2] + space.radius)
        stops = ((cutout.foot[0] * far, cutout.foot[1] * far, stand.z_depth - space.radius),)
    # Nothing but the side that the photo saw is known: it faces the camera at the first stop, too.
    before, after = (
        _line_of_sight(cutout.foot, cutout.space.radius, aspects[0]),
        _line_of_sight(stops[0], space.radius, aspects[1]),
    )
    base = _base(
        stand, anchor=cutout.foot, aspects=aspects, yaw_rad=before[0] - after[0], pitch_rad=after[1] - before[1]
    )
    own = kept(field, cutout.membership)
    spin_rad = math.radians(stand.spin_deg)
    return Thing(base, stops, spin_rad, cutout.width, stand.shadow, cutout.lower, cutout.upper, field=own)


def _standing_mesh(insert: Insert, space: FrustumSpace, ground: FirstView, aspect: float) -> Thing:
    _check_distance(insert, space)
    mesh = read_mesh(Path(insert.object), up=insert.up)
    stops = tuple(_foot_at(x, y, insert, space, ground) for x, y in insert.at or [_MESH_PLACE])
    width = mesh.upper[0] - mesh.lower[0]
    spin_rad = math.radians(insert.spin_deg)
    return Thing(
        _base(insert, aspects=(1.0, aspect)), stops, spin_rad, width, insert.shadow, mesh.lower, mesh.upper, mesh=mesh
    )


def _base(
    stand: Stand,
    *,
    aspects: tuple[float, float],
    anchor: Vector = (0.0, 0.0, 0.0),
    yaw_rad: float = 0.0,
    pitch_rad: float = 0.0,
) -> Placement:
    """The wanted size and turns, on top of those given."""
    turns = stand.rotate_deg if isinstance(stand.rotate_deg, tuple) else (stand.rotate_deg, 0.0, 0.0)
    yaw, pitch, roll = (math.radians(turn) for turn in turns)
    nowhere = (0.0, 0.0, 0.0)
    return Placement(anchor, nowhere, stand.scale, yaw_rad + yaw, pitch_rad + pitch, roll, *aspects)


def _check_distance(stand: Stand, space: FrustumSpace) -> None:
    if stand.z_depth is not None and not space.near < stand.z_depth < space.far:
        reason = f"nothing is seen at a distance of {stand.z_depth:g}"
        raise UsageError(reason, remedy=f"--depth or z_depth between {space.near:g} and {space.far:g}")


def _foot_at(x: float, y: float, stand: Stand, space: FrustumSpace, ground: FirstView) -> Vector:
    """The world point at (x, y) of the first view: at the wanted z_depth, or on what is seen there."""
    z_depth = stand.z_depth
    if z_depth is None:
        side = ground.s.shape[0]
        row, column = (min(max(round(place * side - 0.5), 0), side - 1) for place in (y, x))
        around = ground.s[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].median()
        z_depth = 1.0 / (float(around) * (1.0 / space.near - 1.0 / space.far) + 1.0 / space.far)
    return point_at(x, y, z_depth, space)


def _line_of_sight(point: Vector, radius: float, aspect: float) -> tuple[float, float]:
    """How far to the right of the first camera's axis a point lies, and how far below it, in radians."""
    ahead = point[2] + radius
    return math.atan2(point[0], ahead), math.atan2(point[1] / aspect, math.hypot(point[0], ahead))


def _light_for(placement: Placement) -> Vector:
    """The light's direction in an object's own coordinates."""
    light = torch.tensor(_LIGHT, dtype=torch.float64)
    turned = placement.rotation(light).T @ light
    return float(turned[0]), float(turned[1]), float(turned[2])
