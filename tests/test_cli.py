"""The command line as a user meets it: help, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.core import TyperGroup

from vq3dcli import __version__, cli
from vq3dcli.commands.output import JsonOption, Output
from vq3dcli.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
VQ3D = (sys.executable, "-m", "vq3dcli")


def vq3d(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VQ3D, *arguments], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, module, _ in cli.COMMANDS:
        command = cli.load_command(name, module)
        inner = command.commands if isinstance(command, TyperGroup) else {}
        found += [(name,), *((name, word) for word in inner)]
    return found


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_answers_at_once_without_the_heavy_libraries() -> None:
    code = "import sys; from vq3dcli.__main__ import main; main(); print(*sys.modules, file=sys.stderr)"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what the wall clock shows on an idle machine, and the same on a busy one.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert ended.returncode == 0
    assert min(seconds) < 0.5
    assert not {"torch", "numpy", "pydantic", "rich"} & set(ended.stderr.split())


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: vq3d {' '.join(words)}")
    assert re.search(rf"Example.*\n +vq3d {' '.join(words)}", text, re.DOTALL)
    for option in re.findall(r"^  (-\S.*)$", text, re.MULTILINE):
        assert re.search(r"\S  +\S|[a-z>]$", option), f"no help for {option}"
    assert not [line for line in text.splitlines()[1:] if line.endswith("...")], "what lists say is whole sentences"


@pytest.mark.parametrize(
    ("names", "panels", "first"),
    [
        (
            "render compose export interpolate sample view",
            cli.OPTION_PANELS,
            r"^Detail:\n(  .*\n)*  --(samples|detail)",
        ),
        (
            "train-stage1 train-stage2 train-depth tokenize prepare-data depth-labels",
            cli.JOB_PANELS,
            r"^Output:\n(  .*\n)*  (-o, --out|--name)",
        ),
    ],
    ids=["that show scenes", "that train or make data"],
)
def test_options_stand_in_panels(
    capsys: pytest.CaptureFixture[str], names: str, panels: dict[str, str], first: str
) -> None:
    options: set[str] = set()
    for name in names.split():
        assert cli.run([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert re.search(first, text, re.MULTILINE), name
        assert re.search(r"^Machine:\n(  .*\n)*  -h, --help", text, re.MULTILINE), name
        options |= set(re.findall(r"^  (?:-\w, )?--([\w-]+)", text, re.MULTILINE))
    assert {word for words in panels.values() for word in words.split()} <= options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--frames", "abc"), "'--frames': it must be a number; try"),
        (("--fps", "abc"), "'--fps': it must be a number; try"),
        (("--geometry", "sideways"), "'--geometry': 'sideways' is not one of 'nerf', 'teacher', 'both'; try"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_in_plain_words(
    capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
) -> None:
    assert cli.run(["render", "a.jpg", *options]) == 2
    assert f"Invalid value for {said}" in capsys.readouterr().err


def test_help_speaks_of_photo_detail_only_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["interpolate", "--help"]) == 0
    assert "photo detail" not in capsys.readouterr().out


def test_help_lists_every_command_once_in_panels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    shown = re.findall(r"^(?:(Use|Train|Data|Measure|Machine):|  ([a-z][\w-]*)  )", text, re.MULTILINE)
    assert shown[:2] == [("Use", ""), ("", "render")]
    assert [title for title, _ in shown if title] == list(cli.PANELS.values())
    assert sorted(name for _, name in shown if name) == sorted(name for name, _, _ in cli.COMMANDS)


def test_outputs_are_spelt_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out` and `-o` wherever there is one of them; `--output` is taken for them."""
    found = 0
    for name, module, _ in cli.COMMANDS:
        command = cli.load_command(name, module)
        for each in command.commands.values() if isinstance(command, TyperGroup) else (command,):
            spelt = [{*option.opts} for option in each.params if {"--out", "--output", "-o"} & {*option.opts}]
            found += len(spelt)
            assert all(opts == {"--out", "-o"} for opts in spelt), name
    assert found > 10
    given = ["render", "--output", "a", "--output=b", "--outputs", "--", "--output"]
    assert cli._read_call(given).arguments == ["render", "--out", "a", "--out=b", "--outputs", "--", "--output"]


