"""Options that several commands share; those of all of them are in `output`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vq3dcli.commands.output import DeviceOption, Output, pick_device
from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_FRAMES, VIDEO_SAMPLES
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    from vq3dcli.commands.progress import Progress
    from vq3dcli.data_tools import part as parts
    from vq3dcli.pipelines import targets
    from vq3dcli.pipelines.film import Shot
    from vq3dcli.pipelines.geometry import GeometryName
    from vq3dcli.pipelines.targets import Task

CAMERA = "orbit, swing, spiral, dolly, dolly-zoom, still, or a JSON file of cameras as render writes it."
FormatName = Literal["mp4", "webm", "gif", "png", "frames"]

PhotoFov = Annotated[
    float | None,
    typer.Option(
        "--photo-fov", help="Field of view of the photo, in degrees of its width. Default: by its EXIF, else 40."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Stage 1 weights, a run's folder, a checkpoint, hf://OWNER/NAME. Default: embedded."
    ),
]
Amplitude = Annotated[
    float | None,
    typer.Option(
        "--amplitude",
        help="How far the camera goes, in degrees. Default: what suits the scene with photo detail; else 20, dolly 12.",
    ),
]
Frames = Annotated[
    int | None, typer.Option("--frames", help=f"Frames of a video. Default: {VIDEO_FRAMES}, which loop.")
]
Seconds = Annotated[float | None, typer.Option("--seconds", help="The same in seconds.")]
Fps = Annotated[float, typer.Option("--fps", help="Frames a second.")]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        help="Longer side of a video in pixels. Default: the photo's, at most 1024, with photo detail; else 256.",
    ),
]
PlainSize = Annotated[int | None, typer.Option("--size", help="Longer side of a video in pixels. Default: 256.")]
Samples = Annotated[
    int, typer.Option("--samples", help="Samples a ray of the plain NeRF; more are slower and cleaner.")
]
Quality = Annotated[
    Literal["small", "good", "best"], typer.Option("--quality", help="Of mp4 and webm: small files are to be sent.")
]
Disparity = Annotated[bool, typer.Option("--disparity", help="Also write NAME_disparity: near is bright.")]
SameAsOut = Annotated[Path | None, typer.Option("--out", "-o", metavar="PATH", help="The same as OUT.")]
Open = Annotated[bool, typer.Option("--open", help="Open what was made.")]
StdinList = Annotated[
    bool, typer.Option("--stdin-list", help="Also take inputs from stdin, one a line, or as find -print0 writes them.")
]


def asked_inputs(inputs: list[str] | None, stdin_list: bool) -> list[str]:
    """The inputs of a command, and those that stdin lists."""
    if not stdin_list or sys.stdin is None:
        return inputs or []
    listed = sys.stdin.read()
    return [*(inputs or []), *filter(None, listed.split("\0") if "\0" in listed else listed.splitlines())]


def refuse_given(context: typer.Context, names: Collection[str], reason: str) -> None:
    """Raise `UsageError` for the first of some options that is not at its default, and would change nothing.

    `reason` follows its name.
    """
    options = context.command.params
    assert {*names} <= {name for option in options for name in option.opts}, names
    for option in options:
        for name in {*option.opts} & {*names}:
            if context.params[str(option.name)] != option.get_default(context):
                raise UsageError(f"{name} {reason}", remedy=f"no {name}")


def numbers(option: str, text: str, *counts: int) -> list[float]:
    """Numbers between commas, one of `counts` many if any are given. Raises `UsageError`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)) or (counts and len(values) not in counts):
        wanted = f"{' or '.join(map(str, counts))} numbers" if counts else "numbers"
        raise UsageError(f"{option} needs {wanted} with commas between them, got {text[:60]!r}")
    return values


def _render_exactly(context: typer.Context, wanted: bool) -> bool:
    """Until the command ends all is rendered by tensor operations."""
    if wanted:
        from vq3dcli.rendering.render import exact_rendering

        context.with_resource(exact_rendering())
    return wanted


Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        callback=_render_exactly,
        help="Evaluate all samples of the NeRF: 40 to 55 times as slow, no pixel differs by a fifth of a grey level.",
    ),
]
Detail = Annotated[
    Literal["photo", "none"] | None,
    typer.Option(
        "--detail",
        help="photo carries the photo's own pixels to novel views; none is the plain NeRF. Default: photo, for photos.",
    ),
]
Fit = Annotated[
    Literal["crop", "squash"] | None,
    typer.Option(
        "--fit",
        help="crop takes the centre square; squash shows all of the photo and keeps its shape. Default: squash with "
        "photo detail, else crop.",
    ),
]
Geometry = Annotated[
    Literal["nerf", "teacher", "both"] | None,
    typer.Option(
        "--geometry",
        help="Whence photo detail has its geometry: the NeRF, the embedded depth network, or that network at the "
        "NeRF's scale. Default: both, or nerf where no network is embedded.",
    ),
]

Prior = Annotated[
    Path | None,
    typer.Option(
        "--prior", help="A prior's weights, a run's folder, a checkpoint, hf://OWNER/NAME. Default: embedded."
    ),
]
Part = Annotated[
    str,
    typer.Option(
        "--part", metavar="K/N", help="Share of the work, 1/8 to 8/8; auto asks torchrun's or SLURM's variables."
    ),
]


