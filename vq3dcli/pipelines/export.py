"""Scenes for other tools: a web viewer, points, meshes, splats, multiplane images, arrays and depth maps.

With photo detail what is exported is the photo in its two layers (`editing.photo_scene`), without it the plain NeRF.

Legend: V views, H height_px, W width_px.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vq3dcli.editing.parallax import adapted_reach, covered_reach
from vq3dcli.editing.photo_scene import PhotoScene, build_photo_scene
from vq3dcli.editing.untorn import untorn
from vq3dcli.errors import UsageError, Vq3dError
from vq3dcli.export.colour import display_range
from vq3dcli.export.layers import MAX_LAYERS, MAX_SIDE_PX, Layers, flat_layers
from vq3dcli.export.maps import write_disparity_png, write_pfm, write_views
from vq3dcli.export.mesh import MeshKind, relief_mesh, write_mesh
from vq3dcli.export.mpi import check_folder, layers_in, write_mpi
from vq3dcli.export.points import Axes, surface_points, write_points, write_splats, write_spz
from vq3dcli.export.video import check_output
from vq3dcli.export.viewer import BOUND_RAD, write_viewer
from vq3dcli.files import cut_name
from vq3dcli.pipelines.compose import Opened, composition_files, composition_sources, open_composition
from vq3dcli.pipelines.composition import SUFFIX, read_composition
from vq3dcli.pipelines.export_layers import Vantage, field_layers, layers_psnr, photo_layers, turned_cameras
from vq3dcli.pipelines.film import check_limits, output_size
from vq3dcli.pipelines.geometry import NERF, Geometry, photo_relief
from vq3dcli.pipelines.inputs import OpenedScene, Source, fitted_photo, parse_sources, with_photos_of_folders
from vq3dcli.pipelines.render import Look, Made, with_geometry
from vq3dcli.pipelines.targets import Task, input_files, names_folder, refuse_overwriting, refuse_stdout
from vq3dcli.rendering.cameras import Camera, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.scene import SceneView, ViewOf
from vq3dcli.rendering.space import Frustum
from vq3dcli.rendering.trajectories import trajectory

ExportFormat = Literal["viewer", "ply", "glb", "obj", "stl", "splat", "spz", "mpi", "npz", "depth"]

FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
# What the names of files end in, if they are made here.
_ENDINGS: Mapping[ExportFormat, tuple[str, ...]] = {
    "viewer": (".html",),
    "ply": (".ply",),
    "glb": (".glb",),
    "obj": (".obj", ".mtl", ".png"),
    "stl": (".stl",),
    "splat": ("_splat.ply",),
    "spz": (".spz",),
    "mpi": ("_mpi",),
    "npz": (".npz",),
    "depth": ("_disparity.png", "_z_depth.pfm"),
}
_BY_SUFFIX: Mapping[str, ExportFormat] = {ends[0]: name for name, ends in _ENDINGS.items() if ends[0].startswith(".")}
_MESHES: tuple[ExportFormat, ...] = ("glb", "obj", "stl")
_SURFACES: tuple[ExportFormat, ...] = ("ply", *_MESHES, "splat", "spz")
MOST_PX = 1024
# The longer side in pixels: of the plain NeRF, which holds no more, and of a photo in each format.
_PLAIN_PX = 128
_PHOTO_PX: Mapping[ExportFormat, int] = dict.fromkeys(_SURFACES, 256)
# Layers of a composition are cut from its fields, which takes its time.
_COMPOSED_PX = 256
# Without a limit of the user's, what is farther stands here in meshes and points: the sky, at 60, would make viewers
# show a dot, and left out it would be a hole.
_DEFAULT_MAX_Z = 12.0
_ORBIT_DEG = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What is exported, and how."""

    kind: ExportFormat
    size_px: int | None = None  # the longer side of what is sampled; None is what suits the format
    layers: int = MAX_LAYERS  # of viewer and mpi
    samples: int = 96
    views: int = 1  # of npz: 1 is the canonical one, more lie on an orbit
    # how far the viewer's camera turns, at most 0.2 rad, or the orbit of npz goes; None is what suits a photo, and
    # 0.2 rad and 10 degrees otherwise
    amplitude_deg: float | None = None
    mesh: MeshKind | None = None  # of glb, obj and stl; None is the relief, for stl the solid
    axes: Axes | None = None  # of ply and splat; None is opengl for points, opencv for splats
    max_z_depth: float | None = None  # what is farther is left out of points, meshes and splats
    detail: bool = True  # whether photos are exported with their own pixels
    geometry: Geometry = NERF  # what gives them their geometry

    @property
    def turn_rad(self) -> float:
        """How far cameras turn, unless it adapts to the photo."""
        if self.amplitude_deg is not None:
            return math.radians(self.amplitude_deg)
        return math.radians(_ORBIT_DEG) if self.kind == "npz" else BOUND_RAD

    def shows_photo(self, opened: OpenedScene) -> bool:
        """Whether a scene is exported as its photo."""
        return self.detail and opened.has_detail


