"""Inputs and outputs of commands: what the words on the command line mean."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.pipelines.inputs import fitted_picture, open_scene, parse_sources, read_picture
from vq3dcli.pipelines.targets import Task, plan_targets
from vq3dcli.scene_file import save_scene
from vq3dcli.sealed import write_sealed_json
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import load_weights


def plan(
    inputs: list[str], output: str | None, video_format: str | None = None, *, disparity: bool = False
) -> list[str]:
    task = Task(torch.device("cpu"), output, video_format, disparity)
    targets = plan_targets(parse_sources(inputs), task, path="orbit")
    return [f"{target.video_format}:{path}" for target in targets for path in target.paths]


def test_stems() -> None:
    sources = parse_sources(["a/cat.jpg", "b/cat.png", "-", "toyscene:sphere", "toyscene:sphere:7", "cat_2.webp"])
    assert [source.stem for source in sources] == [
        "cat",
        "cat_2",
        "stdin",
        "toyscene-sphere",
        "toyscene-sphere-7",
        "cat_2_2",
    ]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "no input"),
        (["-", "a.png", "-"], "stdin"),
        (["toyscene:shpere"], "toyscene:sphere"),
        (["toyscene:zzz"], "one of"),
        (["toyscene:sphere:x"], "whole number"),
        (["toyscene:sphere:-1"], "whole number"),
        (["toyscene:sphere:99999999999999999999"], "whole number"),
    ],
)
def test_words_that_mean_nothing(texts: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sources(texts)
    assert says in str(caught.value)


def test_toy_scenes_are_a_function_of_class_and_seed() -> None:
    texts = ["toyscene:cone", "toyscene:cone:0", "toyscene:cone:1", f"toyscene:{CLASS_NAMES[0]}"]
    images = [read_picture(source, 24, fit="crop").image for source in parse_sources(texts)]
    assert all(image.shape == (3, 24, 24) and image.dtype == torch.uint8 for image in images)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[3])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "I;16", "CMYK"])
def test_pictures_of_any_mode_and_shape(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (40, 10)).save(path)
    (source,) = parse_sources([str(path)])
    cropped, squashed = (read_picture(source, 16, fit=fit) for fit in ("crop", "squash"))
    assert cropped.image.shape == squashed.image.shape == (3, 16, 16)
    assert (cropped.aspect, squashed.aspect) == (1.0, 4.0)


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = parse_sources(["-"])
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(buffer, "PNG")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert read_picture(source, 8, fit="crop").image[:, 4, 4].tolist() == [200, 0, 0]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    with pytest.raises(DataError, match="stdin"):
        read_picture(source, 8, fit="crop")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputMissingError, match="closed"):
        read_picture(source, 8, fit="crop")


@pytest.mark.parametrize(
    ("inputs", "output", "video_format", "expected"),
    [
        (["x/a.jpg"], None, None, ["mp4:a_orbit.mp4"]),
        (["x/a.jpg"], None, "gif", ["gif:a_orbit.gif"]),
        (["x/a.jpg"], None, "frames", ["frames:a_orbit"]),
        (["a.jpg"], "v/b.webm", None, ["webm:v/b.webm"]),
        (["a.jpg"], "b.png", None, ["png:b.png"]),
        (["a.jpg"], "b", "mp4", ["mp4:b"]),
        (["a.jpg"], "b.2026", "mp4", ["mp4:b.2026"]),
        (["a.jpg"], "v/", None, ["frames:v"]),
        (["a.jpg"], "v/", "frames", ["frames:v"]),
        (["a.jpg"], "v/", "gif", ["gif:v/a_orbit.gif"]),
        (["a.jpg", "b.jpg"], None, None, ["mp4:a_orbit.mp4", "mp4:b_orbit.mp4"]),
        (["a.jpg", "b.jpg"], "v", None, ["mp4:v/a_orbit.mp4", "mp4:v/b_orbit.mp4"]),
        (["a.jpg", "b.jpg"], "v/", "frames", ["frames:v/a_orbit", "frames:v/b_orbit"]),
        (["a.jpg", "b.jpg"], "v/{name}.gif", None, ["gif:v/a.gif", "gif:v/b.gif"]),
    ],
)
def test_where_outputs_go(inputs: list[str], output: str | None, video_format: str | None, expected: list[str]) -> None:
    assert plan(inputs, output, video_format) == expected


def test_the_disparity_lies_beside() -> None:
    assert plan(["a.jpg"], "v/x.y.mp4", disparity=True) == ["mp4:v/x.y.mp4", "mp4:v/x.y_disparity.mp4"]
    assert plan(["a.jpg"], "v/", disparity=True) == ["frames:v", "frames:v_disparity"]
    assert plan(["a.jpg"], "x", "mp4", disparity=True) == ["mp4:x", "mp4:x_disparity"]


@pytest.mark.parametrize(
    ("inputs", "output", "video_format"),
    [
        (["a.jpg"], "b", None),
        (["a.jpg"], "b.avi", None),
        (["a.jpg"], "b.mp4", "gif"),
        (["a.jpg"], "b.mp4", "avi"),
        (["a.jpg", "b.jpg"], "c.mp4", None),
        (["a.png"], "a.png", None),
        (["a.png"], "./x/../a.png", None),
    ],
)
def test_outputs_that_make_no_sense(inputs: list[str], output: str, video_format: str | None) -> None:
    with pytest.raises(UsageError):
        plan(inputs, output, video_format)


def test_an_existing_folder_takes_frames(tmp_path: Path) -> None:
    assert plan(["a.jpg"], str(tmp_path)) == [f"frames:{tmp_path}"]


def test_every_input_opens_as_a_scene(tmp_path: Path, tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    Image.effect_noise((40, 20), 60.0).save(tmp_path / "a.png")
    texts = [str(tmp_path / "a.png"), "toyscene:box"]
    photo, toy = (open_scene(source, weights, fit="squash") for source in parse_sources(texts))
    assert photo.photo is not None and photo.photo.shape == (3, 20, 40)
    assert (photo.camera.aspect, toy.camera.aspect) == (2.0, 1.0)
    saved = tmp_path / "b.vq3d.safetensors"
    save_scene(saved, photo.scene, photo.camera, weights.sha256, provenance=photo.provenance, photo=photo.photo)
    row = {"file": "box-0001.png", "class": None, "codes": " ".join(map(str, toy.scene.codes[0].tolist()))}
    record = tmp_path / "samples.json"
    write_sealed_json(record, {"stage1_sha256": weights.sha256, "samples": [row]})
    sources = parse_sources([str(saved), f"{record}#box-0001"])
    assert [source.stem for source in sources] == ["b", "box-0001"]
    assert [source.path for source in sources] == [saved, record]
    assert [source.is_saved_scene for source in sources] == [True, False]
    again, sampled = (open_scene(source, weights, fit="crop") for source in sources)
    assert again.photo is not None and torch.equal(again.photo, photo.photo)
    assert again.camera == photo.camera
    # A toy scene's first view is no photo, whose pixels the saved scene would show at their own resolution.
    toy.save(tmp_path / "toy.vq3d.safetensors")
    (source,) = parse_sources([str(tmp_path / "toy.vq3d.safetensors")])
    assert open_scene(source, None, fit="crop").photo is None
    assert sampled.photo is None
    assert torch.equal(sampled.scene.planes, toy.scene.planes)
    with pytest.raises(UsageError, match="box-0001"):
        open_scene(parse_sources([f"{record}#bax-0001"])[0], weights, fit="crop")
    for codes in ("1 2", "-1" * 16, "x" * 16, "1e300", str(2**70)):
        write_sealed_json(record, {"stage1_sha256": weights.sha256, "samples": [row | {"codes": codes}]})
        with pytest.raises(DataError, match=r"samples\.json"):
            open_scene(sources[1], weights, fit="crop")
    write_sealed_json(record, {"stage1_sha256": "00" * 32, "samples": [row]})
    with pytest.raises(DataError, match="weights 000000"):
        open_scene(sources[1], weights, fit="crop")
    write_sealed_json(record, {"samples": [row]})
    with pytest.raises(DataError, match="not a record"):
        open_scene(sources[1], weights, fit="crop")
    record.write_text("[]")
    with pytest.raises(DataError, match="damaged record"):
        open_scene(sources[1], weights, fit="crop")


def test_outputs_that_would_overwrite_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources, task = parse_sources(["a.jpg"]), Task(torch.device("cpu"), "b.png", disparity=True)
    for kept in ("b_cameras.json", "b_disparity.png"):
        with pytest.raises(UsageError, match="overwrite the input"):
            plan_targets(sources, task, path="path", kept=[Path(kept)], cameras=True)
    assert plan(["a.vq3d.safetensors"], "a.mp4") == ["mp4:a.mp4"]
    with pytest.raises(UsageError, match="one name"):
        plan(["a.jpg", "a_disparity.jpg"], "{name}.mp4", disparity=True)


def test_frames_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (".", "./"):
        task = Task(torch.device("cpu"), output, disparity=True)
        target = plan_targets(parse_sources(["a.jpg"]), task, path="orbit")[0]
        assert target.video == tmp_path
        assert target.cameras == tmp_path.with_name(f"{tmp_path.name}_cameras.json")


@pytest.mark.parametrize(("height", "width", "half_mm"), [(40, 60, 18.0), (60, 40, 12.0), (30, 40, 0.4 * 1872**0.5)])
def test_the_field_of_view_is_that_of_film_of_the_same_diagonal(height: int, width: int, half_mm: float) -> None:
    photo = torch.zeros(3, height, width, dtype=torch.uint8)
    assert fitted_picture(photo, 16, fit="squash").fov_deg is None
    whole = fitted_picture(photo, 16, fit="squash", focal_mm=35.0).fov_deg
    assert whole == pytest.approx(2.0 * math.degrees(math.atan(half_mm / 35.0)))
    middle = fitted_picture(photo, 16, fit="crop", focal_mm=35.0).fov_deg
    assert middle == pytest.approx(2.0 * math.degrees(math.atan(half_mm * min(height, width) / width / 35.0)))
