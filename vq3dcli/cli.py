"""The command line: which commands there are, and the one edge where an error becomes a line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vq3dcli import __version__, log, signals
from vq3dcli.errors import Vq3dError
from vq3dcli.files import MORE_OPEN_FILES, TOO_MANY_OPEN
from vq3dcli.remote.arguments import with_copies

# Name, module in `vq3dcli.commands`, and the line in `vq3d --help`. A module is imported when its command is used.
COMMANDS = (
    ("render", "render", "Turn photos into videos of novel views."),
    ("view", "view", "Look around in a scene, in the browser, while it is rendered."),
    ("export", "export", "Turn a scene into a web viewer, points, a mesh, splats, layers or maps."),
    ("sample", "sample", "Sample new 3D scenes: pictures, a contact sheet with disparity, videos."),
    ("classes", "classes", "List the classes that new scenes can be of."),
    ("interpolate", "interpolate", "Turn one scene into another: photos, samples and saved scenes."),
    ("compose", "compose", "Insert, move and delete objects in a scene, and film it."),
    ("demo", "demo", "Turn a photo and toy scenes into videos with the embedded weights, and sample new scenes."),
    ("quickstart", "quickstart", "Run the whole pipeline at toy scale, from toy scenes to videos and a report."),
    ("train-stage1", "train", "Train the autoencoder whose decoder emits a NeRF; run it again to continue."),
    ("tokenize", "tokenize", "Encode shards into the tokens that Stage 2 is trained on."),
    ("train-stage2", "train", "Train the prior that new scenes are sampled from; run it again to continue."),
    (
        "train-depth",
        "train",
        "Train a depth network on shards with disparity, a teacher for photos; run it again to continue.",
    ),
    ("recipes", "recipes", "List, show, copy, check and compare recipes."),
    ("push", "push", "Publish weights on the Hugging Face Hub, with a card that says what they are."),
    (
        "prepare-data",
        "prepare_data",
        "Make shards of ImageNet, CompCars, a folder of images, toy scenes, or scenes of meshes.",
    ),
    ("depth-labels", "depth_labels", "Write disparity labels beside the shards."),
    ("inspect", "inspect", "Say what shards, tokens or weights hold, and whether they are whole."),
    ("evaluate", "evaluate", "Measure a model."),
    ("bench", "bench", "Measure speed and memory beside other ways of doing the same."),
    ("doctor", "doctor", "Say what works on this machine, what is missing, and what to do about it."),
)

# Where in that order a panel of `vq3d --help` begins.
PANELS = {
    "render": "Use",
    "quickstart": "Train",
    "prepare-data": "Data",
    "evaluate": "Measure",
    "doctor": "Machine",
}

# The same of the options of commands that show scenes; what is in none comes first.
OPTION_PANELS = {
    "Camera": "camera orbit swing spiral dolly dolly-zoom path yaw pitch amplitude fov frames seconds fps",
    "Detail": "detail geometry photo-fov depth depth-model fit samples exact",
    "Output": "size aspect quality disparity beside stereo save-scene layers views mesh axes max-depth npz format "
    "out open",
    "Machine": "weights prior part device json quiet help",
}

# The same of commands that train or make data.
JOB_PANELS = {
    "Data": "data share labels held-out crops",
    "Images": "margin classes split devkit class-by box-margin dedup max-bad",
    "Scenes": "count varied photos coats clear alone views",
    "Network": "model predicts batch-size input-size flip download",
    "Plan": "dry-run device-name gpus",
    "Output": "out name preview shard-size force",
    "Machine": "weights perceptual-weights nproc slurm profile workers part device json quiet help",
}

# The commands of commands: an error names them without importing anything.
SUBCOMMANDS = {
    "evaluate": ("reconstruction", "geometry", "depth", "generation", "ablation"),
    "recipes": ("ls", "show", "copy", "validate", "diff"),
}

# What may stand before a path in one argument: `--option=`, `-o`, `key=`.
_TILDE = re.compile(r"(?:--[\w-]+=|-\w|[\w.-]+=)?(?=~(?:/|$))")
_OFFLINE = {"VQ3D_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline"}
# What every command takes for `--out`, too.
_OUTPUT = re.compile(r"^--output(?==|$)")
# What values are called in help.
_VALUES = {int: "N", float: "X", str: "NAME", Path: "PATH"}
REPORT = "the same command with --debug, and report what it prints"
EXIT_CODES = {0, 2, 65, 66, 69, 70, 73, 74, 75, 77, 78, 79, 130, 141}


def run(arguments: Sequence[str]) -> int:
    """Run `vq3d ARGUMENTS` in this process and return its exit code; nothing but output escapes."""
    call = _read_call(arguments)
    try:
        with _offline() if call.offline else contextlib.nullcontext():
            return _invoke(with_copies(call.arguments, call.command))
    except BrokenPipeError:
        return 141
    except BaseException as caught:
        # An interrupt may come out of a library as another error.
        error = KeyboardInterrupt() if signals.interrupted() else caught
        if isinstance(error, SystemExit) and not error.code:  # typer's --show-completion ends like this
            return 0
        if call.debug:
            traceback.print_exception(error)
        failure = describe(error)
        if isinstance(error, typer.TyperException) and not failure.remedy:
            failure = Failure(failure.exit_code, failure.message, f"vq3d {call.command} --help".replace("  ", " "))
        return _report(failure, call)
    finally:
        log.detach()


class Failure(NamedTuple):
    """What is said about an error."""

    exit_code: int
    message: str
    remedy: str | None


def describe(error: BaseException) -> Failure:
    """The exit code, the reason and the remedy for any exception."""
    if isinstance(error, Vq3dError):
        return Failure(error.exit_code, error.message, error.remedy)
    if isinstance(error, typer.TyperException):
        return Failure(error.exit_code, _plain(error.format_message().rstrip(".")), None)
    if isinstance(error, KeyboardInterrupt) and signals.preempted():
        return Failure(75, signals.BEFORE_FIRST_STEP, signals.AGAIN)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure(130, signals.INTERRUPTED, None)
    if isinstance(error, MemoryError):
        return Failure(70, "out of memory", "a smaller batch, size or number of samples")
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch may not be imported here
        return Failure(70, "out of memory on the device", "--device cpu, or a smaller batch, size or number of samples")
    if isinstance(error, SystemExit):
        return Failure(70, f"a library ended the program ({error.code})", REPORT)
    return Failure(70, f"bug: {type(error).__name__}: {error}", REPORT)


def _plain(message: str) -> str:
    """What is wrong with an option, without the words of the schema behind it."""
    message = re.sub(r": Input should be a valid (?:integer|number).*", ": it must be a number", message)
    return message.replace(": Value error, ", ": ")


def _describe_os_error(error: OSError) -> Failure:
    name = f" ({error.filename})" if error.filename is not None else ""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return Failure(66, f"no such file or folder{name}", "check the path")
    if error.errno == errno.ENAMETOOLONG:
        return Failure(73, f"{reason}{name}", "a shorter name")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Failure(73, f"no permission{name}: {reason}", "another place, or other permissions")
    remedy = MORE_OPEN_FILES if error.errno in TOO_MANY_OPEN else "check the disk and its free space, then run it again"
    return Failure(74, f"cannot read or write{name}: {reason}", remedy)


class _Call(NamedTuple):
    """What can be told of a call without parsing it: parsing itself may be what fails."""

    arguments: list[str]
    command: str
    debug: bool
    json: bool
    offline: bool


def _read_call(arguments: Sequence[str]) -> _Call:
    """Take `--debug` and `--offline` out of the options, wherever they stand; find the command and `--json`."""
    arguments = [_from_home(argument) for argument in arguments]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [_OUTPUT.sub("--out", a) for a in arguments[:end] if a not in ("--debug", "--offline")]
    words = [a for a in options if not a.startswith("-")]
    command = words[0] if words and words[0] in {name for name, _, _ in COMMANDS} else ""
    subcommand = next((word for word in words[1:] if word in SUBCOMMANDS.get(command, ())), "")
    return _Call(
        arguments=[*options, *arguments[end:]],
        command=f"{command} {subcommand}".strip(),
        debug="--debug" in arguments[:end],
        json="--json" in options,
        offline="--offline" in arguments[:end],
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nothing of ours opens a socket, and those of others that may are told not to."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(_OFFLINE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _from_home(argument: str) -> str:
    """An argument whose path starts at the home folder, also where a shell leaves `~` alone: `--out=~/x`, `'~/x'`."""
    before = _TILDE.match(argument)
    return argument if before is None else argument[: before.end()] + os.path.expanduser(argument[before.end() :])


def _invoke(arguments: list[str]) -> int:
    group = build_group()
    try:
        with group.make_context("vq3d", arguments or ["--help"]) as context:
            group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def complete() -> None:
    """Answer a shell's completion request, which arrives in the environment."""
    build_group().main(prog_name="vq3d")


