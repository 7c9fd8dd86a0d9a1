"""What is exported, as which files: checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vq3dcli.errors import UsageError
from vq3dcli.export.layers import MAX_LAYERS, MAX_SIDE_PX
from vq3dcli.export.mesh import MeshKind
from vq3dcli.export.mpi import check_folder, layers_in
from vq3dcli.export.points import Axes
from vq3dcli.export.video import check_output
from vq3dcli.export.viewer import BOUND_RAD
from vq3dcli.pipelines.film import check_limits
from vq3dcli.pipelines.geometry import Teacher
from vq3dcli.pipelines.inputs import Source

ExportFormat = Literal["viewer", "ply", "glb", "splat", "mpi", "npz", "depth"]

FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
# What a file's name ends in, if it was made here; the first part of what `depth` writes.
_ENDINGS: Mapping[ExportFormat, str] = {
    "viewer": ".html",
    "ply": ".ply",
    "glb": ".glb",
    "splat": "_splat.ply",
    "mpi": "_mpi",
    "npz": ".npz",
    "depth": "_disparity.png",
}
_BY_SUFFIX: Mapping[str, ExportFormat] = {".html": "viewer", ".ply": "ply", ".glb": "glb", ".npz": "npz"}
MOST_PX = 1024


@dataclass(frozen=True)
class Wish:
    """What is exported, and how.

    Attributes:
        kind: The format.
        size_px: The longer side of what is sampled; None is what suits the format.
        layers: Of viewer and mpi.
        samples: Samples a ray of the NeRF.
        views: Of npz: 1 is the canonical one, more lie on an orbit.
        amplitude_deg: How far the viewer's camera turns, at most 0.2 rad, or the orbit of npz goes; None is what suits
            a photo, and 0.2 rad and 10 degrees otherwise.
        mesh: Of glb.
        axes: Of ply and splat.
        max_z_depth: Farthest z_depth of ply and glb, and of splat if it is given.
        detail: Whether photos are exported with their own pixels.
        teacher: What gives them their geometry, see `geometry.open_teacher`; None is the NeRF.
    """

    kind: ExportFormat
    size_px: int | None = None
    layers: int = MAX_LAYERS
    samples: int = 96
    views: int = 1
    amplitude_deg: float | None = None
    mesh: MeshKind = "relief"
    axes: Axes = "opencv"
    max_z_depth: float | None = None
    detail: bool = True
    teacher: Teacher | None = None


def check_wish(wish: Wish) -> None:
    """Raise `UsageError` for the first value that is out of range, or that the format has no use for."""
    for option, value, default, kinds in (
        ("--layers", wish.layers, MAX_LAYERS, ("viewer", "mpi")),
        ("--views", wish.views, 1, ("npz",)),
        ("--amplitude", wish.amplitude_deg, None, ("viewer", "mpi", "npz")),
        ("--mesh", wish.mesh, "relief", ("glb",)),
        ("--axes", wish.axes, "opencv", ("ply", "splat")),
        ("--max-depth", wish.max_z_depth, None, ("ply", "glb", "splat")),
    ):
        if value != default and wish.kind not in kinds:
            raise UsageError(f"{option} has no meaning for {wish.kind}", remedy=f"--format {'|'.join(kinds)}")
    most_px = MAX_SIDE_PX if wish.kind in ("viewer", "mpi") else MOST_PX
    limits = (
        ("--size", wish.size_px, 16, most_px),
        ("--layers", wish.layers, 2, MAX_LAYERS),
        ("--samples", wish.samples, 4, 512),
        ("--views", wish.views, 1, 1000),
        ("--amplitude", wish.amplitude_deg, 0.5, 60.0 if wish.kind == "npz" else math.degrees(BOUND_RAD)),
        ("--max-depth", wish.max_z_depth, 0.1, 1e6),
    )
    check_limits(limits)


def plan_export(
    source: Source, output: str | None, kind: str | None, *, kept: Sequence[Path] = ()
) -> tuple[ExportFormat, list[Path]]:
    """The format, and the files or the folder to write.

    Args:
        source: The input.
        output: What `-o` says: a file or a folder; None is the current folder.
        kind: What `--format` says, if anything; the default is the viewer.
        kept: What else is read, and must not be overwritten.

    Raises:
        UsageError: An unknown format, one that contradicts the name, or an output that would overwrite the input.
    """
    if output == "-":
        raise UsageError("export writes files, not stdout", remedy="a file name with -o")
    if kind is not None and kind not in FORMATS:
        raise UsageError(f"no format {kind!r} to export", remedy=f"--format {'|'.join(FORMATS)}")
    is_folder = output is not None and (output.endswith("/") or Path(output).is_dir())
    suffix = "" if output is None or is_folder else Path(output).suffix.lower()
    chosen = next((name for name in FORMATS if name == kind), None) or _BY_SUFFIX.get(suffix)
    if chosen is None:
        if suffix:
            raise UsageError(f"cannot tell the format from the name ({output})", remedy="--format")
        chosen = "viewer"
    ending = _ENDINGS[chosen]
    if output is None or (is_folder and chosen != "mpi"):
        first = Path(output or ".") / f"{source.stem}{ending}"
    else:
        first = Path(output)
        if chosen != "mpi" and suffix != Path(f"x{ending}").suffix:
            raise UsageError(
                f"--format {chosen} contradicts the name of the output ({output})",
                remedy=f"a name that ends in {Path(f'x{ending}').suffix}",
            )
    paths = [first]
    if chosen == "depth":
        paths.append(first.with_name(f"{first.stem.removesuffix('_disparity')}_z_depth.pfm"))
    inputs = {path.resolve() for path in (*([source.path] if source.is_file else []), *kept)}
    for path in (*paths, *(layers_in(first) if chosen == "mpi" else [])):
        if path.resolve() in inputs:
            raise UsageError(f"the output would overwrite the input ({path})", remedy="another name with -o")
    return chosen, paths


def check_export(kind: ExportFormat, paths: list[Path]) -> None:
    """Find out before the work starts whether all outputs can be written; see `export.video.check_output`."""
    for path in paths:
        check_output(path, "frames" if kind == "mpi" else "png")
        if kind == "mpi":
            check_folder(path)
