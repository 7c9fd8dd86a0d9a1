"""`vq3d train-stage2` and `vq3d sample` end to end, with tiny models."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.errors import DataError, StorageError
from vq3dcli.export.ffmpeg import find_ffmpeg
from vq3dcli.model.build import build_prior
from vq3dcli.pipelines.sampling.record import SampleWish, read_record
from vq3dcli.pipelines.sampling.sample import SampleFolder, draw_samples, sharpening_of
from vq3dcli.weights_file import TokenFacts, load_prior, load_weights, save_weights

Make = Callable[..., Stage2Recipe]


@pytest.fixture(scope="module")
def prior(tiny_prior_recipe: Make, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained prior over the codes of the tiny Stage 1."""
    recipe = tiny_prior_recipe("sampling.temperature=0.9")
    sha256 = load_weights(tiny_weights).sha256
    facts = TokenFacts(stage1_sha256=sha256, codebook_size=32, length=16, class_names=("ant", "Bee Hive", "cow"))
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=3), recipe, {}, facts)
    return str(path)


@pytest.fixture
def sample(prior: str, tiny_weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """Samples into a folder of `tmp_path`."""

    def call(name: str, *options: str) -> Path:
        given = ["--weights", str(tiny_weights), "--prior", prior, "--device", "cpu", "-o", str(tmp_path / name)]
        assert run(["sample", *options, *given, "--quiet"]) == 0
        return tmp_path / name

    return call


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "samples.json").read_text()))


def test_all_classes_with_pictures_a_sheet_and_a_record(sample: Callable[..., Path]) -> None:
    folder = sample("all", "-n", "2", "--disparity")
    names = [
        f"{name}-000{j}{part}.png" for name in ("ant", "bee-hive", "cow") for j in (0, 1) for part in ("", "_disparity")
    ]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "sheet.png", "samples.json"])
    assert Image.open(folder / "cow-0001.png").size == (16, 16)
    width_px, height_px = Image.open(folder / "sheet.png").size
    assert width_px == 2 + 4 * 18
    assert (height_px - 2 - 3 * (16 + 2)) % 14 == 0  # labels take several lines
    found = record(folder)
    assert found["sharpening"] == {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "guidance": 1.0}
    assert [s["class"] for s in found["samples"]] == ["ant", "ant", "Bee Hive", "Bee Hive", "cow", "cow"]
    assert all(len(s["codes"].split()) == 16 for s in found["samples"])


