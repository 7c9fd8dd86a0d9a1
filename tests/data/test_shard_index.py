"""The columns beside a large folder's index say what its JSON says, and are never believed where they do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from vq3dcli.data import shard_index
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError

COLUMNS = "index.columns"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "LEAST_KEPT", 1)


def contents(path: Path) -> list[object]:
    folder = ShardFolder(path)
    entries = [folder.entry(i).model_dump() for i in range(folder.num_samples)]
    return [entries, folder.keys, folder.class_index.tolist(), [folder.read(i) for i in range(folder.num_samples)]]


def test_a_small_folder_is_left_as_it_is(toy_shards: Path):
    contents(toy_shards)
    assert not (toy_shards / COLUMNS).exists()


@pytest.mark.usefixtures("large")
def test_columns_say_what_json_says_whatever_happens_to_them(toy_shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_index, "LEAST_KEPT", 1000)
    expected = contents(toy_shards)
    monkeypatch.setattr(shard_index, "LEAST_KEPT", 1)
    assert contents(toy_shards) == expected  # makes them
    path = toy_shards / COLUMNS
    whole = path.read_bytes()
    index = toy_shards / "shard-000001.index.json"
    text = index.read_bytes()
    index.unlink()
    assert contents(toy_shards) == expected  # by them alone
    index.write_bytes(text)
    for place in (0, 35, 45, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert contents(toy_shards) == expected
        assert path.read_bytes() == whole
    for damaged in (b"", whole[:20], whole[:-1], whole + b"\0"):
        path.write_bytes(damaged)
        assert contents(toy_shards) == expected
        assert path.read_bytes() == whole


@pytest.mark.usefixtures("large")
def test_columns_of_another_folder_or_version_are_made_anew(toy_shards: Path, tmp_path: Path):
    prepare_toyscenes(tmp_path / "other", count=22, size=16, seed=4, shard_size=8)
    assert (tmp_path / "other" / COLUMNS).exists()  # by the one who made the folder, not by all who read
    expected, whole = contents(toy_shards), (toy_shards / COLUMNS).read_bytes()
    shutil.copy(tmp_path / "other" / COLUMNS, toy_shards)
    assert contents(toy_shards) == expected
    assert (toy_shards / COLUMNS).read_bytes() == whole
    assert verify_folder(toy_shards).problems == []
    prepare_toyscenes(toy_shards, count=22, size=16, seed=4, shard_size=8, force=True)
    assert contents(toy_shards) == contents(tmp_path / "other")


@pytest.mark.usefixtures("large")
def test_a_folder_that_cannot_be_written_is_read_all_the_same(toy_shards: Path):
    (toy_shards / COLUMNS).mkdir()
    assert len(contents(toy_shards)[1]) == 22  # type: ignore[arg-type]
    labels = LabelFolder(ShardFolder(toy_shards), "exact")
    assert labels.read(3) is not None


def _keys_of(path: Path) -> list[str]:
    shard_index.LEAST_KEPT = 1
    return ShardFolder(path).keys


def test_processes_that_open_a_folder_at_once_all_get_it(toy_shards: Path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(_keys_of, [toy_shards] * 6)) == [[f"{i:08d}" for i in range(22)]] * 6
    assert [path.name for path in toy_shards.iterdir() if "columns" in path.name] == [COLUMNS]


def test_labels_that_lack_some_images_are_found_by_key(toy_shards: Path, tmp_path: Path):
    images, labels = ShardFolder(toy_shards), ShardFolder(toy_shards / "disparity" / "exact")
    assert [labels.index.position(i) for i in (0, 7, 21, 22, -1)] == [0, 7, 21, None, None]
    assert images.index.position(10**12) is None
    prepare_toyscenes(tmp_path / "more", count=3, size=16, seed=3)
    label_exact(tmp_path / "more")
    assert LabelFolder(ShardFolder(tmp_path / "more"), "exact").read(2) is not None


@pytest.mark.parametrize("key", ["cat", "00000001.x", "1", "٠٠٠٠٠٠٠١", "9" * 40, "00000000"])
def test_keys_that_are_no_positions_or_do_not_ascend_are_refused(
    toy_shards: Path, key: str, rewrite_index: Callable[..., None]
):
    rewrite_index(toy_shards, lambda index: index["samples"][1].update(key=key))
    with pytest.raises(DataError, match=r"keys that are no positions|keys do not ascend"):
        ShardFolder(toy_shards).entry(0)
