"""Workers, parts and kills: the bytes of one uninterrupted process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.cli import run
from vq3dcli.data.shard_format import Manifest, RejectEntry, sample_key
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.part import WHOLE, Part, parse_part, part_from_environment
from vq3dcli.data_tools.prepare import Options, check_disk, image_job, job_facts, open_source, prepare
from vq3dcli.data_tools.shard_writer import Sample
from vq3dcli.errors import DataError, StoppedError, StorageError, UsageError
from vq3dcli.locks import lock_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(archives: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested tar of 24 photos, some of them broken."""
    files = archives.train_files(6)
    for name in sorted(files)[::7]:
        files[name] = files[name][:200]
    path = tmp_path_factory.mktemp("source") / "ILSVRC2012_img_train.tar"
    path.write_bytes(archives.nested_train_tar(files))
    return path


@pytest.fixture(scope="module")
def expected(archives: ModuleType, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected")
    prepared(source, out)
    return archives.contents(out)  # type: ignore[no-any-return]


def prepared(source: Path, out: Path, **options: object) -> Manifest | None:
    listed = open_source("imagenet", source, out)
    return prepare(out, image_job("imagenet", listed, Options(16, shard_size=4), max_bad=0.5), **options)  # type: ignore[arg-type]


def test_workers_write_the_bytes_of_one_process(
    tmp_path: Path, archives: ModuleType, source: Path, expected: dict[str, bytes]
):
    calls: list[tuple[int, int]] = []
    manifest = prepared(source, tmp_path, workers=2, progress=lambda *call: calls.append(call))
    assert archives.contents(tmp_path) == expected
    assert manifest is not None
    assert manifest.num_rejects == 4
    assert (calls[0], calls[-1]) == ((0, 24), (24, 24))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_parts_in_any_order_write_the_bytes_of_one_process(
    tmp_path: Path, archives: ModuleType, source: Path, expected: dict[str, bytes], count: int
):
    archives.leave_half_a_shard(tmp_path)
    for index in reversed(range(count)):
        assert not (tmp_path / "manifest.json").exists()
        manifest = prepared(source, tmp_path, part=Part(index, count))
        # Of nine parts and six shards three parts have nothing to do, and theirs is not the last word.
        assert (manifest is None) == (index > 0)
    assert archives.contents(tmp_path) == expected
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".lock"]


def test_parts_at_the_same_time(tmp_path: Path, archives: ModuleType, source: Path, expected: dict[str, bytes]):
    results: dict[int, Manifest | None] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: prepared(source, tmp_path, part=Part(i, 3))}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2]
    assert any(results.values())
    assert archives.contents(tmp_path) == expected


def test_parts_respect_each_other_and_whole_runs(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, archives: ModuleType
):
    monkeypatch.setattr("vq3dcli.data_tools.job._SHARE_SECONDS", 0.1)
    with lock_folder(tmp_path), pytest.raises(StoppedError):
        prepared(source, tmp_path, part=Part(0, 2))
    with lock_folder(tmp_path, ".part-1-of-2.lock"):
        with pytest.raises(StoppedError):
            prepared(source, tmp_path, part=Part(0, 2))
        assert prepared(source, tmp_path, part=Part(1, 2)) is None
    listed = open_source("imagenet", source, tmp_path)
    with pytest.raises(UsageError, match="size was 16, is 24"):
        prepare(tmp_path, image_job("imagenet", listed, Options(24, shard_size=4), max_bad=0.5), part=Part(0, 2))
    forced = prepare(
        tmp_path, image_job("imagenet", listed, Options(24, shard_size=4), max_bad=0.5), part=Part(0, 2), force=True
    )
    assert forced is None
    assert {name for name in archives.contents(tmp_path) if name.endswith(".tar")} == {
        f"shard-{number:06d}.tar" for number in (0, 2, 4)
    }


def test_a_part_spends_the_budget_of_all(tmp_path: Path, source: Path):
    listed = open_source("imagenet", source, tmp_path)
    options = Options(16, shard_size=4)
    assert prepare(tmp_path, image_job("imagenet", listed, options, max_bad=0.15), part=Part(0, 2)) is None
    with pytest.raises(DataError, match=r"4 of 24 files are bad, more than the allowed 15\.0%"):
        prepare(tmp_path, image_job("imagenet", listed, options, max_bad=0.15), part=Part(1, 2))
    assert not (tmp_path / "manifest.json").exists()


# --- kills -----------------------------------------------------------------------------------------------------------


