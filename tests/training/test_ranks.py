"""Training on two processes that talk over gloo: the same model as on one, and they stop together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.pipelines.train import open_held_out, open_loader
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.run import MACHINE_FIGURES
from vq3dcli.training.stage1 import train
from vq3dcli.training.stage2 import train_prior

Make = Callable[..., Stage1Recipe]

# Two ranks start PyTorch twice, and a busy machine gives each a fraction of a core: only a hang takes this long.
PATIENCE_S = 550


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    prepare_toyscenes(folder, count=24, size=16, seed=0)
    label_exact(folder)
    return folder


def _start(
    recipe: Path, data: Path, out: Path, *options: str, command: str = "train-stage1"
) -> list[subprocess.Popen[str]]:
    """Two ranks, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vq3dcli", command, str(recipe), "--data", str(data), "--out", str(out)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*words, "--device", "cpu", *options],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def _end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    deadline = time.monotonic() + PATIENCE_S
    try:
        texts = [process.communicate(timeout=max(deadline - time.monotonic(), 1)) for process in processes]
        return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.optimizer=muon",),
        ("loss.novel_l2=1", "loss.novel_depth=2", "training.accumulate=2"),
        (
            "training.accumulate=2",
            "adversarial.main=0.1",
            "adversarial.novel=0.1",
            "adversarial.start_images=8",
            "adversarial.minibatch_group=2",
        ),
    ],
    ids=["plain", "muon", "novel views of some, in micro-batches", "adversarial, in micro-batches"],
)
def test_two_ranks_train_the_model_of_one(
    overrides: tuple[str, ...], tiny_recipe: Make, toys: Path, tmp_path: Path
) -> None:
    prepare_toyscenes(tmp_path / "seen", count=12, size=16, seed=1, views=1)
    label_exact(tmp_path / "seen")
    # Codes from the first step on: their statistics, counts and restarts are what ranks must agree on.
    # In float32: sums in another order move no token to another code.
    exact = ("training.precision=float32", "training.quantize_from_images=0")
    recipe = tiny_recipe("training.images=32", *exact, *overrides)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    # A damaged picture that the second rank meets: another stands in for it, and the first one tells.
    loader = open_loader(recipe, [toys, tmp_path / "seen"], "exact", Ranks(1, 2))
    bad = next(key for start in (0, 8, 16) for key in loader.batch_at(start).keys if "/seen" in key)
    member, shard = ShardFolder(tmp_path / "seen").entry(int(bad[-8:])).members["png"], "seen/shard-000000.tar"
    data = bytearray((tmp_path / shard).read_bytes())
    data[member.offset + 30] ^= 4
    (tmp_path / shard).write_bytes(data)
    more = ("--data", str(tmp_path / "seen"), "--json", "--held-out", str(toys))
    ended = _end(_start(tmp_path / "recipe.toml", toys, tmp_path / "two", *more))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert json.loads(ended[0][1])["count"] == 32
    assert ended[1][1:] == ("", "")
    data_of_one, held_out = (
        open_loader(recipe, [toys, tmp_path / "seen"], "exact", Ranks()),
        open_held_out(recipe, toys),
    )
    train(recipe, data_of_one, tmp_path / "one", held_out=held_out)
    assert f"{bad}, member png" in ended[0][2].replace("seen/shard-000000.tar", "seen")
    for run in ("one", "two"):
        assert list(json.loads((tmp_path / run / "run.json").read_text())["bad_samples"]) == [bad]
    for alone, together in zip(_metrics(tmp_path / "one"), _metrics(tmp_path / "two"), strict=True):
        assert alone.keys() == together.keys()
        for name in {"loss", "l2", "depth", "novel_l2", "novel_depth", "gradient_norm", "perplexity"} & alone.keys():
            assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert alone["held_out_psnr"] == pytest.approx(together["held_out_psnr"], abs=0.05)
    parts = [
        load_file(tmp_path / run / "checkpoints/images-000000000032/weights.safetensors") for run in ("one", "two")
    ]
    for name in ("quantizer.mean", "quantizer.variance", "quantizer.active"):
        torch.testing.assert_close(parts[1][name], parts[0][name], rtol=1e-2, atol=1e-3)


def test_ranks_stop_together_when_one_is_asked_to(tiny_recipe: Make, toys: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("training.images=1000000", "training.sheet_every_images=1000000")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    processes = _start(tmp_path / "recipe.toml", toys, tmp_path / "run")
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "run/metrics.jsonl").exists() and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    ended = _end(processes)
    assert [code for code, _, _ in ended] == [75, 75], ended
    said = "".join(error for _, _, error in ended)
    assert said.count("error: ") == said.count("the same command again continues") == 1
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_a_dry_run_speaks_once(tiny_recipe: Make, toys: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dump_recipe(tiny_recipe()))
    ended = _end(_start(tmp_path / "recipe.toml", toys, tmp_path / "run", "--dry-run", "--json"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert json.loads(ended[0][1])["metrics"]["steps"] == 8
    assert ended[1][1] == ""


def test_two_ranks_train_the_prior_of_one(
    tiny_prior_recipe: Callable[..., Stage2Recipe], write_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    recipe = tiny_prior_recipe("training.images=32", "training.sheet_every_images=16", "training.accumulate=2")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    store = write_store(tmp_path / "tokens")
    arguments = (tmp_path / "recipe.toml", tmp_path / "tokens", tmp_path / "two")
    ended = _end(_start(*arguments, "--json", command="train-stage2"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert json.loads(ended[0][1])["count"] == 32
    assert ended[1][1:] == ("", "")
    train_prior(recipe, store, tmp_path / "one")
    for alone, together in zip(_metrics(tmp_path / "one"), _metrics(tmp_path / "two"), strict=True):
        assert together.keys() == alone.keys()
        for name in alone.keys() - set(MACHINE_FIGURES):
            assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    assert json.loads((tmp_path / "two/held_out.json").read_text())["classes"].keys() == {"ant", "bee", "cow"}
