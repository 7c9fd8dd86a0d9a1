"""Trains for long under random kills, and compares with the same run undisturbed: equal to the bit, memory flat.

    python benchmarks/soak.py --minutes 120

Half of the time for the undisturbed run, whose resident memory is looked at each second; then the same run again, which
gets a SIGKILL, SIGTERM or SIGUSR1 at random moments (start-up included) and goes on by the same command, to its end.
Prints JSON; exit code 1 where a process ended with another code than it should, a byte differs, or memory grew by more
than a twentieth from the second quarter of the run to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

# What the undisturbed run may grow by.
MOST_GROWTH = 0.05
EXPECTED = {signal.SIGKILL: {-9}, signal.SIGTERM: {75}, signal.SIGUSR1: {75}}


class Trained:
    """A training as a process, and what is watched of it."""

    def __init__(self, data: Path, out: Path, images: int, every: int) -> None:
        keys = {"images": images, "checkpoint_every_images": every, "sheet_every_images": 4 * every}
        words = ["train-stage1", "toy-cpu", "--data", str(data), "--out", str(out), "--quiet", "--device", "cpu"]
        sets = [f"--set=training.{name}={value}" for name, value in {**keys, "log_every_images": 80}.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vq3dcli", *words, *sets],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.resident_mb: list[float] = []

    def watch(self, seconds: float = float("inf")) -> int | None:
        """Wait, and look at its memory; the exit code, None where it still runs."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/status").read_text(errors="replace")
            if found := re.search(r"VmRSS:\s+(\d+)", status):
                self.resident_mb.append(int(found[1]) / 1024)
            time.sleep(1.0)
        return self.process.poll()


def contents(run: Path, machine: tuple[str, ...]) -> dict[str, Any]:
    """All of a run that is a function of recipe and data."""
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.iterdir(), *(run / "sheets").iterdir(), run / "weights.safetensors", run / "run.json"]
    found: dict[str, Any] = {str(path.relative_to(run)): path.read_bytes() for path in files}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**found, "metrics": [{k: v for k, v in each.items() if k not in machine} for each in records]}


def disturbed(data: Path, out: Path, images: int, every: int, chance: random.Random, most: float) -> dict[str, Any]:
    """Train to the end under kills."""
    codes: Counter[str] = Counter()
    wrong, peaks = [], []
    while True:
        run = Trained(data, out, images, every)
        code = run.watch(chance.uniform(0.0, most))
        number = chance.choice(list(EXPECTED))
        if code is None:
            run.process.send_signal(number)
            code = run.process.wait()
            codes[f"{number.name} {code}"] += 1
            expected = EXPECTED[number] | {0}
            # Python itself has not been told yet what a signal means.
            if code == -number and not (run.process.stderr and run.process.stderr.read()):
                expected |= {code}
        else:
            expected = {0}
        peaks += [max(run.resident_mb)] if run.resident_mb else []
        if code not in expected:
            wrong.append(f"{number.name}: {code}: {run.process.stderr.read() if run.process.stderr else ''}")
        if code == 0 or len(wrong) > 5:
            return {"signals": codes, "wrong": wrong, "peak_mb": round(max(peaks), 1)}


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from vq3dcli.data_tools.depth.labels import label_exact
    from vq3dcli.data_tools.toyscenes import prepare_toyscenes
    from vq3dcli.training.run import MACHINE_FIGURES

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_toyscenes(folder / "toys", count=400, size=64, seed=0)
        label_exact(folder / "toys")
        began = time.monotonic()
        Trained(folder / "toys", folder / "short", 160, 160).watch()
        kill_within = 1.5 * (time.monotonic() - began)
        last = json.loads((folder / "short/metrics.jsonl").read_text().splitlines()[-1])
        every = max(8, int(last["images_per_second"] * 5) // 8 * 8)
        images = max(4, int(last["images_per_second"] * options.minutes * 30 / every)) * every
        began = time.monotonic()
        alone = Trained(folder / "toys", folder / "whole", images, every)
        assert alone.watch() == 0, alone.process.stderr and alone.process.stderr.read()
        undisturbed, began = time.monotonic() - began, time.monotonic()
        # Rare enough that a long run is not all start-up; a short one must not end before its first signal.
        kill_within = min(max(kill_within, undisturbed / 40), undisturbed / 2)
        chance = random.Random(options.seed)
        report = disturbed(folder / "toys", folder / "killed", images, every, chance, kill_within)
        whole, killed = (contents(folder / name, MACHINE_FIGURES) for name in ("whole", "killed"))
        different = [k for k in whole.keys() | killed.keys() if whole.get(k) != killed.get(k)]
        quarter = len(alone.resident_mb) // 4
        early, late = (statistics.median(alone.resident_mb[a : a + quarter]) for a in (quarter, 3 * quarter))
    seconds = {"undisturbed_seconds": round(undisturbed), "disturbed_seconds": round(time.monotonic() - began)}
    memory = {"second_quarter_mb": round(early, 1), "last_quarter_mb": round(late, 1)}
    print(json.dumps({"images": images, **seconds, **memory, **report, "different": different}, indent=2))
    return int(bool(report["wrong"] or different or late > early * (1 + MOST_GROWTH)))


if __name__ == "__main__":
    sys.exit(main())