def start(source: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vq3dcli", "prepare-data", str(source), str(out), "--preset", "imagenet"]
    return subprocess.Popen(
        [*command, "--size", "16", "--shard-size", "4", "--max-bad", "0.5", "--quiet", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def children(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_run_leaves_no_worker_behind_and_can_go_on(
    tmp_path: Path, archives: ModuleType, source: Path, expected: dict[str, bytes]
):
    process = start(source, tmp_path, "--workers", "2")
    deadline = time.monotonic() + 100
    workers: set[int] = set()
    while len(workers) < 2 and time.monotonic() < deadline and process.poll() is None:
        workers |= children(process.pid)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    again = start(source, tmp_path, "--workers", "1")  # at once, while the kernel still takes the first one apart
    _, said = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert process.wait(100) == -signal.SIGKILL
    assert not any(alive(worker) for worker in workers)
    assert archives.contents(tmp_path) == expected
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == {".lock"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_while_workers_start_is_one_line(tmp_path: Path, source: Path):
    process = start(source, tmp_path, "--workers", "2")
    workers: set[int] = set()
    while len(workers) < 2 and process.poll() is None:
        workers = children(process.pid)
        time.sleep(0.01)
    for pid in (*workers, process.pid):  # as a terminal does
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert said.endswith(b"interrupted\n")
    assert b"Traceback" not in said


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ENDINGS = """
import os, signal
from vq3dcli.data_tools.workers import run_tasks
from vq3dcli.errors import DataError, StoppedError

def killed(task, advance):
    os.kill(os.getpid(), signal.SIGKILL)

def failing(task, advance):
    raise DataError("task is bad", remedy="another")

def fine(task, advance):
    advance(task)
    return task

if __name__ == "__main__":
    counts = []
    print(sorted(run_tasks(fine, range(9), workers=2, advance=counts.append)), sum(counts))
    for function in (killed, failing):
        try:
            list(run_tasks(function, range(9), workers=2, advance=counts.append))
        except (DataError, StoppedError) as error:
            print(type(error).__name__, error)
"""


def test_a_worker_that_is_killed_or_fails_ends_the_run_with_a_reason(tmp_path: Path):
    script = tmp_path / "endings.py"  # workers import the functions, so these are in a file of their own
    script.write_text(ENDINGS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, env=environment)
    assert ended.stdout.splitlines() == [
        "[0, 1, 2, 3, 4, 5, 6, 7, 8] 36",
        "StoppedError a worker process was killed, perhaps for want of memory; "
        "try: the same command with fewer --workers; finished shards are kept",
        "DataError task is bad; try: another",
    ], ended.stderr[-1000:]


# --- which part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, WHOLE),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Part(2, 4)),
        ({"RANK": "2"}, WHOLE),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, WHOLE),  # a batch script, not srun
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, Part(3, 8)),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}
            | {"SLURM_ARRAY_TASK_COUNT": "8"},
            Part(4, 8),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "6"}
            | {"SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "4"},
            Part(2, 4),
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3"}
            | {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            Part(3, 8),
        ),
    ],
)
def test_the_part_of_a_process_that_torchrun_or_slurm_started(environment: dict[str, str], part: Part):
    assert part_from_environment(environment) == part


def test_parts_that_are_none():
    assert (parse_part("2/8"), parse_part("1/1"), str(parse_part("8/8"))) == (Part(1, 8), WHOLE, "8/8")
    for text in ("0/8", "9/8", "1/0", "1", "a/b", "-1/8", ""):
        with pytest.raises(UsageError):
            parse_part(text)
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "3"}
    for environment in ({"RANK": "x", "WORLD_SIZE": "2"}, array | {"SLURM_ARRAY_TASK_ID": "5"}):
        with pytest.raises(UsageError):
            part_from_environment(environment)
    assert {sum(Part(i, 7).has(shard) for i in range(7)) for shard in range(50)} == {1}


# --- duplicates, disk, the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_duplicates_are_listed_and_are_not_bad(tmp_path: Path, archives: ModuleType, layout: str):
    one, two = archives.photo(1), archives.photo(2)
    same_size = one[:-40] + bytes([one[-40] ^ 1]) + one[-39:]
    same_tail = one[:-1100] + bytes([one[-1100] ^ 1]) + one[-1099:] if len(one) > 1200 else two
    files = {"a/1.jpg": one, "a/2.jpg": two, "b/3.jpg": one, "b/4.jpg": same_size, "b/5.jpg": same_tail, "c/6.jpg": one}
    source = archives.write_tree(tmp_path / "src", files)
    if layout == "tar":
        source = tmp_path / "src.tar"
        source.write_bytes(archives.tar_bytes(files))
    else:
        (source / "c" / "7.jpg").symlink_to("nowhere")
        (source / "c" / "8.jpg").symlink_to("nowhere")
    listed = open_source("folder", source, tmp_path / "out")
    manifest = prepare(tmp_path / "out", image_job("folder", listed, Options(16, dedup=True), max_bad=0.4))
    assert manifest is not None
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    duplicates = [(line["path"], line["reason"]) for line in lines if line.get("kind") == "duplicate"]
    expected = [(name, "the same bytes as a/1.jpg") for name in ("b/3.jpg", "c/6.jpg")]
    if same_tail == two:
        expected.insert(1, ("b/5.jpg", "the same bytes as a/2.jpg"))
    assert duplicates == expected
    prepare(tmp_path / "all", image_job("folder", listed, Options(16), max_bad=0.4))
    assert ShardFolder(tmp_path / "all").num_samples == manifest.num_samples + len(expected)
    with pytest.raises(UsageError, match="dedup"):
        prepare(tmp_path / "all", image_job("folder", listed, Options(16, dedup=True), max_bad=0.4))


