"""`vq3d export`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, pick_device

FormatName = Literal["viewer", "ply", "glb", "obj", "stl", "splat", "spz", "mpi", "npz", "depth"]

INPUT = (
    "Photos (JPEG, PNG, WebP, AVIF, HEIC), folders of photos, - for stdin, saved scenes (.vq3d.safetensors), samples "
    "(samples.json#NAME), or toyscene:CLASS[:SEED]; or a composition, NAME.toml."
)
FORMAT = (
    "viewer: one HTML page to look around in; ply: coloured points; glb, obj: a textured mesh; stl: one for printers; "
    "splat: 3D Gaussians, spz: the same in a sixth of the bytes; mpi: PNG layers; npz: pictures, "
    "disparities and cameras; depth: 16-bit PNG and PFM. Default: what the name of the output says, else viewer."
)
SIZE = "Longer side in pixels of what is sampled. Default: 512, points and meshes 256; without photo detail 128."
MESH = (
    "relief: the visible surface, torn where depth jumps; solid: closed, with walls and a flat back. Default: relief, "
    "for stl solid."
)
AXES = (
    "Of ply and splat. opencv: y down, z away from the camera; opengl: y up, z towards it, as glb, obj and spz always "
    "have. Default: opengl for ply, opencv for splat."
)
AMPLITUDE = (
    "How far the viewer's camera turns, at most 11.45 degrees (0.2 rad), or the orbit of npz goes. Default: what suits "
    "the photo; without photo detail 0.2 rad; npz 10."
)
MAX_DEPTH = (
    "Leave out of points, meshes and splats what is farther from the camera. Default: nothing, but in points and "
    "meshes what is farther than 12 stands there."
)
OUTPUT = (
    "File, or FOLDER/; for mpi the folder of its layers; with several inputs FOLDER/ or a pattern with {name}. "
    "Default: named after the input, in the current folder."
)


def command(
    said: Output,
    inputs: Annotated[list[str] | None, typer.Argument(metavar="INPUT", help=INPUT)] = None,
    stdin_list: options.StdinList = False,
    export_format: Annotated[FormatName | None, typer.Option("--format", help=FORMAT)] = None,
    size: Annotated[int | None, typer.Option(help=SIZE)] = None,
    layers: Annotated[int, typer.Option(help="Layers of viewer and mpi, at most 32.")] = 32,
    samples: options.Samples = 96,
    views: Annotated[int, typer.Option(help="Of npz: 1 is the first view, more lie on an orbit.")] = 1,
    amplitude: Annotated[float | None, typer.Option(help=AMPLITUDE)] = None,
    mesh: Annotated[Literal["relief", "solid"] | None, typer.Option(help=MESH)] = None,
    axes: Annotated[Literal["opencv", "opengl"] | None, typer.Option(help=AXES)] = None,
    max_depth: Annotated[float | None, typer.Option(help=MAX_DEPTH)] = None,
    detail: options.Detail = None,
    geometry: options.Geometry = None,
    photo_fov: options.PhotoFov = None,
    fit: options.Fit = None,
    open_it: options.Open = False,
    weights: options.Weights = None,
    exact: options.Exact = False,
    device: DeviceOption = "auto",
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Turn a scene into a web viewer, points, a mesh, splats, layers or maps.

    docs/exports.md says what each file holds, its axes and its units.

    Example:
      vq3d export photo.jpg
      vq3d export photo.jpg -o photo.glb --mesh solid
      vq3d export samples/samples.json#torus-0000 --format spz
      vq3d export toyscene:snowman --format mpi --layers 16 -o layers/
      vq3d export photos/ --format glb -o meshes/
      vq3d export room_composed.toml --format glb
    """
    from vq3dcli.pipelines.export import export
    from vq3dcli.pipelines.render import Look
    from vq3dcli.pipelines.targets import Task

    wish: dict[str, Any] = {"size_px": size, "layers": layers, "samples": samples, "views": views}
    wish |= {"amplitude_deg": amplitude, "mesh": mesh, "axes": axes, "max_z_depth": max_depth}
    look = Look(detail, fit, photo_fov_deg=photo_fov)
    with said.progress("exporting", unit="scenes") as count:
        task = Task(pick_device(device), output, None, False, geometry, weights, count, said.replacing)
        made = export(options.asked_inputs(inputs, stdin_list), export_format, look, task, **wish)
    said.show_made(made, show=open_it)
