"""Shard folders are read whole and checked: damage is always found and named."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from vq3dcli import __main__ as program
from vq3dcli.data import open_files, shard_reader
from vq3dcli.data.images import decode_image
from vq3dcli.data.open_files import OpenFile, OpenFiles
from vq3dcli.data.shard_format import DisparityInfo
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder, decode_disparity, decode_levels, encode_levels
from vq3dcli.errors import DataError, InputMissingError, StorageError
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes


def test_samples_are_the_scenes_they_say_they_are(toy_shards: Path):
    folder = ShardFolder(toy_shards)
    assert folder.num_samples == 22
    assert folder.keys == [f"{i:08d}" for i in range(22)]
    assert folder.class_names == list(CLASS_NAMES)
    labels = LabelFolder(folder, "exact")
    scenes = sample_scenes(torch.arange(22), seed=3, purpose="train")
    views = render_scenes(scenes, canonical_camera(22, height_px=16, width_px=16))
    assert torch.equal(folder.class_index, scenes.class_index)
    for i in (0, 7, 8, 21):
        members = folder.read(i)
        assert set(members) == {"png", "cls", "json", "disparity.npy"}
        assert torch.equal(decode_image(members["png"], name="x"), views.rgb[i])
        assert int(members["cls"]) == scenes.class_index[i]
        info = json.loads(members["json"])
        assert (info["seed"], info["purpose"], info["index"], info["kind"]) == (3, "train", i, "metric")
        label = labels.read(i)
        assert label is not None
        assert label.info.kind == "metric"
        assert (label.values - views.s[i]).abs().max() <= 0.51 / 65535
    assert set(folder.read(3, ["png", "jpg"])) == {"png"}
    folder.close()
    assert folder.read(0)["cls"] == str(int(scenes.class_index[0])).encode()
    with pytest.raises(IndexError):
        folder.read(22)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux")
def test_all_folders_together_hold_few_files_open(
    toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "_open_files", OpenFiles(most=2))
    folders = [ShardFolder(toy_shards), ShardFolder(Path(shutil.copytree(toy_shards, tmp_path / "copy")))]
    for i in (*range(22), *reversed(range(22))):
        assert folders[0].read(i) == folders[1].read(i)
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        assert 1 <= sum(name.startswith(str(tmp_path)) and name.endswith(".tar") for name in links) <= 2


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("times", [1, 3, 4])
def test_network_storage_that_fails_for_a_while_is_read_again(
    toy_shards: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    monkeypatch.setattr(shard_reader, "_PAUSES", (0.0, 0.0, 0.0))
    folder, pread, failures = ShardFolder(toy_shards), os.pread, [number] * times
    expected = folder.read(5)

    def failing(descriptor: int, size: int, start: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "away")
        return pread(descriptor, size, start)

    monkeypatch.setattr(os, "pread", failing)
    if times > 3:
        with pytest.raises(StorageError, match=r"shard-000000\.tar\): away"):
            folder.read(5)
    else:
        assert folder.read(5) == expected
    assert not failures


def test_threads_read_on_while_others_close_their_files(toy_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_open_files", OpenFiles(most=1))
    folder = ShardFolder(toy_shards)
    expected = [folder.read(i) for i in range(22)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(folder.read, [*range(22)] * 20)) == expected * 20


def test_threads_wait_for_storage_together(toy_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowFile(OpenFile):
        def read(self, start: int, size: int) -> bytes:
            time.sleep(0.05)
            return super().read(start, size)

    monkeypatch.setattr(open_files, "OpenFile", SlowFile)
    folder = ShardFolder(toy_shards)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(folder.read, [0] * 64))  # by one read each, though a sample has four members
    assert time.monotonic() - began < 2.0  # 0.4 s, or 3.2 s one after the other


def test_all_shards_of_a_large_job_stay_open_where_the_system_allows() -> None:
    program._allow_open_files()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = program._OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, program._OPEN_FILES)
    assert open_files._most_open.__wrapped__() >= allowed // 2


def test_every_flipped_bit_of_a_member_is_found_and_named(toy_shards: Path):
    entry = ShardFolder(toy_shards).entry(9)
    path = toy_shards / "shard-000001.tar"
    whole = path.read_bytes()
    for extension, member in entry.members.items():
        for place in {0, member.size // 2, member.size - 1}:
            damaged = bytearray(whole)
            damaged[member.offset + place] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"shard-000001\.tar, key 00000009, member {extension}"):
                ShardFolder(toy_shards).read(9)


def test_a_cut_shard_is_found(toy_shards: Path):
    path = toy_shards / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"shard-000002\.tar"):
        ShardFolder(toy_shards).read(21)
    path.unlink()
    with pytest.raises(InputMissingError, match=r"shard-000002\.tar"):
        ShardFolder(toy_shards).read(21)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"format_version": 1}', b"\xff\xfe", b"null", b"[" * 100_000])
def test_damaged_json_is_found(toy_shards: Path, damage: bytes):
    (toy_shards / "shard-000000.index.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"shard-000000\.index\.json"):
        ShardFolder(toy_shards).read(0)
    (toy_shards / "manifest.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"manifest\.json"):
        ShardFolder(toy_shards)


def test_an_index_of_another_run_is_refused(toy_shards: Path):
    other = (toy_shards / "shard-000001.index.json").read_bytes()
    (toy_shards / "shard-000000.index.json").write_bytes(other)
    with pytest.raises(DataError, match="damaged index"):
        ShardFolder(toy_shards).read(0)


def test_an_index_that_was_edited_is_refused(toy_shards: Path):
    """Whatever it says now may be possible: only its hash knows."""
    path = toy_shards / "shard-000000.index.json"
    index = json.loads(path.read_bytes())
    index["samples"][0]["class_index"], index["samples"][1]["class_index"] = None, None
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="damaged index"):
        ShardFolder(toy_shards).entry(0)


def test_an_unknown_format_version_is_named(toy_shards: Path):
    manifest = json.loads((toy_shards / "manifest.json").read_bytes())
    (toy_shards / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match="version 99"):
        ShardFolder(toy_shards)


def test_unfinished_folders_are_refused(toy_shards: Path, tmp_path: Path):
    (toy_shards / "manifest.json").unlink()
    for path in (toy_shards, tmp_path / "none", toy_shards / "shard-000000.tar"):
        with pytest.raises(InputMissingError):
            ShardFolder(path)


def test_labels_of_other_images_are_refused(toy_shards: Path, tmp_path: Path, rewrite: Callable[..., None]):
    from vq3dcli.data_tools.toyscenes import prepare_toyscenes

    prepare_toyscenes(tmp_path / "other", count=22, size=16, seed=4, shard_size=8)
    (toy_shards / "disparity").rename(tmp_path / "other" / "disparity")
    with pytest.raises(DataError, match="labels of other images"):
        LabelFolder(ShardFolder(tmp_path / "other"), "exact")
    # Labels that do not say which images they were made for are compared one by one.
    manifest = tmp_path / "other/disparity/exact/manifest.json"
    record = json.loads(manifest.read_bytes())
    del record["options"]["images_manifest_sha256"]
    rewrite(manifest, json.dumps(record).encode())
    with pytest.raises(DataError, match="labels of another image"):
        LabelFolder(ShardFolder(tmp_path / "other"), "exact").read(0)


def test_levels_round_trip_and_the_ends_are_exact():
    levels = torch.tensor([[0, 1, 32768, 65535]]).to(torch.uint16)
    assert torch.equal(decode_levels(encode_levels(levels), name="x"), levels)
    info = DisparityInfo(kind="relative", lo=-2.0, hi=6.0, flags=[], sha256="").model_dump_json().encode()
    values = decode_disparity(encode_levels(levels), info, name="x").values
    assert values[0, 0] == -2.0
    assert values[0, 3] == 6.0


def test_arrays_that_are_not_levels_are_refused(tmp_path: Path):
    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    good = npy(np.zeros((2, 2), np.uint16))
    objects = npy(np.array([[Bomb()]], dtype=object))
    archive = io.BytesIO()
    np.savez(archive, np.zeros((2, 2), np.uint16))
    endless = good.replace(b"(2, 2), }      ", b"(99999, 999), }")
    assert endless != good
    wrong = (good[:-1], good + b"\0", npy(np.zeros((2, 2), np.float32)), npy(np.zeros(4, np.uint16)), endless)
    empty = npy(np.zeros((0, 2), np.uint16))
    for data in (b"", archive.getvalue(), npy(np.asfortranarray(np.ones((2, 2), np.uint16))), empty, *wrong, objects):
        with pytest.raises(DataError) as caught:
            decode_levels(data, name="x")
        assert caught.value.remedy
    with pytest.raises(DataError):
        decode_levels(pickle.dumps(Bomb()), name="x")
    assert not (tmp_path / "executed").exists()


def test_labels_that_say_the_impossible_are_refused():
    levels = encode_levels(torch.zeros(2, 2))
    whole = {"kind": "metric", "lo": 0.0, "hi": 1.0, "flags": [], "sha256": ""}
    decode_disparity(levels, json.dumps(whole).encode(), name="x")
    for change in ({"lo": 2.0}, {"hi": 1e300}, {"flags": ["a"] * 1000}, {"hi": "high"}, {"more": []}):
        with pytest.raises(DataError):
            decode_disparity(levels, json.dumps(whole | change).encode(), name="x")
    with pytest.raises(DataError, match="not finite"):
        decode_disparity(levels, json.dumps(whole).replace("1.0", "1e999").encode(), name="x")


def test_a_manifest_that_was_edited_is_found(toy_shards: Path):
    path = toy_shards / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"toyscenes", b"toyscenez"))
    with pytest.raises(DataError, match="damaged manifest"):
        ShardFolder(toy_shards)
    (toy_shards / "SHA256SUMS").unlink()
    with pytest.raises(InputMissingError, match="SHA256SUMS"):
        ShardFolder(toy_shards)


@pytest.mark.parametrize(
    "edit",
    [
        lambda index: index["samples"].pop(),
        lambda index: index.update(size=index["size"] + 1),
        lambda index: index["samples"][0].update(class_index=2**20),
        lambda index: index["samples"][0].update(class_index=2**70),
        lambda index: index["samples"][0]["members"]["png"].update(size=2**62),
        lambda index: index["samples"][0]["members"]["png"].update(size=2**70),
    ],
)
def test_an_index_that_contradicts_its_manifest_is_found(
    toy_shards: Path, edit: Callable[..., None], rewrite_index: Callable[..., None]
):
    """Hashes that are right do not help where their writer was wrong."""
    rewrite_index(toy_shards, edit)
    with pytest.raises(DataError, match=r"shard-000000\.index\.json"):
        ShardFolder(toy_shards).read(0)
