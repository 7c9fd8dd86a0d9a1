"""`kill -9` at any file operation, twice, then the same command again: the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTANTS = 4
MEMORY_DISK = Path("/dev/shm")  # where there is one: a thousand flushes to a real disk take half a minute


def test_killed_jobs_end_with_the_bytes_of_whole_ones():
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None) as folder:
        check(Path(folder))


def check(folder: Path) -> None:
    script = Path(__file__).with_name("killed_runs.py")
    result = subprocess.run(
        [sys.executable, str(script), str(folder), str(INSTANTS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["job"] for report in reports] == ["toyscenes", "folder", "forced", "labels", "tokens"]
    for report in reports:
        assert report["different"] == [], report
        assert report["killed"] == INSTANTS, report
