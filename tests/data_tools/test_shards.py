"""Shard folders as they are written: webdataset reads them, nothing half-made stays, other plans are refused."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import webdataset

from vq3dcli.data.shard_format import Manifest, RejectEntry, sample_key
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.shard_writer import Sample
from vq3dcli.errors import DataError, OutputError, StoppedError, StorageError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.locks import lock_folder


def nothing(done: int, total: int) -> None:
    return None


def test_more_shards_than_a_folder_can_hold_are_refused_at_once() -> None:
    assert len(shard_ranges(10**5, 1)) == 10**5
    with pytest.raises(UsageError, match=r"10,000,000 shards.*--shard-size 100 or more"):
        shard_ranges(10**7, 1)


def sample(i: int) -> Sample | RejectEntry:
    if i % 7 == 5:
        return RejectEntry(path=f"{i}.jpg", reason="no good")
    return Sample(sample_key(i), i % 2, {"jpg": bytes([i]) * (600 * i), "cls": str(i % 2).encode(), "json": b"{}"})


def job(count: int = 20, *, shard_size: int = 6, max_bad: float = 0.5, **plan: Any) -> Job:
    return Job(
        kind="images",
        preset="folder",
        image_size=16,
        margin=1.0,
        own_disparity=False,
        class_names=["even", "odd"],
        shards=shard_ranges(count, shard_size),
        plan={"count": count, "shard_size": shard_size, **plan},
        maker_of=lambda _: partial(map, sample),
        max_bad=max_bad,
    )


def write(out: Path, made: Job, *, force: bool = False) -> Manifest:
    return write_part(out, made, force=force, progress=nothing)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_back_by_position_by_tarfile_and_by_webdataset(tmp_path: Path):
    manifest = write(tmp_path / "x", job())
    folder = ShardFolder(tmp_path / "x")
    expected = [item for item in map(sample, range(20)) if isinstance(item, Sample)]
    assert folder.keys == [item.key for item in expected]
    assert [folder.read(i) for i in range(folder.num_samples)] == [item.members for item in expected]

    urls = [str(tmp_path / "x" / f"{shard.name}.tar") for shard in manifest.shards]
    by_webdataset = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in by_webdataset] == folder.keys
    for item, read in zip(expected, by_webdataset, strict=True):
        assert {name: read[name] for name in item.members} == item.members

    with tarfile.open(urls[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            key, extension = member.name.split(".", 1)
            listed = folder.entry(folder.keys.index(key)).members[extension]
            assert (listed.offset, listed.size) == (member.offset_data, member.size)


def test_the_manifest_and_the_rejects_account_for_every_position(tmp_path: Path):
    manifest = write(tmp_path, job())
    assert (manifest.num_samples, manifest.num_rejects) == (17, 3)
    assert [shard.samples for shard in manifest.shards] == [5, 6, 5, 1]
    for shard in manifest.shards:
        path = tmp_path / f"{shard.name}.tar"
        assert (path.stat().st_size, sha256_file(path)) == (shard.size, shard.sha256)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert lines == [{"path": f"{i}.jpg", "reason": "no good"} for i in (5, 12, 19)]


def test_a_shard_without_samples_is_read_too(tmp_path: Path):
    manifest = write(tmp_path, job(20, shard_size=1))
    assert manifest.num_samples == ShardFolder(tmp_path).num_samples == 17
    urls = [str(tmp_path / f"{shard.name}.tar") for shard in manifest.shards]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))) == 17


def test_a_second_run_keeps_what_is_whole_and_mends_what_is_not(tmp_path: Path, archives: ModuleType):
    write(tmp_path, job())
    before = contents(tmp_path)
    inode = (tmp_path / "shard-000000.tar").stat().st_ino
    (tmp_path / "shard-000001.tar").write_bytes(before["shard-000001.tar"][:-1] + b"x")
    (tmp_path / "shard-000002.tar").unlink()
    (tmp_path / "shard-000003.index.json").write_bytes(b"{")
    (tmp_path / "manifest.json").unlink()
    archives.leave_half_a_shard(tmp_path)
    write(tmp_path, job())
    assert contents(tmp_path) == before
    assert (tmp_path / "shard-000000.tar").stat().st_ino == inode


def test_other_options_are_refused_unless_forced(tmp_path: Path):
    write(tmp_path, job(20))
    (tmp_path / "disparity").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    before = contents_of_files(tmp_path)
    with pytest.raises(UsageError, match="count was 20, is 9"):
        write(tmp_path, job(9))
    assert contents_of_files(tmp_path) == before
    write(tmp_path, job(9), force=True)
    assert ShardFolder(tmp_path).num_samples == 8
    assert not (tmp_path / "shard-000002.tar").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match=r"plan\.json is missing or damaged"):
        write(tmp_path, job(9))
    write(tmp_path, job(9), force=True)
    (tmp_path / "plan.json").unlink()
    for force in (False, True):
        with pytest.raises(UsageError, match=r"plan\.json is missing"):
            write(tmp_path, job(9), force=force)


@pytest.mark.parametrize("plan", [None, "[1, 2]", "not JSON", '{"resources": []}'])
def test_files_of_others_are_never_deleted(tmp_path: Path, plan: str | None):
    for name in ("SHA256SUMS", "manifest.json", "rejects.jsonl", "shard-000000.tar"):
        (tmp_path / name).write_text("mine")
    if plan is not None:
        (tmp_path / "plan.json").write_text(plan)
    before = contents_of_files(tmp_path)
    for force in (False, True):
        with pytest.raises(UsageError):
            write(tmp_path, job(9), force=force)
        assert {**contents_of_files(tmp_path), ".lock": b""} == {**before, ".lock": b""}


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_too_many_rejects_end_the_run_and_a_larger_budget_continues_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"2 of 20 files are bad.*rejects\.jsonl.*5\.jpg: no good"):
        write(tmp_path / "x", job(max_bad=0.05))
    assert not (tmp_path / "x" / "manifest.json").exists()
    assert len((tmp_path / "x" / "rejects.jsonl").read_text().splitlines()) == 2
    write(tmp_path / "x", job(max_bad=0.15))
    write(tmp_path / "y", job(max_bad=0.5))
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_a_locked_folder_is_left_alone(tmp_path: Path):
    with lock_folder(tmp_path), pytest.raises(StoppedError):
        write(tmp_path, job())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_output_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none/below")):
        with pytest.raises(OutputError):
            write(out, job())


def test_a_failing_write_leaves_nothing_half_made_and_the_run_can_go_on(
    tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
):
    out = tmp_path / "x"
    with file_limit(50_000), pytest.raises(StorageError):
        write(out, job())
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "plan.json",
        "shard-000000.index.json",
        "shard-000000.tar",
    ]
    write(out, job())
    write(tmp_path / "y", job())
    assert contents(out) == contents(tmp_path / "y")


def test_progress_counts_to_the_end(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    write_part(tmp_path, job(), force=False, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, 20)
    assert calls[-1] == (20, 20)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
