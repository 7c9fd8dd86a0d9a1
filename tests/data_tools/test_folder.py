"""Any folder: every file is kept or has a reason, and equal folders give equal bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.config.defaults import MAX_BAD
from vq3dcli.data.images import decode_image, read_image, to_square
from vq3dcli.data.shard_format import Manifest
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.sources.folder import Classes
from vq3dcli.data_tools.sources.listing import list_folder
from vq3dcli.errors import DataError, InputMissingError, UsageError


def picture(path: Path, width: int = 40, height: int = 30, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y + len(path.name)) % 255], -1).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def prepare_folder(
    source: Path,
    out: Path,
    *,
    margin: float = 1.0,
    shard_size: int = 1000,
    classes: Classes = "auto",
    max_bad: float = MAX_BAD,
    force: bool = False,
) -> Manifest:
    listed = open_source("folder", source, out, classes=classes)
    manifest = prepare(out, image_job("folder", listed, Options(16, margin, shard_size), max_bad=max_bad), force=force)
    assert manifest is not None
    return manifest


def rejects(out: Path) -> dict[str, str]:
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return {line["path"]: line["reason"] for line in lines}


def sources(out: Path) -> list[str]:
    folder = ShardFolder(out)
    return [json.loads(folder.read(i)["json"])["source"] for i in range(folder.num_samples)]


def test_class_folders_in_sorted_order(tmp_path: Path):
    source, out = tmp_path / "src", tmp_path / "out"
    for name in ("zebra/2.png", "zebra/1.jpg", "ant/deep/3.webp", "Bee/x.png"):
        picture(source / name)
    manifest = prepare_folder(source, out)
    assert manifest.class_names == ["Bee", "ant", "zebra"]
    assert sources(out) == ["Bee/x.png", "ant/deep/3.webp", "zebra/1.jpg", "zebra/2.png"]
    assert ShardFolder(out).class_index.tolist() == [0, 1, 2, 2]
    assert not manifest.own_disparity


def test_a_flat_folder_is_one_class(tmp_path: Path):
    for name in ("b.png", "a.png"):
        picture(tmp_path / "src" / name)
    manifest = prepare_folder(tmp_path / "src", tmp_path / "out")
    assert manifest.class_names == ["all"]
    assert sources(tmp_path / "out") == ["a.png", "b.png"]


def test_classes_can_be_chosen(tmp_path: Path):
    source = tmp_path / "src"
    picture(source / "a.png")
    picture(source / "x" / "b.png")
    prepare_folder(source, tmp_path / "auto", max_bad=0.5)
    assert rejects(tmp_path / "auto") == {"a.png": "lies beside the class folders, so it has no class (--classes none)"}
    assert prepare_folder(source, tmp_path / "none", classes="none").class_names == ["all"]
    assert sources(tmp_path / "none") == ["a.png", "x/b.png"]


@pytest.mark.parametrize(("margin", "side"), [(1.0, 16), (1.125, 18)])
def test_the_centre_square_is_stored(tmp_path: Path, margin: float, side: int):
    path = picture(tmp_path / "src" / "a.png", 61, 40)
    prepare_folder(tmp_path / "src", tmp_path / "out", margin=margin)
    members = ShardFolder(tmp_path / "out").read(0)
    stored = decode_image(members["jpg"], name="x")
    expected = to_square(read_image(path), side, fit="crop")
    assert stored.shape == (3, side, side)
    assert (stored.float() - expected.float()).abs().mean() < 4
    assert members["cls"] == b"0"
    assert json.loads(members["json"]) == {
        "source": "a.png",
        "crop": {"top": 0, "left": 10, "side": 40},
        "original_size": {"height": 40, "width": 61},
    }


def test_orientation_is_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = picture(tmp_path / "src" / "a.jpg", 40, 30, exif=exif, quality=95)
    prepare_folder(tmp_path / "src", tmp_path / "out")
    info = json.loads(ShardFolder(tmp_path / "out").read(0)["json"])
    assert info["original_size"] == {"height": 40, "width": 30}
    assert read_image(path).shape == (3, 40, 30)


def test_every_file_is_kept_or_has_a_reason(tmp_path: Path):
    source, out = tmp_path / "src", tmp_path / "out"
    whole = picture(source / "a" / "good.jpg").read_bytes()
    picture(source / "a" / "png named jpg.jpg", format="PNG")
    (source / "a" / "linked.jpg").symlink_to("good.jpg")
    (source / "b").symlink_to("a", target_is_directory=True)  # the same folder again: visited once
    (source / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "a" / "empty.jpg").write_bytes(b"")
    (source / "a" / "page.jpg").write_text("<html></html>")
    (source / "a" / "nowhere.jpg").symlink_to("nothing")
    (source / "a" / ".DS_Store").write_bytes(b"hidden")
    (source / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (source / ".git").mkdir()
    picture(source / ".git" / "hidden.png")
    (source / "odd").write_text("hello")
    (source / "README").write_text("hello")
    os.mkfifo(source / "a" / "pipe.jpg")
    manifest = prepare_folder(source, out, max_bad=1.0)
    assert sources(out) == ["a/good.jpg", "a/linked.jpg", "a/png named jpg.jpg"]
    found = rejects(out)
    assert set(found) == {
        "odd",
        "a/caf\\xe9.jpg",
        "a/cut.jpg",
        "a/empty.jpg",
        "a/nowhere.jpg",
        "a/page.jpg",
        "a/pipe.jpg",
    }
    assert "truncated" in found["a/cut.jpg"].lower()
    assert found["a/empty.jpg"] == "cannot decode image: the file is empty"
    assert found["a/nowhere.jpg"] == "no such file"
    assert found["a/pipe.jpg"] == "not a regular file"
    assert manifest.num_samples + manifest.num_rejects == 10


def test_equal_folders_give_equal_bytes(tmp_path: Path):
    for copy in ("one", "two"):
        for name in ("a/1.png", "a/2.jpg", "b/3.png"):
            picture(tmp_path / copy / name)
        (tmp_path / copy / "b" / "bad.png").write_bytes(b"bad")
        prepare_folder(tmp_path / copy, tmp_path / f"{copy}-out", max_bad=0.5, shard_size=2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"{c}-out").iterdir()} for c in ("one", "two"))
    assert one == two


def test_a_changed_source_is_noticed(tmp_path: Path):
    source, out = tmp_path / "src", tmp_path / "out"
    picture(source / "b.png")
    prepare_folder(source, out)
    picture(source / "a.png")
    with pytest.raises(UsageError, match="source_files was 1, is 2"):
        prepare_folder(source, out)
    prepare_folder(source, out, force=True)
    assert sources(out) == ["a.png", "b.png"]


def test_an_output_inside_the_source_is_not_read(tmp_path: Path):
    picture(tmp_path / "a.png")
    prepare_folder(tmp_path, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert [file.path for file in list_folder(tmp_path, leave_out=tmp_path / "out")] == ["a.png"]
    prepare_folder(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_sources_that_are_not_there(tmp_path: Path):
    picture(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    for source in ("none", "file.png", "empty"):
        with pytest.raises(InputMissingError):
            prepare_folder(tmp_path / source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_names_the_list_of_rejects(tmp_path: Path):
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / "src" / f"{i}.jpg").write_text("text")
    with pytest.raises(DataError, match=r"3 of 3 files are bad.*rejects\.jsonl"):
        prepare_folder(tmp_path / "src", tmp_path / "out")
    assert len(rejects(tmp_path / "out")) == 3


def test_extreme_shapes_are_kept(tmp_path: Path):
    picture(tmp_path / "src" / "dot.png", 1, 1)
    picture(tmp_path / "src" / "line.png", 3000, 1)
    prepare_folder(tmp_path / "src", tmp_path / "out")
    folder = ShardFolder(tmp_path / "out")
    assert folder.num_samples == 2
    for i in range(2):
        assert decode_image(folder.read(i)["jpg"], name="x").shape == torch.Size([3, 16, 16])
