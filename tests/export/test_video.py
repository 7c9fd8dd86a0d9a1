"""Videos: what is written can be read back, and what fails leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.errors import OutputError, UnavailableError, UsageError
from vq3dcli.export import ffmpeg, video
from vq3dcli.export.video import VideoFormat, check_output, format_of, video_writer
from vq3dcli.files import remove_leftovers

FILE_FORMATS: list[VideoFormat] = ["mp4", "webm", "gif", "png"]


def moving_ramp(frames: int = 8, height_px: int = 48, width_px: int = 48) -> torch.Tensor:
    """A smooth colour ramp that changes from frame to frame, uint8 `[frames, 3, H, W]`."""
    x = torch.linspace(0.1, 0.9, width_px).expand(height_px, width_px)
    y = torch.linspace(0.1, 0.9, height_px)[:, None].expand(height_px, width_px)
    ramps = [torch.stack([x, y, torch.full_like(x, i / max(1, frames - 1))]) for i in range(frames)]
    return (torch.stack(ramps) * 255).round().to(torch.uint8)


def write(path: Path, frames: torch.Tensor, video_format: VideoFormat, fps: float = 24.0) -> None:
    with video_writer(path, frames=len(frames), fps=fps, video_format=video_format) as sink:
        for batch in frames.split(3):
            sink(batch)


def read(path: Path, height_px: int, width_px: int) -> torch.Tensor:
    """All frames of a video, decoded by ffmpeg."""
    command = [ffmpeg.find_ffmpeg(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return (
        torch.from_numpy(np.frombuffer(data, np.uint8).copy()).reshape(-1, height_px, width_px, 3).permute(0, 3, 1, 2)
    )


def stream_line(path: Path) -> str:
    """ffmpeg's description of the video stream."""
    report = subprocess.run([ffmpeg.find_ffmpeg(), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    (line,) = [line for line in report.splitlines() if "Video:" in line]
    return line


def box_names(path: Path) -> list[str]:
    """The top-level boxes of an mp4, whose sizes have to add up to the file."""
    data, names, position = path.read_bytes(), [], 0
    while position < len(data):
        names.append(data[position + 4 : position + 8].decode())
        position += int.from_bytes(data[position : position + 4], "big")
    assert position == len(data)
    return names


def test_mp4_is_what_players_want(tmp_path: Path) -> None:
    frames, path = moving_ramp(), tmp_path / "a.mp4"
    write(path, frames, "mp4")
    # One word for matrix, primaries and transfer: players that miss one of the three guess it.
    assert re.search(r"h264.*yuv420p\(tv, bt709, progressive\).*48x48.*24 fps", stream_line(path))
    boxes, data = box_names(path), path.read_bytes()
    assert boxes.index("moov") < boxes.index("mdat")
    # QuickTime wants avc1, of the profile High at most, and believes `colr` alone: BT.709 thrice, limited range.
    assert b"stsd" in data and b"avc1" in data
    assert data[data.index(b"avcC") + 5] == 100
    assert data[data.index(b"colr") + 4 :][:11] == b"nclx" + bytes([0, 1, 0, 1, 0, 1, 0])
    decoded = read(path, 48, 48)
    assert len(decoded) == 8
    assert float((decoded.float() - frames.float()).abs().mean()) < 3.0
    assert os.listdir(tmp_path) == ["a.mp4"]
    write(tmp_path / "b.mp4", frames, "mp4")
    assert (tmp_path / "b.mp4").read_bytes() == path.read_bytes()


def test_webm(tmp_path: Path) -> None:
    frames, path = moving_ramp(), tmp_path / "a.webm"
    write(path, frames, "webm", fps=30.0)
    assert re.search(r"vp9.*yuv420p\(tv, bt709, progressive\).*48x48.*30 fps", stream_line(path))
    decoded = read(path, 48, 48)
    assert len(decoded) == 8
    assert float((decoded.float() - frames.float()).abs().mean()) < 4.0


def test_gif_loops_and_keeps_odd_sizes(tmp_path: Path) -> None:
    frames, path = moving_ramp(8, 31, 45), tmp_path / "a.gif"
    write(path, frames, "gif", fps=20.0)
    with Image.open(path) as image:
        assert image.size == (45, 31)
        assert image.info["loop"] == 0
        assert image.info["duration"] == 50
        assert getattr(image, "n_frames", 1) == 8
    # Dithering keeps the mean of an area, not each pixel.
    area_error = torch.nn.functional.avg_pool2d(read(path, 31, 45).float() - frames.float(), 5)
    assert float(area_error.abs().mean()) < 4.0
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize("video_format", ["mp4", "webm"])
def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path, video_format: VideoFormat) -> None:
    frames, path = moving_ramp(3, 31, 45), tmp_path / f"a.{video_format}"
    write(path, frames, video_format)
    decoded = read(path, 32, 46)
    assert len(decoded) == 3
    assert float((decoded[:, :, :31, :45].float() - frames.float()).abs().mean()) < 4.0
    assert float((decoded[:, :, 31, :45].float() - frames[:, :, 30].float()).abs().mean()) < 6.0


def test_frames_are_exact_and_replace_older_ones(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    write(folder, moving_ramp(12), "frames")
    (folder / "notes.txt").write_text("mine")
    frames = moving_ramp(5, 16, 16)
    write(folder, frames, "frames")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"frame_{index:05d}.png" for index in range(5)), "notes.txt"]
    for index in range(5):
        with Image.open(folder / names[index]) as image:
            assert np.array_equal(np.asarray(image), frames[index].permute(1, 2, 0).numpy())