def _report(failure: Failure, call: _Call) -> int:
    text = failure.message if failure.exit_code == 130 else f"error: {failure.message}"
    if failure.remedy:
        text += f"; try: {failure.remedy}"
    log.write_line(text)
    if call.json:
        from vq3dcli.commands.output import error_json

        with contextlib.suppress(OSError, ValueError):
            print(error_json(call.command, failure.message, failure.remedy, failure.exit_code), flush=True)
    return failure.exit_code


def build_group() -> TyperGroup:
    """The root of the command line; the commands in it are imported when they are used."""
    app = typer.Typer(
        cls=Root,
        help=ROOT_HELP,
        rich_markup_mode=None,  # plain help: no boxes in pipes, and rich costs a tenth of a second
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    app.callback()(_root)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for name, module, summary in COMMANDS:
        group.commands[name] = LazyCommand(name, module, summary)
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vq3d {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: what is not on this machine is an error; works anywhere.")
    ] = False,
) -> None:
    """Hold the options of `vq3d` itself; `_read_call` has acted on these before."""


ROOT_HELP = """
One photo to a NeRF in one forward pass: novel views, orbits and disparity; and the training of such models.

\b
Example:
  vq3d render photo.jpg --camera orbit -o orbit.mp4
  vq3d doctor
"""


