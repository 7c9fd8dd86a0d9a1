"""`vq3d view`: it serves until it is interrupted, and refuses bad options."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vq3dcli.cli import run


def test_the_command_serves_until_it_is_interrupted(tiny_weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vq3dcli", "view", "toyscene:snowman", "--weights", str(tiny_weights), "--json"]
    process = subprocess.Popen(
        [*command, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # In the background of a shell it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    with urllib.request.urlopen(told["metrics"]["url"], timeout=60) as answer:
        assert "toyscene-snowman" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--amplitude", "70"], 2, "--amplitude"),
        (["--size", "8"], 2, "--size"),
        (["--port", "-1"], 2, "--port"),
        (["--geometry", "nerf"], 2, "--detail photo"),
        (["-o", "-"], 2, "writes files"),
    ],
)
def test_bad_options_are_told(
    options: list[str], code: int, said: str, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["view", "toyscene:cone", "--weights", str(tiny_weights), *options]) == code
    assert said in capsys.readouterr().err
