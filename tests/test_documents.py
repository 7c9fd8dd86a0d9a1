"""What README and docs tell a reader to type is taken by today's commands and library."""

from __future__ import annotations

import ast
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.core import TyperGroup

from vq3dcli import cli
from vq3dcli.config.load import load_either, load_recipe, recipe_names
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.camera_file import read_cameras
from vq3dcli.pipelines.composition import read_composition

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SCHEMAS: dict[str, type[Stage1Recipe | Stage2Recipe]] = {"train-stage1": Stage1Recipe, "train-stage2": Stage2Recipe}


def _blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of a page, in these languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for language, text in found if language in languages]


def _lines(block: str) -> Iterator[str]:
    """Command lines without comments; what is continued is joined."""
    text = re.sub(r"(^|\s)#[^\n]*", "", block).replace("\\\n", " ")
    text = re.sub(r"\n +(--\w)", r" \1", text)  # examples in help break before an option
    yield from (line.strip() for line in text.splitlines() if line.strip())


def _calls(line: str) -> Iterator[list[str]]:
    """The arguments of each `vq3d` in a command line, also under torchrun, behind a pipe, or quoted for a scheduler."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set(";|&<>"):
            words.append(word)
            continue
        if "vq3dcli" in words and words[words.index("vq3dcli") - 1] == "-m":
            yield words[words.index("vq3dcli") + 1 :]
        elif words and words[0] == "vq3d":
            yield words[1:]
        else:
            for quoted in words[1:]:
                if quoted.startswith("vq3d "):
                    yield from _calls(quoted)
        if word[0] in "<>":
            return
        words = []


def _block_calls() -> list[Any]:
    return [
        pytest.param(call, id=f"{page.stem}: {' '.join(call)}")
        for page in PAGES
        for block in _blocks(page, "", "sh")
        for line in _lines(block)
        if re.match(r"(\w+=\S+ )*(vq3d|torchrun|sbatch|curl) ", line)
        for call in _calls(line)
    ]


def _inline_calls() -> list[Any]:
    found = {
        text for page in PAGES for text in re.findall(r"`(?:vq3d|[^`\n]*-m vq3dcli) ([a-z][^`]*)`", page.read_text())
    }
    return sorted({" ".join(text.split()) for text in found} - {"shrink"})  # the command that CONTRIBUTING.md makes up


def _parse(call: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse like a shell's call, and run nothing. Returns the command's name and its parameters."""
    command: Any = cli.build_group()
    context, rest = None, call
    while True:
        context = command.make_context("vq3d" if context is None else command.name, list(rest), parent=context)
        command = context.command  # the real one behind a lazy one
        if not isinstance(command, TyperGroup):
            return context.command_path.removeprefix("vq3d "), context.params
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)


@pytest.mark.parametrize("call", _block_calls())
def test_commands_in_blocks_are_taken(call: list[str]) -> None:
    name, given = _parse(call)
    if name in _SCHEMAS and given["recipe"] in recipe_names():
        load_recipe(given["recipe"], _SCHEMAS[name], given["overrides"] or [])
    if name.startswith("recipes "):
        for recipe in (word for word in call[2:] if re.fullmatch(r"[a-z][a-z0-9-]*", word)):
            load_either(recipe)


@pytest.mark.parametrize("text", _inline_calls())
def test_commands_in_sentences_exist_with_their_options(text: str) -> None:
    words = text.split()
    names = {name: module for name, module, _ in cli.COMMANDS}
    command: Any = cli.load_command(words[0], names[words[0]])
    if isinstance(command, TyperGroup):
        for word in (words[1] if len(words) > 1 else "").split("|"):
            assert not re.match(r"[a-z]", word) or word in command.commands
        command = command.commands.get(words[1] if len(words) > 1 else "", command)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.partition("=")[0] for word in words if re.match(r"-[-a-z]", word)}
    assert asked <= known | {"--help", "--debug"}


