"""What commands write, and what they leave alone: inputs, files of others, links, devices and pipes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe

# With depths: what an untrained field shows stands out of nothing.
BOX = "0.1,0.1,0.6,0.6,1.4,50"
FAST = ["--frames", "2", "--size", "16", "--samples", "4", "--device", "cpu"]
# In pictures of noise there is something for a random NeRF to delete, and nothing for a depth network.
NERF = ["--geometry", "nerf"]


@pytest.fixture
def weights(tiny_weights: Path) -> list[str]:
    return ["--weights", str(tiny_weights)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with six photos that are named as frames are."""
    monkeypatch.chdir(tmp_path)
    for number in range(1, 7):
        Image.effect_noise((24, 24), 20.0 * number).save(f"frame_{number:05d}.png")
    return tmp_path


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but the lock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str], str], tuple[int, str]]]:
    """Run a command in a terminal where something is typed: its exit code, and what the terminal shows."""
    terminal, screen = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(os.dup(screen)) as stdin, os.fdopen(screen, "w") as stderr:

        def call(command: list[str], typed: str) -> tuple[int, str]:
            monkeypatch.setattr("sys.stdin", stdin)
            monkeypatch.setattr("sys.stderr", stderr)
            os.write(terminal, f"{typed}\n".encode())
            code = run(command)
            print("the end", file=stderr, flush=True)
            said = b""
            while b"the end" not in said:
                said += os.read(terminal, 1 << 16)
            return code, said.decode()

        yield call
    os.close(terminal)


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("y", False), ("", True)])
def test_a_terminal_asks_before_it_replaces(
    folder: Path, weights: list[str], answer: str, stays: bool, in_terminal: Callable[[list[str], str], tuple[int, str]]
) -> None:
    """And -q is not asked."""
    render = ["render", "frame_00001.png", *weights, "--yaw", "0", "--size", "16", "--device", "cpu", "-o", "a.png"]
    Path("a.png").write_text("mine")
    code, said = in_terminal(render, answer)
    assert code == (73 if stays else 0)
    assert "replace a.png? [y/N]" in said
    assert ("error: there is a.png already; try: another name with -o" in said) == stays
    assert (Path("a.png").read_bytes() == b"mine") == stays
    assert run([*render, "-q"]) == 0
    assert Path("a.png").read_bytes() != b"mine"


def test_sheets_previews_and_the_demo_ask_before_they_replace(
    folder: Path, weights: list[str], in_terminal: Callable[[list[str], str], tuple[int, str]]
) -> None:
    """And a sheet never takes the place of what is no picture."""
    assert run(["prepare-data", "toyscenes", "--out", "shards", "--count", "2", "--size", "16", "-q"]) == 0
    os.mkdir("shown")
    Path("frame_00002.png").rename("shown/cat.png")  # the demo's photo, were it not there, is fetched
    Path("frame_00003.png").rename("shown/cat_orbit.png")
    commands = {
        "frame_00001.png": ["inspect", "shards", "--sheet", "frame_00001.png"],
        "frame_00004.png": ["depth-labels", "shards", "--model", "exact", "--preview", "frame_00004.png"],
        "shown/cat_orbit.png": ["demo", *weights, "--device", "cpu", "-o", "shown"],
    }
    for name, command in commands.items():
        before = Path(name).read_bytes()
        code, said = in_terminal(command, "n")
        assert code == 73 and f"replace {name}? [y/N]" in said
        assert Path(name).read_bytes() == before
    for command in (commands["frame_00001.png"], commands["frame_00004.png"]):
        assert run([*command[:-1], "shards/shard-000000.tar"]) == 2
        assert in_terminal(command, "y")[0] == 0
        with Image.open(command[-1]) as sheet:
            assert sheet.size != (24, 24)


