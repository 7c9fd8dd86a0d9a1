"""What doctor finds and names, and that it knows every extra."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from vq3dcli import cli
from vq3dcli.pipelines.doctor import PACKAGES, check_triton

ROOT = Path(__file__).resolve().parents[2]


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], list[str]]:
    """Exit code, parts and warnings."""
    code = cli.run(["doctor", "--json"])
    said = json.loads(capsys.readouterr().out)
    return code, said["metrics"], said["warnings"]


def test_doctor_finds_what_is_there_and_names_what_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, parts, warnings = doctor(capsys)
    needed = ("python", "torch", "memory", "disk", "ffmpeg", "weights", "numpy", "pydantic", "safetensors")
    assert code == 0 and {parts[name]["status"] for name in needed} <= {"ok", "low"}
    assert parts["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert parts["torch"]["detail"].startswith(torch.__version__)
    for name in ("weights", "prior", "depth network"):
        embedded = Path(parts[name]["path"]).read_bytes()
        assert (parts[name]["bytes"], parts[name]["sha256"]) == (len(embedded), sha256(embedded).hexdigest())
    assert {line.partition(" is ")[0] for line in warnings} == {n for n, p in parts.items() if p["status"] != "ok"}

    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    monkeypatch.setitem(sys.modules, "lpips", None)
    code, parts, warnings = doctor(capsys)
    assert (code, parts["ffmpeg"]["status"], parts["numpy"]["status"]) == (69, "broken", "ok")
    assert parts["lpips"]["status"] != "ok" and any("vq3d[perceptual]" in line for line in warnings)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    assert doctor(capsys)[0] == 0  # a metric is no must


def test_doctor_says_what_a_gpu_lacks_to_render_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_triton() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = check_triton()
    assert found is not None and (found.status, found.required) == ("missing", False)


def test_extras_that_messages_name_are_there_and_doctor_knows_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = lambda lines: {re.split(r"[<>=;\[ ]", line)[0] for line in lines}  # noqa: E731
    known = {extra: {package[1] for package in PACKAGES if package[3] == extra} for extra in [*extras, None]}
    checked = {package[1] for package in PACKAGES}
    assert known[None] <= names(project["dependencies"]) | {"tomli-w"}
    for extra in extras.keys() - {"test", "docs", "all"}:
        assert known[extra] <= names(extras[extra]) <= checked, extra
    (everything,) = extras["all"]
    assert set(everything.removeprefix("vq3d[").rstrip("]").split(",")) == extras.keys() - {"test", "docs", "all"}
    for folder in ("vq3d", "vq3dcli", "docs"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".md"):
                named = {
                    name for group in re.findall(r"vq3d\[([\w,-]+)\]", path.read_text()) for name in group.split(",")
                }
                assert named <= extras.keys(), path
