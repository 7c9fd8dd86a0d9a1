"""What exports and edits cost: seconds of CPU time of one thread, by format and size.

Of a photo in detail, of its plain NeRF, and of a composition: that photo with a toy scene's object cut out and a mesh.

Example:
    python benchmarks/export_costs.py photo.jpg --sizes 64 256 --of photo composition --formats viewer npz
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vq3dcli.config.defaults import VIDEO_SAMPLES
from vq3dcli.pipelines.compose import Opened
from vq3dcli.pipelines.composition import Composition
from vq3dcli.pipelines.export import FORMATS, Wish, export_scene
from vq3dcli.pipelines.film import Shot, shot_camera
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.render import Detail, Look, staged_photo
from vq3dcli.pipelines.stage import build_stage
from vq3dcli.weights_file import load_weights

KINDS = ("photo", "plain", "composition")
DETAILS: tuple[Detail, ...] = ("photo", "none")


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512], metavar="SIDE_PX")
    parser.add_argument("--of", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--formats", choices=FORMATS, nargs="*", default=FORMATS)
    parser.add_argument("--frames", action="store_true", help="also a frame of compose, with and without photo detail")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weights = load_weights()

    def opened(text: str) -> OpenedScene:
        return open_scene(parse_sources([text])[0], weights, fit="squash")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        composition = _composition(asked.photo, folder)
        scene = opened(str(asked.photo))
        for size_px in asked.sizes:
            for kind in asked.of:
                for form in asked.formats:
                    wish = Wish(form, size_px, detail=kind != "plain")
                    edits = Opened(composition, scene, opened) if kind == "composition" else None
                    paths = [folder / "map.png", folder / "map.pfm"] if form == "depth" else [folder / f"out.{form}"]
                    _report(f"{kind} {form} {size_px}", partial(export_scene, scene, wish, paths, edits))
            if asked.frames:
                _compose_frames(scene, composition, opened, size_px)


def _composition(photo: Path, folder: Path) -> Composition:
    import trimesh

    mesh = folder / "ring.glb"
    trimesh.creation.torus(1.0, 0.3).export(mesh)
    inserts = [
        {"object": str(mesh), "at": [[0.3, 0.8]], "scale": 0.5},
        {"object": "toyscene:snowman:3", "at": [[0.7, 0.8]]},
    ]
    return Composition.model_validate({"scene": str(photo), "insert": inserts})


def _compose_frames(
    scene: OpenedScene, composition: Composition, opened: Callable[[str], OpenedScene], size_px: int
) -> None:
    for detail in DETAILS:
        shot, picture = Shot("orbit", frames=2, size_px=size_px), None
        if detail == "none":
            camera = shot_camera(shot, scene.frustum)[1]
            _report(f"interpolate, a frame {size_px}", partial(scene.scene.render, camera, samples=VIDEO_SAMPLES))
        else:
            picture, cameras, _ = staged_photo(scene, shot, Look(detail))
            camera = cameras[1]
        stage = build_stage(composition, scene, opened, picture=picture)
        frame = partial(stage.at(0.0).render, camera, samples=VIDEO_SAMPLES)
        _report(f"compose, a frame, detail {detail} {size_px}", frame)


def _report(what: str, act: Callable[[], object]) -> None:
    began = time.process_time()
    act()
    print(f"{what}: {time.process_time() - began:.2f} s", flush=True)


if __name__ == "__main__":
    main()