def asked_part(text: str, said: Output) -> parts.Part:
    """The share that `--part` names. Raises `UsageError`."""
    from vq3dcli.data_tools.part import WHOLE, parse_part, part_from_environment

    part = part_from_environment(os.environ) if text == "auto" else parse_part(text)
    if part != WHOLE:
        said.note(f"part {part}: every shard or group whose number leaves {part.index} when divided by {part.count}")
    return part


def unfinished(part: parts.Part) -> str:
    """What a part says that was not the last."""
    return f"part {part} is done; the part that ends last finishes the whole, or this command run once more"


@dataclass(frozen=True)
class Sharpened:
    """How samples are drawn; None for what the prior's recipe says."""

    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            min=0,
            max=100,
            help="Above 1 more varied, below 1 safer, 0 the likeliest code. Default: the prior's.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=0, max=65536, help="Draw from so many codes; 0 for all. Default: the prior's."),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", min=0, max=1, help="Draw from codes of this probability together. Default: the prior's."
        ),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance", min=0, max=100, help="Above 1 more typical of the class; 1 is off. Default: the prior's."
        ),
    ] = None


@dataclass(frozen=True)
class Filmed:
    """How scenes are filmed, and by what."""

    camera: Annotated[str | None, typer.Option("--camera", metavar="NAME|FILE", help=CAMERA)] = None
    frames: Frames = None
    seconds: Seconds = None
    fps: Fps = VIDEO_FPS
    size: Size = None
    aspect: Annotated[
        str | None,
        typer.Option("--aspect", metavar="W:H", help="Shape of a video, as 9:16 or 1:1, cut out of its middle."),
    ] = None
    fov: Annotated[
        float | None,
        typer.Option(
            "--fov",
            help="Field of view in degrees; less zooms in. Default: the model's; with photo detail up to 12 % closer, "
            "so that nothing beyond the photo's edges shows.",
        ),
    ] = None
    amplitude: Amplitude = None
    samples: Samples = VIDEO_SAMPLES
    quality: Quality = "good"
    disparity: Disparity = False
    beside: Annotated[
        bool, typer.Option("--beside", help="Show picture and disparity beside each other, in one video.")
    ] = False
    video_format: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            help="Format, where the name does not tell it: mp4, webm, gif, png (contact sheet) or frames (a PNG each).",
        ),
    ] = None
    open_it: Open = False
    weights: Weights = None
    exact: Exact = False
    device: DeviceOption = "auto"

    def shot(self, camera: str | None = None, view_deg: tuple[float, float] | None = None) -> Shot:
        """How a scene is filmed, by `--camera` unless another is named. Raises as `film.shot_of`."""
        from vq3dcli.pipelines.film import shot_of

        return shot_of(
            camera or self.camera or "orbit",
            self.amplitude,
            frames=self.frames,
            seconds=self.seconds,
            fps=self.fps,
            aspect=self.aspect,
            view_deg=view_deg,
            size_px=self.size,
            fov_deg=self.fov,
            samples=self.samples,
            quality=self.quality,
        )

    def task(self, said: Output, count: Progress, output: str | None, geometry: GeometryName | None = None) -> Task:
        """What is made of it, and where. Raises `UsageError` for disparity that is shown twice."""
        from vq3dcli.pipelines.targets import Task

        if self.disparity and self.beside:
            raise UsageError("--disparity and --beside both show disparity", remedy="one of them")
        shown: targets.Disparity = "beside" if self.beside else self.disparity
        place = pick_device(self.device)
        return Task(place, output, self.video_format, shown, geometry, self.weights, count, said.replacing)


@dataclass(frozen=True)
class FilmedPlainly(Filmed):
    """The same of scenes that have no photo detail."""

    camera: Annotated[str | None, typer.Option("--camera", metavar="NAME|FILE", help=CAMERA)] = "still"
    size: PlainSize = None
    fov: Annotated[float | None, typer.Option("--fov", help="Field of view in degrees. Default: the model's.")] = None
    amplitude: Annotated[
        float | None,
        typer.Option("--amplitude", help="How far the camera goes, in degrees. Default: 20, dolly 12."),
    ] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of the types of groups stand for several options.

    A group is a dataclass, an option a field, whose defaults are those of the parameter's own; or an `Output`, for
    `--json` and `--quiet`, which come last.
    """
    options: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        voice = isinstance(kind, type) and issubclass(kind, Output)
        if not voice and not dataclasses.is_dataclass(kind):
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        own = [each for each in inspect.signature(kind, eval_str=True).parameters.values() if each.name != "command"]
        chosen = {} if voice or parameter.default is parameter.empty else vars(parameter.default)
        (last if voice else options).extend(
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=chosen.get(each.name, each.default))
            for each in own
        )
        groups[parameter.name] = kind, [each.name for each in own]
    if not groups:
        return command

    own_call = next((each.name for each in options if each.annotation is typer.Context), None)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        path = (given[own_call] if own_call else given.pop("call")).command_path
        for name, (kind, fields) in groups.items():
            values = {field: given.pop(field) for field in fields}
            named = {"command": path.partition(" ")[2]} if issubclass(kind, Output) else {}
            given[name] = kind(**named, **values)
        command(**given)

    call = inspect.Parameter("call", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [*([] if own_call else [call]), *options, *last]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