def test_options_in_sentences_are_those_of_a_command() -> None:
    """Short ones, which mean another thing in each command, are used in a block of the page, but for -o and -q.

    What the commands that a paragraph or table names have not is all of one other that the page names.
    """
    everywhere = {"--help", "--debug", "--offline", "--version", "--toy"}  # of benchmarks/
    of: dict[str, set[str]] = {}
    for name, module, _ in cli.COMMANDS:
        command = cli.load_command(name, module)
        for each in [command, *(command.commands.values() if isinstance(command, TyperGroup) else ())]:
            of.setdefault(name, set()).update(*((*one.opts, *one.secondary_opts) for one in each.params))

    def named(text: str) -> list[set[str]]:
        return [of[name] for name in re.findall(r"(?:(?<=vq3d )|(?<=vq3dcli )|(?<=`))[a-z][\w-]*", text) if name in of]

    for page in PAGES:
        text = page.read_text()
        prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for paragraph in prose.split("\n\n"):
            spans = " ".join(re.findall(r"`(-[^`\n]+)`", paragraph))
            options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", spans)) - everywhere.union(*named(paragraph))
            fitting = [not options - each for each in named(text) or of.values()]
            assert page.stem == "commands" or any(fitting), f"{page.name}: {options}"
        used = {word for block in _blocks(page, "", "sh") for word in block.split()} | {"-o", "-q"}
        for span in re.findall(r"`(-[^`\n]+)`", prose):
            for option in re.findall(r"(?<![\w-])-[a-z]\b", span):
                assert option in used, f"{page.name}: {span}"


def test_nothing_in_shell_blocks_goes_unchecked() -> None:
    """A line is one of ours, which is parsed, or the call of a program that is no part of vq3d."""
    known = re.compile(
        r"(\w+=\S+ )*(vq3d|torchrun|sbatch|curl|pip install|git clone|python (benchmarks|docs|tests)/\S+\.py|make|\$) ?"
    )
    for page in PAGES:
        if page.stem != "commands":  # whole help texts, and all of their examples
            for line in (line for block in _blocks(page, "", "sh") for line in _lines(block)):
                assert known.match(line), f"{page.name}: {line}; formulas and layouts are blocks of `text`"
        assert not re.search(r"^    (vq3d|torchrun) ", page.read_text(), re.MULTILINE) or page.stem == "commands"


def test_there_is_something_to_check() -> None:
    assert len(_block_calls()) > 100
    assert len(_inline_calls()) > 25
    with pytest.raises(typer.TyperException, match="--no-such"):
        _parse(["render", "photo.jpg", "--no-such"])


def test_make_calls_what_there_is() -> None:
    calls = re.findall(r"/bin/vq3d (.+)", (ROOT / "Makefile").read_text())
    assert [_parse(call.split())[0] for call in calls] == ["demo"]


