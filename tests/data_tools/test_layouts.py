"""Layouts that people have their images in: what is a class, what is no image, and what is said about it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.data_tools import archives as a
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.sources.entry import Source
from vq3dcli.data_tools.sources.folder import Classes, folder_source
from vq3dcli.data_tools.sources.parquet import list_rows
from vq3dcli.errors import DataError, InputMissingError, UsageError

PETS = {f"{c}/{i}.jpg": a.photo(i + 7 * k) for k, c in enumerate(("cat", "cup")) for i in range(3)}


def listed(source: Path, classes: Classes = "auto") -> Source:
    return folder_source(source, leave_out=source / "out", classes=classes)


def by_class(source: Source) -> dict[str | None, list[str]]:
    """Names of the files that become samples, by class."""
    found: dict[str | None, list[str]] = {}
    for entry in source.entries:
        if not entry.reject:
            name = None if entry.class_index is None else source.class_names[entry.class_index]
            found.setdefault(name, []).append(entry.path)
    return found


def counts(source: Source) -> dict[str | None, int]:
    return {name: len(paths) for name, paths in by_class(source).items()}


@pytest.mark.parametrize("root", ["", "pets/", "./pets/", "data/pets/"])
@pytest.mark.parametrize("classes", ["auto", "folders"])
def test_folders_that_hold_everything_are_no_class(tmp_path: Path, root: str, classes: Classes):
    files = {f"{root}{name}": data for name, data in PETS.items()}
    (tmp_path / "x.tar").write_bytes(a.tar_bytes(files))
    a.write_tree(tmp_path / "src", files)
    for source in (tmp_path / "x.tar", tmp_path / "src"):
        found = listed(source, classes)
        assert counts(found) == {"cat": 3, "cup": 3}
        shown = root.removeprefix("./").rstrip("/")
        assert found.notes == ([f"classes are the folders in {shown}, which holds everything"] if shown else [])
    assert counts(listed(tmp_path / "src", "none")) == {"all": 6}


def test_one_class_folder_is_a_class(tmp_path: Path):
    a.write_tree(tmp_path, {name: data for name, data in PETS.items() if name.startswith("cat")})
    assert counts(listed(tmp_path)) == {"cat": 3}


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("validation", "train", "extra")])
def test_splits_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]):
    a.write_tree(tmp_path, {f"set/{split}/{name}": data for split in names for name, data in PETS.items()})
    with pytest.raises(UsageError, match="are splits of a data set, not classes") as error:
        listed(tmp_path)
    assert f"{tmp_path}/set/{min(n for n in names if n != 'extra')}; or --classes folders, or --classes none" in str(
        error.value
    )
    assert set(counts(listed(tmp_path, "folders"))) == set(names)
    assert counts(listed(tmp_path, "none")) == {"all": 6 * len(names)}
    assert counts(listed(tmp_path / "set" / names[0])) == {"cat": 3, "cup": 3}
    (tmp_path / "set.tar").write_bytes(a.tar_bytes({f"{s}/{n}": d for s in names for n, d in PETS.items()}))
    with pytest.raises(UsageError, match="are splits"):
        listed(tmp_path / "set.tar")


def test_archives_of_several_splits_are_not_mixed(tmp_path: Path):
    for name in ("train-0000.tar", "test-0000.tar"):
        (tmp_path / name).write_bytes(a.tar_bytes({"0.jpg": a.photo(0), "0.cls": b"0"}))
    with pytest.raises(UsageError, match="test and train are splits"):
        listed(tmp_path)


def test_folders_that_no_user_made_are_passed_over(tmp_path: Path):
    odd = {f"{name}/x/1.jpg": a.photo(1) for name in ("@eaDir", "cat/@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN")}
    a.write_tree(tmp_path / "src", PETS | odd)
    (tmp_path / "x.tar").write_bytes(a.tar_bytes(PETS | odd))
    for source in (tmp_path / "src", tmp_path / "x.tar"):
        assert counts(listed(source)) == {"cat": 3, "cup": 3}


def test_captions_and_lists_are_passed_over_and_counted(tmp_path: Path):
    beside = ("cat/0.txt", "cat/1.txt", "labels.csv", "metadata.jsonl", "Thumbs.db", "cup/desktop.ini", "a.mp4")
    a.write_tree(tmp_path, PETS | dict.fromkeys(beside, b"text"))
    found = listed(tmp_path)
    assert counts(found) == {"cat": 3, "cup": 3}
    assert len(found.entries) == 6
    assert found.notes == [
        "passed over, since they are no images: 1 .csv, 1 .jsonl, 1 .mp4, 2 .txt, 1 desktop.ini, 1 thumbs.db"
    ]
    a.write_tree(tmp_path / "only", {"a.txt": b"x"})
    with pytest.raises(InputMissingError, match=r"no images in it .*passed over: 1 \.txt"):
        listed(tmp_path / "only")


def test_a_few_folders_beside_many_photos_are_no_classes(tmp_path: Path):
    a.write_tree(tmp_path, {f"{i}.jpg": a.photo(i) for i in range(12)} | {"more/1.jpg": a.photo(12)})
    found = listed(tmp_path)
    assert counts(found) == {"all": 13}
    assert found.warnings == [
        "12 of 13 files lie beside the folders, so all are one class; --classes folders takes the others alone"
    ]
    assert counts(listed(tmp_path, "folders")) == {"more": 1}


def test_a_name_that_leads_out_of_a_flat_tar_is_one_reject(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(a.tar_bytes({"../b.jpg": a.photo(1), "a.jpg": a.photo(2), "c.jpg": a.photo(3)}))
    found = listed(tmp_path / "x.tar")
    assert by_class(found) == {"all": ["a.jpg", "c.jpg"]}
    assert [entry.reject for entry in found.entries if entry.reject] == ["its path leads out of the archive"]


def samples(labels: list[bytes], extension: str = "jpg", first: int = 0) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for i, label in enumerate(labels, start=first):
        members |= {f"sample{i:03d}.{extension}": a.photo(i), f"sample{i:03d}.cls": label}
    return members


@pytest.mark.parametrize("extension", ["jpg", "input.png"])
def test_labels_of_webdataset_tars(tmp_path: Path, extension: str):
    (tmp_path / "x.tar").write_bytes(a.tar_bytes(samples([b"10", b"2", b"10"], extension)))
    found = listed(tmp_path / "x.tar")
    assert found.class_names == ["2", "10"]
    assert counts(found) == {"2": 1, "10": 2}
    assert found.options == {"classes": "labels"}
    assert counts(listed(tmp_path / "x.tar", "none")) == {"all": 3}
    src = tmp_path / "src"
    a.write_tree(src, {f"{i:05d}.tar": a.tar_bytes(samples([b"cat\n", b"dog"], extension, 2 * i)) for i in range(2)})
    assert counts(listed(src)) == {"cat": 2, "dog": 2}
    assert counts(listed(src, "none")) == {"all": 4}


def test_a_changed_label_is_another_source(tmp_path: Path):
    def plan(label: bytes) -> object:
        (tmp_path / "x.tar").write_bytes(a.tar_bytes(samples([b"1", label])))
        open_ = open_source("folder", tmp_path / "x.tar", tmp_path / "out")
        return prepare(tmp_path / "out", image_job("folder", open_, Options(16)))

    plan(b"0")
    with pytest.raises(UsageError, match="source_sha256"):
        plan(b"1")


def test_img2dataset_tars(tmp_path: Path):
    members = {f"0000{i}.{e}": a.photo(i) if e == "jpg" else b"{}" for i in range(3) for e in ("jpg", "txt", "json")}
    a.write_tree(tmp_path, {f"0000{i}.tar": a.tar_bytes(members) for i in range(2)} | {"00000_stats.json": b"{}"})
    for source, number in ((tmp_path, 6), (tmp_path / "00000.tar", 3)):
        found = listed(source)
        assert counts(found) == {"all": number}
        assert len(found.entries) == number


def test_a_tar_for_each_class(tmp_path: Path):
    for name in ("cat", "cup"):
        files = {path.split("/")[1]: data for path, data in PETS.items() if path.startswith(name)}
        (tmp_path / f"{name}.tar").write_bytes(a.tar_bytes(files))
    (tmp_path / "dogs.tar.gz").write_bytes(b"x")
    found = listed(tmp_path)
    assert counts(found) == {"cat": 3, "cup": 3}
    assert found.warnings == ["compressed archive is passed over (dogs.tar.gz)"]


def write_parquet(path: Path, rows: list[tuple[bytes, int | None]], names: list[str] | None = None) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    images = [{"bytes": data, "path": f"{9 - i}.jpg"} for i, (data, _) in enumerate(rows)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([label for _, label in rows], pa.int64())
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_files(tmp_path: Path):
    rows = [(a.photo(i), i % 2) for i in range(4)]
    data = tmp_path / "src" / "data"
    write_parquet(data / "train-00000-of-00002.parquet", rows, ["mug", "fox"])
    one = write_parquet(data / "train-00001-of-00002.parquet", [*rows, (a.photo(9), 7)], ["mug", "fox"])
    a.write_tree(tmp_path / "src", {"README.md": b"x", ".gitattributes": b"x"})
    found = listed(tmp_path / "src")
    assert found.class_names == ["mug", "fox"]
    assert counts(found) == {"mug": 4, "fox": 4}
    assert [e.reject for e in found.entries if e.reject] == ["its label 7 is none of 2 classes"]
    # Rows keep their order, whatever their names.
    assert [e.place for e in listed(one).entries] == [row.place for row in list_rows(one, "")[0]]
    assert counts(listed(tmp_path / "src", "none")) == {"all": 9}
    write_parquet(data / "train-00002-of-00002.parquet", rows, ["fox", "mug"])
    with pytest.raises(UsageError, match="classes are not those of the files before it"):
        listed(tmp_path / "src")
    numbered = write_parquet(tmp_path / "n.parquet", [(a.photo(0), 5), (a.photo(1), 3)])
    assert counts(listed(numbered)) == {"5": 1, "3": 1}
    double = write_parquet(tmp_path / "d.parquet", rows, ["x", "x"])
    with pytest.raises(DataError, match="two classes of one name"):
        listed(double)


def test_our_own_shards_can_be_prepared_again_at_another_size(tmp_path: Path):
    a.write_tree(tmp_path / "src", PETS)
    for source, out, size in (("src", "one", 24), ("one", "two", 16)):
        manifest = prepare(
            tmp_path / out,
            image_job(
                "folder",
                open_source("folder", tmp_path / source, tmp_path / out),
                Options(size, shard_size=4),
                max_bad=0.0,
            ),
        )
        assert manifest is not None
        assert (manifest.class_names, manifest.num_samples, manifest.num_rejects) == (["cat", "cup"], 6, 0)
        assert ShardFolder(tmp_path / out).class_index.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_class_that_is_a_link_to_another_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    a.write_tree(tmp_path, {name: data for name, data in PETS.items() if name.startswith("cat")})
    (tmp_path / "kitten").symlink_to("cat", target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        assert counts(listed(tmp_path)) == {"cat": 3}
    assert f"{tmp_path}/kitten is {tmp_path}/cat" in caplog.text
