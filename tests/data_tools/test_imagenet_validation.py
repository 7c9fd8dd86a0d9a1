"""ImageNet's flat validation set: labels from its devkit, or from Kaggle's list."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.data_tools.sources.wnids import kaggle_labels
from vq3dcli.errors import DataError, InputMissingError, UsageError

LABELS = [2, 0, 3, 0, 1, 2]


def val_files(a: ModuleType) -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{i:08d}.JPEG": a.photo(i) for i in range(1, len(LABELS) + 1)}


@pytest.mark.parametrize("place", ["beside", "named", "inside", "extracted", "kaggle"])
def test_flat_validation_images_get_the_labels_of_the_devkit(tmp_path: Path, archives: ModuleType, place: str):
    options: dict[str, object] = {}
    source = archives.write(tmp_path / "a" / "ILSVRC2012_img_val.tar", archives.tar_bytes(val_files(archives)))
    if place == "beside":
        archives.write(tmp_path / "a" / "ILSVRC2012_devkit_t12.tar.gz", archives.devkit_tar_gz(LABELS))
    elif place == "named":
        options["devkit"] = archives.write(tmp_path / "b" / "kit.tgz", archives.devkit_tar_gz(LABELS))
    elif place == "inside":
        archives.write(tmp_path / "a" / "ILSVRC2012_devkit_t12.tar.gz", archives.devkit_tar_gz(LABELS))
        source = tmp_path / "a"
    elif place == "extracted":
        source = archives.write_tree(tmp_path / "c", val_files(archives) | archives.devkit_files(LABELS))
    else:
        lines = [f"ILSVRC2012_val_{i:08d},{archives.WNIDS[n]} 1 2 3 4 " for i, n in enumerate(LABELS, start=1)]
        archives.write(
            tmp_path / "a" / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *lines]).encode()
        )
    manifest = archives.imagenet(source, tmp_path / "out", **options)
    assert manifest.options["split"] == "val"
    assert manifest.class_names == archives.WNIDS
    found = {
        str(i["source"])[-10:-5]: c
        for i, (c, _) in zip(archives.infos(tmp_path / "out"), archives.samples(tmp_path / "out"), strict=True)
    }
    assert found == {f"{i:05d}": label for i, label in enumerate(LABELS, start=1)}


def test_validation_images_without_labels_name_the_devkit(tmp_path: Path, archives: ModuleType):
    source = archives.write_tree(tmp_path / "val", val_files(archives))
    with pytest.raises(UsageError, match="--devkit"):
        archives.imagenet(source, tmp_path / "out")
    with pytest.raises(InputMissingError):
        archives.imagenet(source, tmp_path / "out", devkit=tmp_path / "none")
    for damaged in (b"", b"text", archives.tar_bytes({"x/meta.mat": b"text"})):
        with pytest.raises(DataError):
            archives.imagenet(source, tmp_path / "out", devkit=archives.write(tmp_path / "kit.tar", damaged))
    kit = {name: b"1\n" if name.endswith(".txt") else b"MATLAB 5.0" * 20 for name in archives.devkit_files(LABELS)}
    with pytest.raises(DataError, match="damaged devkit"):
        archives.imagenet(
            source, tmp_path / "out", devkit=archives.write(tmp_path / "kit.tar", archives.tar_bytes(kit))
        )
    with pytest.raises(DataError):
        kaggle_labels(b"ILSVRC2012_val_00000001,tench 1 2 3 4", name="list")


def test_a_damaged_devkit_gives_no_wrong_labels(tmp_path: Path, archives: ModuleType, caplog: pytest.LogCaptureFixture):
    source = archives.write_tree(tmp_path / "val", val_files(archives))
    kit = bytearray(gzip.compress(archives.tar_bytes(archives.devkit_files(LABELS)), 0))
    at = kit.index(b"n01440764")
    for place, value in ((at + 8, ord("5")), (12, 0xFF), (len(kit) - 600, 0xFF)):
        damaged = kit[:place] + bytes([value]) + kit[place + 1 :]
        with pytest.raises(DataError, match="cannot read devkit"):
            archives.imagenet(source, tmp_path / "out", devkit=archives.write(tmp_path / "kit.tgz", bytes(damaged)))
    archives.imagenet(
        source, tmp_path / "out", devkit=archives.write(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", bytes(kit))
    )
    assert "not the official devkit" in caplog.text


def test_the_checksum_of_a_matlab_file_is_looked_at_before_scipy_reads_it(archives: ModuleType):
    import scipy.io

    from vq3dcli.data_tools.sources.matlab import load_mat

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"types": archives.cells(["MPV", "SUV"] * 40)}, do_compression=True)
    data = buffer.getvalue()
    assert load_mat(data)["types"].shape == (80, 1)
    for place in range(140, len(data), 7):
        with pytest.raises((ValueError, zlib.error)):
            load_mat(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    for cut in (0, 100, 128 + 4, len(data) - 1):
        with pytest.raises((ValueError, zlib.error)):
            load_mat(data[:cut] or b"")


def test_images_past_the_ground_truth_are_rejects(tmp_path: Path, archives: ModuleType):
    source = archives.write_tree(tmp_path / "val", val_files(archives) | archives.devkit_files(LABELS[:-1]))
    archives.imagenet(source, tmp_path / "out", max_bad=0.5)
    assert archives.rejects(tmp_path / "out") == {
        "ILSVRC2012_val_00000006.JPEG": "no WordNet id in its path, and no label beside it"
    }