def export(texts: Sequence[str], kind: str | None, look: Look, task: Task, **options: Any) -> Made:
    """Export inputs and folders of photos, or a composition file where things that move are where they begin.

    `kind` is what `--format` says; else the output's name says it, else the viewer. `options` are those of `Wish`.

    Raises `Vq3dError`: options or inputs that do not fit, or cannot be read; an output that cannot be written. What is
    wrong with single inputs among several is logged, and in the result.
    """
    texts, kept, composition = with_photos_of_folders(texts), [*task.kept], None
    if len(texts) == 1 and texts[0].endswith(SUFFIX):
        composition = read_composition(Path(texts[0]))
        kept += composition_files(composition, Path(texts[0]))
    sources = parse_sources(texts) if composition is None else composition_sources(composition)
    named = sources if composition is None else [replace(sources[0], stem=cut_name(Path(texts[0]).stem))]
    plans = []
    for source in named:
        output = None if task.output is None else task.output.replace("{name}", source.stem)
        if len(named) > 1 and output == task.output:
            if output is not None and Path(output).suffix and not Path(output).is_dir():
                raise UsageError(f"several inputs cannot share one output ({output})", remedy="-o FOLDER/")
            output = f"{output or '.'}/" + (f"{source.stem}_mpi" if kind == "mpi" else "")
        asked = {"detail": look.detail_of(source) == "photo", **options}
        plans.append(plan_wish(source, output, kind, kept=[*kept, *input_files(named)], **asked))
    task.on_replaced([path for _, paths in plans for path in paths if path.exists()])
    look, loaded = with_geometry(look, named, task), task.load(sources)
    outputs: list[Path] = []
    failures: list[Vq3dError] = []
    figures: dict[str, Any] = {}
    for number, (source, (wish, paths)) in enumerate(zip(named, plans, strict=True)):
        task.on_progress(number, len(named), source.stem)
        try:
            edits = None
            if composition is not None:
                edits = open_composition(composition, [source, *sources[1:]], loaded, look, task.device)
            opened = look.open(source, loaded, task.device) if edits is None else edits.scene
            _log.info("%s of %s%s", wish.kind, opened.stem, "" if loaded is None else f", weights {loaded.path}")
            written, figures = export_scene(opened, replace(wish, geometry=look.geometry), paths, edits)
            outputs += written
        except Vq3dError as error:
            if len(named) == 1:
                raise
            _log.warning("left out: %s", error)
            failures.append(error)
    if len(named) > 1:
        figures = {"format": plans[0][0].kind, "failed": len(failures)}
    return Made(outputs, len(named) - len(failures), loaded, figures, failures)


def plan_wish(
    source: Source, output: str | None, kind: str | None, *, kept: Sequence[Path] = (), **options: Any
) -> tuple[Wish, list[Path]]:
    """What to export, and the files or the folder to write, which can be written; arguments as `export` has them.

    Raises:
        UsageError: An unknown format, one that contradicts the name, an output that would overwrite an input, or a
            value that is out of range or that the format has no use for.
        OutputError: See `targets.names_folder` and `export.video.check_output`.
    """
    refuse_stdout(output, "export")
    if kind is not None and kind not in FORMATS:
        raise UsageError(f"no format {kind!r} to export", remedy=f"--format {'|'.join(FORMATS)}")
    is_folder = output is not None and names_folder(output, _BY_SUFFIX)
    suffix = "" if output is None or is_folder else Path(output).suffix.lower()
    chosen = next((name for name in FORMATS if name == kind), None) or _BY_SUFFIX.get(suffix)
    if chosen is None and suffix:
        raise UsageError(f"cannot tell the format from the name ({output})", remedy=f"--format {'|'.join(FORMATS)}")
    chosen = chosen or "viewer"
    endings = _ENDINGS[chosen]
    if output is None or (is_folder and chosen != "mpi"):
        first = Path(output or ".") / f"{source.stem}{endings[0]}"
    else:
        first, wanted = Path(output), Path(f"x{endings[0]}").suffix
        if chosen != "mpi" and suffix != wanted:
            reason = f"--format {chosen} contradicts the name of the output ({output})"
            raise UsageError(reason, remedy=f"a name that ends in {wanted}")
    paths = [first, *(first.with_name(f"{first.stem.removesuffix('_disparity')}{end}") for end in endings[1:])]
    refuse_overwriting([*paths, *(layers_in(first) if chosen == "mpi" else [])], [source], kept)
    wish = Wish(chosen, **options)
    _check(wish)
    for path in paths:
        check_output(path, "frames" if chosen == "mpi" else "png")
        if chosen == "mpi":
            check_folder(path)
    return wish, paths


