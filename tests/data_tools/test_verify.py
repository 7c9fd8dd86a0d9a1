"""Every cut and every flipped bit of a shard folder is found and named."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from vq3dcli.data.shard_format import RejectEntry
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.shard_writer import Sample, compact_json
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import InputMissingError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy scenes with labels, 3 shards each."""
    out = tmp_path_factory.mktemp("verify") / "toy"
    prepare_toyscenes(out, count=7, size=16, seed=0, shard_size=3)
    label_exact(out)
    return out


def with_rejects(out: Path) -> Path:
    """Shards that say as much as they can: rejects, titles, a shard without samples."""

    def sample(i: int) -> Sample | RejectEntry:
        if i % 3 == 1 or i >= 6:
            return RejectEntry(path=f"{i}.jpg", reason="no good")
        return Sample(f"{i:08d}", i % 2, {"jpg": bytes([i]) * 700, "cls": b"0", "json": compact_json({})})

    job = Job(
        kind="images",
        preset="folder",
        image_size=16,
        margin=1.0,
        own_disparity=False,
        class_names=["even", "odd"],
        class_titles=["Even", "Odd"],
        shards=shard_ranges(8, 2),
        plan={"preset": "folder"},
        maker_of=lambda _: partial(map, sample),
        max_bad=0.9,
    )
    write_part(out, job)
    return out


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def names(folder: Path) -> set[str]:
    return {str(problem.file.relative_to(folder)) for problem in verify_folder(folder).problems}


def test_a_sound_folder_has_no_problems(whole: Path, tmp_path: Path):
    calls: list[tuple[int, int]] = []
    found = verify_folder(whole, progress=lambda done, total: calls.append((done, total)))
    assert found.problems == []
    assert found.unfinished == []
    assert found.files == len(files_of(whole)) == 20
    assert found.size == sum(path.stat().st_size for path in files_of(whole)) == calls[-1][0] == calls[-1][1]
    assert verify_folder(with_rejects(tmp_path / "x")).problems == []


def test_sha256sum_reads_the_sums(whole: Path):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=whole, check=True)


@pytest.mark.parametrize("make", ["labelled", "rejects"])
def test_every_flipped_bit_is_found_and_named(make: str, whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "toy")) if make == "labelled" else with_rejects(tmp_path / "x")
    chance = random.Random(0)
    for path in files_of(folder):
        sound = path.read_bytes()
        for _ in range(12 if len(sound) else 0):
            damaged = bytearray(sound)
            damaged[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            found = names(folder)
            # The manifest's hash stands in SHA256SUMS alone: where the two differ, either may be the damaged one.
            alike = {str(path.relative_to(folder)), str(path.with_name("manifest.json").relative_to(folder))}
            assert found & (alike if path.name == "SHA256SUMS" else {str(path.relative_to(folder))}), (path, found)
        path.write_bytes(sound)
    assert names(folder) == set()


def test_every_cut_and_missing_file_is_found_and_named(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "toy"))
    for path in files_of(folder):
        sound = path.read_bytes()
        name = str(path.relative_to(folder))
        for length in {0, 1, len(sound) // 3, len(sound) // 2, len(sound) - 1} - {-1, len(sound)}:
            path.write_bytes(sound[:length])
            assert name in names(folder) or not sound, (path, length)
        path.write_bytes(sound + b"\0")
        assert name in names(folder), path
        path.unlink()
        assert name in names(folder), path
        path.write_bytes(sound)
    assert names(folder) == set()


def test_labels_in_progress_are_no_damage(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "toy"))
    (folder / "disparity" / "begun").mkdir()
    (folder / "disparity" / "begun" / "plan.json").write_text("{}")
    for name in ("manifest.json", "SHA256SUMS", "shard-000002.tar", "shard-000002.index.json"):
        (folder / "disparity" / "exact" / name).unlink()
    found = verify_folder(folder)
    assert found.problems == []
    assert [path.name for path in found.unfinished] == ["begun", "exact"]


def test_damage_in_a_shard_is_told_by_key_and_member(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "toy"))
    path = folder / "shard-000001.tar"
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 1
    path.write_bytes(damaged)
    reasons = [problem.reason for problem in verify_folder(folder).problems]
    assert "damaged: key 00000003, member png" in reasons
    damaged[600] ^= 1
    damaged[100] ^= 1
    path.write_bytes(damaged)
    assert any("between its members" in problem.reason for problem in verify_folder(folder).problems)


def test_strangers_and_labels_of_other_images(whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole, tmp_path / "toy"))
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000009.tar")
    assert names(folder) == {"shard-000009.tar"}
    other = tmp_path / "other"
    prepare_toyscenes(other, count=7, size=16, seed=1, shard_size=3)
    shutil.copytree(folder / "disparity", other / "disparity")
    reasons = {problem.reason for problem in verify_folder(other).problems}
    assert "labels of other images" in reasons
    assert "key 00000000: made for another image" in reasons
    with pytest.raises(InputMissingError):
        verify_folder(tmp_path)


def test_many_problems_take_no_longer_each(tmp_path: Path):
    (tmp_path / "SHA256SUMS").write_text("".join(f"{i:064x}  shard-{i:06d}.tar\n" for i in range(10_000)))
    started = time.process_time()
    problems = verify_folder(tmp_path).problems
    assert time.process_time() - started < 5.0
    assert sum(problem.reason == "missing" for problem in problems) >= 20_000
