"""Shards to a token store: the codes of the model, the same bytes after interruptions, refusals."""

from __future__ import annotations

import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.data.images import decode_image, encode_png
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.part import Part
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, OutputError, UsageError
from vq3dcli.model.scene import to_model_range
from vq3dcli.pipelines.tokenize import _block_bytes, tokenize
from vq3dcli.weights_file import LoadedWeights, load_weights


@pytest.fixture(scope="module")
def weights(tiny_weights: Path) -> LoadedWeights:
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 toy scenes of 16 pixels in 3 shards."""
    out = tmp_path_factory.mktemp("shards") / "toy"
    prepare_toyscenes(out, count=42, size=16, seed=3, shard_size=20)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 pictures of 16 pixels and a margin of 1.5, of the classes `sphere` and `zebra`."""
    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        path = root / "source" / ("zebra", "sphere")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(torch.randint(0, 256, (3, 30, 30), generator=generator, dtype=torch.uint8)))
    listed = open_source("folder", root / "source", root / "shards")
    prepare(root / "shards", image_job("folder", listed, Options(16, margin=1.5)))
    return root / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def image(folder: ShardFolder, i: int) -> torch.Tensor:
    extension = folder.image_extension(i)
    return decode_image(folder.read(i, [extension])[extension], name=str(i), apply_orientation=False)


def test_the_codes_are_those_of_the_model(weights: LoadedWeights, shards: Path, tmp_path: Path):
    told: list[tuple[int, int]] = []
    weights = replace(weights, card={"init_sha256": "cd" * 32, "init_ancestors": ["ef" * 32]})
    tokenize(weights, [shards], tmp_path / "t", on_progress=lambda done, total: told.append((done, total)))
    store, images = TokenStore(tmp_path / "t"), ShardFolder(shards)
    assert store.tokens.shape == (42, 2, 16)
    assert store.stage1_sha256 == weights.sha256
    assert store.manifest.stage1_ancestors == ["cd" * 32, "ef" * 32]
    assert store.class_names == images.class_names
    assert store.manifest.view_names == ["plain", "flip"]
    whole = torch.stack([image(images, i) for i in range(42)])
    for view, batch in enumerate((whole, whole.flip(-1))):
        codes = weights.model.codes(to_model_range(batch))
        agreement = (store.read(torch.arange(42), view) == codes).double().mean()
        assert agreement > 0.99  # a tie may fall otherwise in another batch
    assert store.class_index.tolist() == [images.entry(i).class_index for i in range(42)]
    assert told[0] == (0, 42)
    assert told[-1] == (42, 42)
    assert all(b[0] >= a[0] for a, b in itertools.pairwise(told))


def test_folders_are_one_data_set_and_crops_come_from_the_margin(
    weights: LoadedWeights, shards: Path, photos: Path, tmp_path: Path
):
    tokenize(weights, [photos], tmp_path / "crops", views=6)
    store = TokenStore(tmp_path / "crops")
    assert store.manifest.view_names == ["plain", "flip", "crop", "crop flip", "crop", "crop flip"]
    codes = store.read(torch.tensor([0] * 6), torch.arange(6))
    assert len({tuple(view) for view in codes.tolist()}) >= 5
    # Fewer views are the first ones of more, and another seed changes the crops alone.
    tokenize(weights, [photos], tmp_path / "other", views=6, seed=1)
    other = TokenStore(tmp_path / "other")
    changed = (other.tokens != store.tokens).any(-1)
    assert not changed[:, :2].any()
    assert changed[:, 2:].any()

    tokenize(weights, [shards, photos], tmp_path / "both", views=1)
    both = TokenStore(tmp_path / "both")
    assert both.num_images == 48
    assert [source.name for source in both.manifest.sources] == ["toy", "shards"]
    assert both.class_names[-1] == "zebra"
    found = [both.class_names[i] for i in both.class_index[42:].tolist()]
    images = ShardFolder(photos)
    assert found == [images.class_names[images.entry(i).class_index or 0] for i in range(6)]
    with pytest.raises(UsageError, match="room for crops"):
        tokenize(weights, [photos, shards], tmp_path / "none", views=3)


class InterruptedHereError(Exception):
    pass


