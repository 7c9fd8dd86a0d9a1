"""What commands are told, and where videos go: from what `-o` and `--format` say to one target an input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vq3dcli.errors import UsageError
from vq3dcli.export.video import FORMATS, VideoFormat, check_output, format_of, frames_in
from vq3dcli.files import cut_name
from vq3dcli.pipelines.geometry import GeometryName
from vq3dcli.pipelines.inputs import Source, needs_weights
from vq3dcli.scene_file import SUFFIX
from vq3dcli.weights_file import LoadedWeights, load_weights

_log = logging.getLogger(__name__)


Disparity = bool | Literal["beside"]
"""Of a video: none, one of its own, or on the right of the picture."""

OnProgress = Callable[[int, int, str], object]
"""Called with how many frames are done, of how many, and what is worked on."""


@dataclass(frozen=True)
class Task:
    """What all commands are told that make files of scenes."""

    device: torch.device  # where to compute
    output: str | None = None  # what `-o` says, see `targets`; None is the current folder
    video_format: str | None = None  # what `--format` says
    disparity: Disparity = False  # also show disparity
    geometry: GeometryName | None = None  # of photo detail; None is the best there is
    weights: Path | None = None  # the model; None is the embedded one, if one is needed
    on_progress: OnProgress = lambda done, total, status: None  # see `OnProgress`
    # called with the files that the work will replace, before it starts
    on_replaced: Callable[[Sequence[Path]], None] = lambda paths: note_replaced(paths)

    def load(self, sources: Sequence[Source], *, always: bool = False) -> LoadedWeights | None:
        """The model, if it was named or any of the inputs needs one."""
        if always or self.weights is not None or needs_weights(sources):
            return load_weights(self.weights, self.device)
        return None

    @property
    def kept(self) -> list[Path]:
        """Files that must not be overwritten."""
        return [] if self.weights is None else [self.weights]


@dataclass(frozen=True)
class Target:
    """Where one video goes."""

    video: Path  # file, or folder for `frames`
    disparity: Path | None  # the same for the disparity video, if there is one
    video_format: VideoFormat
    beside: bool = False  # whether disparity is shown on the right of the picture
    more: tuple[Path, ...] = ()  # what else is written beside it

    @property
    def cameras(self) -> Path:
        """Where the camera path of the video is written."""
        return self._beside("_cameras.json")

    @property
    def scene(self) -> Path:
        """Where the scene is saved, if that is task."""
        return self._beside(SUFFIX)

    def _beside(self, ending: str) -> Path:
        suffix = "" if self.video_format == "frames" else self.video.suffix
        return self.video.with_name(self.video.name.removesuffix(suffix) + ending)

    @property
    def paths(self) -> list[Path]:
        """The files and folders of pictures."""
        return [self.video] if self.disparity is None else [self.video, self.disparity]

    @property
    def replaced(self) -> list[Path]:
        """Files that are there now and will not be as they were."""
        frames = [frame for path in self.paths for frame in frames_in(path)] if self.video_format == "frames" else []
        return [*frames, *(path for path in (*self.paths, *self.more) if path.is_file())]


def plan_targets(
    sources: Sequence[Source],
    output: str | None,
    video_format: str | None,
    *,
    path: str,
    disparity: Disparity,
    default: VideoFormat = "mp4",
    kept: Sequence[Path] = (),
    cameras: bool = True,
    save_scene: bool = False,
) -> list[Target]:
    """Where the video of each source goes, and what is written beside it.

    Args:
        output: What `-o` says: a file, a folder (it exists, or ends in /, or there are several inputs and it has no
            suffix), or a pattern with `{name}` for the input's name; None is the current folder.
        video_format: What `--format` says, if anything; else the name or `default` does.
        path: Name of the camera path, a part of the names that are made here.
        kept: What else is read, and must not be overwritten.

    Raises `UsageError`: a format that is unknown or contradicts the file's name; one file for several inputs; an output
    that would overwrite or remove an input, or another output.
    """
    if video_format is not None and video_format not in FORMATS:
        raise UsageError(f"no video format {video_format!r}", remedy=f"--format {'|'.join(FORMATS)}")
    targets = [
        _plan_target(source, len(sources) > 1, output, video_format, path, disparity, default) for source in sources
    ]
    targets = [
        replace(t, more=(*([t.cameras] if cameras else []), *([t.scene] if save_scene else []))) for t in targets
    ]
    outputs: set[Path] = set()
    refuse_overwriting([path for t in targets for path in (*t.replaced, *t.paths, *t.more)], sources, kept)
    for target in targets:
        for written in (*target.paths, *target.more):
            if written.resolve() in outputs:
                raise UsageError(f"two outputs would have one name ({written})", remedy="another name with -o")
            outputs.add(written.resolve())
    return targets


def plan_joint_target(
    sources: Sequence[Source], stem: str, task: Task, *, kind: str, kept: Sequence[Path] = ()
) -> Target:
    """Where the one video of several inputs goes, named after `stem` and `kind` where `-o` does not say it otherwise.

    See `plan_targets`.
    """
    joint, kept = [replace(sources[0], stem=cut_name(stem))], [*input_files(sources), *kept]
    return plan_targets(
        joint, task.output, task.video_format, path=kind, disparity=task.disparity, kept=kept, cameras=False
    )[0]


def refuse_stdout(output: str | None, command: str) -> None:
    """Raise `UsageError` for `-o -` where several files are written."""
    if output == "-":
        raise UsageError(f"{command} writes files, not stdout", remedy="a file name with -o")


def refuse_overwriting(written: Sequence[Path], sources: Sequence[Source], kept: Sequence[Path] = ()) -> None:
    """Raise `UsageError` if an output is an input, or another file that is read."""
    inputs = {path.resolve() for path in (*input_files(sources), *kept)}
    for path in written:
        if path.resolve() in inputs:
            raise UsageError(f"the output would overwrite the input ({path})", remedy="another name with -o")


def note_replaced(paths: Sequence[Path]) -> None:
    """Name the files that the work will replace, before it starts."""
    if paths:
        _log.info("replaces %s", f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""))


def check_targets(targets: Sequence[Target]) -> None:
    """Find out before the work starts whether all outputs can be written; see `export.video.check_output`."""
    for target in targets:
        for path in target.paths:
            check_output(path, target.video_format)
        for path in target.more:
            check_output(path, "png")


def _plan_target(
    source: Source,
    several: bool,
    output: str | None,
    video_format: str | None,
    path: str,
    disparity: Disparity,
    default: VideoFormat,
) -> Target:
    made_name = f"{source.stem}_{path}"
    made = several or video_format not in (None, "frames") or (video_format is None and default != "mp4")
    if output is None or (_is_folder(output, several) and made):
        chosen = _known(video_format or default)
        folder = Path(output or ".")
        return _target(folder / (made_name if chosen == "frames" else f"{made_name}.{chosen}"), chosen, disparity)
    if _is_folder(output, several):
        return _target(Path(output), "frames", disparity)
    if several and "{name}" not in output:
        raise UsageError(f"several inputs cannot share one output ({output})", remedy="-o FOLDER/ or -o '{name}.mp4'")
    file = Path(output.replace("{name}", source.stem))
    if video_format is None:
        return _target(file, format_of(file), disparity)
    if file.suffix.lower() in {f".{name}" for name in FORMATS} - {f".{video_format}"}:
        raise UsageError(f"--format {video_format} contradicts the name of the output ({file})", remedy="one of them")
    return _target(file, _known(video_format), disparity)


def input_files(sources: Sequence[Source]) -> list[Path]:
    """The files that inputs are read from."""
    return [source.path for source in sources if source.is_file]


def _is_folder(output: str, several: bool) -> bool:
    if "{name}" in output:
        return False
    return output.endswith("/") or Path(output).is_dir() or (several and not Path(output).suffix)


def _known(video_format: str) -> VideoFormat:
    return next(name for name in FORMATS if name == video_format)


def _target(path: Path, video_format: VideoFormat, disparity: Disparity) -> Target:
    # Of "." and ".." nothing can be named after.
    path = path if path.name not in ("", "..") else path.resolve()
    if not path.name:
        raise UsageError(f"the output has no name ({path})", remedy="-o FOLDER/")
    suffix = "" if video_format == "frames" else path.suffix
    own = path.with_name(f"{path.name.removesuffix(suffix)}_disparity{suffix}") if disparity is True else None
    return Target(path, own, video_format, beside=disparity == "beside")
