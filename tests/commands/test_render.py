"""`vq3d render` end to end, with a tiny model that was never trained."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.commands.options import Filmed, FormatName
from vq3dcli.config.defaults import VIDEO_SAMPLES
from vq3dcli.data.images import read_image
from vq3dcli.export.video import VideoFormat
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.film import Shot

FAST = ["--frames", "3", "--size", "16", "--samples", "4", "--device", "cpu"]


@pytest.fixture
def weights(tiny_weights: Path) -> str:
    return str(tiny_weights)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A photo, in a folder of its own that is the current one."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 30), 60.0).save("photo.jpg")
    return "photo.jpg"


def test_the_formats_and_defaults_are_the_library_s() -> None:
    assert FormatName == VideoFormat
    options, shot = Filmed(), Shot()
    assert (options.fps, options.size, options.quality) == (shot.fps, shot.size_px, shot.quality)
    assert options.samples == shot.samples == VIDEO_SAMPLES


@pytest.mark.parametrize("path", ["orbit", "swing", "spiral", "dolly", "dolly-zoom"])
def test_each_path_names_its_output(photo: str, weights: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", photo, f"--{path}", "--weights", weights, *FAST, "--quiet"]) == 0
    captured = capsys.readouterr()
    names = [f"photo_{path}.mp4", f"photo_{path}_cameras.json"]
    assert captured.out.splitlines() == names
    assert captured.err == ""
    assert sorted(os.listdir()) == ["photo.jpg", *names]


def test_a_camera_is_a_path_by_name_or_a_file(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", weights, *FAST, "--quiet"]
    for flag in ("--swing", "--camera=swing", "--camera=dolly-zoom", "--dolly-zoom", "--camera=still"):
        assert run(["render", photo, flag, *options, "-o", f"a{flag}.gif"]) == 0
    assert Path("a--swing.gif").read_bytes() == Path("a--camera=swing.gif").read_bytes()
    assert Path("a--dolly-zoom.gif").read_bytes() == Path("a--camera=dolly-zoom.gif").read_bytes()
    cameras, few = "a--swing_cameras.json", ["--weights", weights, "--size", "16", "--samples", "4", "--device", "cpu"]
    assert run(["render", photo, "--camera", cameras, *few, "-o", "again.gif"]) == 0
    assert run(["render", photo, "--path", cameras, *few, "-o", "path.gif"]) == 0
    assert Path("again.gif").read_bytes() == Path("path.gif").read_bytes()
    assert run(["render", photo, "--camera", cameras, *options, "-o", "path.gif"]) == 2  # --frames are of paths alone
    capsys.readouterr()
    for wrong, said in (
        (["--camera", "circle"], "no camera path 'circle'"),
        (["--camera", "swing", "--orbit"], "one camera path at a time, not --orbit and --camera"),
        (["--camera", "still", "--yaw", "3"], "not --yaw or --pitch and --camera"),
        (["--camera", "none.json"], "no such file"),
    ):
        assert run(["render", photo, "--weights", weights, *wrong]) in (2, 66)
        assert said in capsys.readouterr().err


def test_json_tells_what_was_made(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--disparity", "--fit", "squash", "--size", "32", "--json", "-o", "new/a.gif"]
    assert run(["render", photo, "--weights", weights, *FAST, *options]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["command"] == "render"
    assert result["count"] == 1
    assert result["outputs"] == ["new/a.gif", "new/a_disparity.gif", "new/a_cameras.json"]
    assert result["metrics"]["fov_deg"] == 40.0
    assert result["weights"]["path"] == weights
    assert result["warnings"] == []
    assert "40 degrees" in captured.err
    with Image.open("new/a.gif") as image:
        assert image.size == (32, 24)


def test_one_field_of_view_is_said(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the photo's EXIF, where it has one, in the note and in JSON."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405], exif[0x0112] = 26, 1
    Image.open(photo).save("wide.png", exif=exif)
    assert run(["render", "wide.png", "--weights", weights, *FAST, "--size", "32", "--json", "-o", "a.gif"]) == 0
    captured = capsys.readouterr()
    fov_deg = json.loads(captured.out)["metrics"]["fov_deg"]
    assert 60 < fov_deg < 75
    assert re.findall(r"field of view (\S+) degrees", captured.err) == [f"{fov_deg:.3g}"] * 2


def test_one_bad_input_does_not_lose_the_others(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.jpg").write_text("<html>not found</html>")
    Path("cut.jpg").write_bytes(Path(photo).read_bytes()[:300])
    inputs = ["text.jpg", photo, "missing.png", "cut.jpg", "toyscene:box:3"]
    assert run(["render", *inputs, "--weights", weights, *FAST, "--json", "-o", "out/"]) == 65
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: 3 of 5 inputs left out, first: cannot decode image (text.jpg)")
    result = json.loads(captured.out)
    stems = ["out/photo_orbit", "out/toyscene-box-3_orbit"]
    assert result["outputs"] == [f"{stem}{end}" for stem in stems for end in (".mp4", "_cameras.json")]
    assert sorted(os.listdir("out")) == [Path(output).name for output in result["outputs"]]
    assert len(result["warnings"]) == 3
    for name in ("text.jpg", "missing.png", "cut.jpg"):
        assert sum(name in warning for warning in result["warnings"]) == 1
    assert result["metrics"]["failed"] == 3


def test_a_folder_stands_for_the_photos_in_it(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("photos")
    for name in ("b.jpg", "a.PNG", ".hidden.png"):
        Image.effect_noise((40, 30), 60.0).save(f"photos/{name}")
    Path("photos/notes.txt").write_text("no photo")
    os.mkdir("empty")
    assert run(["render", photo, "photos", "--weights", weights, *FAST, "-o", "out/", "--format", "png"]) == 0
    stems = ["photo", "a", "b"]
    assert capsys.readouterr().out.splitlines()[::2] == [f"out/{stem}_orbit.png" for stem in stems]
    for inputs in (["empty"], [photo, "empty"]):
        assert run(["render", *inputs, "--weights", weights, *FAST, "-o", "none/"]) == 66
        assert "no photos in this folder (empty)" in capsys.readouterr().err
    assert not Path("none").exists()


def test_inputs_of_stdin(
    photo: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("photo.jpg\ntoyscene:box\n", "photo.jpg\0toyscene:box\0"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        call = ["render", "--stdin-list", "toyscene:arch", "--weights", weights, *FAST, "-o", "out/", "--format", "png"]
        assert run(call) == 0
        named = ("toyscene-arch", "photo", "toyscene-box")
        assert capsys.readouterr().out.splitlines()[::2] == [f"out/{stem}_orbit.png" for stem in named]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for words in (["render"], ["export"], ["render", "--stdin-list"]):
        assert run(words) == 2
        assert "no input" in capsys.readouterr().err


def test_progress_names_the_file(
    photo: str, weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vq3dcli.commands.progress.LINE_INTERVAL_SECONDS", 0.0)
    assert run(["render", photo, "toyscene:box", "--weights", weights, *FAST, "-o", "out/"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rendering: ")]
    assert ("photo" in lines[0], "toyscene-box" in lines[4]) == (True, True)
    assert [line.partition(" frames")[0] for line in lines[-2:]] != ["rendering: 4/4"] * 2, "said once"


def test_pipes_are_read_once(photo: str, weights: str) -> None:
    np.save("disparity.npy", np.linspace(0, 1, 40 * 30).reshape(30, 40).astype(np.float32))
    for output, shown, depth in (("a.png", photo, "disparity.npy"), ("b.png", "pipe", "pipe.npy")):
        writers = []
        for pipe, file in (("pipe", photo), ("pipe.npy", "disparity.npy")):
            if not Path(pipe).exists():
                os.mkfifo(pipe)
            if output == "b.png":
                writers.append(threading.Thread(target=Path(pipe).write_bytes, args=[Path(file).read_bytes()]))
                writers[-1].start()
        options = ["--weights", weights, *FAST[2:], "--yaw", "5", "--depth", depth, "-o", output]
        assert run(["render", shown, *options]) == 0
        for writer in writers:
            writer.join(timeout=60)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_odd_photos_render(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    Image.effect_noise((40, 30), 60.0).save("grey.png")
    Image.new("RGBA", (40, 30), (200, 90, 10, 77)).save("alpha.png")
    Image.new("RGB", (40, 30), (200, 90, 10)).save("photo.webp")
    Image.new("RGB", (1, 1), (200, 90, 10)).save("dot.png")
    Image.new("RGB", (3000, 200), (200, 90, 10)).save("wide.jpg")
    Image.new("RGB", (48, 24), (200, 90, 10)).save("turned.jpg", exif=turned)
    names = sorted(os.listdir())
    options = ["--weights", weights, *FAST, "--size", "64", "--fit", "squash", "--format", "gif", "-o", "out/"]
    assert run(["render", *names, *options]) == 0
    assert len(os.listdir("out")) == 2 * len(names)
    with Image.open("out/turned_orbit.gif") as video:
        assert video.size == (32, 64)


def test_bad_inputs_alone_end_with_an_error(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", "none.jpg", "", "--weights", weights, *FAST, "--json", "-o", "out/"]) == 66
    captured = capsys.readouterr()
    *warnings, last = captured.err.splitlines()
    assert [line.startswith("warning: left out: ") for line in warnings] == [True, True]
    assert last == "error: none of 2 inputs can be used: no such file (none.jpg); try: check the path"
    assert json.loads(captured.out)["error"]["exit_code"] == 66


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file that would be 400 megapixels."""
    path = tmp_path_factory.mktemp("huge") / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    return path


