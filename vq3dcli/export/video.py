"""Videos and picture series from a stream of frames: mp4, webm, gif, PNG frames, contact sheet.

Frames are encoded as they come, so memory does not grow with the length of a video, and every output appears under
its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

from vq3dcli.errors import OutputError, UsageError
from vq3dcli.export.ffmpeg import ffmpeg_run, find_ffmpeg
from vq3dcli.export.sheet import grid
from vq3dcli.files import atomic_path, make_folder, staging, write_error, written_file

VideoFormat = Literal["mp4", "webm", "gif", "png", "frames"]
"""`png` is a contact sheet of up to 12 frames, or the frame if there is one; `frames` a folder, a PNG file a frame."""

Quality = Literal["small", "good", "best"]
"""Of mp4 and webm: to send, to look at, to work on."""

FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)
MAX_GIF_FPS = 50.0
_SHEET_FRAMES = 12
_SHEET_COLUMNS = 4
_FRAME_NAME = "frame_{:05d}.png"
_FRAME_PATTERN = "frame_[0-9][0-9][0-9][0-9][0-9].png"
# What marks a frame as ours: a text of the PNG, before its pixels.
_MARK = ("Software", "vq3d")
_HEADER_BYTES = 4096

# yuv420p holds video-range BT.709 here and says so in its header: players guess wrongly for small sizes otherwise.
# The frames themselves carry the tags: since ffmpeg 7.1 theirs win over the options of the encoder.
_SCALED = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
_TAGGED = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_TO_YUV = ["-vf", f"{_SCALED},format=yuv420p,{_TAGGED}", "-pix_fmt", "yuv420p"]
# No encoder name and version in the header: the same frames give the same bytes.
_NO_VERSIONS = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
_CRF: Mapping[str, Mapping[Quality, str]] = {
    "mp4": {"small": "27", "good": "18", "best": "10"},
    "webm": {"small": "36", "good": "24", "best": "12"},
}
_MP4 = ["-c:v", "libx264", "-preset", "medium", *_TO_YUV, "-movflags", "+faststart"]
_WEBM_SPEED = ["-deadline", "good", "-cpu-used", "5", "-row-mt", "1"]
_WEBM = ["-c:v", "libvpx-vp9", "-b:v", "0", *_WEBM_SPEED, *_TO_YUV]
_ENCODERS = {"mp4": [*_MP4, *_NO_VERSIONS, "-f", "mp4"], "webm": [*_WEBM, *_NO_VERSIONS, "-f", "webm"]}
_LOSSLESS = ["-c:v", "libx264rgb", "-preset", "ultrafast", "-qp", "0", "-f", "matroska"]


WriteFrames = Callable[[Tensor], None]
"""Appends uint8 frames `[B, 3, H, W]`, all of one size, to an output."""


def format_of(path: Path) -> VideoFormat:
    """The format that a file name asks for. Raises `UsageError` for a suffix that is none."""
    suffix = path.suffix.lower().removeprefix(".")
    for name in FORMATS:
        if suffix == name != "frames":
            return name
    raise UsageError(f"cannot tell the format from the name ({path})", remedy=".mp4, .webm, .gif, .png or --format")


def check_quality(quality: Quality, video_format: VideoFormat) -> None:
    """Raise `UsageError` for a quality that does not exist, or that a format has no use for."""
    if quality not in get_args(Quality):
        raise UsageError(f"no quality {quality!r}", remedy=", ".join(get_args(Quality)))
    if quality != "good" and video_format not in _CRF:
        raise UsageError(f"a quality is for mp4 and webm, not for {video_format}", remedy="another format")


def check_output(path: Path, video_format: VideoFormat) -> None:
    """Find out before the work starts whether `path` can be written; creates the folder it goes into.

    Raises:
        UnavailableError: The format needs ffmpeg, which is missing.
        OutputError: The folder cannot be created or written, the name is too long or taken by something of another
            kind, or there are frames that vq3d did not make.
        StorageError: The disk is full.
    """
    if video_format not in ("png", "frames"):
        find_ffmpeg()
    if video_format == "frames":
        if path.exists() and not path.is_dir():
            raise OutputError(f"cannot create output ({path}): it is a file", remedy="another folder with -o")
        for frame in frames_in(path):
            if not _is_ours(frame):
                raise OutputError(
                    f"vq3d did not make what it would replace ({frame})", remedy="another folder with -o, or remove it"
                )
        folder = path if path.is_dir() else path.parent
    else:
        if path.is_dir():
            raise OutputError(f"cannot create output ({path}): it is a folder", remedy=f"-o {path}/NAME.{video_format}")
        folder = written_file(path).parent
    make_folder(folder)
    probe = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise write_error(path, error) from error


def frames_in(folder: Path) -> list[Path]:
    """The files that frames written to `folder` replace; none if it is not there."""
    return sorted(folder.glob(_FRAME_PATTERN))


def _is_ours(frame: Path) -> bool:
    try:
        with frame.open("rb") as handle:
            return "\0".join(_MARK).encode() in handle.read(_HEADER_BYTES)
    except OSError:
        return False


@contextlib.contextmanager
def video_writer(
    path: Path, *, frames: int, fps: float, video_format: VideoFormat, quality: Quality = "good"
) -> Iterator[WriteFrames]:
    """Open an output for exactly `frames` frames; it lies at `path` when the `with` block has ended.

    For mp4 and webm, odd sizes gain a copy of their last row or column, since yuv420p needs even ones; gif and PNG
    keep every size. An exception in the block leaves nothing behind.

    Args:
        path: File, or folder for `frames`; frames of an earlier video in that folder are replaced, and only those.
        fps: Frames a second, above 0; at most 50 for gif.

    Raises:
        UnavailableError: ffmpeg is missing or cannot encode this.
        OutputError: The output cannot be created.
        StorageError: The disk is full or failed.
        ValueError: More or fewer than `frames` frames were written, or the sizes differ.
    """
    if video_format == "frames":
        opened = _folder_sink(path)
    elif video_format == "png":
        opened = _sheet_sink(path, frames)
    else:
        opened = _gif_sink(path, fps) if video_format == "gif" else _ffmpeg_sink(video_format, path, fps, quality)
    sizes: list[torch.Size] = []
    with opened as sink:

        def write(batch: Tensor) -> None:
            sizes.extend([batch.shape[1:]] * len(batch))
            sink(batch.detach().cpu())

        yield write
        if len(sizes) != frames or len({*sizes}) > 1:
            raise ValueError(f"{frames} frames of one size were promised, not {len(sizes)} of {[*{*sizes}]}")


@contextlib.contextmanager
def _piped(path: Path, fps: float, outputs: Sequence[str], *, even: bool) -> Iterator[WriteFrames]:
    """Sends frames to an ffmpeg that starts with the first one, when the size is known."""
    with contextlib.ExitStack() as stack:
        feed: Callable[[memoryview], None] | None = None

        def write(frames: Tensor) -> None:
            nonlocal feed
            frames = even_size(frames) if even else frames
            if feed is None:
                size = f"{frames.shape[3]}x{frames.shape[2]}"
                raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:.6g}", "-i", "pipe:0"]
                feed = stack.enter_context(ffmpeg_run([*raw, *outputs], output=path))
            feed(frames.permute(0, 2, 3, 1).contiguous().numpy().data.cast("B"))

        yield write


@contextlib.contextmanager
def _ffmpeg_sink(video_format: str, path: Path, fps: float, quality: Quality) -> Iterator[WriteFrames]:
    encoder = [*_ENCODERS[video_format], "-crf", _CRF[video_format][quality]]
    with atomic_path(path) as temporary, _piped(path, fps, [*encoder, _file(temporary)], even=True) as write:
        yield write


@contextlib.contextmanager
def _gif_sink(path: Path, fps: float) -> Iterator[WriteFrames]:
    """A gif takes two passes, since its palette depends on all frames: they wait in a lossless file meanwhile."""
    with atomic_path(path) as temporary, contextlib.ExitStack() as files:
        lossless, palette = temporary.with_suffix(".mkv"), temporary.with_suffix(".png")
        for extra in (lossless, palette):
            files.callback(extra.unlink, missing_ok=True)
        split = ["-filter_complex", "[0:v]split[whole][seen];[seen]palettegen[palette]"]
        outputs = [*split, "-map", "[whole]", *_LOSSLESS, _file(lossless), "-map", "[palette]", "-f", "image2"]
        with _piped(path, fps, [*outputs, "-update", "1", _file(palette)], even=False) as write:
            yield write
        dither = "paletteuse=dither=sierra2_4a:diff_mode=rectangle"
        one_picture = ["-f", "png_pipe", "-i", _file(palette)]  # else a % in the name counts pictures in old ffmpegs
        arguments = ["-i", _file(lossless), *one_picture, "-filter_complex", dither, *_NO_VERSIONS]
        with ffmpeg_run([*arguments, "-loop", "0", "-f", "gif", _file(temporary)], output=path):
            pass


@contextlib.contextmanager
def _folder_sink(path: Path) -> Iterator[WriteFrames]:
    """Frames gather in a hidden folder inside of `path` and move up together."""
    existed = path.is_dir()
    make_folder(path)
    done, numbers = False, itertools.count()
    try:
        with staging(path) as place:

            def write(frames: Tensor) -> None:
                for frame in frames:
                    _save_png(frame, place / _FRAME_NAME.format(next(numbers)))

            yield write
            for old in frames_in(path):
                if not _is_ours(old):  # it came while we rendered
                    raise FileExistsError(errno.EEXIST, "vq3d did not make it", str(old))
            for old in frames_in(path):
                old.unlink()
        done = True
    finally:
        if not done and not existed:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _sheet_sink(path: Path, frames: int) -> Iterator[WriteFrames]:
    """A few evenly spaced frames on one sheet; a single frame is a picture, not a sheet of one."""
    shown = min(frames, _SHEET_FRAMES)
    wanted = {index * frames // shown for index in range(shown)}
    kept: list[Tensor] = []
    numbers = itertools.count()
    with atomic_path(path) as temporary:
        yield lambda batch: kept.extend(frame.clone() for frame in batch if next(numbers) in wanted)
        _save_png(grid(kept, _SHEET_COLUMNS) if frames > 1 else kept[0], temporary)


def even_size(frames: Tensor) -> Tensor:
    """Frames `[B, 3, H, W]` with a copy of the last row or column added where H or W is odd."""
    height_px, width_px = frames.shape[2:]
    if height_px % 2 == 0 and width_px % 2 == 0:
        return frames
    return functional.pad(frames.float(), (0, width_px % 2, 0, height_px % 2), mode="replicate").to(torch.uint8)


def _file(path: Path) -> str:
    """A path that ffmpeg takes for a file whatever its name looks like."""
    return f"file:{os.path.abspath(path)}"


def _save_png(image: Tensor, path: Path) -> None:
    mark = PngInfo()
    mark.add_text(*_MARK)
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, "PNG", pnginfo=mark)
