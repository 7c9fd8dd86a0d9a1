r"""The loader of Stage 2, from a token store, beside the loader of Stage 1, from JPEG shards of the same images.

Batches are made in the calling thread, without caches of decoded images; samples a second of process CPU time. The
codes are random numbers: what they say does not change what reading them costs.

Example:
    python benchmarks/token_loader.py
    python benchmarks/token_loader.py --size 64 --length 256
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vq3dcli.data.images import encode_png
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.token_store import (
    CLASS_DTYPE,
    CLASSES_NAME,
    TOKEN_DTYPE,
    TOKENS_NAME,
    TokenLoader,
    TokenManifest,
    TokenStore,
    write_token_manifest,
)
from vq3dcli.data_tools.prepare import Options, open_source, prepare
from vq3dcli.files import sha256_bytes, sha256_file, write_bytes
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes

CODES = 8192
VIEWS = 2


def write_shards(folder: Path, count: int, size_px: int) -> Path:
    """JPEG shards of toy scenes."""
    (folder / "source").mkdir()
    for i in range(count):
        scene = sample_scenes(torch.arange(i, i + 1), seed=0)
        view = render_scenes(scene, canonical_camera(1, height_px=size_px, width_px=size_px))
        (folder / "source" / f"{i}.png").write_bytes(encode_png(view.rgb[0]))
    listed = open_source("folder", folder / "source", folder / "shards")
    prepare("folder", listed, folder / "shards", Options(size_px))
    return folder / "shards"


def write_store(folder: Path, count: int, length: int) -> Path:
    """A token store of random codes."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    generator.integers(CODES, size=(count, VIEWS, length), dtype=np.uint16).astype(TOKEN_DTYPE).tofile(
        folder / TOKENS_NAME
    )
    np.zeros(count, CLASS_DTYPE).tofile(folder / CLASSES_NAME)
    manifest = TokenManifest(
        format_version=1,
        images=count,
        views=VIEWS,
        view_names=["plain", "flip"],
        length=length,
        codebook_size=CODES,
        image_size=256,
        stage1_sha256="0" * 64,
        class_names=["any"],
        seed=0,
        sources=[],
        tokens_sha256=sha256_file(folder / TOKENS_NAME),
        classes_sha256=sha256_file(folder / CLASSES_NAME),
        plan_sha256=sha256_bytes(b"{}"),
    )
    write_bytes(folder / "plan.json", b"{}")
    write_token_manifest(folder, manifest)
    return folder


def samples_a_second(make_batch: Callable[[int], object], batch_size: int, seconds: float) -> float:
    """Speed over about `seconds` of CPU time, after one batch that is not counted."""
    make_batch(0)
    started, position = time.process_time(), batch_size
    while time.process_time() - started < seconds:
        make_batch(position)
        position += batch_size
    return (position - batch_size) / (time.process_time() - started)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="Side of the images in pixels.")
    parser.add_argument("--length", type=int, default=1024, help="Codes an image.")
    parser.add_argument("--images", type=int, default=32, help="Images in the shards, which are read in turn.")
    parser.add_argument("--tokenised", type=int, default=20_000, help="Images in the token store.")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        shards = write_shards(Path(scratch), options.images, options.size)
        images = TrainingLoader(
            [shards],
            labels=None,
            batch_size=options.batch_size,
            size=options.size,
            seed=0,
            flip=True,
            crop=True,
            cache_bytes=0,
        )
        store = TokenStore(write_store(Path(scratch) / "tokens", options.tokenised, options.length))
        tokens = TokenLoader(store, batch_size=options.batch_size, seed=0)
        from_shards = samples_a_second(images.batch_at, options.batch_size, options.seconds)
        from_tokens = samples_a_second(tokens.batch_at, options.batch_size, options.seconds)
    result = {
        "size_px": options.size,
        "length": options.length,
        "batch_size": options.batch_size,
        "jpeg_shards_per_second": from_shards,
        "tokens_per_second": from_tokens,
        "ratio": from_tokens / from_shards,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