def test_an_interrupted_run_continues_to_the_same_bytes(weights: LoadedWeights, shards: Path, tmp_path: Path):
    tokenize(weights, [shards], tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert set(expected) == {".lock", "plan.json", "tokens.u16", "classes.i32", "manifest.json"}
    out = tmp_path / "stopped"
    for limit in (16, 20, 36, 42):

        def stop(done: int, total: int, limit: int = limit) -> None:
            if done >= limit:
                raise InterruptedHereError

        with pytest.raises(InterruptedHereError):
            tokenize(weights, [shards], out, on_progress=stop)
        assert limit == 42 or not (out / "manifest.json").exists()
    tokenize(weights, [shards], out)
    assert contents(out) == expected


def test_a_finished_part_is_not_made_again_unless_it_is_damaged(weights: LoadedWeights, shards: Path, tmp_path: Path):
    out = tmp_path / "t"

    def stop(done: int, total: int) -> None:
        if done >= 36:
            raise InterruptedHereError

    with pytest.raises(InterruptedHereError):
        tokenize(weights, [shards], out, on_progress=stop)
    part = out / "block-000000.u16"
    made = part.stat().st_mtime_ns
    shutil.copytree(out, tmp_path / "damaged")
    with pytest.raises(InterruptedHereError):
        tokenize(weights, [shards], out, on_progress=stop)
    assert part.stat().st_mtime_ns == made
    damaged = tmp_path / "damaged" / part.name
    damaged.write_bytes(bytes(16) + damaged.read_bytes()[16:])
    for folder in (out, tmp_path / "damaged"):
        tokenize(weights, [shards], folder)
    assert contents(out) == contents(tmp_path / "damaged")


def test_a_killed_run_loses_a_block_and_not_a_shard(
    weights: LoadedWeights, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenize(weights, [shards], tmp_path / "whole")
    monkeypatch.setattr("vq3dcli.pipelines.tokenize._IMAGES_A_BLOCK", 16)

    def stop(done: int, total: int) -> None:
        if done > 16:
            raise InterruptedHereError

    with pytest.raises(InterruptedHereError):
        tokenize(weights, [shards], tmp_path / "t", on_progress=stop)
    assert (tmp_path / "t" / "block-000000.u16").exists()  # 16 of the 20 images of the first shard
    tokenize(weights, [shards], tmp_path / "t")
    assert contents(tmp_path / "t") == contents(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_parts_in_any_order_make_the_store_of_one_process(
    weights: LoadedWeights, shards: Path, photos: Path, tmp_path: Path, count: int
):
    whole = tokenize(weights, [shards, photos], tmp_path / "whole")
    for index in reversed(range(count)):
        found = tokenize(weights, [shards, photos], tmp_path / "t", part=Part(index, count))
        assert found == (whole if index == 0 else None)
        if index == 1:  # what another part finished is not trusted blindly
            block = next((tmp_path / "t").glob("block-*.u16"))
            block.write_bytes(bytes(16) + block.read_bytes()[16:])
    assert contents(tmp_path / "t") == contents(tmp_path / "whole")


def test_parts_at_the_same_time_make_one_store(weights: LoadedWeights, shards: Path, tmp_path: Path):
    tokenize(weights, [shards], tmp_path / "whole")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: tokenize(weights, [shards], tmp_path / "t", part=Part(i, 3)), range(3)))
    assert any(found)
    assert contents(tmp_path / "t") == contents(tmp_path / "whole")


def test_the_ranks_of_a_launcher_share_the_shards(
    tiny_weights: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out = str(tmp_path / "t")
    arguments = ["tokenize", "--weights", str(tiny_weights), "--data", str(shards), "--out", out, "--device", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run([*arguments, "--json"]) == 0
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["metrics"] == {"part": "1/2"}
    assert (last["count"], TokenStore(Path(out)).num_images) == (42, 42)
    assert run([*arguments, "--part", "3/2"]) == 2


def test_a_damaged_store_is_made_anew_by_the_same_command(weights: LoadedWeights, shards: Path, tmp_path: Path):
    out = tmp_path / "t"
    tokenize(weights, [shards], out)
    expected = contents(out)
    (out / "tokens.u16").write_bytes(bytes(42 * 2 * 16 * 2))
    with pytest.raises(DataError, match="hash differs"):
        TokenStore(out)
    tokenize(weights, [shards], out)
    assert contents(out) == expected


def test_another_plan_needs_force_or_another_folder(weights: LoadedWeights, shards: Path, tmp_path: Path):
    out = tmp_path / "t"
    tokenize(weights, [shards], out)
    with pytest.raises(UsageError, match="views was 2, is 1"):
        tokenize(weights, [shards], out, views=1)
    (out / "notes.txt").write_text("mine")
    tokenize(weights, [shards], out, views=1, force=True)
    assert TokenStore(out).views == 1
    assert (out / "notes.txt").read_text() == "mine"


def test_a_damaged_image_is_named_and_nothing_is_finished(weights: LoadedWeights, shards: Path, tmp_path: Path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    member = ShardFolder(copy).entry(25).members["png"]
    data = bytearray((copy / "shard-000001.tar").read_bytes())
    data[member.offset + 40] ^= 1
    (copy / "shard-000001.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000001\.tar, key 00000025"):
        tokenize(weights, [copy], tmp_path / "t")
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_the_command_makes_a_store_and_says_what_is_in_it(
    tiny_weights: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "t")
    arguments = ["tokenize", "--weights", str(tiny_weights), "--data", str(shards), "--out", out, "--device", "cpu"]
    assert run([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["command"], said["count"], said["outputs"]) == ("tokenize", 42, [out])
    assert said["weights"]["sha256"] == TokenStore(Path(out)).stage1_sha256
    assert said["metrics"]["views"] == 2
    assert 0 < said["metrics"]["codes_used"] <= 32
    assert run([*arguments, "--crops", "3"]) == 2
    assert run(["tokenize", "--weights", str(tiny_weights), "--data", str(tmp_path / "none"), "--out", out]) == 66
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_file_in_the_way_is_an_error(weights: LoadedWeights, shards: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create"):
        tokenize(weights, [shards], tmp_path / "file")


def test_a_folder_of_shards_is_never_replaced(weights: LoadedWeights, shards: Path, tmp_path: Path):
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    before = contents(folder)
    for force in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            tokenize(weights, [shards], folder, force=force)
    assert {name: data for name, data in contents(folder).items() if name in before} == before


def test_the_same_images_twice_are_refused(weights: LoadedWeights, shards: Path, tmp_path: Path):
    shutil.copytree(shards, tmp_path / "copy")
    with pytest.raises(UsageError, match="the same images twice"):
        tokenize(weights, [shards, tmp_path / "copy"], tmp_path / "out")


def test_shards_are_no_token_store(shards: Path):
    with pytest.raises(UsageError, match="a shard folder, not a token store"):
        TokenStore(shards)


def test_a_block_that_has_gone_is_no_output_that_cannot_be_made(tmp_path: Path):
    with pytest.raises(DataError, match=r"has gone \(.*block-000003\.u16"):
        _block_bytes(tmp_path / "block-000003.u16")
