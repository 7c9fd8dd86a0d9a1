"""`vq3d prepare-data` and `vq3d depth-labels`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.commands.output import pick_device
from vq3dcli.errors import UsageError


def test_from_nothing_to_labelled_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "toy")
    assert run(["prepare-data", "toyscenes", out, "--count", "6", "--size", "16", "--seed", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["command"], result["count"], result["seed"]) == ("prepare-data", 6, 2)
    assert result["metrics"]["rejects"] == 0
    assert result["outputs"] == [out]
    assert run(["depth-labels", out, "--model", "exact", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["command"], result["metrics"]["labels"]) == ("depth-labels", 6)
    assert (tmp_path / "toy" / "disparity" / "exact" / "manifest.json").is_file()


def test_from_a_folder_of_models_to_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "models").mkdir()
    red = "v {} 255 0 0\n"
    corners = "".join(red.format(f"{x} {y} {z}") for x in (0, 1) for y in (0, 1) for z in (0, 1))
    (tmp_path / "models" / "slab.obj").write_text(corners + "f 1 3 4 2\nf 5 6 8 7\nf 1 5 7 3\n")
    call = [
        "prepare-data",
        "meshscenes",
        str(tmp_path / "models"),
        str(tmp_path / "out"),
        "--count",
        "3",
        "--size",
        "16",
    ]
    assert run([*call, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["models"] == 1
    assert not (tmp_path / "out").exists()
    assert run([*call, "--views", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["samples"] == 3
    assert run(["inspect", str(tmp_path / "out"), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["views"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["meshscenes", "OUT", "--count", "4"], 2),
        (["meshscenes", "SRC", "OUT"], 2),
        (["meshscenes", "SRC", "OUT", "--count", "4", "--dedup"], 2),
        (["meshscenes", "SRC", "OUT", "--count", "4"], 66),
        (["meshscenes", "SRC/none", "OUT", "--count", "4"], 66),
        (["SRC", "SRC", "OUT"], 2),
        (["SRC", "SRC", "--out", "OUT"], 2),
        (["SRC"], 2),
        ([], 2),
        (["SRC", "OUT", "--views", "1"], 2),
        (["toyscenes", "OUT"], 2),
        (["toyscenes", "OUT", "--count", "4", "--margin", "1.1"], 2),
        (["SRC", "OUT", "--count", "4"], 2),
        (["toyscenes", "OUT", "--count", "4", "--max-bad", "0.2"], 2),
        (["toyscenes", "OUT", "--count", "4", "--preset", "imagenet"], 2),
        (["SRC", "OUT", "--seed", "1"], 2),
        (["toyscenes", "OUT", "--count", "4", "--photos", "SRC"], 2),
        (["toyscenes", "OUT", "--count", "4", "--varied", "--photos", "SRC"], 65),
        (["toyscenes", "OUT", "--count", "4", "--varied", "--photos", "SRC/none"], 66),
        (["SRC", "OUT", "--varied"], 2),
        (["SRC", "OUT", "--class-by", "make"], 2),
        (["SRC", "OUT", "--devkit", "SRC"], 2),
        (["SRC", "OUT", "--preset", "imagenet", "--classes", "none"], 2),
        (["SRC/none", "OUT"], 66),
        (["SRC", "OUT"], 65),
        (["SRC", "SRC/text.jpg"], 73),
        (["./toyscenes", "OUT"], 66),
    ],
)
def test_errors_are_one_line_with_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "text.jpg").write_text("text")
    names = [a.replace("SRC", str(tmp_path / "src")).replace("OUT", str(tmp_path / "out")) for a in arguments]
    assert run(["prepare-data", *names, "--quiet"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert ("OUT, the folder for the shards, is missing" in captured.err) == (arguments == ["SRC"])


def test_labels_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for option in (["--size", "64"], ["--download"], ["--predicts", "depth"], ["--device", "cpu"], ["--part", "1/2"]):
        assert run(["depth-labels", str(tmp_path), "--model", "exact", *option]) == 2
        assert f"{option[0]} is for networks" in capsys.readouterr().err
    assert run(["depth-labels", str(tmp_path), "--model", "dpt"]) == 69
    assert run(["depth-labels", str(tmp_path), "--model", "exact"]) == 66
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize(
    ("environment", "gpus", "expected"),
    [
        ({}, 8, 0),
        ({"LOCAL_RANK": "3"}, 8, 3),
        ({"SLURM_LOCALID": "3"}, 8, 3),
        ({"SLURM_LOCALID": "3"}, 1, 0),  # SLURM shows each task the GPU that is its own
        ({"SLURM_LOCALID": "3", "LOCAL_RANK": "1"}, 8, 1),
    ],
)
def test_processes_of_a_machine_take_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], gpus: int, expected: int
):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device("auto") == torch.device("cuda", expected)
    monkeypatch.setenv("LOCAL_RANK", "abc")
    with pytest.raises(UsageError, match="LOCAL_RANK"):
        pick_device("auto")
