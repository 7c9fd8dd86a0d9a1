"""What reading ImageNet costs a rank: opening an index of its size, and images a second from slow storage.

    python benchmarks/shard_reading.py

The index is synthetic: 1.28 million samples of three members in 1281 shards, whose tars are not there. It is opened
twice, each time in a process of its own: from JSON, which leaves the columns beside it, as prepare-data does once at
its end, and from these, as every rank does. Images come from toy shards of 64 pixels with labels; every read of a shard
sleeps for the latency first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARD = 1000


def make_index(out: Path, samples: int) -> None:
    """A finished shard folder without its tars."""
    from vq3dcli.data.shard_format import sample_key, shard_name
    from vq3dcli.files import sha256_bytes

    shards, none = [], "0" * 64
    for first in range(0, samples, SHARD):
        entries = [
            {
                "key": sample_key(i),
                "class_index": i % 1000,
                "members": {
                    extension: {"offset": 512 + 40960 * (i - first) + at, "size": size, "sha256": os.urandom(32).hex()}
                    for extension, at, size in (("cls", 0, 3), ("jpg", 1024, 36000), ("json", 38000, 200))
                },
            }
            for i in range(first, min(first + SHARD, samples))
        ]
        name, size = shard_name(first // SHARD), 40960 * (SHARD + 1)
        index = {"format_version": 1, "name": name, "size": size, "sha256": none, "plan_sha256": none}
        text = json.dumps({**index, "samples": entries, "rejects": []}).encode()
        (out / f"{name}.index.json").write_bytes(text)
        shard = {"name": name, "samples": len(entries), "size": size, "sha256": none}
        shards.append({**shard, "index_sha256": sha256_bytes(text)})
    facts = {"format_version": 1, "kind": "images", "preset": "imagenet", "image_size": 256, "margin": 1.125}
    counts = {"own_disparity": False, "num_samples": samples, "num_rejects": 0, "options": {}}
    names = [f"n{i:08d}" for i in range(1000)]
    manifest = json.dumps({**facts, **counts, "class_names": names, "shards": shards}).encode()
    (out / "manifest.json").write_bytes(manifest)
    (out / "SHA256SUMS").write_text(f"{sha256_bytes(manifest)}  manifest.json\n")


def resident_mb() -> float:
    """Of this process, with the mapped pages that it has touched."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_folder(folder: Path) -> dict[str, float]:
    """Seconds and megabytes to open a folder's index and to look up 200,000 random samples in it."""
    from vq3dcli.data.shard_reader import ShardFolder

    before, began = resident_mb(), time.perf_counter()
    index = ShardFolder(folder).index
    opened, seconds = resident_mb(), time.perf_counter() - began
    chosen = random.Random(0).choices(range(len(index.keys)), k=200_000)
    began = time.perf_counter()
    for i in chosen:
        index.entry(i)
    looked = time.perf_counter() - began
    return {
        "open_seconds": round(seconds, 2),
        "open_mb": round(opened - before, 1),
        "lookup_us": round(5 * looked, 1),
        "after_lookups_mb": round(resident_mb() - before, 1),
    }


def images_per_second(folder: Path, latency_ms: float, batch_size: int) -> float:
    """Of the training loader on toy shards, uncached, where each read of a shard takes the latency longer."""
    from vq3dcli.data import open_files
    from vq3dcli.data.loader import TrainingLoader
    from vq3dcli.data.open_files import OpenFile
    from vq3dcli.data_tools.depth.labels import label_exact
    from vq3dcli.data_tools.toyscenes import prepare_toyscenes

    prepare_toyscenes(folder, count=512, size=64, seed=0, shard_size=16)
    label_exact(folder)

    class SlowFile(OpenFile):
        def read(self, start: int, size: int) -> bytes:
            time.sleep(latency_ms / 1000)
            return super().read(start, size)

    open_files.OpenFile = SlowFile  # type: ignore[misc]
    loader = TrainingLoader([folder], batch_size=batch_size, size=64, seed=0, flip=True, crop=True, cache_bytes=0)
    batches = loader.batches(0)
    next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 8.0:
        count += len(next(batches).image)
    speed = count / (time.perf_counter() - began)
    batches.close()  # type: ignore[attr-defined]
    return speed


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--latency-ms", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_folder(options.open)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "index").mkdir()
        make_index(folder / "index", options.samples)
        result: dict[str, object] = {"samples": options.samples}
        for how in ("once_by_prepare_data", "by_each_rank"):
            command = [sys.executable, __file__, "--open", str(folder / "index")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result[how] = json.loads(done.stdout)
        result["images_per_second"] = round(images_per_second(folder / "toys", options.latency_ms, options.batch_size))
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
