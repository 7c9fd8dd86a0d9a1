"""A damaged sample is passed over, counted and named, in the log, the run and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.stream import Stream
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, StoppedError
from vq3dcli.pipelines.run_report.page import write_run_report
from vq3dcli.pipelines.train import open_loader
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights


def test_a_run_passes_over_bad_samples_and_says_so(
    tiny_recipe: Callable[..., Stage1Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toys, out = tmp_path / "toys", tmp_path / "run"
    prepare_toyscenes(toys, count=24, size=16, seed=0)
    label_exact(toys)
    _, bad = Stream([24], tiny_recipe().training.seed).at(17)  # of the third batch
    member, shard = ShardFolder(toys).entry(bad).members["png"], toys / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[member.offset + 30] ^= 4
    shard.write_bytes(data)

    def run(recipe: Stage1Recipe, stop: int | None = None) -> None:
        train(recipe, open_loader(recipe, [toys], "exact", Ranks()), out, stop_after_images=stop)

    with pytest.raises(DataError, match=rf"key {bad:08d}.*, or --set training\.max_bad=0\.083$"):
        run(tiny_recipe("training.max_bad=0"))
    assert RunFolder(out).saved_images() == 16  # nothing of what was done before is lost
    with pytest.raises(StoppedError):
        run(tiny_recipe(), stop=32)
    run(tiny_recipe("training.max_bad=0.1"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # Once an epoch of 24 it is met; batches are made ahead, so it may be known sooner. A resume does not forget it.
    assert [line.get("bad_samples") for line in lines[2:]] == [1] * 6
    [warning] = [record.getMessage() for record in caplog.records if "bad sample" in record.getMessage()]
    assert f"damaged shard ({shard}, key {bad:08d}, member png)" in warning
    assert list(json.loads((out / "run.json").read_text())["bad_samples"]) == [f"{toys}, key {bad:08d}"]
    assert load_weights(out).card["training"]["bad_samples"] == 1
    assert f"key {bad:08d}" in write_run_report(out).read_text()