class Root(TyperGroup):
    """The root, whose help lists the commands in panels."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the panels, all names in one column."""
        panels: dict[str, list[tuple[str, str]]] = {}
        title, widest = "Commands", max(map(len, self.commands))
        for name, command in self.commands.items():
            title = PANELS.get(name, title)
            panels.setdefault(title, []).append((name.ljust(widest), command.short_help or ""))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class Command(TyperCommand):
    """A command, whose options are listed in panels if it shows scenes, trains or makes data."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and panels."""
        known = {option for each in self.params for option in each.opts}
        titles: dict[str, str] = {}
        if known & {"--camera", "--detail"}:
            titles = OPTION_PANELS
        elif known & {"--set", "--part"}:
            titles = JOB_PANELS
        panel_of = {f"--{name}": title for title, names in titles.items() for name in names.split()}
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *titles)}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                title = next((panel_of[name] for name in each.opts if name in panel_of), "Options")
                panels["Arguments" if each.param_type_name == "argument" else title].append(record)
        for title, rows in panels.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class LazyCommand(TyperCommand):
    """Stands for a command in lists; becomes the real one when a context is made for it."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, short_help=summary, rich_markup_mode=None)
        self.module = module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command."""
        return load_command(self.name or "", self.module).make_context(info_name, args, parent, **extra)


def load_command(name: str, module: str) -> TyperCommand | TyperGroup:
    """Import `vq3dcli.commands.MODULE` and build its function `command`, or of the command's name, or its `app`."""
    from vq3dcli.commands import options

    loaded = importlib.import_module(f"vq3dcli.commands.{module}")
    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    holder.callback()(lambda: None)
    if hasattr(loaded, "app"):
        for each in loaded.app.registered_commands:
            each.callback = options.grouped(each.callback)
        holder.add_typer(loaded.app, name=name)
    else:
        function = getattr(loaded, "command", None) or getattr(loaded, name.replace("-", "_"))
        holder.command(name, cls=Command)(options.grouped(function))
    group = get_command(holder)
    assert isinstance(group, TyperGroup)
    built = group.commands[name]
    assert isinstance(built, TyperCommand | TyperGroup)
    built.no_args_is_help = False  # `vq3d evaluate` is a usage error like any other
    for command in [built, *(built.commands.values() if isinstance(built, TyperGroup) else ())]:
        command.help = keep_indented(command.help or "")
        command.short_help = " ".join(command.help.partition("\n\n")[0].split())  # else lists cut it
        for parameter in command.params:
            _name_values(parameter)
    return built


def _name_values(parameter: Any) -> None:
    """Call the values of a parameter in help what people call them: N, PATH, a|b, and not a type of Python."""
    if parameter.param_type_name == "argument":
        name = parameter.display_name_raw + ("..." if parameter.nargs != 1 else "")
        parameter.display_type_rich = lambda ctx: ""
        parameter._usage_display_name = lambda: name if parameter.required else f"[{name}]"
    elif not parameter.is_flag and parameter.metavar is None:
        described = parameter.type_descriptor
        kind = get_args(described.annotation)[0] if described.is_list else described.annotation
        parameter.metavar = "|".join(described.choices) if described.is_choice else _VALUES[kind]


def keep_indented(help_text: str) -> str:
    """Mark paragraphs that hold indented lines, so that help prints them as they stand."""
    paragraphs = textwrap.dedent(help_text).strip().split("\n\n")
    return "\n\n".join(f"\b\n{p}" if "\n " in p and not p.startswith("\b") else p for p in paragraphs)
