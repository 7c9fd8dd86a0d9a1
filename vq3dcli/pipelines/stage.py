"""What a composition says, made real: things cut out and placed, holes closed, in a scene that can be looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vq3dcli.editing.card import Card, card_of
from vq3dcli.editing.cutout import Cutout, FirstView, cut_out, point_at
from vq3dcli.editing.photo_scene import PhotoScene
from vq3dcli.editing.placement import (
    ComposedScene,
    Placement,
    Shadow,
    Standing,
    Vector,
    carved,
    darkened,
    kept,
    merged,
    placed,
    placed_surface,
    recoloured,
)
from vq3dcli.errors import DataError, UsageError
from vq3dcli.meshscenes.ray_mesh import Mesh, is_mesh, read_mesh
from vq3dcli.pipelines.composition import Composition, Cut, Insert, Stand
from vq3dcli.pipelines.geometry import field_of, first_view, photo_view
from vq3dcli.pipelines.inputs import OpenedScene, fitted_photo
from vq3dcli.rendering.cameras import Camera, project
from vq3dcli.rendering.lookup import coloured_by
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import Frustum

_MAX_PHOTO_PX = 1024
_MESH_PLACE = (0.5, 0.75)
# What is cut out of a photo begins with no more than this part of the scene's width and height.
_MOST_SHARE = 0.5
# Parts of a thing's width: the standard deviation of its shadow, and how far it is taken to stand nearer than it does.
_SHADOW_WIDTH, _GIVE = 0.35, 0.5
# From the upper left, in front.
_LIGHT: Vector = (-0.5, -0.8, -0.6)


@dataclass(frozen=True)
class Thing:
    """Something that stands in a scene."""

    base: Placement  # its placement, without where it stands
    stops: tuple[Vector, ...]  # where it stands, one after the other during the video
    spin_rad: float
    width: float  # before scaling, in metres
    shadow: float  # strength of its shadow
    lower: Vector  # with `upper` the corners of a box around it, in its own coordinates
    upper: Vector
    shape: Field | Mesh | Card  # its field, mesh or card, in its own coordinates

    def placement(self, progress: float) -> Placement:
        """Where it is when `progress` in [0, 1] of the video is over."""
        position = progress * (len(self.stops) - 1)
        index = min(int(position), max(0, len(self.stops) - 2))
        first, second = self.stops[index], self.stops[min(index + 1, len(self.stops) - 1)]
        x, y, z = (a + (position - index) * (b - a) for a, b in zip(first, second, strict=True))
        return replace(self.base, at=(x, y, z), yaw_rad=self.base.yaw_rad + progress * self.spin_rad)


@dataclass(frozen=True)
class Stage:
    """A scene whose holes are closed, and the things that stand in it."""

    scene: Field  # the scene without what was deleted or moved, its holes closed
    things: tuple[Thing, ...]
    frustum: Frustum
    device: torch.device
    picture: PhotoScene | None = None  # what shows the scene itself, if not its field: its photo in detail

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
        """The scene when `progress` in [0, 1] of the video is over.

        With a picture its field has the picture's colours, for those who need a field.
        """
        ground, picture = self.scene, self.picture
        if picture is not None:
            photo = picture.front.rgb[:, *picture.window]
            ground = recoloured(ground, lambda points, _: coloured_by(photo, self.frustum, points))
        fields: list[Field] = []
        surfaces: list[Standing] = []
        shadows: list[Shadow] = []
        for thing in self.things:
            placement = thing.placement(progress)
            if thing.shadow > 0.0:
                radius = _SHADOW_WIDTH * thing.width * placement.scale
                shadows.append(Shadow(placement.at, radius, thing.shadow))
                ground = darkened(ground, shadows[-1])
            give = _GIVE * thing.width * placement.scale
            if isinstance(thing.shape, Mesh):
                own = thing.shape.surface(_light_for(placement))
                surfaces.append(Standing(placed_surface(own, placement), give))
            elif isinstance(thing.shape, Card):
                surfaces.append(Standing(placed_surface(thing.shape, placement), give))
            else:
                fields.append(placed(thing.shape, placement, lower=thing.lower, upper=thing.upper))
        view_of = None if picture is None else picture.render
        field, depth_range = merged(ground, fields), self.frustum.depth_range
        return ComposedScene(field, tuple(surfaces), depth_range, self.device, view_of, tuple(shadows))


def build_stage(
    composition: Composition,
    scene: OpenedScene,
    open_object: Callable[[str], OpenedScene],
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
    view_of = first_view if picture is None else photo_view
    ground = view = view_of(scene)
    whole = field = field_of(scene)
    frustum = scene.frustum
    cutouts: list[Cutout] = []
    things: list[Thing] = []
    for edit in (*composition.delete, *composition.move):
        cutout = _cut(view, edit, scene, of_photo=picture is not None)
        cutouts.append(cutout)
        field = carved(field, cutout.hole())
        gone = cutout.mask > 0.0
        ground = FirstView(*(torch.where(gone, new, old) for new, old in zip(cutout.behind, ground, strict=True)))
    for move, cutout in zip(composition.move, cutouts[len(composition.delete) :], strict=True):
        shape = kept(whole, cutout.membership) if picture is None else _card(cutout, view, scene)
        things.append(_standing(move, cutout, shape, frustum, ground))
    for insert in composition.insert:
        if is_mesh(insert.object):
            things.append(_standing_mesh(insert, frustum, ground))
            continue
        opened = open_object(insert.object)
        seen = view_of(opened)
        cutout = _cut(seen, insert, opened, of_photo=picture is not None)
        if picture is None:
            things.append(_standing(insert, cutout, kept(field_of(opened), cutout.membership), frustum, ground))
        else:
            stand = _fitting(insert, cutout, frustum, ground)
            things.append(_standing(stand, cutout, _card(cutout, seen, opened), frustum, ground))
    if picture is not None:
        # It shows what closes the holes, too, with a relief that goes on without a step.
        picture = picture.without(cutouts)
    field = merged(field, [cutout.fill() for cutout in cutouts])
    return Stage(field, tuple(things), frustum, scene.device, picture)


def _card(cutout: Cutout, view: FirstView, opened: OpenedScene) -> Card:
    """What was cut out, in the colours of its photo if there is one."""
    if opened.photo is None:
        return card_of(cutout, view, view.rgb)
    factor = min(1.0, _MAX_PHOTO_PX / max(opened.photo.shape[1:]))
    size = (max(1, round(side * factor)) for side in opened.photo.shape[1:])
    return card_of(cutout, view, fitted_photo(opened.photo, *size).to(opened.device).float() / 255.0)


def _fitting(insert: Insert, cutout: Cutout, frustum: Frustum, ground: FirstView) -> Insert:
    """An insertion at the size that suits it, in metres of the scene, and on its ground.

    Two photos have no common scale. Where the scene's ground is at the height in the picture that the thing's foot had
    in its own one, it takes the same part of the picture; elsewhere it is as large as it would be there, but it begins
    with no more than `_MOST_SHARE` of the picture.
    """
    foot, own_z = cutout.foot, cutout.foot[2] + cutout.frustum.radius
    x, y = (0.5 + 0.5 * float(each) for each in cutout.frustum(torch.tensor([foot]))[0, :2])
    insert = insert.model_copy(update={"at": insert.at or [(x, y)]})
    level = Stand(at=[(insert.at[0][0], y)])
    level_z, stop_z = (_stops(stand, frustum, ground)[0][2] + frustum.radius for stand in (level, insert))
    share = max(cutout.share[0], cutout.share[1] * frustum.aspect / cutout.frustum.aspect) * level_z / stop_z
    return insert.model_copy(update={"scale": insert.scale * level_z / own_z * min(1.0, _MOST_SHARE / share)})


def _cut(view: FirstView, cut: Cut, opened: OpenedScene, *, of_photo: bool) -> Cutout:
    of_photo = of_photo and opened.has_detail
    try:
        box = cut.box or (0.0, 0.0, 1.0, 1.0)
        return cut_out(view, opened.frustum, box, cut.z_range, of_photo=of_photo, texture=opened.texture)
    except DataError as error:
        raise DataError(f"{error.message} ({opened.stem})", remedy=error.remedy) from error


def _standing(stand: Stand, cutout: Cutout, shape: Field | Card, frustum: Frustum, ground: FirstView) -> Thing:
    """What was cut out, where it shall stand in the scene of `frustum`."""
    stops = _stops(stand, frustum, ground) or (cutout.foot,)
    if not stand.at and stand.z_depth is not None:
        far = stand.z_depth / (cutout.foot[2] + frustum.radius)
        stops = ((cutout.foot[0] * far, cutout.foot[1] * far, stand.z_depth - frustum.radius),)
    # Nothing but the side that the photo saw is known: it faces the camera at the first stop, too.
    before, after = _line_of_sight(cutout.foot, cutout.frustum), _line_of_sight(stops[0], frustum)
    base = Placement(
        cutout.foot,
        yaw_rad=before[0] - after[0],
        pitch_rad=after[1] - before[1],
        object_aspect=cutout.frustum.aspect,
        scene_aspect=frustum.aspect,
    )
    return _thing(stand, base, stops, cutout.width, (cutout.lower, cutout.upper), shape)


def _standing_mesh(insert: Insert, frustum: Frustum, ground: FirstView) -> Thing:
    stops = _stops(insert.model_copy(update={"at": insert.at or [_MESH_PLACE]}), frustum, ground)
    mesh = read_mesh(Path(insert.object), up=insert.up)
    base, width = Placement(scene_aspect=frustum.aspect), mesh.upper[0] - mesh.lower[0]
    return _thing(insert, base, stops, width, (mesh.lower, mesh.upper), mesh)


def _thing(
    stand: Stand,
    base: Placement,
    stops: tuple[Vector, ...],
    width: float,
    box: tuple[Vector, Vector],
    shape: Field | Mesh | Card,
) -> Thing:
    """Something with the size and the turns that are asked for."""
    asked_deg = stand.rotate_deg if isinstance(stand.rotate_deg, tuple) else (stand.rotate_deg, 0.0, 0.0)
    yaw_rad, pitch_rad, roll_rad = map(math.radians, asked_deg)
    yaw_rad, pitch_rad = base.yaw_rad + yaw_rad, base.pitch_rad + pitch_rad
    base = replace(base, scale=stand.scale, yaw_rad=yaw_rad, pitch_rad=pitch_rad, roll_rad=roll_rad)
    return Thing(base, stops, math.radians(stand.spin_deg), width, stand.shadow, *box, shape)


def _stops(stand: Stand, frustum: Frustum, ground: FirstView) -> tuple[Vector, ...]:
    """Where a foot stands: at the wanted z_depth, or on what is seen there. Raises `UsageError`."""
    near, far = frustum.depth_range.near, frustum.depth_range.far
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
