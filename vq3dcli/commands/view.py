"""`vq3d view`."""

from __future__ import annotations

import threading
import webbrowser
from typing import Annotated, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, pick_device

INPUT = (
    "A photo (JPEG, PNG, WebP, AVIF, HEIC), - for stdin, a saved scene (.vq3d.safetensors), a sample "
    "(samples.json#NAME), or toyscene:CLASS[:SEED]."
)
SIZE = (
    "Longer side in pixels where the camera rests. Default: the photo's, at most 1024, with photo detail; else 512. "
    "While it moves: 192."
)
AMPLITUDE = "How far the camera turns, in degrees. Default: what suits the photo; the plain NeRF 20."
DETAIL = "photo shows the photo's own pixels, and the plain NeRF at the press of a button; none the NeRF alone."
PORT = "Port of 127.0.0.1. Default: one that is free."
OUTPUT = "Where stills and paths are saved. Default: the current folder."


def command(
    said: Output,
    source_text: Annotated[str, typer.Argument(metavar="INPUT", help=INPUT)],
    size: Annotated[int | None, typer.Option(help=SIZE)] = None,
    amplitude: Annotated[float | None, typer.Option(help=AMPLITUDE)] = None,
    detail: Annotated[Literal["photo", "none"] | None, typer.Option(help=DETAIL)] = None,
    geometry: options.Geometry = None,
    photo_fov: options.PhotoFov = None,
    fit: options.Fit = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help=PORT, show_default=False)] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    weights: options.Weights = None,
    device: DeviceOption = "auto",
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help=OUTPUT)] = None,
) -> None:
    """Look around in a scene, in the browser, while it is rendered.

    Prints the address of a page that only this machine reaches, and serves it until Ctrl-C. The page saves stills, and
    camera paths for --path of vq3d render.

    Example:
      vq3d view photo.jpg --open
      vq3d view toyscene:snowman --size 256
      vq3d view photo_orbit.vq3d.safetensors -o stills/
    """
    from vq3dcli.pipelines.render import Look
    from vq3dcli.pipelines.targets import Task
    from vq3dcli.pipelines.view import open_live
    from vq3dcli.pipelines.view_server import ViewServer

    task = Task(pick_device(device), output, geometry=geometry, weights=weights)
    scene = open_live(
        source_text, Look(detail, fit, photo_fov_deg=photo_fov), task, size_px=size, amplitude_deg=amplitude
    )
    server = ViewServer(scene, port)
    said.finish(count=1, weights=scene.weights, metrics={"url": server.url}, table=[[server.url]])
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
    server.serve()