def test_help_of_commands_needs_no_torch() -> None:
    lines = [f"cli.run([*{words!r}, '--help'])" for words in every_command()]
    code = "\n".join(["import sys; from vq3dcli import cli", *lines, "assert 'torch' not in sys.modules"])
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_the_list_of_commands_is_complete_and_says_what_they_say() -> None:
    for name, module, summary in cli.COMMANDS:
        assert " ".join((cli.load_command(name, module).help or "").split("\n\n")[0].split()) == summary
    listed = {module for _, module, _ in cli.COMMANDS}
    for path in (ROOT / "vq3dcli" / "commands").glob("*.py"):
        is_command = re.search(r"^(def (command|train_\w+)\(|app = )", path.read_text(), re.MULTILINE)
        assert bool(is_command) == (path.stem in listed), f"{path.stem}: is it in cli.COMMANDS?"
    inner = {(name, word) for name, words in cli.SUBCOMMANDS.items() for word in words}
    assert inner == {words for words in every_command() if len(words) == 2}


@pytest.mark.parametrize("name", ["commands", "model-card"])
def test_pages_that_are_made_have_not_drifted(name: str) -> None:
    generator = types.ModuleType(f"generate_{name}")
    generator.__file__ = str(ROOT / "docs" / f"generate_{name.replace('-', '_')}.py")
    exec(Path(generator.__file__).read_text(), vars(generator))
    assert (ROOT / "docs" / f"{name}.md").read_text() == generator.page(), "run `make docs`"


def test_the_page_of_errors_has_every_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == cli.EXIT_CODES


