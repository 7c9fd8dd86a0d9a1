"""Shards, weights and archives at addresses are used as those on a disk are, from a cache of a bounded size."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vq3dcli import cli
from vq3dcli.data import shard_index
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, InputMissingError, StorageError, UnavailableError
from vq3dcli.files import sha256_file
from vq3dcli.remote import cache


@pytest.fixture
def toys(server: Any) -> Path:
    """22 labelled toy scenes in 3 shards, served as `/toys`."""
    folder: Path = server.folder / "toys"
    prepare_toyscenes(folder, count=22, size=16, seed=3, shard_size=8)
    label_exact(folder)
    return folder


def loader(folder: Path) -> TrainingLoader:
    return TrainingLoader([folder], batch_size=8, size=16, seed=5, flip=True, crop=False)


@pytest.mark.parametrize("large", [False, True])
def test_training_reads_shards_at_an_address_as_on_a_disk(
    server: Any, toys: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(shard_index, "LEAST_KEPT", 1)
    server.faults = {"/toys/shard-000001.tar": [503, "cut 700"], "/toys/disparity/exact/manifest.json": [500]}
    here, there = loader(toys), loader(cache.local_copy(f"{server.url}/toys/"))
    assert here.sha256 == there.sha256
    # What is not read is not fetched: of the images nothing but lists, yet.
    assert not any(path.startswith("/toys/shard") and path.endswith(".tar") for path, _ in server.requests)
    for start in range(0, 48, 8):
        a, b = here.batch_at(start), there.batch_at(start)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.s, b.s)
    shards = [f"/toys/{below}shard-{i:06d}.tar" for below in ("", "disparity/exact/") for i in range(3)]
    assert [server.asked(path) for path in shards] == [1, 3, 1, 1, 1, 1]
    # Another run finds them; only what may have changed is asked for.
    server.requests.clear()
    monkeypatch.setattr(cache, "_mirrors", {})
    again = loader(cache.local_copy(f"{server.url}/toys/"))
    assert torch.equal(again.batch_at(8).image, here.batch_at(8).image)
    assert {path for path, _ in server.requests} <= {
        "/toys/manifest.json",
        "/toys/disparity/exact/manifest.json",
        "/toys/index.columns",
        "/toys/disparity/exact/index.columns",
    }
    # Labels that are not there are an error here, too, with the command for them.
    with pytest.raises(InputMissingError, match=r"no disparity labels called net .*vq3d depth-labels http.*/toys/"):
        TrainingLoader([again._folders[0].path], labels="net", batch_size=8, size=16, seed=5, flip=True, crop=False)


def test_a_shard_that_is_another_or_gone_is_told(server: Any, toys: Path) -> None:
    folder = ShardFolder(cache.local_copy(f"{server.url}/toys"))
    shard = toys / "shard-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:900] + b"x" + data[901:])
    with pytest.raises(DataError, match=r"other bytes than expected \(http.*/toys/shard-000000\.tar\): SHA-256"):
        folder.read(3)
    # It is no bad sample, for each of which it would be fetched again.
    data = TrainingLoader([folder.path], batch_size=22, size=16, seed=5, flip=True, crop=False, max_bad=1.0)
    with pytest.raises(DataError, match="other bytes than expected"):
        data.batch_at(0)
    assert not data.bad
    shard.unlink()
    with pytest.raises(InputMissingError, match=r"no such file \(http.*/toys/shard-000000\.tar\): 404"):
        folder.read(3)
    with pytest.raises(InputMissingError, match=r"/nothing/manifest\.json\): 404"):
        cache.local_copy(f"{server.url}/nothing")


def test_threads_that_come_at_once_fetch_once(server: Any, toys: Path) -> None:
    folder = ShardFolder(cache.local_copy(f"{server.url}/toys"))
    server.faults["/toys/shard-000002.tar"] = ["cut 1"]
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(str, pool.map(folder.read, [17] * 16)))) == 1
    assert server.asked("/toys/shard-000002.tar") == 2


# Eight threads, each of which reads a file of a mirror and a single file, where flock answers ENOLCK.
_WITHOUT_LOCKS = """
import errno, fcntl, sys
from concurrent.futures import ThreadPoolExecutor
from vq3dcli.files import sha256_file
from vq3dcli.remote import cache, fetch

def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")

