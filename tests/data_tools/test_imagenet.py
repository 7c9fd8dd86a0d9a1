"""ImageNet in each of its layouts gives the same shards, and every file is accounted for."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.data.pillow import FORMATS
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.sources.entry import Entry, FilePlace, Source
from vq3dcli.data_tools.sources.imagenet import compare_counts, official_sizes
from vq3dcli.data_tools.sources.wnids import wnid_of
from vq3dcli.errors import DataError, InputMissingError, StorageError, UsageError

Write = Callable[[ModuleType, Path], tuple[Path, dict[str, object]]]


# --- layouts of the training set -------------------------------------------------------------------------------------


def nested(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    return a.write(root / "ILSVRC2012_img_train.tar", a.nested_train_tar(a.train_files())), {}


def nested_beside_val(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    nested(a, root)
    a.write(root / "ILSVRC2012_img_val.tar", a.tar_bytes({"ILSVRC2012_val_00000001.JPEG": a.photo(1)}))
    return root, {}


def folders(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    return a.write_tree(root / "src", a.train_files()), {}


def split_folders(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    files = {f"train/{name}": data for name, data in a.train_files().items()}
    return a.write_tree(root / "src", files | {f"val/{a.WNIDS[0]}/x.JPEG": a.photo(99)}), {"split": "train"}


def folders_in_a_tar(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    files = {f"./train/{name}": data for name, data in a.train_files().items()}
    boxes = {f"./train/{wnid}/{wnid}_boxes.txt": b"x 0 0 1 1\n" for wnid in a.WNIDS}
    hidden = {f"./train/{a.WNIDS[0]}/._{a.WNIDS[0]}_3.JPEG": b"resource fork"}
    return a.write(root / "tiny.tar", a.tar_bytes(boxes | files | hidden)), {}


def class_tars(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    for wnid in a.WNIDS:
        members = {n.split("/")[1]: d for n, d in a.train_files().items() if n.startswith(wnid)}
        a.write(root / "src" / f"{wnid}.tar", a.tar_bytes(members))
    return root / "src", {}


def appended_wnids(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    files = {f"{Path(n).stem}_{n[:9]}.JPEG": d for n, d in a.train_files().items()}
    return a.write_tree(root / "src", files), {}


def kaggle(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    files = {f"ILSVRC/Data/CLS-LOC/train/{n}": d for n, d in a.train_files().items()}
    files["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"] = a.photo(50)
    files["ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_3.xml"] = b"<annotation/>"
    files["LOC_synset_mapping.txt"] = b"n01440764 tench"
    return a.write_tree(root / "src", files), {}


def webdataset_tars(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    from vq3dcli.data.imagenet import imagenet_names

    numbers = list(imagenet_names())
    items = sorted(a.train_files().items())
    for shard in range(2):
        members = {}
        for i, (name, data) in enumerate(items[shard::2]):
            key = f"{Path(name).stem.split('_')[1]:0>8}-{shard}{i}"
            members |= {f"{key}.cls": b"%d" % numbers.index(name[:9]), f"{key}.jpg": data, f"{key}.json": b"{}"}
        a.write(root / "src" / f"imagenet1k-train-{shard:04d}.tar", a.tar_bytes(members))
    a.write(root / "src" / "imagenet1k-validation-00.tar", a.tar_bytes({"0.cls": b"0", "0.jpg": a.photo(9)}))
    return root / "src", {}


def parquet(a: ModuleType, root: Path) -> tuple[Path, dict[str, object]]:
    from vq3dcli.data.imagenet import imagenet_names

    numbers = list(imagenet_names())
    rows = [(d, f"{Path(n).stem}_{n[:9]}.JPEG", numbers.index(n[:9])) for n, d in a.train_files().items()]
    write_parquet(root / "src" / "data" / "train-00000-of-00002.parquet", rows[:5])
    write_parquet(root / "src" / "data" / "train-00001-of-00002.parquet", rows[5:])
    write_parquet(root / "src" / "data" / "validation-00000-of-00001.parquet", rows[:2])
    return root / "src", {}


def write_parquet(path: Path, rows: list[tuple[bytes | None, str | None, int]]) -> None:
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": d, "path": p} for d, p, _ in rows], kind)
    labels = pyarrow.array([label for *_, label in rows], pyarrow.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), path, row_group_size=3)


@pytest.mark.parametrize(
    "layout",
    [
        nested,
        nested_beside_val,
        folders,
        split_folders,
        folders_in_a_tar,
        class_tars,
        appended_wnids,
        kaggle,
        webdataset_tars,
        parquet,
    ],
)
def test_every_layout_of_the_training_set_gives_the_same_images_and_classes(
    tmp_path: Path, archives: ModuleType, layout: Write
):
    archives.write_tree(tmp_path / "plain", archives.train_files())
    expected = archives.imagenet(tmp_path / "plain", tmp_path / "expected")
    source, options = layout(archives, tmp_path / "layout")
    manifest = archives.imagenet(source, tmp_path / "out", **options)
    assert sorted(archives.samples(tmp_path / "out")) == sorted(archives.samples(tmp_path / "expected"))
    by_class = [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    rows = [i % 4 for i in range(12)]
    assert ShardFolder(tmp_path / "out").class_index.tolist() == (rows if layout is parquet else by_class)
    assert manifest.class_names == expected.class_names == archives.WNIDS
    assert manifest.class_titles[0] == "tench, Tinca tinca"
    assert manifest.num_rejects == 0
    if layout not in (webdataset_tars, parquet):  # whose keys are other names, and whose rows keep their order
        assert archives.samples(tmp_path / "out") == archives.samples(tmp_path / "expected")


def test_a_file_called_train_hides_no_val_archive(tmp_path: Path, archives: ModuleType):
    archives.write(tmp_path / "tars" / "val.tar", archives.tar_bytes(archives.train_files()))
    write_parquet(tmp_path / "rows" / "validation-0.parquet", [(archives.photo(1), None, 0)])
    for folder in (tmp_path / "tars", tmp_path / "rows"):
        archives.write(folder / "LOC_train_solution.csv", b"")
        assert open_source("imagenet", folder, tmp_path / "out").options["split"] == "val"


def test_rows_of_parquet_files_are_read_in_their_order(
    tmp_path: Path, archives: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    from vq3dcli.data_tools.sources import parquet as module

    starts: list[tuple[str, int]] = []
    original = module.rows_from
    monkeypatch.setattr(module, "rows_from", lambda path, *at: starts.append((path.name, at[1])) or original(path, *at))
    source, _ = parquet(archives, tmp_path)
    listed = open_source("imagenet", source, tmp_path / "out")
    prepare(tmp_path / "out", image_job("imagenet", listed, Options(16)))
    assert starts[-2:] == [("train-00000-of-00002.parquet", 0), ("train-00001-of-00002.parquet", 0)]


def test_numbers_of_a_subset_are_those_of_its_manifest_or_a_warning(
    tmp_path: Path, archives: ModuleType, caplog: pytest.LogCaptureFixture
):
    files = {name: data for name, data in archives.train_files().items() if not name.startswith(archives.WNIDS[0])}
    expected = archives.imagenet(archives.write_tree(tmp_path / "src", files), tmp_path / "shards")
    again = archives.imagenet(tmp_path / "shards", tmp_path / "again")
    assert again.class_names == expected.class_names == archives.WNIDS[1:]
    assert "count classes of their own" not in caplog.text
    (tmp_path / "shards" / "manifest.json").unlink()
    assert archives.imagenet(tmp_path / "shards", tmp_path / "wrong").class_names != archives.WNIDS[1:]
    assert "classes are numbered 0 to 2 and taken for the first of 1000" in caplog.text
    (tmp_path / "shards" / "manifest.json").write_text('{"class_names": ["cube", "ball"]}')
    with pytest.raises(UsageError, match="no WordNet ids"):
        archives.imagenet(tmp_path / "shards", tmp_path / "other")


# --- what is said ----------------------------------------------------------------------------------------------------


def compared(split: str, counts: dict[str, int], unusable: int = 0) -> Source:
    source = Source()
    compare_counts(source, split, counts, unusable)
    return source


def test_a_part_of_the_classes_is_a_note_and_wrong_counts_of_all_are_a_warning():
    part = compared("train", {"a": 3})
    assert part.facts == {"found": 3, "found_classes": 1, "expected": 1281167, "expected_classes": 1000}
    assert not part.warnings
    assert "a part" in part.notes[0]
    assert "numbered among these 1, not among the 1000" in part.notes[0]
    assert "numbered among these 1, not among the 1000" in compared("any", {"a": 3}).warnings[0]
    counts = {f"n{i:08d}": 1300 for i in range(1000)}
    counts["n00000007"] = 12
    warnings = compared("train", counts, 2).warnings
    assert "2 files cannot be used" in warnings[0]
    assert f"{999 * 1300 + 12 - 1281167} more than the 1281167" in warnings[1]
    assert warnings[2] == "classes with other than 732 to 1300 images: n00000007 has 12"
    whole = {f"n{i:08d}": 50 for i in range(1000)}
    assert compared("val", whole).notes == ["found 50000 images of 1000 classes: the whole split val"]
    assert compared("val", whole).warnings == []
    assert "1 less" in compared("val", whole | {"n00000000": 49}).warnings[0]
    sizes = [Entry("x/ILSVRC2012_img_val.tar", FilePlace("x"), 6_744_924_159)]
    assert "has 6744924160 bytes, this one 6744924159" in official_sizes(sizes)[0]


def test_what_is_passed_over_and_what_is_odd_is_said(
    tmp_path: Path, archives: ModuleType, caplog: pytest.LogCaptureFixture
):
    files = archives.train_files() | {"n01440764/n01440764_boxes.txt": b"", "more.tar.gz": b"", "plain.jpg": b"x"}
    files["n01440764/n01443537_77.JPEG"] = archives.photo(3)
    with caplog.at_level(logging.INFO):
        archives.imagenet(archives.write_tree(tmp_path / "src", files), tmp_path / "out", max_bad=0.5)
    said = [record.getMessage() for record in caplog.records]
    assert "passed over, since they are no images: 1 .gz, 1 .txt" in said
    assert "compressed archive is passed over (more.tar.gz)" in said
    assert "1 files cannot be used: they have no class, or are no regular files" in said
    wrong = "1 files whose names say another class than their place or label, the first: "
    assert f"{wrong}n01440764/n01443537_77.JPEG is taken for n01440764" in said
    assert any(text.startswith("about ") and " of shards for 14 images; " in text for text in said)
    assert archives.rejects(tmp_path / "out") == {"plain.jpg": "no WordNet id in its path, and no label beside it"}


@pytest.mark.parametrize(
    ("path", "wnid"),
    [
        ("train/n01440764/images/n01440764_1.JPEG", "n01440764"),
        ("n01440764.tar/x.JPEG", "n01440764"),
        ("a/ILSVRC2012_val_00000293_n01440764.JPEG", "n01440764"),
        ("n01440764_tench.jpg", "n01440764"),
        ("n01440764_18_n01443537.JPEG", "n01443537"),
        ("n014407645.JPEG", None),
        ("x.JPEG", None),
    ],
)
def test_the_class_in_a_path(path: str, wnid: str | None):
    assert wnid_of(path) == wnid


# --- what is damaged or not there ------------------------------------------------------------------------------------


def test_cut_and_damaged_archives_are_named(tmp_path: Path, archives: ModuleType):
    whole = archives.nested_train_tar(archives.train_files())
    second = whole.index(b"n02085620.tar") // 512 * 512
    cuts = [100, 700, 5000, len(whole) // 2, second + 200, second + 700]
    for cut in cuts:
        with pytest.raises(DataError, match=r"x\.tar"):
            archives.imagenet(archives.write(tmp_path / "x.tar", whole[:cut]), tmp_path / "out")
    damaged = bytearray(whole)
    damaged[second + 20] ^= 1  # in a header: its checksum is wrong
    with pytest.raises(DataError, match=f"no header at byte {second}"):
        archives.imagenet(archives.write(tmp_path / "x.tar", bytes(damaged)), tmp_path / "out")


def test_a_compressed_archive_is_to_be_uncompressed(tmp_path: Path, archives: ModuleType):
    import gzip

    with pytest.raises(DataError) as caught:
        archives.imagenet(
            archives.write(tmp_path / "x.tar", gzip.compress(archives.tar_bytes(archives.train_files()))),
            tmp_path / "out",
        )
    assert "uncompress" in str(caught.value)


def test_links_and_paths_that_lead_out_of_an_archive_are_rejects(tmp_path: Path, archives: ModuleType):
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("n01440764/n01440764_1.JPEG", tarfile.REGTYPE),
            ("n01440764/link.JPEG", tarfile.SYMTYPE),
            ("n01440764/hard.JPEG", tarfile.LNKTYPE),
            ("n01440764/../../etc/n01440764_2.JPEG", tarfile.REGTYPE),
            ("/n01440764/n01440764_3.JPEG", tarfile.REGTYPE),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            data = archives.photo(1) if kind == tarfile.REGTYPE else b""
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    archives.imagenet(archives.write(tmp_path / "x.tar", buffer.getvalue()), tmp_path / "out", max_bad=0.9)
    assert len(archives.samples(tmp_path / "out")) == 1
    reasons = sorted(archives.rejects(tmp_path / "out").values())
    assert reasons == ["a link or special file in the archive"] * 2 + ["its path leads out of the archive"] * 2


def test_sources_without_images(tmp_path: Path, archives: ModuleType):
    for source in (tmp_path / "none", archives.write_tree(tmp_path / "text", {"a.txt": b"x"})):
        with pytest.raises(InputMissingError):
            archives.imagenet(source, tmp_path / "out")
    source = archives.write_tree(tmp_path / "src", {f"train/{n}": d for n, d in archives.train_files().items()})
    with pytest.raises(InputMissingError, match="of the split val"):
        archives.imagenet(source, tmp_path / "out", split="val")
    assert not (tmp_path / "out").exists()


def test_odd_parquet_files(tmp_path: Path, archives: ModuleType):
    import pyarrow
    import pyarrow.parquet

    rows = [(archives.photo(1), None, 0), (None, "a.JPEG", 1), (archives.photo(2), None, -1), (b"text", "b.JPEG", 1)]
    write_parquet(tmp_path / "a" / "x.parquet", rows)
    archives.imagenet(tmp_path / "a" / "x.parquet", tmp_path / "out", max_bad=0.9)
    assert len(archives.samples(tmp_path / "out")) == 1
    assert archives.rejects(tmp_path / "out") == {
        "x.parquet/a.JPEG": "the row holds no image",
        "x.parquet/b.JPEG": f"cannot decode image: its bytes are none of {', '.join(FORMATS)}",
        "x.parquet/row-000002": "no WordNet id in its path, and no label beside it",
    }
    for data in (b"", b"PAR1", (tmp_path / "a" / "x.parquet").read_bytes()[:-20]):
        with pytest.raises(DataError, match="damaged Parquet"):
            archives.imagenet(archives.write(tmp_path / "b" / "x.parquet", data), tmp_path / "out2")
    null = pyarrow.array([None, {"bytes": archives.photo(1), "path": "n01440764_1.JPEG"}])
    pyarrow.parquet.write_table(pyarrow.table({"image": null}), tmp_path / "c.parquet")
    archives.imagenet(tmp_path / "c.parquet", tmp_path / "out3", max_bad=0.9)
    assert list(archives.rejects(tmp_path / "out3")) == ["c.parquet/row-000000"]
    for columns in (
        {"image": [b"x"], "label": ["tench"]},
        {"image": ["x.JPEG"], "label": [1]},
        {"image": [{"path": "x.JPEG"}]},
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "b" / "x.parquet")
        with pytest.raises(DataError, match=r"holds no (bytes|whole numbers)"):
            archives.imagenet(tmp_path / "b", tmp_path / "out2")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b" / "x.parquet")
    with pytest.raises(DataError, match="no column `image`"):
        archives.imagenet(tmp_path / "b", tmp_path / "out2")


def test_a_disk_that_fails_and_a_file_that_shrinks_end_the_run(
    tmp_path: Path, archives: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    import errno

    import pyarrow.parquet

    rows: list[tuple[bytes | None, str | None, int]] = [(archives.photo(i), None, i) for i in range(4)]
    write_parquet(tmp_path / "x.parquet", rows)
    listed = open_source("imagenet", tmp_path / "x.parquet", tmp_path / "out")
    write_parquet(tmp_path / "x.parquet", rows[:2])
    with pytest.raises(StorageError, match="shorter than it was"):
        prepare(tmp_path / "out", image_job("imagenet", listed, Options(16), max_bad=1.0))

    def failing(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        prepare(tmp_path / "out", image_job("imagenet", listed, Options(16), max_bad=1.0))
