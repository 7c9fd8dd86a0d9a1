"""How time and memory grow, one axis at a time, each size twice the one before.

Bend is what a thing costs at the largest size over what it costs at half of it: 1 on a straight line.

Example:
    python benchmarks/cost_curves.py --rounds 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.config.defaults import VIDEO_FPS
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.token_store import (
    CLASS_DTYPE,
    CLASSES_NAME,
    TOKEN_DTYPE,
    TOKENS_NAME,
    TokenManifest,
    TokenStore,
    write_token_manifest,
)
from vq3dcli.export.video import video_writer
from vq3dcli.files import sha256_bytes, sha256_file, write_bytes
from vq3dcli.pipelines.bench.data import image_loader, write_photos, write_shards
from vq3dcli.pipelines.bench.measure import Work, measure, one_thread
from vq3dcli.pipelines.bench.render import Subject, looking, side_view, subjects
from vq3dcli.pipelines.bench.train import stepping
from vq3dcli.pipelines.bench.video import picture
from vq3dcli.rendering.cameras import Camera, image_rays
from vq3dcli.rendering.trajectories import trajectory

_VIDEO_PX, _STORED_PX = 128, 64
_CODES, _VIEWS = 8192, 2
_RANK_BATCH, _RANK_STEPS = 8, 100


class Curve(NamedTuple):
    """One axis: sizes along it, and the work of each."""

    axis: str
    sizes: list[int]
    work_of: Callable[[int], Work]
    device: torch.device
    here: bool = True  # whether it is this process that works, whose memory can be told


def curves(device: torch.device) -> Iterator[Curve]:
    """Side, samples and frames of rendering, the batch of a training step and its ranks, the size of a data set."""
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
        write_photos(folder / "trained", 64, _STORED_PX, _STORED_PX)
        trained = write_shards(folder / "trained", folder / "trained-shards", _STORED_PX)

        def train(ranks: int) -> Work:
            return Work("", partial(train_on, ranks, trained, folder), ranks, "ranks")

        yield Curve(f"ranks of toy-cpu, {_RANK_STEPS} steps", [1, 2, 4], train, torch.device("cpu"), here=False)

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


def train_on(ranks: int, shards: Path, folder: Path) -> None:
    """A run from its start to its end, with as many images a rank for any number of ranks."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        batch = _RANK_BATCH * ranks
        sets = (f"training.batch_size={batch}", f"training.images={batch * _RANK_STEPS}", "loss.depth=0")
        command = ["train-stage1", "toy-cpu", "--data", str(shards), "--labels", "none", "--out", f"{run}/run"]
        asked = [word for key in sets for word in ("--set", key)]
        train = [sys.executable, "-m", "vq3dcli", *command, "--nproc", str(ranks), "--device", "cpu", "-q", *asked]
        subprocess.run(train, check=True, capture_output=True)


def write_tokens(folder: Path, images: int, length: int) -> Path:
    """A token store of random codes: what they say does not change what reading them costs."""
    folder.mkdir()
    codes = np.random.default_rng(0).integers(_CODES, size=(images, _VIEWS, length), dtype=np.uint16)
    codes.astype(TOKEN_DTYPE).tofile(folder / TOKENS_NAME)
    np.zeros(images, CLASS_DTYPE).tofile(folder / CLASSES_NAME)
    write_bytes(folder / "plan.json", b"{}")
    manifest = TokenManifest(
        format_version=1,
        images=images,
        views=_VIEWS,
        view_names=["plain", "flip"],
        length=length,
        codebook_size=_CODES,
        image_size=256,
        stage1_sha256="0" * 64,
        class_names=["any"],
        seed=0,
        sources=[],
        tokens_sha256=sha256_file(folder / TOKENS_NAME),
        classes_sha256=sha256_file(folder / CLASSES_NAME),
        plan_sha256=sha256_bytes(b"{}"),
    )
    write_token_manifest(folder, manifest)
    return folder


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
                added = found["added_bytes"] if curve.here else None
                memory = "-" if added is None else f"{added / 1e6:.1f} MB"
                print(f"{curve.axis} {size}: {found['seconds']['median']:.4f} s, {memory}", flush=True)
            print(f"{curve.axis}: bend {a_thing[-1] / a_thing[-2]:.2f}", flush=True)


if __name__ == "__main__":
    main()
