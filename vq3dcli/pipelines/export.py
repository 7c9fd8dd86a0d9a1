"""Scenes for other tools: a web viewer, points, meshes, splats, multiplane images, arrays and depth maps.

With photo detail what is exported is the photo in its two layers (`pipelines.detail`), without it the plain NeRF.

Legend: V views, H height_px, W width_px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.composed import ComposedScene
from vq3dcli.editing.placement import Hits
from vq3dcli.export.colour import display_range
from vq3dcli.export.depth_files import write_disparity_png, write_pfm, write_views
from vq3dcli.export.layers import (
    MAX_SIDE_PX,
    Frustum,
    Layers,
    bake_layers,
    choose_edges,
    flat_layers,
    render_layers,
)
from vq3dcli.export.mesh import relief_mesh, write_glb
from vq3dcli.export.mpi import write_mpi
from vq3dcli.export.photo_layers import Sheet, Sheets, layers_of_sheets
from vq3dcli.export.points import surface_points, write_points
from vq3dcli.export.splat import write_splats
from vq3dcli.export.viewer import BOUND_RAD, write_viewer
from vq3dcli.metrics.image import psnr
from vq3dcli.model.scene import Renderable
from vq3dcli.pipelines.compose import build_stage, field_with_photo
from vq3dcli.pipelines.composition import Composition
from vq3dcli.pipelines.detail import (
    STRETCH_FADES,
    STRETCH_GONE,
    PhotoLayer,
    PhotoScene,
    build_photo_scene,
    fitted_photo,
    photo_camera,
)
from vq3dcli.pipelines.export_plan import MOST_PX, ExportFormat, Wish
from vq3dcli.pipelines.film import output_size
from vq3dcli.pipelines.geometry import SMALLEST_PHOTO_PX, photo_relief
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.pipelines.parallax import (
    adapted_reach,
    covered_reach,
    covering_zoom,
    disparity_extent,
    steepest_slope,
)
from vq3dcli.pipelines.retouch import photo_window
from vq3dcli.rendering.cameras import Camera, pivot_pose, z_depth_from_s
from vq3dcli.rendering.trajectories import orbit

# The longer side in pixels: of the plain NeRF, which holds no more, and of a photo in each format.
_PLAIN_PX = 128
_PHOTO_PX: Mapping[ExportFormat, int] = {"ply": 256, "glb": 256, "splat": 256}
# Layers of a composition are cut from its fields, which takes its time.
_COMPOSED_PX = 256
# Without a limit of the user's, meshes and points end here: the sky, at 60, would make viewers show a dot.
_DEFAULT_MAX_Z = 12.0
# What layers are compared with the rendering at.
_CHECK_PX = 64
_CHECK_TURNS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_ORBIT_DEG = 10.0


class Composed(NamedTuple):
    """A composition, ready to be made real.

    Attributes:
        composition: What is done to a scene.
        open_object: Opens what an insertion names, see `compose.build_stage`.
    """

    composition: Composition
    open_object: Callable[[str], OpenedScene]


def export_scene(
    opened: OpenedScene, wish: Wish, paths: list[Path], composed: Composed | None = None
) -> tuple[list[Path], dict[str, Any]]:
    """Export a scene.

    Args:
        opened: From `inputs.open_scene`.
        wish: What is wanted.
        paths: From `plan_export`.
        composed: What is done to the scene before; things that move are where they begin.

    Returns:
        The files that were written, and figures on them.

    Raises:
        DataError: Nothing is near enough to be exported.
        UnavailableError: A package is missing.
        OutputError, StorageError: What cannot be written.
    """
    facts = opened.camera
    frustum = Frustum(facts.radius, math.radians(facts.fov_deg), facts.near, facts.far, facts.aspect)
    height_px, width_px = sampled_size(opened, wish, composed)
    photo_scene, vantage = wished_photo_scene(opened, wish, frustum, height_px, width_px)
    scene: Renderable = photo_scene or opened.scene
    things: ComposedScene | None = None
    if composed is not None:
        stage = build_stage(composed.composition, opened, composed.open_object, picture=photo_scene)
        scene = things = stage.at(0.0)
    figures: dict[str, Any] = {
        "format": wish.kind,
        "width_px": width_px,
        "height_px": height_px,
        "detail": "none" if photo_scene is None else "photo",
    }
    canonical = frustum.camera(height_px, width_px)
    if wish.kind in ("viewer", "mpi"):
        figures |= {"bound_rad": vantage.bound_rad, "pivot_z": vantage.pivot_z}
        drawn: Layers | Sheets
        if photo_scene is not None and things is None and wish.kind == "viewer":
            # Drawn as `PhotoScene` is.
            drawn = photo_sheets(photo_scene, frustum)
        else:
            if photo_scene is not None and things is None:
                drawn = _photo_layers(photo_scene, wish, frustum)
            else:
                drawn = _field_layers(opened, things, wish, frustum, height_px, width_px)
            drawn = flat_layers(drawn) if wish.kind == "mpi" else drawn
            figures |= {"layers": len(drawn), "psnr": _layers_psnr(drawn, scene, frustum, vantage, wish.samples)}
            if wish.kind == "mpi":
                return write_mpi(paths[0], drawn), figures
        view = scene.render(canonical, samples=wish.samples)
        write_viewer(
            paths[0],
            opened.stem,
            drawn,
            view.rgb[0].cpu(),
            display_range(view.s[0]),
            bound_rad=vantage.bound_rad,
            pivot_z=vantage.pivot_z,
            zoom=vantage.zoom,
        )
    elif wish.kind in ("ply", "splat"):
        surface = surface_points(
            scene,
            frustum,
            height_px=height_px,
            width_px=width_px,
            samples=wish.samples,
            beside_rad=BOUND_RAD,
            outside=wish.kind == "splat",
            max_z_depth=wish.max_z_depth or (math.inf if wish.kind == "splat" else _DEFAULT_MAX_Z),
            axes=wish.axes,
        )
        figures |= {"points": len(surface.points), "axes": wish.axes}
        (write_splats if wish.kind == "splat" else write_points)(paths[0], surface)
    elif wish.kind == "glb":
        view = scene.render(canonical, samples=wish.samples)
        mesh = relief_mesh(
            view.rgb[0] if photo_scene is None or things is not None else _texture(opened),
            view.s[0],
            frustum,
            max_z_depth=wish.max_z_depth or _DEFAULT_MAX_Z,
            solid=wish.mesh == "solid",
        )
        figures |= {"vertices": len(mesh.vertices), "triangles": len(mesh.faces), "axes": "opengl"}
        write_glb(paths[0], mesh)
    elif wish.kind == "npz":
        camera = _orbit(canonical, frustum, wish)
        write_views(paths[0], scene.render(camera, samples=wish.samples), camera, frustum)
        figures |= {"views": wish.views}
    else:
        s = scene.render(canonical, samples=wish.samples).s[0]
        write_disparity_png(paths[0], s)
        write_pfm(paths[1], z_depth_from_s(s, frustum.near, frustum.far))
    return paths, figures


def sampled_size(opened: OpenedScene, wish: Wish, composed: Composed | None) -> tuple[int, int]:
    """Height and width of what is sampled."""
    if wish.size_px is not None:
        return output_size(wish.size_px, opened.camera.aspect)
    if opened.photo is None or not wish.detail or min(opened.photo.shape[1:]) < SMALLEST_PHOTO_PX:
        return output_size(_PLAIN_PX, opened.camera.aspect)
    most_px = MAX_SIDE_PX if composed is None or wish.kind not in ("viewer", "mpi") else _COMPOSED_PX
    longer = max(16, min(_PHOTO_PX.get(wish.kind, most_px), max(opened.photo.shape[1:])))
    return output_size(longer, opened.camera.aspect)


class Vantage(NamedTuple):
    """From where one looks at a scene: how far cameras turn, how far from the first one their pivot lies, how close."""

    bound_rad: float
    pivot_z: float
    zoom: float = 1.0


def wished_photo_scene(
    opened: OpenedScene, wish: Wish, frustum: Frustum, height_px: int, width_px: int
) -> tuple[PhotoScene | None, Vantage]:
    """The photo in its layers, if it is wanted, as far as one will look around them."""
    bound_rad = BOUND_RAD if wish.amplitude_deg is None else math.radians(wish.amplitude_deg)
    if wish.kind == "npz":
        bound_rad = math.radians(_ORBIT_DEG if wish.amplitude_deg is None else wish.amplitude_deg)
    vantage = Vantage(bound_rad, frustum.radius)
    if opened.photo is None or not wish.detail or min(opened.photo.shape[1:]) < SMALLEST_PHOTO_PX:
        return None, vantage
    photo = fitted_photo(opened.photo, height_px, width_px)
    s = photo_relief(opened, photo, teacher=wish.teacher)
    if wish.kind in ("viewer", "mpi"):
        # As videos do: turning around the middle of the scene, and not so far that the photo falls apart.
        extent, slope = disparity_extent(s, opened.camera), steepest_slope(s)
        reach = adapted_reach("orbit", extent, opened.camera, fov_rad=frustum.fov_rad, slope=slope)
        suits_rad = bound_rad if wish.amplitude_deg is not None else min(bound_rad, reach.amplitude_rad)
        vantage = Vantage(suits_rad, reach.pivot_z)
    turns = [(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]

    def cameras(bound_rad: float) -> Camera:
        return turned_cameras(frustum, vantage._replace(bound_rad=bound_rad), turns, height_px, width_px)

    if wish.kind == "viewer":
        own = photo_camera(opened.camera, *s.shape)
        bound_rad, zoom = covered_reach(
            vantage.bound_rad,
            lambda bound_rad: covering_zoom(own, s, opened.camera, cameras(bound_rad)),
            may_shrink=wish.amplitude_deg is None,
        )
        vantage = Vantage(bound_rad, vantage.pivot_z, zoom)
    return build_photo_scene(opened, photo, s, cameras(vantage.bound_rad)), vantage


def turned_cameras(
    frustum: Frustum, vantage: Vantage, turns: Sequence[tuple[float, float]], height_px: int, width_px: int
) -> Camera:
    """Cameras at parts of the bound in yaw and pitch."""
    angles = torch.tensor(turns) * vantage.bound_rad
    pose = pivot_pose(angles[:, 0], angles[:, 1], vantage.pivot_z)
    pose[:, 2, 3] += vantage.pivot_z - frustum.radius
    camera = frustum.camera(height_px, width_px)
    return Camera(pose, camera.intrinsics.expand(len(pose), 3, 3), height_px, width_px)


def _photo_layers(photo_scene: PhotoScene, wish: Wish, frustum: Frustum) -> Layers:
    # Beyond the photo's edges the canvas goes on, mirrored: that much wider than the camera's view are the layers.
    canvas, tangent = photo_scene.camera, math.tan(0.5 * frustum.fov_rad)
    focal = canvas.intrinsics[0]
    margins = (
        0.5 * canvas.width_px / float(focal[0, 0]) / tangent,
        0.5 * canvas.height_px / float(focal[1, 1]) / tangent,
    )
    sheets = [_sheet(part) for part in (photo_scene.front, photo_scene.behind)]
    return layers_of_sheets(sheets, frustum, wish.layers, margins=margins)


def _field_layers(
    opened: OpenedScene, things: ComposedScene | None, wish: Wish, frustum: Frustum, height_px: int, width_px: int
) -> Layers:
    """Layers of a NeRF, or of a composition: of its meshes they hold what the first camera sees."""
    device = opened.scene.planes.device
    if things is None:
        field, hits = opened.scene.model.frozen_field(opened.scene.planes), None
    else:
        field, hits = field_with_photo(things, opened), things.hits(frustum.camera(height_px, width_px))
    hits = None if hits is None else Hits(hits.z_depth, hits.rgb[..., :3])
    return bake_layers(
        field,
        frustum,
        choose_edges(field, frustum, wish.layers, device),
        height_px=height_px,
        width_px=width_px,
        samples_a_layer=max(1, round(wish.samples / wish.layers)),
        hits=hits,
        device=device,
    )


def photo_sheets(photo_scene: PhotoScene, frustum: Frustum) -> Sheets:
    """Both layers of a photo without their margins, which are mirrored again where they are drawn."""
    rows, columns = photo_window(photo_scene)
    front, behind = (
        Sheet(part.rgb[:, rows, columns].cpu(), part.s[rows, columns].cpu())
        for part in (photo_scene.front, photo_scene.behind)
    )
    return Sheets(front, behind, frustum, (STRETCH_FADES, STRETCH_GONE))


def _sheet(part: PhotoLayer) -> Sheet:
    """A layer of a photo, no larger than layers may be."""
    factor = min(1.0, MAX_SIDE_PX / max(part.s.shape))
    size = [max(1, math.floor(side * factor)) for side in part.s.shape]
    options: dict[str, Any] = {"size": size, "mode": "bilinear", "align_corners": False, "antialias": True}
    small = functional.interpolate(part.rgb[None].cpu(), **options)[0].clamp(0.0, 1.0)
    return Sheet(small, functional.interpolate(part.s[None, None].cpu(), **options)[0, 0])


def _layers_psnr(
    layers: Layers, scene: Renderable, frustum: Frustum, vantage: Vantage, samples: int
) -> dict[str, float]:
    """What drawing the layers differs from rendering the scene by, in dB, by the camera's yaw in radians."""
    camera = turned_cameras(
        frustum, vantage, [(turn, 0.0) for turn in _CHECK_TURNS], *output_size(_CHECK_PX, frustum.aspect)
    )
    seen = scene.render(camera, samples=samples).rgb.cpu()
    drawn, _ = render_layers(layers, camera)
    found = psnr(drawn.cpu(), seen).tolist()
    return {f"{turn * vantage.bound_rad:+.3f}": value for turn, value in zip(_CHECK_TURNS, found, strict=True)}


def _texture(opened: OpenedScene) -> Tensor:
    """The photo, at most 1024 pixels wide or high."""
    assert opened.photo is not None
    return fitted_photo(opened.photo, *output_size(MOST_PX, opened.camera.aspect)).cpu()


def _orbit(canonical: Camera, frustum: Frustum, wish: Wish) -> Camera:
    if wish.views == 1:
        return canonical
    amplitude_rad = math.radians(_ORBIT_DEG if wish.amplitude_deg is None else wish.amplitude_deg)
    pose = orbit(wish.views, amplitude_rad, frustum.radius).cam_to_world
    return Camera(pose, canonical.intrinsics.expand(wish.views, 3, 3), canonical.height_px, canonical.width_px)
