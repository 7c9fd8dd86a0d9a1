"""Run by `test_interruption.py`: kills jobs at chosen file operations, as `kill -9` does, and runs them again.

Usage: killed_runs.py FOLDER INSTANTS. Prints one JSON line a job: {"job", "operations", "killed", "different"}.
An audit hook sees every opening, renaming and deletion of a file before it happens.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.prepare import Options, open_source, prepare
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.model.build import build_autoencoder
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.weights_file import LoadedWeights, load_weights, save_weights

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}


def main(root: Path, instants: int) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # a child then copies fewer pages
    pictures, labelled, old = root / "pictures", root / "labelled", root / "old"
    make_pictures(pictures)

    def toy(out: Path) -> None:
        prepare_toyscenes(out, count=5, size=16, seed=1, shard_size=2)

    def folder(out: Path) -> None:
        prepare("folder", open_source("folder", pictures, out), out, Options(16, shard_size=4), max_bad=0.5)

    def forced(out: Path) -> None:
        options = Options(24, shard_size=3)
        prepare("folder", open_source("folder", pictures, out), out, options, max_bad=0.5, force=True)

    weights = tiny_weights(root)

    def tokens(out: Path) -> None:
        tokenize(weights, [old], out)

    run(lambda: toy(labelled), die_at=None)
    run(lambda: folder(old), die_at=None)
    report("toyscenes", root, toy, instants)
    report("folder", root, folder, instants)
    report("forced", root, forced, instants, start=old)
    report("labels", root, label_exact, instants, start=labelled)
    report("tokens", root, tokens, instants)


def report(job: str, root: Path, work: Callable[[Path], object], instants: int, start: Path | None = None) -> None:
    """Kill `work` at evenly spread operations, each time in a new folder that begins as a copy of `start`."""

    def new_folder(name: str) -> Path:
        out = root / job / name
        out.parent.mkdir(exist_ok=True)
        return out if start is None else Path(shutil.copytree(start, out))

    whole = new_folder("whole")
    operations = run(lambda: work(whole), die_at=None)
    expected = contents(whole)
    killed, different = 0, []
    for k in range(instants):
        out = new_folder(f"{k}")
        die_at = 1 + k * operations // instants
        killed += run(lambda out=out: work(out), die_at=die_at) < 0
        run(lambda out=out: work(out), die_at=die_at + 3)  # a second kill, while resuming
        run(lambda out=out: work(out), die_at=None)
        if contents(out) != expected:
            different.append(die_at)
    print(json.dumps({"job": job, "operations": operations, "killed": killed, "different": different}))


def run(work: Callable[[], object], die_at: int | None) -> int:
    """Work in a child process; the number of its file operations, or -1 if it was killed at operation `die_at`."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        operations = 0

        def watch(event: str, _: object) -> None:
            nonlocal operations
            if event in EVENTS:
                operations += 1
                if operations == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()
        os.write(write_end, str(operations).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        operations = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return -1
    assert os.WEXITSTATUS(status) == 0
    return int(operations)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_pictures(folder: Path) -> None:
    from vq3dcli.data.images import encode_png

    for i in range(11):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (3, 20, 24 + i), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        path.write_bytes(b"broken" if i % 5 == 3 else encode_png(noise))


def tiny_weights(folder: Path) -> LoadedWeights:
    """An untrained Stage 1 of 16-pixel images."""
    small = ["image_size=16", "patch=4", "encoder_width=32", "decoder_width=32", "encoder_heads=2", "decoder_heads=2"]
    recipe = load_recipe("toy-cpu", Stage1Recipe, [f"model.{value}" for value in small])
    save_weights(folder / "tiny.safetensors", build_autoencoder(recipe), recipe, {})
    return load_weights(folder / "tiny.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