def make_bad_inputs(huge: Path) -> None:
    """Files that no input may be, in the current folder."""
    os.link(huge, "huge.png")
    Image.new("L", (40, 30), 77).save("flat.png")
    Path("a_cameras.json").write_text("[{}]")
    Path("empty.jpg").write_bytes(b"")
    Path("folder").mkdir()
    Path("file").write_text("")
    torch.save({"a": torch.zeros(1)}, "pickle.safetensors")
    Path("damaged.safetensors").write_bytes(b"\x20" + bytes(7) + b"{" * 40)
    Path("damaged.vq3d.safetensors").write_bytes(b"\x20" + bytes(7) + b"{" * 40)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["missing.jpg"], 66),
        (["folder"], 66),
        (["empty.jpg"], 65),
        (["huge.png"], 65),
        (["photo.jpg", "--frames", "0"], 2),
        (["photo.jpg", "--size", "4096"], 2),
        (["photo.jpg", "--fov", "nan"], 2),
        (["photo.jpg", "--orbit", "--swing"], 2),
        (["photo.jpg", "--fit", "stretch"], 2),
        (["photo.jpg", "--swing", "--yaw", "3"], 2),
        (["photo.jpg", "--yaw", "200"], 2),
        (["photo.jpg", "--path", "missing.json"], 66),
        (["photo.jpg", "--path", "empty.jpg"], 65),
        (["photo.jpg", "--depth", "missing.png"], 66),
        (["photo.jpg", "--depth", "empty.jpg"], 65),
        (["photo.jpg", "--depth", "flat.png"], 65),
        (["photo.jpg", "--depth", "flat.png", "--detail", "none"], 65),
        (["photo.jpg", "--depth", "photo.jpg", "--save-scene"], 2),
        (["photo.jpg", "--depth-model", "./missing.onnx"], 66),
        (["photo.jpg", "--depth-model", "photo.jpg"], 2),
        (["photo.jpg", "--yaw", "3", "--amplitude", "5"], 2),
        (["photo.jpg", "--yaw", "3", "--frames", "60"], 2),
        (["photo.jpg", "--path", "a_cameras.json", "--frames", "9"], 2),
        (["photo.jpg", "--path", "a_cameras.json", "-o", "a.mp4"], 2),
        (["photo.jpg", "--depth", "photo.jpg", "--depth-model", "x"], 2),
        (["toyscene:box", "--depth", "huge.png"], 65),
        (["damaged.vq3d.safetensors"], 65),
        (["samples.json#a"], 66),
        (["photo.jpg", "-o", "a.avi"], 2),
        (["photo.jpg", "-o", "-"], 2),
        (["photo.jpg", "-o", "-", "--format", "frames"], 2),
        (["photo.jpg", "-o", "-", "--format", "mp4", "--json"], 2),
        (["photo.jpg", "-o", "-", "--format", "mp4", "--disparity"], 2),
        (["toyscene:spere"], 2),
        (["photo.jpg", "-o", "file/a.mp4"], 73),
        (["photo.jpg", "-o", "/proc/a.mp4"], 73),
        (["photo.jpg", "-o", "folder", "--format", "mp4", "--weights", "missing.safetensors"], 66),
        (["photo.jpg", "--weights", "pickle.safetensors"], 77),
        (["photo.jpg", "--weights", "damaged.safetensors"], 65),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    photo: str, weights: str, huge: Path, arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bad_inputs(huge)
    before = sorted(os.listdir())
    with_weights = arguments if "--weights" in arguments else [*arguments, "--weights", weights]
    assert run(["render", *with_weights, "--device", "cpu"]) == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sorted(os.listdir()) == before
    assert os.listdir("folder") == []