fcntl.flock = refuse
fetch._PAUSES = (0.0,) * 9
folder = cache.mirror(sys.argv[1])

def read(i):
    shard, single = folder / f"shard-{i % 2}.tar", cache.local_copy(f"{sys.argv[1]}/w.bin")
    cache.ensure(shard)
    return f"{shard.name} {sha256_file(shard)}", f"{single.name} {sha256_file(single)}"

with ThreadPoolExecutor(8) as pool:
    print(*{line for both in pool.map(read, range(8)) for line in both}, sep="\\n")
"""


def test_processes_and_threads_without_locks_read_whole_files(server: Any) -> None:
    folder = server.folder / "set"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    names = ("shard-0.tar", "shard-1.tar", "w.bin")
    for i, name in enumerate(names):
        (folder / name).write_bytes(bytes([i, 1, 2, 3]) * 500_000)
        server.faults[f"/set/{name}"] = ["cut 1500000", ""] * 8
    expected = {f"{name} {sha256_file(folder / name)}" for name in names}
    command = [sys.executable, "-c", _WITHOUT_LOCKS, f"{server.url}/set"]
    for processes in (2, 1):  # one later call: what it finds is whole, too
        server.requests.clear()
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        for process in started:
            assert set(process.communicate(timeout=60)[0].splitlines()) == expected
            assert process.returncode == 0
    assert [server.asked(f"/set/{name}") for name in names] == [0, 0, 8]  # "is it still the same?" of eight threads
    left = [path.name for path in cache.cache_folder().rglob("*") if ".tmp" in path.name or path.suffix == ".part"]
    assert not left


def test_a_copy_that_was_changed_here_is_fetched_anew(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.folder / "w.bin").write_bytes(b"as served")
    url = f"{server.url}/w.bin"
    copy = cache.local_copy(url)
    for damage in (b"as served, and more", b"as Served"):
        copy.write_bytes(damage)
        monkeypatch.setenv("VQ3D_OFFLINE", "1")
        with pytest.raises(UnavailableError, match="offline"):
            cache.local_copy(url)
        monkeypatch.delenv("VQ3D_OFFLINE")
        assert cache.local_copy(url).read_bytes() == b"as served"
        assert "If-None-Match" not in server.requests[-1][1]
    os.utime(copy)  # touched, and the same
    cache.local_copy(url)
    assert "If-None-Match" in server.requests[-1][1]


def test_without_locks_nothing_leaves_the_cache_that_may_be_in_use(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name in ("a.tar", "b.tar"):
        (server.folder / name).write_bytes(bytes(900))
    monkeypatch.setenv("VQ3D_CACHE_GB", str(1000 / 1e9))
    first = cache.local_copy(f"{server.url}/a.tar")
    second = cache.local_copy(f"{server.url}/b.tar")
    assert first.exists()
    os.utime(first, (1e9, 1e9))
    cache.local_copy(f"{server.url}/b.tar")
    assert (first.exists(), second.exists()) == (False, True)


def test_the_cache_is_bounded_and_forgets_what_was_not_read_for_the_longest(
    server: Any, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ShardFolder(cache.local_copy(f"{server.url}/toys"))
    sizes = [shard.size for shard in folder.manifest.shards]
    for i in (0, 8):
        folder.read(i)
    first, second, third = (folder.path / f"shard-{i:06d}.tar" for i in range(3))
    os.utime(first, (2e9, 2e9))
    os.utime(second, (1e9, 1e9))
    others = sum(p.stat().st_size for p in cache.cache_folder().rglob("[!.]*") if p.is_file() and p.suffix != ".tar")
    monkeypatch.setenv("VQ3D_CACHE_GB", str((others + sizes[0] + sizes[2] + 100) / 1e9))
    assert folder.read(8)  # still open, whatever becomes of its name
    folder.read(16)
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    folder.close()
    assert folder.read(8)
    assert second.exists()
    # Less than a run reads in any order, or than one file: said before anything is fetched.
    monkeypatch.setenv("VQ3D_CACHE_GB", str(sizes[0] / 1e9))
    server.requests.clear()
    with pytest.raises(StorageError, match=r"do not fit into the cache .*VQ3D_CACHE_GB=0\.1"):
        loader(folder.path)
    monkeypatch.setenv("VQ3D_CACHE_GB", "0.000001")
    with pytest.raises(StorageError, match="do not fit"):
        cache.local_copy(f"{server.url}/toys/shard-000000.tar")


def test_the_command_line_takes_addresses(
    server: Any,
    toys: Path,
    tmp_path: Path,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (server.folder / "w.safetensors").write_bytes(tiny_weights.read_bytes())
    for requests in (1, 2):  # the second time the server is only asked whether it is the same
        assert cli.run(["inspect", f"{server.url}/w.safetensors", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["is"] == "weights"
        assert server.asked("/w.safetensors") == requests
    assert "If-None-Match" in server.requests[-1][1]
    (server.folder / "w.safetensors").write_bytes(tiny_weights.read_bytes()[:-1])
    assert cli.run(["inspect", f"{server.url}/w.safetensors"]) == 65
    for command, code, said in (
        (["inspect", f"{server.url}/x.safetensors"], 66, "404"),
        (["render", "toyscene:sphere", "-o", f"{server.url}/a.mp4"], 2, "outputs are local"),
        (["render", "toyscene:sphere", "--output=s3://b/a.mp4"], 2, "outputs are local"),
        (["depth-labels", f"{server.url}/toys", "--model", "exact"], 2, "labels are written beside the shards (http"),
    ):
        capsys.readouterr()
        assert cli.run(command) == code
        [line] = capsys.readouterr().err.splitlines()
        assert said in line
    assert cli.run(["inspect", f"{server.url}/toys", "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 22
    monkeypatch.chdir(tmp_path)
    Path("pipe:touch made;.png").write_bytes(b"")
    assert cli.run(["render", "pipe:touch made;.png", "-o", "a.mp4"]) == 65
    assert not Path("made").exists()
    capsys.readouterr()
    out = tmp_path / "tokens"
    words = ["tokenize", f"--data={server.url}/toys", "--weights", str(tiny_weights), "--out", str(out), "--json"]
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 22


def test_a_prior_trains_on_tokens_at_an_address(
    server: Any, write_store: Callable[..., TokenStore], capsys: pytest.CaptureFixture[str]
) -> None:
    here = write_store(server.folder / "tokens")
    server.faults = {"/tokens/tokens.u16": [503, "cut 700"], "/tokens/plan.json": [500]}
    there = TokenStore(cache.local_copy(f"{server.url}/tokens"))
    assert (there.tokens == here.tokens).all()
    assert torch.equal(there.class_index, here.class_index)
    words = ["train-stage2", "toy-cpu-prior", "--dry-run", "--device-name", "h100", "--json"]
    assert cli.run([*words, "--data", f"{server.url}/tokens"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["tokens"] == 16
    assert server.asked("/tokens/tokens.u16") == 3  # the third one brought the rest, and it is kept
    write_store(server.folder / "other")
    (server.folder / "other/tokens.u16").write_bytes(bytes(here.tokens.nbytes))
    (server.folder / "other/manifest.json").write_bytes((server.folder / "tokens/manifest.json").read_bytes())
    with pytest.raises(DataError, match="other bytes than expected"):
        TokenStore(cache.local_copy(f"{server.url}/other"))


def test_archives_at_addresses_give_the_shards_of_those_on_a_disk(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        with tarfile.open(server.folder / f"set-{number:02d}.tar", "w") as tar:
            for i in range(4):
                path = tmp_path / f"{number}{i}.png"
                Image.new("RGB", (20, 20), (80 * number, 60 * i, 9)).save(path)
                tar.add(path, f"{i}/{path.name}")
    server.faults["/set-01.tar"] = ["cut 2000"]
    for source, count in ((f"{server.url}/set-01.tar", 4), (f"{server.url}/set-{{00..02}}.tar", 12)):
        local = server.folder / "set-01.tar" if count == 4 else server.folder
        for name, src in (("there", source), ("here", str(local))):
            words = ["prepare-data", src, str(tmp_path / f"{name}{count}"), "--size", "16", "--json"]
            assert cli.run(words) == 0
            assert json.loads(capsys.readouterr().out)["count"] == count
        shards = [(tmp_path / f"{name}{count}/shard-000000.tar").read_bytes() for name in ("here", "there")]
        assert shards[0] == shards[1]
    server.faults["/set-02.tar"] = ["cut 2000"] * 9
    assert cli.run(["prepare-data", f"{server.url}/set-02.tar", str(tmp_path / "no"), "--size", "16"]) == 69
    assert not (tmp_path / "no").exists()