def test_some_classes_of_many_or_all(
    tiny_prior_recipe: Make, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_prior_recipe()
    names = tuple(f"kind {i}" for i in range(20))
    sha256 = load_weights(tiny_weights).sha256
    facts = TokenFacts(stage1_sha256=sha256, codebook_size=32, length=16, class_names=names)
    path = tmp_path / "prior.safetensors"

    def save(card: dict[str, object]) -> None:
        save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=20), recipe, card, facts)

    save({})
    call = ["sample", "-n", "1", "--weights", str(tiny_weights), "--prior", str(path), "--device", "cpu"]
    for options, shown in (([], [i * 20 // 16 for i in range(16)]), (["--class", "all"], [*range(20)])):
        assert run([*call, *options, "-o", str(tmp_path / "new")]) == 0
        assert ("16 of 20 classes" in capsys.readouterr().err) == (not options)
        found = record(tmp_path / "new")
        assert [sample["class_index"] for sample in found["samples"]] == shown
        # The record names its classes: it makes the same again, whatever the default will be.
        assert found["command"][3] == ",".join(map(str, shown))
    save({"recognised": ["kind 3", "kind 17"]})  # the others come out where they are asked for alone
    for options, shown in (([], [3, 17]), (["--class", "kind 4"], [4])):
        assert run([*call, *options, "-o", str(tmp_path / "new")]) == 0
        assert [sample["class_index"] for sample in record(tmp_path / "new")["samples"]] == shown


def test_the_record_makes_the_same_samples_again(sample: Callable[..., Path], tmp_path: Path) -> None:
    options = ["--class", "cow,bee hive", "-n", "3", "--seed", "5", "--temperature", "0.7", "--top-k", "20"]
    first = sample("first", *options, "--top-p", "0.9", "--guidance", "1.5")
    told = record(first)
    assert told["command"][0] == "vq3d"
    again = tmp_path / "again"
    assert run([*told["command"][1:], "-o", str(again), "--quiet"]) == 0  # the weights and the device are in it
    assert record(again) == told
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_sample_is_the_same_alone_and_among_others(sample: Callable[..., Path]) -> None:
    many, one = sample("many", "-n", "5"), sample("one", "--class", "1", "-n", "2")
    assert (many / "bee-hive-0001.png").read_bytes() == (one / "bee-hive-0001.png").read_bytes()
    codes = {s["file"]: s["codes"] for s in record(many)["samples"]}
    assert all(codes[s["file"]] == s["codes"] for s in record(one)["samples"])
    assert len(set(codes.values())) == 15


def test_adm_s_file(sample: Callable[..., Path]) -> None:
    folder = sample("npz", "-n", "2", "--npz")
    with np.load(folder / "samples_6x16x16x3.npz") as loaded:
        pictures, labels = loaded["arr_0"], loaded["arr_1"]
    assert pictures.dtype == np.uint8
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(pictures[5], np.asarray(Image.open(folder / "cow-0001.png")))
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_groups_are_drawn_and_written_one_after_the_other(
    sample: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample("whole", "-n", "3", "--npz")
    monkeypatch.setattr("vq3dcli.pipelines.sampling.sample.SAMPLES_AT_ONCE", 4)
    parts = sample("parts", "-n", "3", "--npz")
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in parts.iterdir()) == names
    for name in names:
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_parts_and_calls_that_were_interrupted_make_the_whole(
    sample: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vq3dcli.pipelines.sampling.sample.SAMPLES_AT_ONCE", 2)
    options = ("-n", "3", "--npz", "--disparity")
    whole = sample("whole", *options)
    names = sorted(path.name for path in whole.iterdir())
    sample("parts", "-n", "2", "--seed", "9")  # of before
    for part in ("2/3", "3/3", "1/3"):
        folder = sample("parts", *options, "--part", part)
        assert (record(folder)["samples"] == []) == (part != "1/3")
        assert (folder / "sheet.png").exists() == (part == "1/3")
    missing = sample("missing", *options, "--part", "1/2")  # as a kill leaves it: some groups, a picture less
    (missing / "ant-0001.png").unlink()
    before = (missing / "ant-0000.png").stat().st_mtime_ns
    sample("missing", *options)
    assert (missing / "ant-0000.png").stat().st_mtime_ns == before
    for folder in (whole.parent / "parts", missing):
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == names
        for name in names:
            assert (whole / name).read_bytes() == (folder / name).read_bytes(), name
    assert not list(whole.parent.glob("*/.*"))
    sample("parts", *options, "--part", "2/3")  # once more, when all is there
    assert record(whole.parent / "parts") == record(whole)


@pytest.fixture
def draw(prior: str, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Draws six samples of seed 2, and the first four of them into a folder."""
    stage1, loaded = load_weights(tiny_weights), load_prior(Path(prior))
    wish = SampleWish([0, 1, 2], 2, 2, sharpening_of(loaded), npz=True)

    def call(folder: Path, on_frames: Callable[[int], None], last: int = 4) -> None:
        monkeypatch.setattr("vq3dcli.pipelines.sampling.sample.SAMPLES_AT_ONCE", 4)
        opened = SampleFolder(folder, stage1, loaded, wish)
        for group, rows in enumerate(opened.groups):
            if rows.start < last:
                opened.add(group, draw_samples(loaded, wish, rows.start, rows.stop), on_frames=on_frames)

    return call


def test_an_interrupted_call_leaves_only_pictures_of_its_record(draw: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "new"

    def interrupt(count: int) -> None:
        if (folder / "ant-0001.png").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(folder, interrupt)
    assert record(folder)["samples"] == []
    assert record(folder)["samples_asked_for"] == 6
    found = json.loads((folder / "samples-000000.json").read_text())
    assert found["seed"] == 2
    names = [f"{n}-000{j}.png" for n in ("ant", "bee-hive") for j in (0, 1)]
    assert [entry["file"] for entry in found["samples"]] == names
    there = ["ant-0000.png", "ant-0001.png", "samples-000000.json", "samples.json"]
    assert sorted(path.name for path in folder.iterdir()) == there
    with pytest.raises(DataError, match="the samples are not finished"):
        read_record(folder / "samples.json")


def test_samples_of_before_stay_until_the_new_ones_are_whole(
    sample: Callable[..., Path], draw: Callable[..., None]
) -> None:
    folder = sample("out", "-n", "2", "--npz", "--seed", "1")
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = 0

    def fail_at(number: int) -> Callable[[int], None]:
        def count(frames: int) -> None:
            nonlocal made
            made += frames
            if made == number:
                raise OSError(errno.ENOSPC, "No space left on device")

        return count

    with pytest.raises(StorageError, match="No space left"):
        draw(folder, fail_at(4))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    made = 0
    with pytest.raises(StorageError, match="No space left"):
        draw(folder, fail_at(5), last=6)
    # The first group is there and whole; of before is what the record does not list, and no sheet of both.
    assert (record(folder)["seed"], record(folder)["samples"]) == (2, [])
    new = [f"{n}-000{j}.png" for n in ("ant", "bee-hive") for j in (0, 1)]
    group = json.loads((folder / "samples-000000.json").read_text())
    assert [entry["file"] for entry in group["samples"]] == new
    there = [*new, "cow-0000.png", "cow-0001.png", "samples-000000.json", "samples.json"]
    assert sorted(path.name for path in folder.iterdir()) == there
    for name in new:
        assert (folder / name).read_bytes() != old[name]
    for name in ("cow-0000.png", "cow-0001.png"):
        assert (folder / name).read_bytes() == old[name]


def test_a_sheet_that_does_not_fit_the_disk_leaves_the_samples_of_before(
    sample: Callable[..., Path],
    prior: str,
    tiny_weights: Path,
    file_limit: Callable[[int], AbstractContextManager[None]],
) -> None:
    folder = sample("out", "-n", "2", "--seed", "1")
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    *_, second, largest = sorted((len(data), name) for name, data in old.items())
    assert largest[1] == "sheet.png"
    again = ["--weights", str(tiny_weights), "--prior", prior, "--device", "cpu", "-n", "2", "--seed", "2"]
    with file_limit((second[0] + largest[0]) // 2):
        assert run(["sample", *again, "-o", str(folder)]) == 74
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old


def test_what_others_made_stays(prior: str, tiny_weights: Path, tmp_path: Path) -> None:
    given = ["--weights", str(tiny_weights), "--prior", prior, "--device", "cpu", "-n", "1", "-q"]
    for name, code in (("run.json", 2), ("plan.json", 2), ("samples.json", 73), ("sheet.png", 73)):
        (tmp_path / name.split(".")[0]).mkdir()
        mine = tmp_path / name.split(".")[0] / name
        mine.write_text('{"mine": 1}')
        assert run(["sample", *given, "-o", str(mine.parent)]) == code
        assert mine.read_text() == '{"mine": 1}'
        assert len(list(mine.parent.iterdir())) == 1


def test_the_coldest_temperature_takes_the_likeliest_codes(sample: Callable[..., Path]) -> None:
    cold, coldest = (
        sample("cold", "-n", "2", "--temperature", "1e-308"),
        sample("coldest", "-n", "2", "--temperature", "0"),
    )
    assert [s["codes"] for s in record(cold)["samples"]] == [s["codes"] for s in record(coldest)["samples"]]


def test_videos(sample: Callable[..., Path]) -> None:
    options = ("--class", "0", "-n", "1", "--orbit", "--disparity", "--frames", "3", "--size", "32")
    folder = sample("films", *options)
    assert not list(folder.glob("*_swing*"))
    films = []
    for name in ("ant-0000_orbit.mp4", "ant-0000_orbit_disparity.mp4"):
        command = [find_ffmpeg(), "-loglevel", "error", "-i", str(folder / name), "-f", "rawvideo", "-pix_fmt", "rgb24"]
        raw = subprocess.run([*command, "-"], check=True, capture_output=True, timeout=60).stdout
        films.append(np.frombuffer(raw, np.uint8).reshape(3, 32, 32, 3).astype(float))
    photo, disparity = films
    assert all(np.abs(film[1:] - film[:-1]).mean() > 0.1 for film in films)  # the camera moves
    picture = np.asarray(Image.open(folder / "ant-0000.png").convert("RGB"), float)
    assert np.abs(photo.mean((0, 1, 2)) - picture.mean((0, 1))).max() < 12  # the sample's own colours ...
    assert np.abs(photo - disparity).mean() > 20  # ... and those of a map


def test_videos_that_carry_the_pixels_of_the_first_view(sample: Callable[..., Path]) -> None:
    options = ("--class", "0", "-n", "1", "--camera", "swing", "--frames", "4", "--size", "32")
    films = []
    for more in ([], ["--amplitude", "0"], ["--amplitude", "12"]):
        folder = sample(f"films{len(films)}", *options, "--detail", "photo", "--quality", "best", *more)
        command = [find_ffmpeg(), "-loglevel", "error", "-i", str(folder / "ant-0000_swing.mp4"), "-f", "rawvideo"]
        raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], check=True, capture_output=True, timeout=60).stdout
        films.append(np.frombuffer(raw, np.uint8).reshape(4, 32, 32, 3).astype(float))
    moved = [np.abs(film[1] - film[0]).mean() for film in films]
    assert moved[1] < 1.0 < moved[2]  # compression alone, and a camera that moves
    assert moved[0] < moved[2]  # by itself only as far as the first view reaches


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--class", "bee hiv"], 2, "bee hive"),
        (["--class", "9" * 5000], 2, "no class of the number 999"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--guidance", "1e300"], 2, "--guidance"),
        (["--top-p", "0"], 2, "top-p"),
        (["--orbit", "--frames", "0"], 2, "frames"),
        (["--frames", "8"], 2, "--frames is for videos"),
        (["--orbit", "--camera", "swing"], 2, "one camera path"),
        (["--camera", "still", "--amplitude", "3"], 2, "no amplitude"),
        (["--prior", "no-such-file"], 66, "no-such-file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    options: list[str],
    code: int,
    problem: str,
    prior: str,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = ["--weights", str(tiny_weights), "--prior", prior, "--device", "cpu", "-o", str(tmp_path / "out")]
    assert run(["sample", *given, *options]) == code
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_stage_1_is_refused_in_one_line(
    prior: str, tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vq3dcli.model.build import build_autoencoder
    from vq3dcli.weights_file import save_weights

    recipe = tiny_recipe("training.seed=7")
    save_weights(tmp_path / "other.safetensors", build_autoencoder(recipe), recipe, {})
    assert run(["sample", "--prior", prior, "--weights", str(tmp_path / "other.safetensors")]) == 65
    error = capsys.readouterr().err
    assert "codes of another Stage 1" in error
    assert error.count("\n") == 1
