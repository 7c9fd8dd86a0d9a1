"""Toy shards and their exact labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vq3dcli.data.images import encode_png
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.toyscenes import prepare_toyscenes, read_photo_bank
from vq3dcli.errors import DataError, InputMissingError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_seeds_give_equal_bytes_on_any_number_of_threads(tmp_path: Path):
    threads = torch.get_num_threads()
    try:
        for name, count in (("one", 1), ("two", 2)):
            torch.set_num_threads(count)
            prepare_toyscenes(tmp_path / name, count=20, size=16, seed=7, shard_size=15)
            label_exact(tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    prepare_toyscenes(tmp_path / "other", count=1, size=16, seed=8)
    assert ShardFolder(tmp_path / "other").read(0)["png"] != ShardFolder(tmp_path / "one").read(0)["png"]


def test_scenes_do_not_depend_on_how_many_there_are_or_on_the_shards(tmp_path: Path):
    prepare_toyscenes(tmp_path / "one", count=5, size=16, seed=7)
    prepare_toyscenes(tmp_path / "two", count=9, size=16, seed=7, shard_size=4)
    one, two = ShardFolder(tmp_path / "one"), ShardFolder(tmp_path / "two")
    assert [one.read(i) for i in range(5)] == [two.read(i) for i in range(5)]


def test_label_shards_mirror_the_image_shards(tmp_path: Path):
    prepare_toyscenes(tmp_path, count=9, size=16, seed=7, shard_size=4)
    manifest = label_exact(tmp_path)
    images, labels = ShardFolder(tmp_path), ShardFolder(tmp_path / "disparity" / "exact")
    assert manifest.kind == "disparity"
    assert [s.name for s in labels.manifest.shards] == [s.name for s in images.manifest.shards]
    assert labels.keys == images.keys
    assert labels.read(8)["disparity.npy"] == images.read(8)["disparity.npy"]
    assert set(labels.read(8)) == {"disparity.npy", "disparity.json"}


def test_labels_of_changed_images_are_refused_unless_forced(tmp_path: Path):
    prepare_toyscenes(tmp_path, count=4, size=16, seed=7)
    label_exact(tmp_path)
    prepare_toyscenes(tmp_path, count=5, size=16, seed=7, force=True)
    with pytest.raises(UsageError, match="images_manifest_sha256"):
        label_exact(tmp_path)
    assert label_exact(tmp_path, force=True).num_samples == 5


def test_what_cannot_be_labelled_exactly(tmp_path: Path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(encode_png(torch.zeros(3, 20, 20, dtype=torch.uint8)))
    prepare(
        tmp_path / "out", image_job("folder", open_source("folder", tmp_path / "src", tmp_path / "out"), Options(16))
    )
    with pytest.raises(DataError, match="no disparity of their own"):
        label_exact(tmp_path / "out")
    assert not (tmp_path / "out" / "disparity").exists()
    with pytest.raises(InputMissingError):
        label_exact(tmp_path / "none")


def photos_in(folder: Path, *, value: int = 90) -> Path:
    folder.mkdir()
    for number in range(3):
        picture = torch.full((3, 30, 40), value, dtype=torch.uint8)
        picture[number, :, ::4] = 200
        (folder / f"{number}.png").write_bytes(encode_png(picture))
    (folder / "note.txt").write_text("no photo")
    (folder / "nowhere.png").symlink_to("nothing")
    return folder


def test_varied_scenes_with_photos_are_another_data_set(tmp_path: Path):
    photos = photos_in(tmp_path / "photos")
    bank = read_photo_bank(photos, leave_out=tmp_path)
    assert len(bank) == 3
    threads = torch.get_num_threads()
    try:
        for name, count in (("one", 1), ("two", 2)):
            torch.set_num_threads(count)
            prepare_toyscenes(tmp_path / name, count=20, size=16, seed=7, varied=True, photos=photos, shard_size=15)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    options = ShardFolder(tmp_path / "one").manifest.options
    assert (options["varied"], options["photos"], options["photos_sha256"]) == (True, 3, bank.sha256)
    assert label_exact(tmp_path / "one").num_samples == 20
    others = photos_in(tmp_path / "others", value=91)
    for changed in ({"photos": others}, {"photos": None}):
        with pytest.raises(UsageError, match="photos"):
            prepare_toyscenes(tmp_path / "one", count=20, size=16, seed=7, varied=True, shard_size=15, **changed)
    (photos / "0.png").write_bytes((others / "0.png").read_bytes())  # what was read before is not what is there
    with pytest.raises(UsageError, match="photos"):
        prepare_toyscenes(tmp_path / "one", count=20, size=16, seed=7, varied=True, shard_size=15, photos=photos)


def test_photos_of_shards_and_of_the_folder_they_were_made_of(tmp_path: Path):
    source = photos_in(tmp_path / "photos")
    (source / "nowhere.png").unlink()
    prepare(tmp_path / "out", image_job("folder", open_source("folder", source, tmp_path / "out"), Options(128)))
    assert len(read_photo_bank(tmp_path / "out", leave_out=tmp_path)) == 3
    with pytest.raises(InputMissingError):
        read_photo_bank(tmp_path / "none", leave_out=tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("text")
    with pytest.raises(DataError, match="no photos"):
        read_photo_bank(tmp_path / "texts", leave_out=tmp_path)