def _check(wish: Wish) -> None:
    """Raise `UsageError` for the first value that is out of range, or that the format has no use for."""
    for option, value, default, kinds in (
        ("--layers", wish.layers, MAX_LAYERS, ("viewer", "mpi")),
        ("--views", wish.views, 1, ("npz",)),
        ("--amplitude", wish.amplitude_deg, None, ("viewer", "mpi", "npz")),
        ("--mesh", wish.mesh, None, _MESHES),
        ("--axes", wish.axes, None, ("ply", "splat")),
        ("--max-depth", wish.max_z_depth, None, _SURFACES),
    ):
        if value != default and wish.kind not in kinds:
            raise UsageError(f"{option} has no meaning for {wish.kind}", remedy=f"--format {'|'.join(kinds)}")
    check_limits(
        (
            ("--size", wish.size_px, 16, MAX_SIDE_PX if wish.kind in ("viewer", "mpi") else MOST_PX),
            ("--layers", wish.layers, 2, MAX_LAYERS),
            ("--samples", wish.samples, 4, 512),
            ("--views", wish.views, 1, 1000),
            ("--amplitude", wish.amplitude_deg, 0.5, 60.0 if wish.kind == "npz" else math.degrees(BOUND_RAD)),
            ("--max-depth", wish.max_z_depth, 0.1, 1e6),
        )
    )


def export_scene(
    opened: OpenedScene, wish: Wish, paths: list[Path], edits: Opened | None = None
) -> tuple[list[Path], dict[str, Any]]:
    """Export a scene.

    Returns:
        The files that were written, and figures on them.

    Raises:
        DataError: Nothing is near enough to be exported.
        UnavailableError: A package is missing.
        OutputError, StorageError: What cannot be written.
    """
    frustum = opened.frustum
    size = sampled_size(opened, wish, composed=edits is not None)
    picture, vantage = wished_photo_scene(opened, wish, size, composed=edits is not None)
    stage = None if edits is None else edits.stage(picture)
    view_of: ViewOf = partial(opened.scene.render, samples=wish.samples) if picture is None else picture.render
    if stage is not None:
        view_of = partial(stage.at(0.0).render, samples=wish.samples)
    if wish.kind in ("ply", *_MESHES) and wish.max_z_depth is None:
        view_of = _no_farther(view_of, s_from_z_depth(torch.tensor(_DEFAULT_MAX_Z), frustum.depth_range))
    detail = "none" if picture is None else "photo"
    figures: dict[str, Any] = {"format": wish.kind, "width_px": size[1], "height_px": size[0], "detail": detail}
    canonical = frustum.camera(*size)
    if wish.kind in ("viewer", "mpi"):
        figures |= {"bound_rad": vantage.bound_rad, "pivot_z": vantage.pivot_z}
        drawn: Layers | PhotoScene
        if picture is None or stage is not None:
            drawn = field_layers(opened, stage, wish.layers, wish.samples, size)
        else:
            drawn = picture.cropped() if wish.kind == "viewer" else photo_layers(picture, wish.layers)
        if isinstance(drawn, Layers):
            drawn = flat_layers(drawn) if wish.kind == "mpi" else drawn
            figures |= {"layers": len(drawn), "psnr": layers_psnr(drawn, view_of, frustum, vantage)}
            if wish.kind == "mpi":
                return write_mpi(paths[0], drawn), figures
        view = view_of(canonical)
        still, shown = view.rgb[0].cpu(), display_range(view.s[0])
        write_viewer(paths[0], opened.stem, drawn, still, shown, **vantage._asdict())
    elif wish.kind in ("ply", "splat", "spz"):
        axes = wish.axes or ("opencv" if wish.kind == "splat" else "opengl")
        where = {"beside_rad": BOUND_RAD, "max_z_depth": wish.max_z_depth or math.inf}
        surface = surface_points(view_of, frustum, size, **where, outside=wish.kind != "ply", axes=axes)
        figures |= {"points": len(surface.points), "axes": axes}
        {"ply": write_points, "splat": write_splats, "spz": write_spz}[wish.kind](paths[0], surface)
    elif wish.kind in _MESHES:
        view = view_of(canonical)
        texture = view.rgb[0]
        if picture is not None and stage is None and opened.photo is not None:
            texture = fitted_photo(opened.photo, *output_size(MOST_PX, frustum.aspect)).cpu()
        solid = (wish.mesh or ("solid" if wish.kind == "stl" else "relief")) == "solid"
        mesh = relief_mesh(texture, view.s[0], frustum, max_z_depth=wish.max_z_depth or math.inf, solid=solid)
        figures |= {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)}
        write_mesh(paths, mesh)
    elif wish.kind == "npz":
        camera = _orbit(canonical, frustum, wish)
        write_views(paths[0], view_of(camera), camera, frustum.depth_range)
        figures |= {"views": wish.views}
    else:
        s = view_of(canonical).s[0]
        write_disparity_png(paths[0], s)
        write_pfm(paths[1], z_depth_from_s(s, frustum.depth_range))
    return paths, figures