def test_scripts_files_links_and_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = page.read_text()
        for path in re.findall(
            r"\b(?:benchmarks|docs|tests|recipes|vq3dcli|data_tools)/[\w/-]+\.(?:py|md|toml)\b", text
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for script, options in re.findall(r"python ((?:benchmarks|docs)/\w+\.py)([^`\n]*)", text):
            source = (ROOT / script).read_text()
            for option in re.findall(r"(?<=\s)--[a-z-]+", options):
                assert f'"{option}"' in source, f"{page.name}: {script} {option}"
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", text):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                made = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in made, f"{page.name}: {target}#{anchor}"
        for names in re.findall(r"(?:vq3d|\.)\[([a-z,-]+)\]'", text):
            assert set(names.split(",")) <= extras.keys(), f"{page.name}: [{names}]"
        for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_the_map_names_files_and_folders_that_exist() -> None:
    pages = (
        (ROOT / "CONTRIBUTING.md").read_text().split("## A new command")[0],
        (ROOT / "docs" / "method.md").read_text(),
    )
    named = [name for page in pages for name in re.findall(r"`([\w/]+(?:/|\.py))`", page)]
    assert len(named) > 100
    for path in named:
        assert any((ROOT / "vq3dcli").rglob(path.removeprefix("vq3dcli/"))) or (ROOT / path).exists(), path


def test_nothing_cites_a_place_in_a_paper_that_nobody_read() -> None:
    """The full text of VQ3D was not to be had: no section, equation, figure or table of it can be known."""
    place = r"\b(?:sec|section|eq|equation|fig|figure|table|appendix)s?\b\.? ?\(?[0-9A-Z]\b"
    cited = re.compile(
        rf"(?:VQ3D|Sargent|the paper|\(paper)\b[^.;|\n]{{0,60}}(?:\n[# ]*[^.;|\n]{{0,60}})?{place}", re.IGNORECASE
    )
    assert cited.search("the expectation (paper, sec. 3.2)") and cited.search("as in VQ3D (Sargent et al, Section 3)")
    assert not cited.search("another paper. Sorted as in LlamaGen (sec. 3.1)")
    files = [
        file
        for folder in ("vq3dcli", "data_tools", "docs", "recipes", "benchmarks")
        for file in (ROOT / folder).rglob("*")
    ]
    for file in [*files, *PAGES, ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]:
        if file.suffix in (".py", ".md", ".toml", ".cff"):
            found = cited.search(file.read_text())
            assert found is None, f"{file.relative_to(ROOT)}: {found[0] if found else ''}"
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.toml")]:
        assert "the paper's" not in page.read_text(), page.name


def test_python_in_pages_compiles() -> None:
    for page in PAGES:
        for block in _blocks(page, "python"):
            ast.parse(block.replace('    ("', '("') if block.lstrip().startswith("(") else block, filename=page.name)


def test_library_snippets_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's on a photo, then those of saved scenes and of compositions; only the videos are small and short here."""
    data = pytest.importorskip("skimage.data")
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "room"):
        write_bytes(Path(f"{name}.jpg"), encode_png(torch.from_numpy(data.chelsea()).permute(2, 0, 1)))
    Path("room_composed.toml").write_text(
        'format_version = 1\nscene = "room.jpg"\n[[delete]]\nbox = [0.6, 0.1, 0.9, 0.5]\n'
    )
    small = {
        r'\("(\w+)", \d+, height_px=128, width_px=128\)': r'("\1", 2, height_px=24, width_px=24)',
        "samples=64": "samples=8",
        r"frames=\d+": "frames=2, size=24",
    }
    names: dict[str, Any] = {}

    def run(block: str) -> None:
        for pattern, replacement in small.items():
            block = re.sub(pattern, replacement, block)
        exec(block, names)

    (readme,) = _blocks(ROOT / "README.md", "python")
    run(readme)
    assert Path("orbit_disparity.mp4").exists()
    assert (names["view"].image.size, names["view"].disparity.shape) == ((451, 300), (300, 451))
    names["scene"].save("photo_orbit.vq3d.safetensors")
    (rendering,) = _blocks(ROOT / "docs" / "rendering.md", "python")
    run(rendering)
    assert Path("swing.mp4").exists()
    assert Path("a.vq3d.safetensors").exists()
    (editing,) = _blocks(ROOT / "docs" / "editing.md", "python")
    run(editing)
    assert names["view"].rgb.shape == (2, 3, 24, 24)


def test_hours_and_money_of_imagenet_are_those_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "imagenet.md").read_text()
    told = re.findall(r"([\d.]+) hours, \$([\d,]+) \| ([\d.]+) hours, \$([\d,]+)", page)
    rows = [(float(hours), int(money.replace(",", ""))) for row in told for hours, money in (row[:2], row[2:])]
    plans = [call[1:] for line in _lines(page) if "--dry-run" in line and (call := shlex.split(line))[0] == "vq3d"]
    plans.sort(key=lambda call: call[0])  # stage 1 on 8, on 64, then stage 2
    assert len(rows) == len(plans) == 4
    for (hours, money), call in zip(rows, plans, strict=True):
        assert money == pytest.approx(2.5 * hours * int(call[call.index("--gpus") + 1]), rel=0.02), call
        if call[0] == "train-stage2":  # those of Stage 1 take five seconds each
            assert cli.run([*call, "--json", "--quiet"]) == 0
            assert hours == pytest.approx(24 * json.loads(capsys.readouterr().out)["metrics"]["days"], rel=0.02), call


def test_files_in_pages_are_read(tmp_path: Path) -> None:
    (composition,) = _blocks(ROOT / "docs" / "editing.md", "toml")
    (tmp_path / "a.toml").write_text(composition)
    assert len(read_composition(tmp_path / "a.toml").insert) == 2
    (cameras,) = _blocks(ROOT / "docs" / "rendering.md", "json")
    (tmp_path / "a.json").write_text(cameras)
    assert len(read_cameras(tmp_path / "a.json")) == 3


def test_the_tests_that_hold_promises_exist() -> None:
    """Each promise has one; a name without its file is of the file before it."""
    text, named = (ROOT / "docs/reliability.md").read_text(), r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`"
    _, *promises = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert all(re.search(named, held_by) for _, _, held_by, _ in promises) and len(promises) > 15
    file = Path()
    for path, name in re.findall(named, text):
        file = ROOT / path if path else file
        functions = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file.name}::{name}"
