"""What commands are told, and where videos go: from what `-o` and `--format` say to one target an input."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vq3dcli.errors import OutputError, UsageError
from vq3dcli.export.video import FORMATS, VideoFormat, check_output, format_of, frames_in
from vq3dcli.files import cut_name
from vq3dcli.pipelines.geometry import GeometryName
from vq3dcli.pipelines.inputs import Source
from vq3dcli.scene_file import SUFFIX
from vq3dcli.weights_file import LoadedWeights, load_weights

_log = logging.getLogger(__name__)


Disparity = bool | Literal["beside"]
"""Of a video: none, one of its own, or on the right of the picture."""

OnProgress = Callable[..., None]
"""Called with how many are done, of how many, and perhaps what is worked on."""

Counting = Callable[[str, str], AbstractContextManager[OnProgress]]
"""Opens progress for (description, unit)."""


def adding(on_progress: Callable[..., object], total: int) -> Callable[..., None]:
    """What is to be called with how many are new, and with a status."""
    done = 0

    def add(new: int, status: str = "") -> None:
        nonlocal done
        done += new
        on_progress(done, total, status)

    add(0)
    return add


@dataclass(frozen=True)
class Task:
    """What all commands are told that make files of scenes."""

    device: torch.device  # where to compute
    output: str | None = None  # what `-o` says, see `targets`; None is the current folder
    video_format: str | None = None  # what `--format` says
    disparity: Disparity = False  # also show disparity
    geometry: GeometryName | None = None  # of photo detail; None is the best there is
    weights: Path | LoadedWeights | None = None  # the model; None is the embedded one, if one is needed
    on_progress: OnProgress = lambda done, total, status: None  # see `OnProgress`
    # called with the files that the work will replace, before it starts
    on_replaced: Callable[[Sequence[Path]], None] = lambda paths: note_replaced(paths)

    def load(self, sources: Sequence[Source], *, always: bool = False) -> LoadedWeights | None:
        """The model, if it was named or any of the inputs needs one."""
        if isinstance(self.weights, LoadedWeights):
            return self.weights
        needed = always or self.weights is not None or not all(source.is_saved_scene for source in sources)
        return load_weights(self.weights, self.device) if needed else None

    @property
    def kept(self) -> list[Path]:
        """Files that must not be overwritten."""
        return [self.weights] if isinstance(self.weights, Path) else []


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
        """Where the scene is saved."""
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
    task: Task,
    *,
    path: str,
    default: VideoFormat = "mp4",
    kept: Sequence[Path] = (),
    cameras: bool = False,
    save_scene: bool = False,
) -> list[Target]:
    """Where the video of each source goes, and what is written beside it.

    The output of the task is a file, a folder (it exists, or ends in /, or there are several inputs and it has no
    suffix), or a pattern with `{name}` for the input's name.

    Args:
        path: Name of the camera path, a part of the names that are made here.
        default: The format, where neither the task nor the name of the output says one.
        kept: What else is read, and must not be overwritten.

    Raises `UsageError`: a format that is unknown or contradicts the file's name; one file for several inputs; an output
    that would overwrite or remove an input, or another output. `OutputError`: a folder has the file's name.
    """
    if task.video_format is not None and task.video_format not in FORMATS:
        raise UsageError(f"no video format {task.video_format!r}", remedy=f"--format {'|'.join(FORMATS)}")
    targets = []
    for source in sources:
        target = _plan_target(source, task, path, default, several=len(sources) > 1)
        more = (*([target.cameras] if cameras else []), *([target.scene] if save_scene else []))
        targets.append(replace(target, more=more))
    written = [file for target in targets for file in (*target.paths, *target.more)]
    replaced = [file for target in targets for file in target.replaced]
    refuse_overwriting([*written, *replaced], sources, [*kept, *task.kept])
    for name, times in Counter(str(file.resolve()) for file in written).items():
        if times > 1:
            raise UsageError(f"two outputs would have one name ({name})", remedy="another name with -o")
    return targets


def plan_joint_target(
    sources: Sequence[Source], stem: str, task: Task, *, kind: str, kept: Sequence[Path] = ()
) -> Target:
    """Where the one video of several inputs goes, named after `stem` and `kind` where `-o` does not say it otherwise.

    See `plan_targets`.
    """
    joint = [replace(sources[0], stem=cut_name(stem))]
    return plan_targets(joint, task, path=kind, kept=[*input_files(sources), *kept])[0]


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


def _plan_target(source: Source, task: Task, path: str, default: VideoFormat, *, several: bool) -> Target:
    output, video_format = task.output, task.video_format
    is_folder = output is not None and _is_folder(output, several)
    named_here = several or video_format not in (None, "frames") or (video_format is None and default != "mp4")
    if output is None or (is_folder and named_here):
        chosen, stem = _known(video_format or default), f"{source.stem}_{path}"
        return _target(Path(output or ".") / (stem if chosen == "frames" else f"{stem}.{chosen}"), chosen, task)
    if is_folder:
        return _target(Path(output), "frames", task)
    if several and "{name}" not in output:
        raise UsageError(f"several inputs cannot share one output ({output})", remedy="-o FOLDER/ or -o '{name}.mp4'")
    file = Path(output.replace("{name}", source.stem))
    if video_format is None:
        return _target(file, format_of(file), task)
    if file.suffix.lower() in {f".{name}" for name in FORMATS} - {f".{video_format}"}:
        raise UsageError(f"--format {video_format} contradicts the name of the output ({file})", remedy="one of them")
    return _target(file, _known(video_format), task)


def input_files(sources: Sequence[Source]) -> list[Path]:
    """The files that inputs are read from."""
    return [source.path for source in sources if source.path is not None]


def _is_folder(output: str, several: bool) -> bool:
    if "{name}" in output:
        return False
    return names_folder(output, [f".{name}" for name in FORMATS]) or (several and not Path(output).suffix)


def names_folder(output: str, suffixes: Collection[str]) -> bool:
    """Whether `-o` names a folder. Raises `OutputError` for one that is called like a file, by these suffixes."""
    if output.endswith("/") or not Path(output).is_dir():
        return output.endswith("/")
    if Path(output).suffix.lower() in suffixes:
        remedy = f"another name, or {output}/ for files in it"
        raise OutputError(f"cannot create output ({output}): it is a folder", remedy=remedy)
    return True


def _known(video_format: str) -> VideoFormat:
    return next(name for name in FORMATS if name == video_format)


def _target(path: Path, video_format: VideoFormat, task: Task) -> Target:
    # Of "." and ".." nothing can be named after.
    path = path if path.name not in ("", "..") else path.resolve()
    if not path.name:
        raise UsageError(f"the output has no name ({path})", remedy="-o FOLDER/")
    suffix = "" if video_format == "frames" else path.suffix
    own = path.with_name(f"{path.name.removesuffix(suffix)}_disparity{suffix}") if task.disparity is True else None
    return Target(path, own, video_format, beside=task.disparity == "beside")
