"""Viewer pages in headless Chromium, which draws with SwiftShader on the CPU alone: how close, and how fast.

For each input a page is exported that may turn by 0.2 rad; its pictures are compared with our own renderer's (PSNR) at
0, +-0.1 and +-0.2 rad of yaw, and frames a second are counted at 256 and 512 pixels.

Example:
    python benchmarks/viewer.py toyscene:snowman photos/*.jpg
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright

from vq3dcli.data.images import decode_image
from vq3dcli.export.viewer import BOUND_RAD
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.export import Wish, export_scene, sampled_size, wished_photo_scene
from vq3dcli.pipelines.export_layers import turned_cameras
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.weights_file import load_weights

TURNS = (0.0, 0.5, -0.5, 1.0, -1.0)
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def measure(opened: OpenedScene, page: Page, folder: Path, *, detail: bool, frames: int) -> dict[str, Any]:
    """Figures of one scene."""
    wish = Wish("viewer", amplitude_deg=math.degrees(BOUND_RAD), detail=detail)
    path = folder / "page.html"
    export_scene(opened, wish, [path])
    frustum = opened.frustum
    height_px, width_px = sampled_size(opened, wish)
    picture, vantage = wished_photo_scene(opened, wish, (height_px, width_px))
    camera = turned_cameras(frustum, vantage, [(turn, 0.0) for turn in TURNS], (height_px, width_px))
    seen = (opened.scene.render(camera, samples=wish.samples) if picture is None else picture.render(camera)).rgb
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(path.as_uri())
    ready = page.evaluate("vq3d.ready")
    figures: dict[str, Any] = {"size_px": [width_px, height_px], "ready": ready}
    for turn, view in zip(TURNS, seen, strict=True):
        yaw_rad = turn * vantage.bound_rad
        data = page.evaluate(f"vq3d.picture({yaw_rad}, 0, {width_px}, {height_px})").partition(",")[2]
        drawn = decode_image(base64.b64decode(data), name="picture")
        figures[f"{yaw_rad:+.2f}"] = round(float(psnr(drawn[None], view[None])), 1)
    for side_px in (256, 512):
        size = f"{side_px}, {round(side_px / frustum.aspect)}"
        figures[f"frames_a_second_{side_px}"] = round(page.evaluate(f"vq3d.measure({frames}, {size})"), 2)
    return figures | {"console": troubles, "page_bytes": path.stat().st_size}


def main() -> None:
    """Measure and print a line of JSON an input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    weights = load_weights(None)
    torch.set_num_threads(1)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=arguments.browser, args=SOFTWARE)
        for text in arguments.inputs:
            (source,) = parse_sources([text])
            detail = source.toy is None
            opened = open_scene(source, weights, fit="squash" if detail else "crop")
            page = browser.new_page(viewport={"width": 400, "height": 500}, reduced_motion="reduce")
            figures = measure(opened, page, Path(folder), detail=detail, frames=arguments.frames)
            page.close()
            print(json.dumps({"input": opened.stem, "detail": detail} | figures), flush=True)
        browser.close()


if __name__ == "__main__":
    main()