def _no_farther(view_of: ViewOf, least_s: torch.Tensor) -> ViewOf:
    """The same, where what is farther stands at a distance."""

    def seen(camera: Camera) -> SceneView:
        view = view_of(camera)
        return view._replace(s=view.s.clamp(min=least_s.item()))

    return seen


def sampled_size(opened: OpenedScene, wish: Wish, *, composed: bool = False) -> tuple[int, int]:
    """Height and width of what is sampled."""
    if wish.size_px is not None:
        return output_size(wish.size_px, opened.camera.aspect)
    if opened.photo is None or not wish.shows_photo(opened):
        return output_size(_PLAIN_PX, opened.camera.aspect)
    most_px = _COMPOSED_PX if composed and wish.kind in ("viewer", "mpi") else MAX_SIDE_PX
    longer = max(16, min(_PHOTO_PX.get(wish.kind, most_px), max(opened.photo.shape[1:])))
    return output_size(longer, opened.camera.aspect)


def wished_photo_scene(
    opened: OpenedScene, wish: Wish, size: tuple[int, int], *, composed: bool = False
) -> tuple[PhotoScene | None, Vantage]:
    """The photo in its layers, if it is wanted, as far as one will look around them; `size` is height and width.

    A page to look around in shows it as videos do, unless it is `composed` with things.
    """
    frustum, vantage = opened.frustum, Vantage(wish.turn_rad, opened.frustum.radius)
    if opened.photo is None or not wish.shows_photo(opened):
        return None, vantage
    photo = fitted_photo(opened.photo, *size)
    s = photo_relief(opened, photo, wish.geometry)
    adapts = wish.amplitude_deg is None
    in_layers = composed or wish.kind != "viewer" or wish.geometry.is_given
    if wish.kind in ("viewer", "mpi"):
        # As videos do: turning around the middle of the scene, and not so far that the photo falls apart.
        reach = adapted_reach("orbit", s, photo if in_layers else None, frustum, fov_rad=frustum.fov_rad)
        suits_rad = min(vantage.bound_rad, reach.amplitude_rad) if adapts else vantage.bound_rad
        vantage = Vantage(suits_rad, reach.pivot_z)
    turns = [(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]

    def cameras(bound_rad: float) -> Camera:
        return turned_cameras(frustum, vantage._replace(bound_rad=bound_rad), turns, size)

    shown_s = s if in_layers else untorn(s, photo, frustum, cameras(vantage.bound_rad))
    if wish.kind == "viewer":
        bound_rad, zoom = covered_reach(vantage.bound_rad, shown_s, frustum, cameras, may_shrink=adapts)
        vantage = Vantage(bound_rad, vantage.pivot_z, zoom)
    return build_photo_scene(frustum, photo, shown_s, cameras(vantage.bound_rad), told_s=s), vantage


def _orbit(canonical: Camera, frustum: Frustum, wish: Wish) -> Camera:
    if wish.views == 1:
        return canonical
    size = {"height_px": canonical.height_px, "width_px": canonical.width_px}
    path = trajectory("orbit", wish.views, **size, amplitude_rad=wish.turn_rad, radius=frustum.radius)
    return canonical.at(path.cam_to_world)
