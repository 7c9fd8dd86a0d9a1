"""Names of files that are not UTF-8: what is written about them is read as the same name again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from vq3dcli.checkpoint import Parts
from vq3dcli.cli import run
from vq3dcli.data_tools.shard_writer import compact_json, json_bytes
from vq3dcli.export.page import Section, paragraph, write_page
from vq3dcli.files import write_json
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.tensor_file import read_tensors, save_tensors, write_tensors

NAME = os.fsdecode(b"ord\xe9r")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / NAME
    folder.mkdir()
    return folder


def test_json_gives_the_name_back(folder: Path) -> None:
    value = {"input": str(folder), "umlaut": "\u00fc"}
    write_json(folder / "a.json", value)
    assert json.loads((folder / "a.json").read_bytes()) == value
    write_sealed_json(folder / "b.json", value)
    assert read_sealed_json(folder / "b.json", what="record", remedy="") == value
    assert json.loads(json_bytes(value)) == json.loads(compact_json(value)) == value
    assert Path(json.loads((folder / "a.json").read_bytes())["input"]).is_dir()


def test_pages_show_the_name(folder: Path) -> None:
    write_page(folder / "report.html", f"run {NAME}", f"in {folder}", [Section("data", [paragraph(NAME)])])
    assert r"ord\udce9r" in (folder / "report.html").read_text(encoding="utf-8")


def test_tensors_in_such_a_folder(folder: Path) -> None:
    tensors = {"a": torch.arange(5.0)}
    path = folder / f"{NAME}.vq3d.safetensors"
    write_tensors(path, tensors, {"input": NAME})
    found = read_tensors(path, what="scene")
    assert torch.equal(found.tensors["a"], tensors["a"])
    assert found.header == {"input": NAME}
    save_tensors(folder / "plain.safetensors", tensors)
    assert torch.equal(Parts({"weights": folder / "plain.safetensors"})["weights"]["a"], tensors["a"])


def test_compositions_hold_names_that_are_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compose", str(folder / "a.jpg"), "--delete", "0.1,0.1,0.3,0.3", "-o", str(folder / "a.png")]) == 2
    assert "a composition holds only names that are text" in capsys.readouterr().err


def test_recipes_hold_names_that_are_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "toy-cpu",
        "--data",
        str(folder),
        "--out",
        str(folder / "run"),
        "--init",
        str(folder / "w.safetensors"),
    ]
    assert run(["train-stage1", *arguments]) == 78
    assert "training.init" in (said := capsys.readouterr().err) and "names that are text" in said
    assert not (folder / "run").exists()
