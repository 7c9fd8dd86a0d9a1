"""The stream is a function of the seed and the position alone, and images stay with their labels."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vq3dcli.data.images import encode_png
from vq3dcli.data.loader import LABEL_KIND, Batch, TrainingLoader
from vq3dcli.data.shard_format import sample_key, stored_size
from vq3dcli.data.shard_reader import ShardFolder, encode_levels
from vq3dcli.data_tools.depth.labels import label_exact, label_sample, write_labels
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.shard_writer import Sample
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, InputMissingError, UsageError


def loader(*folders: Path, **changes: object) -> TrainingLoader:
    options: dict[str, object] = {"batch_size": 4, "size": 16, "seed": 5, "flip": True, "crop": True, **changes}
    return TrainingLoader(list(folders), **options)  # type: ignore[arg-type]


def take(stream: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def same(a: Batch, b: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("image", "s", "label_kind", "class_index", "index")
    )
    return tensors and a.keys == b.keys


def colour_ramps(
    out: Path, *, count: int = 10, size: int = 16, margin: float = 1.0, classes: tuple[str, ...] = ()
) -> Path:
    """Images whose red channel is 255 s of their label, so that any misplacement of one against the other shows."""
    side = stored_size(size, margin)
    progress = lambda done, total: None  # noqa: E731

    def pixels(i: int) -> Tensor:
        return torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)

    def image(i: int) -> Sample:
        return Sample(sample_key(i), i % len(classes) if classes else None, {"png": encode_png(pixels(i))})

    job = Job(
        kind="images",
        preset="folder",
        image_size=size,
        margin=margin,
        own_disparity=False,
        class_names=list(classes),
        shards=shard_ranges(count, 4),
        plan={"preset": "ramps"},
        maker_of=lambda _: partial(map, image),
    )
    write_part(out, job, force=False, progress=progress)
    images = ShardFolder(out)

    def label(i: int) -> Sample:
        return label_sample(images, i, encode_levels(pixels(i)[0].to(torch.int32) * 257), "relative", 0.0, 1.0)

    write_labels(images, "red", lambda positions: map(label, positions), force=False, progress=progress)
    return out


def test_every_epoch_is_another_permutation(toy_shards: Path):
    data = loader(toy_shards, batch_size=22)
    first, second = take(data.batches(0), 2)
    everything = sorted(f"{toy_shards}, key {i:08d}" for i in range(22))
    assert sorted(first.keys) == sorted(second.keys) == everything
    assert first.keys != second.keys != everything
    assert same(first, loader(toy_shards, batch_size=22).batch_at(0))
    assert loader(toy_shards, batch_size=22, seed=6).batch_at(0).keys != first.keys


def test_resuming_anywhere_gives_the_same_stream(toy_shards: Path):
    whole = take(loader(toy_shards).batches(0), 14)  # past two ends of an epoch
    for start in (1, 5, 6, 11):
        resumed = take(loader(toy_shards).batches(4 * start), 14 - start)
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_positions_do_not_depend_on_the_batch_size(toy_shards: Path):
    small = take(loader(toy_shards, batch_size=3).batches(0), 10)
    large = take(loader(toy_shards, batch_size=15).batches(0), 2)
    for name in ("image", "s", "index", "class_index", "label_kind"):
        assert torch.equal(torch.cat([getattr(b, name) for b in small]), torch.cat([getattr(b, name) for b in large]))
    assert torch.cat([b.index for b in small]).tolist() == list(range(30))


def test_ranks_share_each_global_batch(toy_shards: Path):
    whole = loader(toy_shards, batch_size=6).batch_at(18)
    parts = [loader(toy_shards, batch_size=6, rank=rank, world_size=3).batch_at(18) for rank in range(3)]
    assert torch.equal(torch.cat([p.image for p in parts]), whole.image)
    assert torch.equal(torch.cat([p.s for p in parts]), whole.s)
    assert torch.cat([p.index for p in parts]).tolist() == list(range(18, 24))
    assert [k for p in parts for k in p.keys] == whole.keys
    with pytest.raises(UsageError, match="multiple"):
        loader(toy_shards, batch_size=6, world_size=4)


def test_folders_get_their_shares_of_the_stream(toy_shards: Path, tmp_path: Path):
    folders = (toy_shards, colour_ramps(tmp_path / "x", count=4))
    keys = loader(*folders, labels=None, batch_size=1000, shares=(1, 3)).batch_at(0).keys
    assert sum(str(toy_shards) in key for key in keys) == 250
    halves = [loader(*folders, labels=None, batch_size=500, shares=(1, 3)).batch_at(start).keys for start in (0, 500)]
    assert halves[0] + halves[1] == keys
    with pytest.raises(UsageError, match="3 shares for 2 folders"):
        loader(*folders, labels=None, shares=(1, 1, 1))


@pytest.mark.parametrize("margin", [1.0, 1.25])
def test_image_and_label_get_the_same_crop_and_flip(tmp_path: Path, margin: float):
    data = loader(colour_ramps(tmp_path / "x", margin=margin), labels="red", batch_size=40)
    batch = data.batch_at(0)
    assert batch.image.shape == (40, 3, 16, 16)
    assert torch.equal((batch.s * 255).round().to(torch.uint8), batch.image[:, 0])
    assert (batch.label_kind == LABEL_KIND["relative"]).all()
    views: dict[str, set[bytes]] = {}
    for key, image in zip(batch.keys, batch.image, strict=True):
        views.setdefault(key, set()).add(image.numpy().tobytes())
    assert len(views) == 10
    assert max(map(len, views.values())) >= (2 if margin == 1.0 else 3)  # two ways round; more places with a margin


def test_without_flip_and_crop_the_stored_image_comes(tmp_path: Path):
    folder = ShardFolder(colour_ramps(tmp_path / "x"))
    data = loader(folder.path, labels=None, flip=False, crop=False, batch_size=10)
    batch = data.batch_at(0)
    assert not batch.s.any()
    assert (batch.label_kind == LABEL_KIND["none"]).all()
    assert data.num_labelled == 0
    for key, image in zip(batch.keys, batch.image, strict=True):
        i = folder.keys.index(key.rsplit(" ", 1)[1])
        assert encode_png(image) == folder.read(i)["png"]


def test_a_margin_is_resized_away_without_crop(tmp_path: Path):
    data = loader(colour_ramps(tmp_path / "x", size=16, margin=1.25), labels="red", flip=False, crop=False, size=8)
    batch = data.batch_at(0)
    assert batch.image.shape == (4, 3, 8, 8)
    assert batch.s.shape == (4, 8, 8)
    assert torch.equal(batch.s, batch.s.mul(255).round() / 255)  # nearest: no mixture of two levels


def test_half_of_the_positions_are_flipped(toy_shards: Path):
    plain = loader(toy_shards, flip=False, batch_size=220).batch_at(0)
    flipped = loader(toy_shards, flip=True, batch_size=220).batch_at(0)
    unchanged = (plain.s == flipped.s).flatten(1).all(1)
    assert torch.equal(plain.image[unchanged], flipped.image[unchanged])
    assert torch.equal(plain.image[~unchanged].flip(-1), flipped.image[~unchanged])
    assert 70 < int(unchanged.sum()) < 150


def test_several_folders_are_one_data_set(toy_shards: Path, tmp_path: Path):
    photos = colour_ramps(tmp_path / "photos", classes=("cat", "sphere"))
    unclassed = colour_ramps(tmp_path / "unclassed", count=3)
    data = loader(toy_shards, photos, unclassed, batch_size=35, labels=["exact", None, None])
    assert data.num_samples == 35
    assert data.num_labelled == 22
    assert data.class_names[0] == "sphere"
    assert data.class_names[-1] == "cat"
    batch = data.batch_at(0)
    assert len(set(batch.keys)) == 35
    for key, kind, class_index in zip(batch.keys, batch.label_kind, batch.class_index, strict=True):
        folder, i = key.split(", key ")
        assert (kind == LABEL_KIND["metric"]) == (folder == str(toy_shards))
        if folder == str(photos):
            assert data.class_names[int(class_index)] == ("cat", "sphere")[int(i) % 2]
        elif folder == str(unclassed):
            assert class_index == -1


def test_the_cache_changes_nothing(toy_shards: Path):
    cached, uncached = loader(toy_shards), loader(toy_shards, cache_bytes=0)
    for a, b in zip(take(cached.batches(0), 12), take(uncached.batches(0), 12), strict=True):
        assert same(a, b)


def damage(shards: Path, *samples: int) -> None:
    """Flip a bit in the picture of samples, eight of which are in a shard."""
    for i in samples:
        member, path = ShardFolder(shards).entry(i).members["png"], shards / f"shard-{i // 8:06d}.tar"
        data = bytearray(path.read_bytes())
        data[member.offset + 40] ^= 1
        path.write_bytes(data)


def test_damage_is_raised_from_the_stream_and_names_shard_and_key(toy_shards: Path):
    damage(toy_shards, 9)
    with pytest.raises(DataError, match=r"shard-000001\.tar, key 00000009"):
        take(loader(toy_shards).batches(0), 6)


def test_a_few_bad_samples_are_passed_over_for_the_next(toy_shards: Path):
    whole = take(loader(toy_shards, flip=False).batches(0), 11)
    damage(toy_shards, 9, 21)  # the last of a folder is followed by its first
    data = loader(toy_shards, flip=False, max_bad=0.05)
    stood_in = {"00000009": "00000010", "00000021": "00000000"}
    pictures = {key: batch.image[row] for batch in whole for row, key in enumerate(batch.keys)}
    for before, after in zip(whole, take(data.batches(0), 11), strict=True):
        assert after.keys == [key[:-8] + stood_in.get(key[-8:], key[-8:]) for key in before.keys]
        assert all(torch.equal(after.image[row], pictures[key]) for row, key in enumerate(after.keys))
    assert {name[-12:]: "damaged shard" in why for name, why in data.bad.items()} == {
        "key 00000009": True,
        "key 00000021": True,
    }
    # The same for ranks and other batches.
    ranks = [take(loader(toy_shards, max_bad=0.05, rank=r, world_size=2).batches(0), 11) for r in range(2)]
    for one, *halves in zip(take(loader(toy_shards, max_bad=0.05).batches(0), 11), *ranks, strict=True):
        assert one.keys == [key for half in halves for key in half.keys]
    # One more than a twentieth of 22, rounded up, is too many.
    damage(toy_shards, 3)
    with pytest.raises(DataError, match=r"3 bad samples, more than training\.max_bad allows; the last: damaged shard"):
        take(loader(toy_shards, max_bad=0.05).batches(0), 6)
    (toy_shards / "shard-000002.tar").unlink()
    with pytest.raises(InputMissingError, match="no such shard"):
        take(loader(toy_shards, max_bad=1.0).batches(0), 6)


def test_the_threads_end_with_the_stream(toy_shards: Path):
    before = threading.active_count()
    stream = loader(toy_shards).batches(0)
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_is_missing_or_contradicts_is_said_at_once(toy_shards: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="smaller"):
        loader(toy_shards, size=32)
    with pytest.raises(UsageError, match="labels, not images"):
        loader(toy_shards / "disparity" / "exact")
    with pytest.raises(UsageError, match=r"batch size .* ranks .*; try: --set training\.batch_size="):
        loader(toy_shards, world_size=7)
    with pytest.raises(InputMissingError, match="no such folder of shards"):
        loader(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputMissingError, match="no finished shards"):
        loader(tmp_path / "photos")
    (toy_shards / "disparity" / "exact" / "manifest.json").unlink()
    with pytest.raises(InputMissingError, match=r"exact are unfinished .*; try: vq3d depth-labels .* --model exact"):
        loader(toy_shards)
    with pytest.raises(DataError, match="no samples"):
        loader()


def test_labels_that_are_not_there_are_never_passed_over(toy_shards: Path, tmp_path: Path):
    ramps = colour_ramps(tmp_path / "ramps")
    for labels, message in (
        ("exact", r"no disparity labels called exact \(.*ramps\); the labels there: red; try: --labels red, or vq3d"),
        ("net", r"the labels there: red; try: --labels red, or vq3d depth-labels .*ramps --model MODEL --name net;"),
        ("red", None),
    ):
        if message is None:
            assert loader(ramps, labels=labels).num_labelled == 10
        else:
            with pytest.raises(InputMissingError, match=message + r".*or --labels none to train without"):
                loader(ramps, labels=labels)
    # Of several folders all that lack theirs are named, and how to say so for one of them alone.
    with pytest.raises(InputMissingError, match=r"or --labels exact --labels none, one for each --data, to train"):
        loader(toy_shards, ramps)
    both = loader(toy_shards, ramps, labels=["exact", "red"], batch_size=32)
    assert (both.num_labelled, both.labels, both.metric_labels) == (32, ("exact", "red"), True)
    kinds = dict(zip(both.batch_at(0).keys, both.batch_at(0).label_kind.tolist(), strict=True))
    assert all((kind == LABEL_KIND["metric"]) == key.startswith(str(toy_shards)) for key, kind in kinds.items())
    with pytest.raises(UsageError, match="3 names of labels for 2 folders"):
        loader(toy_shards, ramps, labels=["exact", None, None])
    shutil.rmtree(toy_shards / "disparity")
    with pytest.raises(
        InputMissingError, match=r"exact \(.*toy\); there are none; try: vq3d depth-labels .* --model exact;"
    ):
        loader(toy_shards)
    with pytest.raises(InputMissingError, match=r"or vq3d depth-labels .*ramps --model MODEL; or"):
        loader(ramps)
    (ramps / "disparity/red/manifest.json").unlink()
    with pytest.raises(InputMissingError, match=r"--model MODEL --name red, until it ends; or --labels none to"):
        loader(ramps, labels="red")
    with pytest.raises(InputMissingError, match=r"the labels there: red \(unfinished\); try: vq3d depth-labels"):
        loader(ramps, labels="net")


def test_labels_of_folders_made_anew_are_refused_at_once(tmp_path: Path):
    ramps, more = colour_ramps(tmp_path / "ramps"), colour_ramps(tmp_path / "more", count=12)
    shutil.rmtree(more / "disparity")
    shutil.copytree(ramps / "disparity", more / "disparity")
    with pytest.raises(DataError, match=r"labels of other images .*--name red --force"):
        loader(more, labels="red")


def test_a_folder_has_labels_of_one_kind(toy_shards: Path):
    images = ShardFolder(toy_shards)

    def label(i: int) -> Sample:
        levels = encode_levels(torch.full((16, 16), i))
        return label_sample(images, i, levels, "metric" if i == 3 else "relative", 0.0, 1.0)

    make = lambda positions: map(label, positions)  # noqa: E731
    write_labels(images, "mixed", make, force=False, progress=lambda done, total: None)
    data = loader(toy_shards, labels="mixed")
    assert not data.metric_labels
    with pytest.raises(DataError, match=r"a metric label among relative ones .*key 00000003"):
        take(data.batches(0), 6)


def test_a_flagged_label_counts_as_none(toy_shards: Path):
    images = ShardFolder(toy_shards)

    def label(i: int) -> Sample:
        levels = encode_levels(torch.full((16, 16), 9))
        return label_sample(images, i, levels, "relative", 0.0, 1.0, ["noisy"] if i % 2 else [])

    make = lambda positions: map(label, positions)  # noqa: E731
    write_labels(images, "flagged", make, force=False, progress=lambda done, total: None)
    batch = loader(toy_shards, labels="flagged", batch_size=22).batch_at(0)
    of_key = {key[-8:]: int(kind) for key, kind in zip(batch.keys, batch.label_kind, strict=True)}
    assert of_key == {f"{i:08d}": LABEL_KIND["none" if i % 2 else "relative"] for i in range(22)}


def test_the_hash_of_the_data_is_that_of_images_labels_and_order(toy_shards: Path, tmp_path: Path):
    others = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(others):
        prepare_toyscenes(path, count=22, size=16, seed=seed, shard_size=8)
        label_exact(path)
    shutil.copytree(others[0], tmp_path / "moved")
    of = [loader(path).sha256 for path in (toy_shards, *others)]
    assert len({*of, loader(toy_shards, labels=None).sha256}) == 4
    assert loader(tmp_path / "moved").sha256 == of[1]
    assert loader(*others).sha256 != loader(*reversed(others)).sha256