def read_png(name: str) -> torch.Tensor:
    return read_image(Path(name))


def test_a_still_at_no_angle_is_the_photo(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", weights, "--device", "cpu", "--quiet"]
    assert run(["render", photo, "--yaw", "0", *options]) == 0
    assert capsys.readouterr().out.splitlines() == ["photo_view.png", "photo_view_cameras.json"]
    assert psnr(read_png("photo_view.png")[None], read_png(photo)[None]) > 50.0
    assert run(["render", photo, "--pitch", "4", "--detail", "none", "--size", "16", *options, "-o", "plain.png"]) == 0
    assert read_png("plain.png").shape == (3, 16, 16)


def test_samples_are_said_to_leave_photo_detail_alone(
    photo: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", weights, "--device", "cpu", "--size", "16", "--yaw", "0", "-o", "a.png"]
    for more, said in ((["--samples", "4"], True), (["--samples", "4", "--detail", "none"], False), ([], False)):
        assert run(["render", photo, *options, *more]) == 0
        assert ("leaves photo detail as it is" in capsys.readouterr().err) is said


def test_the_cameras_beside_a_video_film_it_again(photo: str, weights: str) -> None:
    options = ["--weights", weights, "--device", "cpu", "--quiet", "--format", "frames"]
    assert run(["render", photo, "--spiral", "--frames", "3", *options, "-o", "a/"]) == 0
    assert run(["render", photo, "--path", "a_cameras.json", *options, "-o", "b/"]) == 0
    assert Path("a_cameras.json").read_text() == Path("b_cameras.json").read_text()
    for name in sorted(os.listdir("a")):
        assert (read_png(f"a/{name}").int() - read_png(f"b/{name}").int()).abs().max() <= 2
    Path("own.json").write_text('[{"yaw_deg": 3, "fov_x_deg": 30}, {"pitch_deg": -3, "distance": 2.5}]')
    assert run(["render", photo, "--path", "own.json", *options, "-o", "c/"]) == 0
    assert len(os.listdir("c")) == 2


@pytest.mark.parametrize(("kind", "width_px"), [("sbs", 80), ("anaglyph", 40)])
@pytest.mark.parametrize("detail", ["photo", "none"])
def test_stereo(photo: str, weights: str, kind: str, width_px: int, detail: str) -> None:
    options = ["--weights", weights, "--device", "cpu", "--samples", "4", "--frames", "2", "--disparity", "--quiet"]
    options += ["--fit", "squash", "--size", "40", "--detail", detail]
    assert run(["render", photo, "--stereo", kind, *options, "-o", "a.gif"]) == 0
    with Image.open("a.gif") as video:
        assert video.size == (width_px, 30)


def test_depth_of_the_user_moves_what_is_near(photo: str, weights: str) -> None:
    ramp = torch.linspace(0.0, 1.0, 40).expand(30, 40)
    np.save("depth.npy", ramp.numpy())
    options = ["--weights", weights, "--device", "cpu", "--quiet", "--yaw", "4", "--disparity"]
    assert run(["render", photo, *options, "--depth", "depth.npy", "-o", "a.png"]) == 0
    brightness = read_png("a_disparity.png").float().mean((0, 1))
    assert brightness[-8:].mean() > brightness[:8].mean() + 50.0
    np.save("depth.npy", ramp.T.numpy())
    assert run(["render", photo, *options, "--depth", "depth.npy", "-o", "a.png"]) == 65


def test_a_saved_scene_renders_without_weights(photo: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", weights, "--device", "cpu", "--quiet"]
    assert run(["render", photo, "--yaw", "1", *options, "--save-scene", "-o", "a.png"]) == 0
    assert capsys.readouterr().out.splitlines() == ["a.png", "a_cameras.json", "a.vq3d.safetensors"]
    assert run(["render", "a.vq3d.safetensors", "--yaw", "0", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] is None
    assert result["outputs"] == ["a_view.png", "a_view_cameras.json"]
    assert psnr(read_png("a_view.png")[None], read_png(photo)[None]) > 50.0


class Stream(io.TextIOWrapper):
    """A text stream over bytes that can be looked at afterwards."""

    def __init__(self, data: bytes = b"") -> None:
        self.bytes = io.BytesIO(data)
        super().__init__(self.bytes)


def test_from_stdin_to_stdout(photo: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(Path(photo).read_bytes()))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run(["render", "-", "-o", "-", "--format", "mp4", "--weights", weights, *FAST]) == 0
    data = stdout.bytes.getvalue()
    assert data[4:8] == b"ftyp"
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert os.listdir() == ["photo.jpg"]


def test_a_reader_that_went_away(photo: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=pipe, isatty=lambda: False))
        assert run(["render", photo, "-o", "-", "--format", "gif", "--weights", weights, *FAST, "--quiet"]) == 141


def test_a_failing_disk_in_the_middle(
    photo: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path("ffmpeg")
    script.write_text("#!/bin/sh\nhead -c 1000 >/dev/null\necho 'No space left on device' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script.resolve()))
    assert run(["render", photo, "--weights", weights, *FAST, "--quiet"]) == 74
    assert capsys.readouterr().err.startswith("error: cannot write (photo_orbit.mp4): No space left on device")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert run(["render", photo, "--weights", weights, *FAST, "--quiet"]) == 69
    assert sorted(os.listdir()) == ["ffmpeg", "photo.jpg"]
