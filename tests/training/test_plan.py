"""Plans: their sums, their scaling, what they refuse; the speed and memory themselves are in docs/measurements.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.commands.train_stage1 import DeviceName
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import UsageError
from vq3dcli.training.devices import PUBLISHED, key_of, measured_processor, named_processor
from vq3dcli.training.plan import find_processor, plan_run, plan_table

Make = Callable[..., Stage1Recipe]


@pytest.fixture(scope="module")
def imagenet() -> Stage1Recipe:
    return load_recipe("imagenet256", Stage1Recipe)


def test_memory_adds_up_and_scales_with_the_micro_batch(imagenet: Stage1Recipe) -> None:
    h100 = named_processor("h100", "auto")
    eight, sixteen = plan_run(imagenet, h100, gpus=8), plan_run(imagenet, h100, gpus=16)
    for plan in (eight, sixteen):
        memory = plan["memory"]
        assert memory["total"] == sum(v for k, v in memory.items() if k not in ("total", "available", "fits"))
    assert (eight["micro_batch"], sixteen["micro_batch"]) == (32, 16)
    assert eight["memory"]["activations"] == pytest.approx(2 * sixteen["memory"]["activations"])
    assert eight["memory"]["weights"] == sixteen["memory"]["weights"] == 6 * eight["parameters"]["total"]
    assert eight["memory"]["fits"] is True
    assert plan_run(imagenet, named_processor("v100", "auto"))["memory"]["fits"] is False


def test_speed_scales_with_gpus_and_days_follow(imagenet: Stage1Recipe) -> None:
    h100 = named_processor("h100", "auto")
    eight, sixteen = plan_run(imagenet, h100, gpus=8), plan_run(imagenet, h100, gpus=16)
    for phase in ("before_discriminators", "with_discriminators"):
        assert 1.8 < sixteen["speed"][phase] / eight["speed"][phase] <= 2.0
    speed = eight["speed"]
    assert speed["with_discriminators"] < speed["before_discriminators"]
    images, start = imagenet.training.images, imagenet.adversarial.start_images
    seconds = start / speed["before_discriminators"] + (images - start) / speed["with_discriminators"]
    assert eight["days"] == pytest.approx(seconds / 86400)


def test_without_discriminators_there_is_one_speed(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    plan = plan_run(recipe, named_processor("a100", "auto"))
    assert plan["speed"]["with_discriminators"] is None
    assert plan["days"] == pytest.approx(64 / plan["speed"]["before_discriminators"] / 86400)
    assert len(plan_table(plan)) > 10


def test_disk_counts_what_is_there_or_a_million_images(imagenet: Stage1Recipe, tmp_path) -> None:
    h100 = named_processor("h100", "auto")
    disk = plan_run(imagenet, h100, gpus=8)["disk"]
    assert disk["images"] == 1_000_000
    assert disk["tokens"] == 1_000_000 * 1024 * 2
    assert disk["shards"] == pytest.approx(27e9 * 1.125**2, rel=0.01)
    (tmp_path / "disparity" / "exact").mkdir(parents=True)
    (tmp_path / "shard-000000.tar").write_bytes(b"x" * 300)
    (tmp_path / "disparity" / "exact" / "shard-000000.tar").write_bytes(b"x" * 50)
    (tmp_path / "manifest.json").write_bytes(b"x" * 7)
    found = plan_run(imagenet, h100, gpus=8, samples=3, data=[tmp_path], labels="exact")["disk"]
    assert (found["images"], found["shards"], found["labels"], found["tokens"]) == (3, 300, 50, 3 * 2048)


def test_a_batch_that_cannot_be_shared_is_refused(imagenet: Stage1Recipe) -> None:
    with pytest.raises(UsageError, match="256 cannot be shared by 3"):
        plan_run(imagenet, named_processor("h100", "auto"), gpus=3)


def test_gpus_are_known_by_the_names_that_drivers_give_them() -> None:
    assert key_of("NVIDIA H100 80GB HBM3") == "h100"
    assert key_of("NVIDIA H200") == "h200"
    assert key_of("NVIDIA A100-SXM4-40GB") == "a100-40gb"
    assert key_of("NVIDIA A100-SXM4-80GB") == "a100"
    assert key_of("Tesla V100-SXM2-32GB") == "v100"
    assert key_of("NVIDIA GeForce RTX 4090") == "rtx4090"
    assert key_of("NVIDIA GeForce GTX 1080") is None


def test_the_command_line_names_the_same_devices() -> None:
    assert set(get_args(DeviceName)) == {*PUBLISHED, "cpu"}


def test_precision_follows_what_the_gpu_multiplies() -> None:
    assert named_processor("v100", "auto").dtype == torch.float32
    assert named_processor("h100", "auto").dtype == torch.bfloat16
    assert named_processor("h100", "float32").flops_per_second < named_processor("h100", "auto").flops_per_second


def test_this_machine_is_measured(tiny_recipe: Make) -> None:
    processor = measured_processor(torch.device("cpu"), torch.float32, block_bytes=1 << 20)
    assert processor.flops_per_second > 1e8
    assert processor.bytes_per_second > 1e7
    assert find_processor(tiny_recipe(), torch.device("cpu"), "h200").name == "H200 SXM"


def test_a_dry_run_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train-stage1", "imagenet256", "--dry-run", "--device-name", "h100", "--gpus", "8"]
    assert run([*command, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["device"] == "8 x H100 SXM"
    assert metrics["speed"]["before_discriminators"] > 0
    assert run(command) == 0
    assert re.search(r"memory, total +[0-9.]+ GB +fits", capsys.readouterr().out)


def test_a_plan_that_does_not_fit_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-stage1", "imagenet256", "--dry-run", "--device-name", "v100", "--json"]) == 0
    captured = capsys.readouterr()
    assert "training.accumulate" in json.loads(captured.out)["warnings"][0]
    assert "too little memory" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [["--data", "x"], ["--out", "x"], ["--data", "x", "--out", "y", "--gpus", "2"], ["--device-name", "h100"]],
)
def test_training_needs_data_and_plans_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-stage1", "toy-cpu", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