@pytest.mark.parametrize("before", ["", "--out=", "-o", "training.init=", "name="])
def test_home_in_any_argument(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    call = cli._read_call(["render", f"{before}~/a b/x.jpg", "--", f"{before}~", "./~/x", "x~/y", "~x"])
    assert call.arguments[1] == f"{before}/home/someone/a b/x.jpg"
    assert call.arguments[3:] == [f"{before}/home/someone", "./~/x", "x~/y", "~x"]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Adds a command `probe` for one test."""

    def add(function: Callable[..., None]) -> None:
        module = types.ModuleType("vq3dcli.commands.probe")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vq3dcli.commands.probe", module)
        monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, ("probe", "probe", "For tests.")))

    return add


def raises(error: BaseException) -> Callable[..., None]:
    def probe(json: JsonOption = False) -> None:
        raise error

    return probe


def test_an_error_is_one_line_and_a_code(
    command: Callable[[Callable[..., None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(DataError("cannot decode (a\x1b[31m\n.jpg): cut short", remedy="another photo")))
    assert cli.run(["probe"]) == 65
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: cannot decode (a\\x1b[31m .jpg): cut short; try: another photo\n"


@pytest.mark.parametrize("arguments", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback(
    command: Callable[[Callable[..., None]], None], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command(raises(ZeroDivisionError("oops")))
    assert cli.run(["probe"]) == 70
    assert capsys.readouterr().err.startswith("error: bug: ZeroDivisionError: oops; try: the same command with --debug")
    assert cli.run(arguments) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_error_with_json_is_an_object_too(
    command: Callable[[Callable[..., None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(DataError("cut short", remedy="another")))
    assert cli.run(["probe", "--json"]) == 65
    error = {"message": "cut short", "remedy": "another", "exit_code": 65}
    assert json.loads(capsys.readouterr().out) == {"version": __version__, "command": "probe", "error": error}
    assert cli.run(["probe", "--json", "--jsn"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
    assert cli.run(["evaluate", "geometry", "--json", "--data", "photos"]) == 66
    captured = capsys.readouterr()
    assert json.loads(captured.out)["command"] == "evaluate geometry"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rendr"], "Did you mean 'render'"),
        (["doctor", "--jso"], "--json"),
        (["doctor", "extra"], "extra"),
        (["evaluate"], "Missing command"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_usage_errors(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert part in lines[0]
    assert "--help" in lines[0]


def test_no_arguments_show_help_and_version_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "\nUse:\n" in capsys.readouterr().out
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vq3d {__version__}\n"


def test_a_shell_gets_its_completions() -> None:
    asked = {"_VQ3D_COMPLETE": "complete_bash", "COMP_WORDS": "vq3d doc", "COMP_CWORD": "1"}
    assert vq3d(env=os.environ | asked).stdout.split() == ["doctor"]
    # typer's own switch: what the parent process is must not matter to this test.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = vq3d("--show-completion", "bash", env=os.environ | named)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "_VQ3D_COMPLETE" in shown.stdout


_WORDS = [name for name, _, _ in cli.COMMANDS]
_OPTIONS = [
    "--json",
    "--quiet",
    "--seed",
    "--device",
    "--out",
    "-o",
    "--set",
    "--size",
    "--count",
    "--help",
    "--debug",
    "--",
    "-",
    "-5",
]
# These begin to work without an input file, so they always get an option that does not exist.
_NEED_NO_INPUT = {"quickstart", "evaluate", "doctor", "demo", "bench", "classes", "sample"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(_WORDS),
    before=st.lists(st.sampled_from(["--debug=1", "--version=x", "--quiet", "-"]), max_size=1),
    rest=st.lists(st.sampled_from(_OPTIONS) | st.text(max_size=8), max_size=6),
)
def test_any_arguments_end_with_a_code_of_the_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    before: list[str],
    rest: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rest = ["--no-such-option", *rest] if name in _NEED_NO_INPUT else rest
    code = cli.run([*before, name, *rest])
    captured = capfd.readouterr()
    assert code in cli.EXIT_CODES - {70}, captured.err
    options = rest[: rest.index("--")] if "--" in rest else rest
    assert ("Traceback" in captured.err) <= ("--debug" in options)
    if code:
        assert captured.err.splitlines()[-1].startswith("error: ")
        assert "--json" not in options or json.loads(captured.out)["error"]["exit_code"] == code


# --- the voice of a command ------------------------------------------------------------------------------------------


def test_quiet_leaves_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("probe", False, True)
    output.note("a note")
    output.warn("a warning")
    with output.progress("working") as progress:
        progress(0, 1)
        progress(1, 1)
    output.finish(outputs=[Path("a.mp4")])
    captured = capsys.readouterr()
    assert captured.out == "a.mp4\n"
    assert captured.err == "warning: a warning\n"


def test_the_pieces_of_a_command_fit(
    command: Callable[[Callable[..., None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(output: Output) -> None:
        import logging

        logging.getLogger("vq3dcli.checkpoint").warning("checkpoint is damaged, taking the one before")
        logging.getLogger("vq3dcli.data_tools.prepare").info("42 images")
        output.finish(
            protocol="vq3d-v1", count=2, seed=0, metrics={"psnr": float("nan"), "views": {"left": (1, 2.5)}}, outputs=[]
        )

    command(probe)
    assert cli.run(["probe", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "version": __version__,
        "command": "probe",
        "protocol": "vq3d-v1",
        "count": 2,
        "seed": 0,
        "weights": None,
        "metrics": {"psnr": None, "views": {"left": [1, 2.5]}},
        "outputs": [],
        "warnings": ["checkpoint is damaged, taking the one before"],
    }
    assert captured.err == "warning: checkpoint is damaged, taking the one before\n42 images\n"
    assert cli.run(["probe", "--quiet"]) == 0
    assert capsys.readouterr().err == "warning: checkpoint is damaged, taking the one before\n"
