"""Every number of every command has a range: what is absurd is refused in one line, before any work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from vq3dcli import cli

# What a command needs besides, so that nothing but the number is wrong.
_NEEDED = {
    "prepare-data": ("toyscenes", "toys", "--count", "1"),
    "depth-labels": ("shards", "--model", "exact"),
    "train-stage1": ("toy-cpu", "--dry-run", "--device-name", "h100"),
    "train-stage2": ("toy-cpu-prior", "--dry-run", "--device-name", "h100"),
    "tokenize": ("--data", "shards", "--out", "tokens"),
    "render": ("toyscene:sphere",),
    "export": ("toyscene:sphere",),
    "view": ("toyscene:sphere",),
    "interpolate": ("toyscene:sphere", "toyscene:cube", "--camera", "orbit"),
    "compose": ("toyscene:sphere",),
    "evaluate ablation": ("--out", "figures"),
}
# Formats that have these numbers.
_EXPORTS = {"--views": "npz", "--max-depth": "ply"}
# Numbers that are read from text, with a text around them.
_TEXTS = (
    ("compose", "--distance", "--insert a.glb --distance {}"),
    ("compose", "--scale", "--insert a.glb --scale {}"),
    ("compose", "--rotate", "--insert a.glb --rotate {}"),
    ("compose", "--at", "--insert a.glb --at {},0.5"),
    ("compose", "--delete", "--delete 0,0,{},1"),
    ("compose", "--box", "--insert toyscene:cube --box 0,0,1,1,{},2"),
    ("compose", "--move", "--move 0,0,1,1={},0"),
    ("interpolate", "seed", "toyscene:cube:{}"),
    ("sample", "--class", "--class {}"),
    ("prepare-data", "--part", "--part 1/{}"),
    ("tokenize", "--part", "--part {}/8"),
    ("train-stage1", "--share", "--data shards --share {}"),
    ("evaluate ablation", "--seeds", "--seeds {}"),
    ("evaluate generation", "--yaws", "--yaws {}"),
    ("train-stage1", "--set", "--set training.batch_size={}"),
    ("train-stage2", "--set", "--set model.layers={}"),
)
_ABSURD = {int: (str(2**63), str(-(2**63)), "9" * 400), float: ("1e308", "-1e308", "nan", "inf", "1e999")}


def _numbers() -> Iterator[tuple[str, str, type]]:
    """Command, option and type of every number."""
    for name, module, _ in cli.COMMANDS:
        command = cli.load_command(name, module)
        inner = command.commands if isinstance(command, TyperGroup) else {}
        for words, what in [(name, command), *((f"{name} {word}", inner[word]) for word in inner)]:
            for parameter in what.params:
                described: Any = getattr(parameter, "type_descriptor", None)
                if described is not None and described.annotation in (int, float):
                    yield words, parameter.opts[-1], described.annotation


@pytest.mark.parametrize(("words", "option", "number"), [*_numbers()])
def test_absurd_numbers_are_refused_at_once(
    words: str, option: str, number: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = [*_NEEDED.get(words, ())]
    if words == "export":
        needed += ["--format", _EXPORTS.get(option, "viewer")]
    for value in _ABSURD[number]:
        code = cli.run([*words.split(), *needed, option, value])
        error = capfd.readouterr().err
        assert code == 2, f"{value}: {error}"
        assert re.fullmatch(r"error: [^\n]*\n", error), error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("words", "option", "text"), _TEXTS)
def test_absurd_numbers_in_texts_are_refused_at_once(
    words: str, option: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (*_ABSURD[int], *_ABSURD[float]):
        code = cli.run([*words.split(), *_NEEDED.get(words, ()), *text.format(value).split()])
        error = capfd.readouterr().err
        assert code in (2, 65, 66, 78), f"{value}: {error}"
        assert re.fullmatch(r"error: [^\n]*\n", error), error
    assert not [*tmp_path.iterdir()]
