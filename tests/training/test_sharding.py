"""A model that is spread over ranks trains as one that each of them has whole, and its checkpoints are whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.forked_ranks import run_ranks
from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.model.prior import Prior
from vq3dcli.training.sharding import is_sharded

HELD_OUT = {"held_out_psnr", "held_out_spearman", "held_out_ssi_error", "held_out_novel_psnr"}
FIGURES = {"loss", "bits", "held_out_bits", "gradient_norm", "perplexity", "learning_rate", *HELD_OUT}


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _assert_same_run(one: Path, other: Path, last: str) -> None:
    """Records and everything that a checkpoint holds, within what sums in another order do."""
    for left, right in zip(_metrics(one), _metrics(other), strict=True):
        assert left.keys() == right.keys()
        for name in FIGURES & left.keys():
            assert right[name] == pytest.approx(left[name], rel=1e-3), name
    _assert_same_checkpoint(one, other, last)


def _assert_same_checkpoint(one: Path, other: Path, last: str) -> None:
    for part in ("weights", "average", "optimizer"):
        left, right = (load_file(run / "checkpoints" / last / f"{part}.safetensors") for run in (one, other))
        assert list(left) == list(right)
        for name in left:
            assert left[name].shape == right[name].shape
            error = (left[name].double() - right[name].double()).norm() / left[name].double().norm().clamp(min=1e-3)
            assert error < 0.02, (part, name)


def test_a_prior_over_four_ranks_goes_on_over_one_and_the_other_way(
    tiny_prior_recipe: Callable[..., Stage2Recipe], write_store: Callable[..., TokenStore], tmp_path: Path
) -> None:
    write_store(tmp_path / "tokens")

    def words(out: str, images: int, shard: str = "always") -> list[str]:
        recipe = tiny_prior_recipe(
            f"training.images={images}",
            "training.checkpoint_every_images=16",
            "training.sheet_every_images=16",
            f"training.shard={shard}",
            "training.accumulate=2",
            "training.precision=float32",
        )
        path = tmp_path / f"{out}-{images}.toml"
        path.write_text(dump_recipe(recipe))
        return ["train-stage2", str(path), "--data", str(tmp_path / "tokens"), "--out", str(tmp_path / out)]

    run_ranks(
        (4, words("down", 16)),
        (1, words("down", 32)),
        (1, words("up", 16)),
        (2, words("up", 32)),
        (4, words("whole", 16, "never")),
    )
    _assert_same_run(tmp_path / "down", tmp_path / "up", "images-000000000032")
    _assert_same_checkpoint(tmp_path / "up", tmp_path / "whole", "images-000000000016")
    assert all((tmp_path / run / "weights.safetensors").exists() for run in ("down", "up"))


def test_stage1_over_four_ranks_trains_the_model_of_one_and_one_goes_on_from_there(
    tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path
) -> None:
    for name, count in (("toys", 24), ("others", 11)):
        prepare_toyscenes(tmp_path / name, count=count, size=16, seed=count, views=1)
        label_exact(tmp_path / name)
    recipe = tiny_recipe(
        "training.images=32",
        "training.checkpoint_every_images=16",
        "training.precision=float32",
        "training.quantize_from_images=8",
        "training.optimizer=muon",
        "training.checkpoint_activations=true",
        "training.shard=always",
        "adversarial.main=0.1",
        "adversarial.start_images=8",
        "adversarial.minibatch_group=2",
    )
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    words = ["train-stage1", str(tmp_path / "recipe.toml"), "--data", str(tmp_path / "toys"), "--device", "cpu"]
    words += ["--held-out", str(tmp_path / "others")]
    run_ranks((1, [*words, "--out", str(tmp_path / "one")]), (4, [*words, "--out", str(tmp_path / "four")]))
    _assert_same_run(tmp_path / "one", tmp_path / "four", "images-000000000032")
    # What four ranks leave that are killed before the second checkpoint; the discriminator has begun.
    down = tmp_path / "down"
    shutil.copytree(tmp_path / "four", down)
    shutil.rmtree(down / "checkpoints/images-000000000032")
    (down / "weights.safetensors").unlink()
    run_ranks((1, [*words, "--out", str(down)]))
    _assert_same_run(tmp_path / "one", down, "images-000000000032")
    assert (down / "weights.safetensors").exists()
    assert _metrics(tmp_path / "four")[-1].keys() > HELD_OUT
    sheets = [(tmp_path / run / "sheets/images-000000000032.png").exists() for run in ("one", "four")]
    assert sheets == [True, True]


def test_large_models_are_spread_by_themselves() -> None:
    with torch.device("meta"):
        small, large = (
            Prior(codebook_size=64, length=16, classes=2, width=width, layers=layers, heads=8)
            for width, layers in ((64, 1), (2048, 24))
        )
    assert is_sharded("auto", large, 8)
    assert not is_sharded("auto", small, 8)
    assert not is_sharded("auto", large, 1)
    assert is_sharded("always", small, 2)
    assert not is_sharded("never", large, 8)
