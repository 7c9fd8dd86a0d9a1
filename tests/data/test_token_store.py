"""The token store and its loader: an order that depends on nothing but the seed, and damage that is found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vq3dcli.data.token_store import (
    TokenBatch,
    TokenLoader,
    TokenManifest,
    TokenStore,
    code_use,
    read_token_manifest,
    split,
    write_token_manifest,
)
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import sha256_bytes
from vq3dcli.sealed import write_sealed_json

IMAGES, VIEWS, LENGTH, CODES = 25, 3, 4, 600


def write_store(folder: Path, images: int = IMAGES, views: int = VIEWS) -> Path:
    """A store whose code 0 of view v of image i is 10 i + v."""
    folder.mkdir()
    tokens = np.arange(images * 10).reshape(images, 10)[:, :views, None] + np.arange(LENGTH) * 100
    data = (tokens % CODES).astype("<u2").tobytes()
    classes = (np.arange(images) % 3 - 1).astype("<i4").tobytes()
    (folder / "tokens.u16").write_bytes(data)
    (folder / "classes.i32").write_bytes(classes)
    manifest = TokenManifest(
        format_version=1,
        images=images,
        views=views,
        view_names=["plain", "flip", "crop"][:views],
        length=LENGTH,
        codebook_size=CODES,
        image_size=16,
        stage1_sha256="a" * 64,
        class_names=["cat", "dog"],
        seed=0,
        sources=[],
        tokens_sha256=sha256_bytes(data),
        classes_sha256=sha256_bytes(classes),
        plan_sha256=sha256_bytes(b"{}"),
    )
    (folder / "plan.json").write_bytes(b"{}")
    write_token_manifest(folder, manifest)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(write_store(tmp_path / "tokens"))


def take(batches: Iterator[TokenBatch], count: int) -> list[TokenBatch]:
    return list(itertools.islice(batches, count))


def joined(batches: list[TokenBatch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def same(first: list[TokenBatch], second: list[TokenBatch]) -> bool:
    return all(torch.equal(joined(first, n), joined(second, n)) for n in ("tokens", "class_index", "index"))


def test_a_store_gives_back_what_was_written(store: TokenStore):
    assert (store.num_images, store.views, store.length, store.codebook_size) == (IMAGES, VIEWS, LENGTH, CODES)
    assert store.class_names == ["cat", "dog"]
    assert store.class_index.tolist()[:4] == [-1, 0, 1, -1]
    assert store.read(torch.tensor([7, 2])).tolist() == [[70, 170, 270, 370], [20, 120, 220, 320]]
    assert store.read(torch.tensor([7, 2]), torch.tensor([0, 2]))[:, 0].tolist() == [70, 22]
    assert not store.tokens.flags.writeable
    use = code_use(store)
    assert use["codes_used"] == len({(10 * i + 100 * place) % CODES for i in range(IMAGES) for place in range(LENGTH)})
    assert 1 < use["perplexity"] <= use["codes_used"]


def test_every_epoch_has_every_image_once_in_another_order(store: TokenStore):
    loader = TokenLoader(store, batch_size=IMAGES, seed=3)
    first, second = take(loader.batches(0), 2)
    images = [(batch.tokens[:, 0] // 10).tolist() for batch in (first, second)]
    assert sorted(images[0]) == sorted(images[1]) == list(range(IMAGES))
    assert images[0] != images[1] != list(range(IMAGES))
    assert first.class_index.tolist() == [i % 3 - 1 for i in images[0]]
    assert first.tokens.dtype == first.class_index.dtype == first.index.dtype == torch.int64
    other = TokenLoader(store, batch_size=IMAGES, seed=4).batch_at(0)
    assert (other.tokens[:, 0] // 10).tolist() != images[0]


def test_views_are_alike_frequent_and_belong_to_the_position(store: TokenStore):
    batch = TokenLoader(store, batch_size=3000, seed=0).batch_at(0)
    counts = torch.bincount(batch.tokens[:, 0] % 10)
    assert len(counts) == VIEWS
    assert counts.min() > 900
    views: dict[int, set[int]] = {}
    for code in batch.tokens[:, 0].tolist():
        views.setdefault(code // 10, set()).add(code % 10)
    assert all(seen == {0, 1, 2} for seen in views.values())


def test_resuming_anywhere_gives_the_same_stream(store: TokenStore):
    whole = take(TokenLoader(store, batch_size=4, seed=1).batches(0), 20)  # past three ends of an epoch
    for start in (1, 6, 7, 13):
        resumed = take(TokenLoader(store, batch_size=4, seed=1).batches(4 * start), 20 - start)
        assert same(whole[start:], resumed)


def test_positions_do_not_depend_on_the_batch_size(store: TokenStore):
    small = take(TokenLoader(store, batch_size=3, seed=1).batches(0), 40)
    large = take(TokenLoader(store, batch_size=60, seed=1).batches(0), 2)
    assert same(small, large)
    assert joined(small, "index").tolist() == list(range(120))


def test_ranks_share_each_global_batch(store: TokenStore):
    whole = TokenLoader(store, batch_size=6, seed=1).batch_at(24)
    parts = [TokenLoader(store, batch_size=6, seed=1, rank=r, world_size=3).batch_at(24) for r in range(3)]
    assert same([whole], parts)
    with pytest.raises(UsageError, match="multiple"):
        TokenLoader(store, batch_size=6, seed=1, world_size=4)


def test_what_is_held_out_is_never_trained_on_and_the_same_for_every_seed(store: TokenStore):
    loaders = [TokenLoader(store, batch_size=5, seed=seed, held_out=0.3) for seed in (0, 1)]
    held_out = loaders[0].held_out_images.tolist()
    assert held_out == loaders[1].held_out_images.tolist()
    assert 2 < len(held_out) < 13
    for loader in loaders:
        seen = (joined(take(loader.batches(0), 20), "tokens")[:, 0] // 10).unique().tolist()
        assert sorted(seen + held_out) == list(range(IMAGES))
        batches = [loader.held_out_batch(image) for image in loader.held_out_images.split(4)]
        assert joined(batches, "index").tolist() == held_out
        assert joined(batches, "tokens")[:, 0].tolist() == [10 * i for i in held_out]  # the plain view
        assert joined(batches, "class_index").tolist() == [i % 3 - 1 for i in held_out]
    assert not len(TokenLoader(store, batch_size=5, seed=0).held_out_images)
    with pytest.raises(UsageError, match="held out"):
        TokenLoader(store, batch_size=5, seed=0, held_out=1.0)


def test_a_larger_store_holds_out_the_same_images():
    train, held_out = split(10_000, 0.05)
    assert 400 < len(held_out) < 600
    assert torch.equal(split(20_000, 0.05)[1][: len(held_out)], held_out)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(10_000))


def test_one_view_needs_no_choice(tmp_path: Path):
    loader = TokenLoader(TokenStore(write_store(tmp_path / "one", views=1)), batch_size=IMAGES, seed=0)
    assert sorted(loader.batch_at(0).tokens[:, 0].tolist()) == [10 * i for i in range(IMAGES)]


@pytest.mark.parametrize("name", ["tokens.u16", "classes.i32"])
def test_damage_is_found_at_once(tmp_path: Path, name: str):
    folder = write_store(tmp_path / "tokens")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{name}.*bytes instead of"):
        TokenStore(folder, check_hashes=False)
    (folder / name).write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(DataError, match=f"{name}.*hash differs"):
        TokenStore(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*no such file"):
        TokenStore(folder)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_records_of_a_store_are_compared_with_their_hashes(tmp_path: Path, name: str):
    folder = write_store(tmp_path / "tokens")
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), 7):
        (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match=name):
            TokenStore(folder, check_hashes=False)
    (folder / name).unlink()
    with pytest.raises((DataError, InputMissingError), match=name):
        TokenStore(folder, check_hashes=False)


def test_what_is_no_store_is_said(tmp_path: Path):
    with pytest.raises(InputMissingError, match="no such token store"):
        TokenStore(tmp_path / "none")
    with pytest.raises(InputMissingError, match="no finished token store"):
        TokenStore(tmp_path)
    folder = write_store(tmp_path / "tokens")
    manifest = read_token_manifest(folder).model_dump(mode="json")
    for change in ({"format_version": 2}, {"length": "x"}, {"length": 2**62}, {"codebook_size": 1 << 17}):
        write_sealed_json(folder / "manifest.json", manifest | change)
        with pytest.raises(DataError, match=r"manifest\.json"):
            TokenStore(folder)


def test_tokens_of_another_stage1_are_refused(store: TokenStore):
    store.check_stage1("a" * 64)
    store.check_stage1("b" * 64, "a" * 64)
    with pytest.raises(DataError, match="tokens of another Stage 1") as caught:
        store.check_stage1("b" * 64)
    assert "aaaaaaaaaaaa" in caught.value.message
    assert "bbbbbbbbbbbb" in caught.value.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class_names": ["a"]}, "names"),
        ({"view_names": ["plain"]}, "views"),
        ({"codebook_size": 2}, "code"),
    ],
)
def test_a_manifest_that_does_not_go_with_its_data_is_found(tmp_path: Path, change: dict[str, object], reason: str):
    folder = write_store(tmp_path / "store")
    manifest = read_token_manifest(folder).model_dump(mode="json")
    write_sealed_json(folder / "manifest.json", {**manifest, **change})
    with pytest.raises(DataError, match=reason):
        TokenStore(folder)


def test_codes_that_fill_no_square_are_found(tmp_path: Path):
    folder = write_store(tmp_path / "store")
    manifest = read_token_manifest(folder).model_dump(mode="json")
    whole = manifest["images"] * manifest["length"]
    write_sealed_json(folder / "manifest.json", {**manifest, "images": whole // 2, "length": 2})
    with (folder / "classes.i32").open("ab") as handle:
        handle.write(b"\0" * 4 * (whole // 2 - manifest["images"]))
    with pytest.raises(DataError, match="no square grid"):
        TokenStore(folder, check_hashes=False)
