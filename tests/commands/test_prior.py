"""`vq3d train-stage2`, what `vq3d sample` draws of it, and `vq3d classes`, with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vq3dcli.cli import run
from vq3dcli.data.token_store import TokenStore
from vq3dcli.weights_file import load_weights

TINY = [
    "training.held_out=0.3",
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "training.images=16",
    "training.batch_size=8",
]


def test_train_then_sample(
    write_store: Callable[..., TokenStore], tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "tokens", stage1_sha256=load_weights(tiny_weights).sha256)
    train = ["train-stage2", "toy-cpu-prior", "--data", str(tmp_path / "tokens"), "--out", str(tmp_path / "run")]
    train += [part for key in TINY for part in ("--set", key)] + ["--device", "cpu"]
    assert run([*train, "--weights", str(tiny_weights), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 16
    assert result["metrics"]["held_out_share"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (
        "Bits a code",
        "Held-out images by class",
        "<td>bee</td>",
        "width 32, layers 1, heads",
        "finished: 16 images",
    ):
        assert text in page
    assert "Discriminators" not in page
    assert page.count("<img") == 1
    assert run([*train, "--quiet"]) == 0  # finished: the same command again changes nothing
    assert "no sheets of samples" in capsys.readouterr().err
    options = ["--weights", str(tiny_weights), "--prior", str(tmp_path / "run"), "--class", "BEE", "-n", "1"]
    assert run(["sample", *options, "--device", "cpu", "-o", str(tmp_path / "new"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["count"] == 1
    assert made["weights"]["sha256"] == load_weights(tiny_weights).sha256
    assert (tmp_path / "new" / "bee-0000.png").exists()


def test_tokens_of_another_stage_1_are_refused(
    write_store: Callable[..., TokenStore], tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(tmp_path / "tokens")
    train = ["train-stage2", "toy-cpu-prior", "--data", str(tmp_path / "tokens"), "--out", str(tmp_path / "run")]
    assert run([*train, "--weights", str(tiny_weights)]) == 65
    assert "tokens of another Stage 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_classes_are_those_that_samples_are_drawn_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classes", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["count"] == len(made["metrics"]["classes"])
    assert made["metrics"]["classes"][:2] == ["sphere", "box"]
    assert run(["classes"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:2]] == [["0", "sphere"], ["1", "box"]]
