"""CompCars: the square around a car's box, what is known about it, and the official lists."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.data.images import decode_image, resize
from vq3dcli.data.shard_format import Manifest
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare, square_around
from vq3dcli.data_tools.sources.compcars import IMAGES
from vq3dcli.data_tools.sources.entry import Box
from vq3dcli.errors import DataError, InputMissingError


def car_files(a: ModuleType) -> dict[str, bytes]:
    import scipy.io

    def mat(**values: object) -> bytes:
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, values)
        return buffer.getvalue()

    photo = a.photo(1, 60, 40)
    return {
        "image/2/1/2012/aa.jpg": photo,
        "image/2/3/unknown/bb.jpg": a.photo(2, 60, 40),
        "image/1/2/2014/cc.jpg": a.photo(3, 60, 40),
        "image/1/2/2014/dd.jpg": b"no image",
        "image/1/4/2014/ee.jpg": a.photo(5, 60, 40),
        "label/2/1/2012/aa.txt": b"4\n1\n11 6 40 25 \n",
        "label/2/3/unknown/bb.txt": b"-1\n1\n1 1 60 40\n",
        "label/1/2/2014/cc.txt": b"2\n1\n30 20 10 5\n",  # right of its right side
        "label/1/4/2014/ee.txt": b"1\r\n1\r\n21 11 40 30\r\n",
        "misc/make_model_name.mat": mat(
            make_names=a.cells(["Audi", "BMW "]), model_names=a.cells(["X1", "A4", "", "X1"])
        ),
        "misc/car_type.mat": mat(types=a.cells(["MPV", "SUV", "sedan"])),
        "misc/attributes.txt": b"model_id maximum_speed displacement door_number seat_number type\n"
        b"1 200 2.0 5 5 2\n2 235 2.0 4 5 3\n3 0 0 0 0 0\n",
        "train_test_split/classification/train.txt": b"2/1/2012/aa.jpg\n1/2/2014/gone.jpg\n1/4/2014/ee.jpg\n",
    }


def compcars(source: Path, out: Path, *, max_bad: float = 0.5, **options: object) -> Manifest:
    listed = open_source("compcars", source, out, **options)  # type: ignore[arg-type]
    manifest = prepare(out, image_job("compcars", listed, Options(16, shard_size=2, box_margin=0.1), max_bad=max_bad))
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("layout", ["plain", "data", "deep", "tar"])
def test_the_tree_is_found_with_and_without_data_above_it(tmp_path: Path, archives: ModuleType, layout: str):
    prefix = {"plain": "", "data": "data/", "deep": "CompCars/data/", "tar": "data/"}[layout]
    files = {f"{prefix}{name}": data for name, data in car_files(archives).items()}
    source = archives.write_tree(tmp_path / "src", files)
    if layout == "tar":
        source = tmp_path / "cars.tar"
        source.write_bytes(archives.tar_bytes(files))
    manifest = compcars(source, tmp_path / "out")
    # Two models are called X1, and one has no name.
    assert manifest.class_names == ["X1 (1)", "A4", "model 3", "X1 (4)"]
    assert ShardFolder(tmp_path / "out").class_index.tolist() == [1, 3, 0, 2]
    assert [i["source"] for i in archives.infos(tmp_path / "out")] == [
        "image/1/2/2014/cc.jpg",
        "image/1/4/2014/ee.jpg",
        "image/2/1/2012/aa.jpg",
        "image/2/3/unknown/bb.jpg",
    ]
    assert set(archives.rejects(tmp_path / "out")) == {"image/1/2/2014/dd.jpg"}
    assert manifest.options["orientation"] == "ignored"


def test_a_sample_has_its_metadata_and_the_square_around_its_box(tmp_path: Path, archives: ModuleType):
    files = car_files(archives)
    compcars(archives.write_tree(tmp_path / "src", files), tmp_path / "out")
    info = archives.infos(tmp_path / "out")[2]
    assert info == {
        "source": "image/2/1/2012/aa.jpg",
        "crop": {"top": 0, "left": 7, "side": 36},
        "original_size": {"height": 40, "width": 60},
        "make": "BMW",
        "make_id": 2,
        "model": "X1",
        "model_id": 1,
        "year": 2012,
        "type": "SUV",
        "type_id": 2,
        "viewpoint": "front-side",
        "box": {"left": 10, "top": 5, "right": 40, "bottom": 25},
    }
    whole = decode_image(files["image/2/1/2012/aa.jpg"], name="x")
    stored = decode_image(ShardFolder(tmp_path / "out").read(2)["jpg"], name="x")
    assert (stored.float() - resize(whole[:, 0:36, 7:43], 16, 16).float()).abs().mean() < 4
    unknown = archives.infos(tmp_path / "out")[3]
    assert (unknown["year"], unknown["type"], unknown["viewpoint"], unknown["model"]) == (None, None, None, None)
    assert archives.infos(tmp_path / "out")[0]["box"] is None


def test_other_classes(tmp_path: Path, archives: ModuleType):
    source = archives.write_tree(tmp_path / "src", car_files(archives))
    expected = {
        "make": (["Audi", "BMW"], [0, 0, 1, 1]),
        "type": (["SUV", "sedan"], [1, -1, 0, -1]),
        "viewpoint": (["front", "rear", "front-side"], [1, 0, 2, -1]),
    }
    for class_by, (names, classes) in expected.items():
        manifest = compcars(source, tmp_path / class_by, class_by=class_by)
        assert manifest.class_names == names
        assert ShardFolder(tmp_path / class_by).class_index.tolist() == classes
        assert manifest.options["class_by"] == class_by


def test_photos_that_a_list_names_and_that_are_not_there_are_rejects(tmp_path: Path, archives: ModuleType):
    source = archives.write_tree(tmp_path / "src", car_files(archives))
    manifest = compcars(source, tmp_path / "out", split="train")
    assert (manifest.num_samples, manifest.num_rejects) == (2, 1)
    reason = "listed in train_test_split/classification/train.txt, but not there"
    assert archives.rejects(tmp_path / "out") == {"image/1/2/2014/gone.jpg": reason}
    with pytest.raises(InputMissingError, match=r"no list of the split test"):
        compcars(source, tmp_path / "out2", split="test")


def test_what_is_found_is_said(tmp_path: Path, archives: ModuleType, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        open_source("compcars", archives.write_tree(tmp_path / "src", car_files(archives)), tmp_path / "out")
    said = [record.getMessage() for record in caplog.records]
    assert f"found 5 photos of 2 makes and 4 models; the whole data set has {IMAGES} of 163 and 1716" in said
    assert "2 photos have no box: their centre square is taken" in said


def test_classes_that_no_photo_has_are_an_error_and_those_that_some_have_a_warning(
    tmp_path: Path, archives: ModuleType, caplog: pytest.LogCaptureFixture
):
    files = car_files(archives)
    source = archives.write_tree(tmp_path / "a", files)
    open_source("compcars", source, tmp_path / "out", class_by="viewpoint")
    assert "2 photos have no class: their viewpoint is not recorded" in caplog.text
    bare = archives.write_tree(tmp_path / "b", {name: data for name, data in files.items() if name.startswith("image")})
    for class_by, where in (("type", "misc/attributes.txt"), ("viewpoint", "label/")):
        with pytest.raises(InputMissingError, match=f"no photo has a {class_by}.*{where} is missing"):
            open_source("compcars", bare, tmp_path / "out", class_by=class_by)  # type: ignore[arg-type]


def test_the_root_is_a_whole_folder_name(tmp_path: Path, archives: ModuleType):
    files = {f"my_image/data/{name}": data for name, data in car_files(archives).items()}
    source = archives.write_tree(tmp_path / "src", files | {"x.image/note.txt": b""})
    assert len(compcars(source, tmp_path / "out").class_names) == 4


def test_damaged_and_missing_parts(tmp_path: Path, archives: ModuleType):
    files = car_files(archives)
    with pytest.raises(InputMissingError, match="no photos of CompCars"):
        compcars(archives.write_tree(tmp_path / "a", {"x.jpg": b""}), tmp_path / "out")
    with pytest.raises(InputMissingError):
        compcars(tmp_path / "none", tmp_path / "out")
    source = archives.write_tree(tmp_path / "b", files | {"misc/car_type.mat": b"MATLAB 5.0" * 30})
    with pytest.raises(DataError, match=r"damaged file \(misc/car_type.mat\)"):
        compcars(source, tmp_path / "out")
    images = {name: data for name, data in files.items() if name.startswith("image/")}
    manifest = compcars(archives.write_tree(tmp_path / "c", images | {"image/note.jpg": b""}), tmp_path / "out")
    assert manifest.class_names == ["model 1", "model 2", "model 3", "model 4"]
    assert archives.rejects(tmp_path / "out")["image/note.jpg"] == "not image/MAKE/MODEL/YEAR/NAME.jpg"


@pytest.mark.parametrize(
    ("box", "margin", "square"),
    [
        (None, 0.5, (0, 10, 40)),
        (Box(10, 5, 40, 25), 0.0, (0, 10, 30)),
        (Box(20, 10, 30, 30), 0.0, (10, 15, 20)),
        (Box(0, 0, 60, 40), 0.2, (0, 10, 40)),
        (Box(50, 30, 60, 40), 0.5, (20, 40, 20)),
        (Box(70, 50, 90, 60), 0.0, (20, 40, 20)),
        (Box(5, 5, 6, 6), 0.0, (5, 5, 1)),
    ],
)
def test_squares_stay_inside_the_image(box: Box | None, margin: float, square: tuple[int, int, int]):
    top, left, side = square_around(40, 60, box, margin)
    assert (top, left, side) == square
    assert 0 <= top <= 40 - side
    assert 0 <= left <= 60 - side
