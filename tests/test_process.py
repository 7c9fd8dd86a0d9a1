"""The command line as a process of its own: pipes, closed streams, terminals, signals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VQ3D = (sys.executable, "-m", "vq3dcli")


# --- pipes and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--json"], ["--version"]])
def test_a_reader_that_went_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([*VQ3D, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ended.returncode == 141
    assert "Error" not in ended.stderr
    assert "error" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*VQ3D, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 74
    assert ended.stderr.startswith("error: cannot read or write: No space left on device")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    for arguments, code in (("--help", 0), ("rendr --json", 2)):
        line = f'"{sys.executable}" -m vq3dcli {arguments} {closed}'
        ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr


PROGRESS = """
import time
from vq3dcli.commands import output
out = output.Output("probe", False, False)
with out.progress("working", "images") as progress:
    progress(0, 3)
    for number in range(3):
        time.sleep(0.15)
        progress(number + 1, 3, "loss 0.5")
        out.note("a note")
out.finish(metrics={"psnr": 22.5}, outputs=["a.mp4"])
"""


def in_terminal(code: str, **environment: str) -> str:
    """What `python -c CODE` writes when stdin, stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | environment,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(leader)
    assert process.wait(60) == 0, written
    return written.decode()


def test_a_terminal_gets_a_bar_and_a_plain_one_gets_none() -> None:
    bar = in_terminal(PROGRESS, TERM="xterm-256color")
    assert "\x1b[" in bar
    assert "3/3 images (100 %)" in bar
    for environment in ({"TERM": "dumb"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}):
        plain = in_terminal(PROGRESS, **environment)
        assert "\x1b" not in plain
        assert plain.split() == ["a", "note"] * 3 + ["psnr", "22.5", "a.mp4"]
    assert "\x1b" not in in_terminal("from vq3dcli.__main__ import main; main()", TERM="dumb")


# --- signals ---------------------------------------------------------------------------------------------------------

SLEEPER = """
import sys, time, types
from pathlib import Path
from vq3dcli import __main__, cli, files, signals
def command(target: str):
    if target == "flag":
        signals.watch()
        signals.stop_requested()
        print("ready", flush=True)
        while not signals.stop_requested():
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(30)
    with files.atomic_path(Path(target)) as temporary:
        temporary.write_bytes(b"half")
        print("ready", flush=True)
        for _ in range(3000):  # Python sees a signal that comes just before a sleep only after it
            time.sleep(0.01)
module = types.ModuleType("probe")
module.command = command
sys.modules["vq3dcli.commands.probe"] = module
cli.COMMANDS = (("probe", "probe", "For tests."),)
sys.exit(__main__.main())
"""


def hear_interrupts() -> None:
    """A test run in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_sleeper(target: str, ignored: int | None = None) -> subprocess.Popen[str]:
    def prepare() -> None:
        hear_interrupts()
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "probe", target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "later_s", "code", "line"),
    [
        (signal.SIGINT, 0.0, 130, "interrupted\n"),
        (signal.SIGINT, 1.0, 130, "interrupted\n"),
        (signal.SIGTERM, 0.5, 75, "error: stopped before the first step; try: the same command again\n"),
    ],
)
def test_a_signal_while_training_starts_ends_it_in_one_line(number: int, later_s: float, code: int, line: str) -> None:
    words = [*VQ3D, "train-stage1", "toy-cpu", "--dry-run"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    while not handles(process.pid, signal.SIGTERM if later_s == 0 else signal.SIGUSR1) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(later_s)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    if out:  # it was faster than we
        return
    assert (process.returncode, err) == (code, line)


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_the_soft_limit_of_open_files_is_raised() -> None:
    code = "import resource; from vq3dcli.__main__ import main; main(); print(*resource.getrlimit(7))"
    line = f'ulimit -Sn 128; "{sys.executable}" -c "{code.replace("7", "resource.RLIMIT_NOFILE")}" --version'
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100)
    soft, hard = map(int, ended.stdout.split()[-2:])
    assert soft == (10240 if hard < 0 else min(hard, 10240))


def test_nohup_is_heard(tmp_path: Path) -> None:
    process = start_sleeper(str(tmp_path / "out.bin"), ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_data_for_a_closed_stdout_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    line = f'"{sys.executable}" -m vq3dcli render "{tmp_path}/a.jpg" -o - --format mp4 >&-'
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (69, "error: stdout is closed; try: a file name with -o\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_cleans_up(tmp_path: Path, number: int) -> None:
    process = start_sleeper(str(tmp_path / "out.bin"))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert not os.listdir(tmp_path)


def test_training_sees_the_first_sigterm_and_the_second_ends_it() -> None:
    process = start_sleeper("flag")
    assert process.stdout is not None
    process.terminate()
    assert process.stdout.readline() == "asked\n"
    start = time.monotonic()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - start < 10