def test_a_contact_sheet_shows_evenly_spaced_frames(tmp_path: Path) -> None:
    frames = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 8, 8).contiguous() * 10
    write(tmp_path / "a.png", frames, "png")
    with Image.open(tmp_path / "a.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 + 3 * 10, 2 + 4 * 10, 3)
    assert [int(sheet[2 + 10 * (i // 4), 2 + 10 * (i % 4), 0]) for i in range(12)] == [20 * i for i in range(12)]


def test_names_cannot_pass_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "pipe:1.mp4", "100%d.gif", "a b'c.webm"):
        write(Path(name), moving_ramp(2, 16, 16), format_of(Path(name)))
        assert Path(name).stat().st_size > 0
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("name", ["a.MP4", "b.webm", "c.gif", "d.png"])
def test_format_from_the_name(name: str) -> None:
    assert format_of(Path(name)) == name[2:].lower()


@pytest.mark.parametrize("name", ["a", "a.avi", "a.frames", ".mp4"])
def test_no_format_in_the_name(name: str) -> None:
    with pytest.raises(UsageError, match="format"):
        format_of(Path(name))


def write_and_interrupt(path: Path, video_format: VideoFormat) -> None:
    with video_writer(path, frames=8, fps=24, video_format=video_format) as sink:
        sink(moving_ramp(3))
        raise KeyboardInterrupt


@pytest.mark.parametrize("video_format", video.FORMATS)
def test_an_exception_leaves_nothing(tmp_path: Path, video_format: VideoFormat) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(tmp_path / "out", video_format)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("video_format", ["mp4", "frames"])
def test_a_video_has_the_frames_that_were_promised(tmp_path: Path, video_format: VideoFormat) -> None:
    with (
        pytest.raises(ValueError, match="promised"),
        video_writer(tmp_path / "out", frames=8, fps=24, video_format=video_format) as sink,
    ):
        sink(moving_ramp(3))
    assert os.listdir(tmp_path) == []


LIMITED = """
    import resource, sys
    from pathlib import Path
    import torch
    from vq3dcli.errors import Vq3dError
    from vq3dcli.export.video import FORMATS, video_writer

    noise = torch.randint(0, 256, (6, 3, 96, 96), dtype=torch.uint8)
    for video_format in FORMATS:
        for limit in (0, 1000, 20000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            path = Path(sys.argv[1], video_format, "out")
            try:
                with video_writer(path, frames=6, fps=24, video_format=video_format) as sink:
                    sink(noise)
                print(video_format, limit, "written")
            except Vq3dError as error:
                print(video_format, limit, error.exit_code)
"""


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk: ffmpeg and Python fail in the middle of a write."""
    for video_format in video.FORMATS:
        (tmp_path / video_format).mkdir()
        if video_format == "frames":
            write(tmp_path / "frames" / "out", moving_ramp(2), "frames")
        else:
            (tmp_path / video_format / "out").write_bytes(b"older")
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    cases = [f"{video_format} {limit} 74" for video_format in video.FORMATS for limit in (0, 1000, 20000)]
    assert report.stdout.splitlines() == cases
    for video_format in FILE_FORMATS:
        assert os.listdir(tmp_path / video_format) == ["out"]
        assert (tmp_path / video_format / "out").read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path / "frames" / "out")) == ["frame_00000.png", "frame_00001.png"]


def test_outputs_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="folder"):
        check_output(tmp_path, "mp4")
    with pytest.raises(OutputError):
        check_output(tmp_path / "file" / "a.mp4", "mp4")
    with pytest.raises(OutputError, match="file"):
        check_output(tmp_path / "file", "frames")
    with pytest.raises(OutputError), video_writer(Path("/proc/a.mp4"), frames=2, fps=24, video_format="mp4") as sink:
        sink(moving_ramp(2))
    check_output(tmp_path / "new" / "folder" / "a.gif", "gif")
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="ffmpeg"):
        write(tmp_path / "a.mp4", moving_ramp(2), "mp4")
    write(tmp_path / "a.png", moving_ramp(2), "png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_ffmpeg_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 8\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(UnavailableError, match="libx264"):
        write(tmp_path / "a.mp4", moving_ramp(40, 96, 96), "mp4")
    assert os.listdir(tmp_path) == ["ffmpeg"]


INTERRUPTED = """
    import os, sys, time
    from pathlib import Path
    import torch
    from vq3dcli.export.video import video_writer

    with video_writer(Path(sys.argv[1]) / "a.mp4", frames=9999, fps=24, video_format="mp4") as sink:
        frames = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
        sink(frames)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        print(children, flush=True)
        while True:
            sink(frames)
            time.sleep(0.01)
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_encoder_ends_with_us(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    (child,) = process.stdout.readline().split()
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while _runs(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGKILL:
        remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
