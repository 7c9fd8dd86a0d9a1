"""Kills, signals and full disks at many instants of every job that can be resumed; see `tools/faulty_runs.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMORY_DISK = Path("/dev/shm")  # where there is one: a thousand flushes to a real disk take half a minute
JOBS = ["toyscenes", "meshscenes", "folder", "forced", "labels", "tokens"]
JOBS += ["train-stage1", "train-stage2", "train-depth"]
OWN_NAMESPACE = ("unshare", "--map-root-user", "--mount")

faults = pytest.mark.faults


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None) as name:
        yield Path(name)


def meet(folder: Path, instants: int, *which: str, before: Sequence[str] = ()) -> dict[tuple[str, str], dict[int, int]]:
    """How often each exit code came, by fault and job; all of them ended as they should."""
    result = subprocess.run(
        [*before, sys.executable, "tests/tools/faulty_runs.py", str(folder), str(instants), *which],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=3 * 3600,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr[-2000:]
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["broken"] for report in reports if report["broken"]] == []
    codes = {(r["fault"], r["job"]): {int(code): count for code, count in r["codes"].items()} for r in reports}
    assert all(sum(found.values()) == instants for found in codes.values())
    return codes


# Of what failed, an exit code; 0 where a removal failed, or a page that a run can do without.
FAILED = {"full": 74, "read-only": 73, "limit": 74}


@pytest.mark.parametrize(
    ("instants", "which"),
    [(2, ["kill", "sigterm", "full"]), *(pytest.param(10, [w], marks=faults) for w in ("kill", "sigterm", "sigusr1"))],
)
def test_jobs_that_are_killed_stopped_or_cannot_write_end_as_undisturbed_ones(
    folder: Path, instants: int, which: list[str]
) -> None:
    """Every byte is the same after a resume; a signal saves within a step, also before the first, with nothing."""
    codes = meet(folder, instants, *which)
    for (fault, job), found in codes.items():
        if fault == "kill":
            assert found == {-9: instants}
        elif fault in FAILED:
            assert set(found) <= {0, FAILED[fault]}
        else:
            assert job.startswith("train-") and set(found) <= {0, 75} and found[75] >= instants // 2
    assert {job for fault, job in codes if fault == "kill"} == set(JOBS if "kill" in which else ())


@faults
@pytest.mark.parametrize("fault", FAILED)
def test_writes_that_fail_leave_what_was_good(folder: Path, fault: str) -> None:
    codes = meet(folder, 20, fault)
    assert {job for _, job in codes} == set(JOBS)
    for found in codes.values():
        assert set(found) <= {0, FAILED[fault]}
        assert found[FAILED[fault]] >= 5


@faults
def test_training_on_a_small_disk_goes_on_when_there_is_room(folder: Path) -> None:
    if subprocess.run([*OWN_NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    codes = meet(folder, 12, "disk", before=OWN_NAMESPACE)
    assert set(codes) == {("disk", job) for job in ("train-stage1", "train-stage2")}
    assert all(found[74] >= 6 for found in codes.values())