def test_copies_of_a_damaged_image_are_all_bad(tmp_path: Path, archives: ModuleType):
    files = {"a/1.jpg": archives.photo(1)[:300], "b/2.jpg": archives.photo(1)[:300], "b/3.jpg": archives.photo(2)}
    listed = open_source("folder", archives.write_tree(tmp_path / "src", files), tmp_path / "out")
    prepare(tmp_path / "out", image_job("folder", listed, Options(16, dedup=True), max_bad=0.7))
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["path"], line.get("kind", "bad")) for line in lines] == [("a/1.jpg", "bad"), ("b/2.jpg", "bad")]


def test_duplicates_do_not_spend_the_budget_of_bad_images(tmp_path: Path):
    def make(positions: range) -> list[Sample | RejectEntry]:
        return [
            RejectEntry(path=f"{i}", reason="as 0", kind="duplicate") if i else Sample(sample_key(i), 0, {"jpg": b"x"})
            for i in positions
        ]

    job = Job("images", "folder", 16, 1.0, False, ["a"], shard_ranges(10, 4), {}, lambda _: make)
    assert write_part(tmp_path, job).num_rejects == 9


def test_the_estimate_is_near_what_is_written(tmp_path: Path, source: Path):
    listed = open_source("imagenet", source, tmp_path / "out")
    job = image_job("imagenet", listed, Options(64, shard_size=12), max_bad=0.5)
    facts = job_facts(job, tmp_path / "out", part=Part(0, 2))
    assert not (tmp_path / "out").exists()
    prepare(tmp_path / "out", image_job("imagenet", listed, Options(64, shard_size=12), max_bad=0.5))
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("shard-*"))
    padding = 2 * 10240  # tarfile fills its last record; of shards with a thousand samples that is nothing
    assert facts["estimated_bytes"] == pytest.approx(written - padding / 2, abs=padding)
    assert facts["estimated_bytes_of_part"] == pytest.approx(facts["estimated_bytes"] / 2, abs=1)
    assert (facts["images"], facts["shards"], facts["classes"]) == (24, 2, 4)


def disk(whole: int, part: int, free: int) -> dict[str, int]:
    return {"images": 10, "estimated_bytes": whole, "estimated_bytes_of_part": part, "free_bytes": free}


def test_shards_that_do_not_fit_are_not_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    check_disk(tmp_path, disk(1000, 1000, 1000), WHOLE)
    check_disk(tmp_path, disk(1000, 1000, 0), WHOLE)
    assert "reports no free space" in caplog.text
    with pytest.raises(StorageError, match=r"the disk is too small.*about 2\.0 kB of shards for 10 images, 1\.0 kB"):
        check_disk(tmp_path, disk(2000, 2000, 1000), WHOLE)
    (tmp_path / "shard-000000.tar").write_bytes(bytes(1500))  # begun before: what is there is not written again
    check_disk(tmp_path, disk(2000, 2000, 1000), WHOLE)
    check_disk(tmp_path, disk(4000, 2000, 1000), Part(0, 2))
    with pytest.raises(StorageError):  # what another part wrote is none of this one's
        check_disk(tmp_path, disk(4000, 2000, 1000), Part(1, 2))


def test_a_job_without_a_portable_maker_stays_in_this_process(tmp_path: Path, source: Path):
    job = image_job("imagenet", open_source("imagenet", source, tmp_path), Options(16, shard_size=4), max_bad=0.5)
    here = replace(job, maker_of=lambda _: job.make, portable=False)
    assert write_part(tmp_path, here, WHOLE, workers=4) is not None


def test_the_command_from_dry_run_to_parts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    expected: dict[str, bytes],
    archives: ModuleType,
):
    out = tmp_path / "out"
    arguments = ["prepare-data", str(source), str(out), "--preset", "imagenet", "--size", "16", "--shard-size", "4"]
    arguments += ["--max-bad", "0.5", "--workers", "1", "--json"]
    assert run([*arguments, "--dry-run"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert (metrics["images"], metrics["expected"]) == (24, 1281167)
    assert not out.exists()
    assert run([*arguments, "--part", "2/2"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["metrics"]["part"] == "2/2"
    assert "the part that ends last finishes the whole" in captured.err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert (metrics["samples"], metrics["rejects"], metrics["found"]) == (20, 4, 24)
    assert metrics["images_per_second"] > 0
    assert archives.contents(out) == expected
    for bad in (["--split", "test"], ["--part", "3/2"], ["--preset", "folder", "--split", "val"]):
        assert run([*arguments, *bad]) == 2
