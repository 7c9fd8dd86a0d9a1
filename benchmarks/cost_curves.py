"""How time and memory grow, one axis at a time, each size twice the one before.

Bend is what a thing costs at the largest size over what it costs at half of it: 1 on a straight line.

Example:
    python benchmarks/cost_curves.py --rounds 3
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vq3dcli.config.defaults import VIDEO_FPS
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.export.video import video_writer
from vq3dcli.pipelines.bench.data import image_loader, write_photos, write_shards, write_tokens
from vq3dcli.pipelines.bench.measure import Work, measure, one_thread
from vq3dcli.pipelines.bench.render import Subject, looking, side_view, subjects
from vq3dcli.pipelines.bench.train import stepping
from vq3dcli.pipelines.bench.video import picture
from vq3dcli.rendering.cameras import Camera, image_rays
from vq3dcli.rendering.trajectories import trajectory

_VIDEO_PX, _STORED_PX = 128, 64


class Curve(NamedTuple):
    """One axis: sizes along it, and the work of each."""

    axis: str
    sizes: list[int]
    work_of: Callable[[int], Work]
    device: torch.device


def curves(device: torch.device) -> Iterator[Curve]:
    """Side, samples and frames of rendering, the batch of a training step, the size of a data set."""
    small, _ = subjects(device)
    sides = [64, 128, 256, 512]
    views = {side: side_view(side, device) for side in sides}
    look = looking(small)
    yield Curve("side of a frame", sides, lambda n: Work("", partial(look, views[n]), n * n, "rays"), device)

    def by_samples(count: int) -> Work:
        return Work("", partial(looking(small._replace(samples=count)), views[128]), 128**2 * count, "samples")

    yield Curve("samples a ray", [24, 48, 96, 192], by_samples, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def video(frames: int) -> Work:
            camera = trajectory("orbit", frames, height_px=_VIDEO_PX, width_px=_VIDEO_PX).to(device)
            return Work("", partial(encode, small, camera, folder / "a.mp4"), frames, "frames")

        yield Curve("frames of a video", [8, 16, 32, 64], video, device)

        def step(batch: int) -> Work:
            recipe = load_recipe("toy-cpu", Stage1Recipe, [f"training.batch_size={batch}"])
            return Work("", stepping(recipe, device), batch, "images")

        yield Curve("batch of toy-cpu", [2, 4, 8, 16], step, device)

        def open_shards(images: int) -> Work:
            here = folder / str(images)
            here.mkdir()
            write_photos(here / "photos", images, _STORED_PX, _STORED_PX)
            shards = write_shards(here / "photos", here / "shards", _STORED_PX)
            act = lambda: image_loader(shards, 8, _STORED_PX).batch_at(0)  # noqa: E731
            return Work("", act, images, "images")

        yield Curve("images of shards, opened", [250, 500, 1000, 2000], open_shards, torch.device("cpu"))

        def open_tokens(images: int) -> Work:
            store = write_tokens(folder / f"tokens{images}", images, 256)
            return Work("", partial(TokenStore, store), images, "images")

        sizes = [25_000, 50_000, 100_000, 200_000]
        yield Curve("images of tokens, opened", sizes, open_tokens, torch.device("cpu"))


def encode(subject: Subject, camera: Camera, path: Path) -> None:
    """Frames of a scene that is prepared in here, encoded as they come, of which none is kept."""
    look = looking(subject)
    with video_writer(path, frames=len(camera), fps=VIDEO_FPS, video_format="mp4") as write:
        for i in range(len(camera)):
            write(picture(look(image_rays(camera[i])), camera))


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with one_thread():
        for curve in curves(torch.device(options.device)):
            a_thing = []
            for size in curve.sizes:
                work = curve.work_of(size)
                found = measure(work, options.rounds, curve.device)
                a_thing.append(found["seconds"]["median"] / work.things)
                megabytes = (found["added_bytes"] or 0) / 1e6
                print(f"{curve.axis} {size}: {found['seconds']['median']:.4f} s, {megabytes:.1f} MB", flush=True)
            print(f"{curve.axis}: bend {a_thing[-1] / a_thing[-2]:.2f}", flush=True)


if __name__ == "__main__":
    main()