@pytest.mark.parametrize(
    "command",
    [
        ["render", "frame_00001.png", "-o", "taken.mp4", *FAST],
        ["render", "frame_00001.png", "frame_00002.png", "-o", "taken.mp4", "--format", "gif", *FAST],
        ["export", "frame_00001.png", "-o", "taken.html"],
    ],
)
def test_a_folder_called_like_a_file_gets_nothing_unasked(
    folder: Path, weights: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = command[command.index("-o") + 1]
    os.mkdir(name)
    before = hashes(folder)
    assert run([*command, *weights, "-q"]) == 73
    assert f"cannot create output ({name}): it is a folder; try: another name, or {name}/" in capsys.readouterr().err
    assert hashes(folder) == before and not os.listdir(name)


def test_what_was_made_is_opened(folder: Path, weights: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "xdg-open"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$1" > opened\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert run(["render", "frame_00001.png", *weights, *FAST, "-o", "a.gif", "--open", "-q"]) == 0
    for _ in range(100):
        if Path("opened").exists() and Path("opened").read_text():
            break
        time.sleep(0.05)
    assert Path("opened").read_text() == "a.gif\n"


@pytest.mark.parametrize(
    "command",
    [
        ["render", "frame_00001.png", "-o", "."],
        ["interpolate", "frame_00005.png", "frame_00006.png", "-o", "./"],
        ["compose", "frame_00003.png", "--delete", "0.1,0.1,0.9,0.9", "-o", "./"],
    ],
)
def test_no_frames_in_the_place_of_the_inputs(folder: Path, weights: list[str], command: list[str]) -> None:
    before = hashes(folder)
    assert run([*command, *weights, *FAST]) == 2
    assert hashes(folder) == before


def test_frames_of_others_stay_and_own_ones_are_replaced(
    folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(folder)
    os.mkdir("in")
    Image.effect_noise((24, 24), 60.0).save("in/a.png")
    assert run(["render", "in/a.png", "-o", "./", *weights, *FAST]) == 73
    assert "vq3d did not make" in capsys.readouterr().err
    assert hashes(folder) == before
    for frames in ("5", "2"):
        assert run(["render", "in/a.png", "-o", "out/", *weights, *FAST, "--frames", frames]) == 0
        assert len(list(Path("out").glob("frame_*.png"))) == int(frames)
    assert "replaces out/frame_00000.png and 5 more" in capsys.readouterr().err
    # A frame of ours is a photo like others, and stays, too.
    before = hashes(folder / "out")
    assert run(["render", "out/frame_00001.png", "-o", "out/", *weights, *FAST]) == 2
    assert hashes(folder / "out") == before


def test_layers_do_not_overwrite_their_photo_or_those_of_others(folder: Path, weights: list[str]) -> None:
    options = [*weights, "--size", "16", "--layers", "3", "--samples", "6", "--format", "mpi", "-q"]
    Path("frame_00001.png").rename("layer_00.png")
    before = hashes(folder)
    assert run(["export", "layer_00.png", *options, "-o", "."]) == 2
    assert run(["export", "frame_00002.png", *options, "-o", "."]) == 73
    assert hashes(folder) == before
    for _ in range(2):
        assert run(["export", "frame_00002.png", *options, "-o", "layers"]) == 0


def test_a_hand_written_composition_stays(folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compose", "frame_00001.png", "--delete", BOX, "--camera", "still", *weights, *FAST, *NERF]
    Path("room.toml").write_text("# mine\nscene = 'frame_00001.png'\n")
    assert run([*command, "-o", "room.png"]) == 73
    assert Path("room.toml").read_text().startswith("# mine")
    assert not Path("room.png").exists()
    for _ in range(2):
        assert run([*command, "-o", "other.png"]) == 0
    assert "replaces other.png and 1 more" in capsys.readouterr().err
    # Nor is one that was edited since, in the way that its second line tells.
    lines = Path("other.toml").read_text().splitlines(keepends=True)
    Path("other.toml").write_text("".join([lines[0], *lines[2:], "# edited\n"]))
    assert run([*command, "-o", "other.png"]) == 73
    # Nor is a mesh, a second photo or the file itself replaced by what is made of it.
    assert run(["export", "room.toml", "-o", "room.toml", "--format", "glb", *weights]) == 2
    assert run(["compose", "room.toml", "-o", "frame_00001.png", *weights, *FAST]) == 2


def test_a_composition_beside_a_link_names_its_photo(folder: Path, weights: list[str]) -> None:
    os.makedirs("disk/deep/videos")
    os.symlink("disk/deep/videos", "out")
    os.symlink("frame_00001.png", "linked.png")
    command = ["compose", "linked.png", "--delete", BOX, "--camera", "still", *weights, *FAST, *NERF]
    assert run([*command, "-o", "out/a.png"]) == 0
    assert run(["compose", "out/a.toml", "-o", "again.png", *weights, *FAST, *NERF]) == 0
    assert "../../../linked.png" in Path("out/a.toml").read_text()


def test_a_composition_may_begin_with_a_byte_order_mark_and_name_a_home(
    folder: Path, weights: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    deleted = "[[delete]]\nbox = [0.1, 0.1, 0.6, 0.6]\nz_range = [1.4, 50]\n"
    text = f"format_version = 1\nscene = '~/frame_00001.png'\n{deleted}"
    os.mkdir("below")
    Path("below/a.toml").write_text(text, encoding="utf-8-sig")
    assert run(["compose", "below/a.toml", "-o", "a.png", *weights, *FAST, *NERF]) == 0
    Path("below/a.toml").write_text("a = " + "[" * 10_000)
    assert run(["compose", "below/a.toml", "-o", "a.png", *weights, *FAST]) == 65


def test_devices_and_pipes_are_no_files(folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    special = ["pipe"]
    if os.geteuid() == 0:
        try:
            os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            special.append("null")
        except PermissionError:
            pass  # a container may forbid device nodes even to root
    for name in special:
        before = os.stat(name)
        for command in (
            ["render", "frame_00001.png", "--format", "mp4", *weights, *FAST, "-o", name],
            ["export", "frame_00001.png", "--format", "ply", *weights, "-o", f"{name}.ply"],
            ["recipes", "copy", "toy-cpu", name, "--force"],
        ):
            if command[0] == "export":
                os.symlink(name, f"{name}.ply")
            assert run(command) == 73
            assert "a device or pipe has that name" in capsys.readouterr().err
        after = os.stat(name)
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_link_stays_and_its_target_gets_the_bytes(folder: Path, weights: list[str]) -> None:
    os.mkdir("big")
    Path("big/target.mp4").write_bytes(b"old")
    os.symlink("big/target.mp4", "link.mp4")
    os.symlink("big/none.json", "link_cameras.json")
    assert run(["render", "frame_00001.png", "-o", "link.mp4", *weights, *FAST]) == 0
    assert Path("link.mp4").is_symlink()
    assert b"ftyp" in Path("big/target.mp4").read_bytes()[:16]
    assert json.loads(Path("big/none.json").read_bytes())["cameras"]
    # Nor may a link lead back to the photo.
    os.symlink("frame_00002.png", "link.png")
    before = hashes(folder)["frame_00002.png"]
    assert run(["render", "frame_00002.png", "-o", "link.png", *weights, *FAST]) == 2
    assert hashes(folder)["frame_00002.png"] == before


def test_long_names(folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a" * 246, "b" * 240, "\N{CAT FACE}" * 60]
    for name in names:
        Image.effect_noise((24, 24), 60.0).save(f"{name}.png")
        command = ["render", f"{name}.png", *weights, *FAST, "--disparity", "--save-scene"]
        assert run([*command, "--json"]) == 0
        outputs = json.loads(capsys.readouterr().out)["outputs"]
        assert len(outputs) == 4
        assert all(Path(output).is_file() for output in outputs)
    Path("h" * 245 + ".toml").write_text("format_version = 1\nscene = 'frame_00001.png'")
    assert run(["compose", "h" * 245 + ".toml", *weights, *FAST]) == 0
    assert run(["export", "h" * 245 + ".toml", "--format", "npz", "--size", "16", *weights]) == 0
    # A name of the user's is refused before the work, also for what will lie beside it.
    for stem in ("c" * 300, "d" * 248, "e" * 243):
        assert run(["render", "frame_00001.png", "-o", f"{stem}.mp4", *weights, *FAST]) == 73
        error = capsys.readouterr().err
        assert "File name too long" in error
        assert "; try: a shorter name" in error
        assert not list(folder.glob("[cde]*.mp4"))
    assert run(["render", "g" * 300, *weights, *FAST]) == 66
    assert run(["render", "frame_00001.png", "-o", "f." + "x" * 200, "--format", "gif", *weights, *FAST]) == 0


def test_a_folder_of_another_kind_is_refused(
    folder: Path, weights: list[str], tiny_recipe: Callable[..., Stage1Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.toml").write_text(dump_recipe(tiny_recipe("loss.depth=0.0", "loss.depth_kind=none")))
    commands = {
        "shards": ["prepare-data", "toyscenes", "OUT", "--count", "8", "--size", "16"],
        "tokens": ["tokenize", "--data", "shards", *weights, "--out", "OUT", "--crops", "1", "--device", "cpu"],
        "run": ["train-stage1", "tiny.toml", "--data", "shards", "--out", "OUT", "--labels", "none", "--device", "cpu"],
    }
    for name in ("shards", "tokens"):
        assert run([name if part == "OUT" else part for part in commands[name]]) == 0
    for name, marker in (("run", "run.json"), ("samples", "samples.json")):
        os.mkdir(name)
        Path(name, marker).write_text("{}")
    capsys.readouterr()
    for made in ("shards", "tokens", "run", "samples"):
        before = hashes(folder / made)
        for name, command in commands.items():
            if name != made:
                assert run([made if part == "OUT" else part for part in command]) == 2
                error = capsys.readouterr().err.splitlines()[-1]
                assert error.startswith(("error: the folder holds", "error: holds something else"))
                assert hashes(folder / made) == before
    # Nor does a run replace the recipe that it is made from.
    os.mkdir("mine")
    Path("tiny.toml").rename("mine/recipe.toml")
    before = hashes(folder / "mine")
    assert run(["train-stage1", "mine/recipe.toml", "--data", "shards", "--out", "mine", "--labels", "none"]) == 2
    assert "would replace a recipe" in capsys.readouterr().err
    assert hashes(folder / "mine") == before


def test_a_sheet_of_figures_does_not_replace_a_picture(
    folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("frame_00001.png").rename("reconstruction.png")
    Path("frame_00002.png").rename("geometry.png")
    before = hashes(folder)
    options = ["--count", "2", "--device", "cpu", *weights, "-q", "-o"]
    reconstruction = ["evaluate", "reconstruction", "--features", "none", "--lpips", "none", *options]
    for command in (reconstruction, ["evaluate", "geometry", *options]):
        assert run([*command, "."]) == 73
        assert "vq3d did not make" in capsys.readouterr().err
    assert hashes(folder) == before
    for _ in range(2):
        assert run([*reconstruction, "figures"]) == 0
