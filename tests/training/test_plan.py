"""Plans: their sums, their scaling, what they refuse; the speed and memory themselves are in docs/measurements.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.commands.train import PlannedDevice
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import RecipeError, UsageError
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.costs import step_costs
from vq3dcli.training.devices import (
    PUBLISHED,
    Processor,
    key_of,
    measured_processor,
    named_processor,
    physical_memory_bytes,
)
from vq3dcli.training.plan import find_processor, plan_run, plan_table

Make = Callable[..., Stage1Recipe]

PURPOSES = (
    "weights",
    "gradients",
    "optimizer",
    "average",
    "discriminators",
    "perceptual",
    "activations",
    "workspace",
    "process",
    "data",
)


@pytest.fixture(scope="module")
def imagenet() -> Stage1Recipe:
    return load_recipe("imagenet256", Stage1Recipe)


def test_memory_adds_up_and_scales_with_the_micro_batch(imagenet: Stage1Recipe) -> None:
    h100 = named_processor("h100", "auto")
    eight, sixteen = plan_run(imagenet, h100, gpus=8), plan_run(imagenet, h100, gpus=16)
    for plan in (eight, sixteen):
        memory = plan["memory"]
        assert memory["total"] == sum(memory[name] for name in PURPOSES)
    assert (eight["micro_batch"], sixteen["micro_batch"]) == (32, 16)
    assert eight["memory"]["activations"] == pytest.approx(2 * sixteen["memory"]["activations"])
    assert eight["memory"]["weights"] == sixteen["memory"]["weights"] == 6 * eight["parameters"]["total"]
    assert (eight["memory"]["state"], eight["memory"]["advice"]) == ("fits", "")


def test_memory_is_judged_in_three_states_on_gpus_and_cpus(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    cpu = Processor("cpu", "cpu", 1e10, 1e10, 1e10, None, torch.float32, "made up")
    needed = plan_run(recipe, cpu)["memory"]
    assert (needed["state"], needed["advice"]) == (None, "")
    for kind, processes in (("cpu", 1), ("cpu", 2), ("cuda", 2)):
        judged = []
        for share in (1.01, 0.99, 0.71, 0.69):
            alone = plan_run(recipe, replace(cpu, kind=kind), gpus=processes)["memory"]["total"]
            together = alone * (processes if kind == "cpu" else 1)  # processes on a CPU share its memory
            processor = replace(cpu, kind=kind, memory_bytes=int(together / share))
            judged.append(plan_run(recipe, processor, gpus=processes)["memory"]["state"])
        assert judged == ["does not fit", "tight", "tight", "fits"]
    assert (physical_memory_bytes() or 0) > 1e8


@pytest.mark.parametrize(("name", "gpus"), [("v100", 1), ("rtx4090", 1), ("a100-40gb", 4), ("v100", 64)])
def test_advice_leads_to_a_plan_that_fits(imagenet: Stage1Recipe, name: str, gpus: int) -> None:
    gpu = named_processor(name, "auto")
    memory = plan_run(imagenet, gpu, gpus=gpus)["memory"]
    assert bool(memory["advice"]) == (memory["state"] != "fits")
    overrides = re.findall(r"--set (\S+)", memory["advice"])
    changed = load_recipe("imagenet256", Stage1Recipe, overrides)
    assert plan_run(changed, gpu, gpus=gpus)["memory"]["state"] == "fits"


def test_what_training_refuses_is_not_planned(imagenet: Stage1Recipe) -> None:
    h100 = named_processor("h100", "auto")
    with pytest.raises(UsageError, match="minibatch_group=2") as caught:
        plan_run(imagenet, h100, gpus=128)  # two images each, four to a group
    (override,) = re.findall(r"--set ([^\s,]+)", str(caught.value))
    assert plan_run(load_recipe("imagenet256", Stage1Recipe, [override]), h100, gpus=128)["micro_batch"] == 2
    with pytest.raises(RecipeError, match="have none"):
        plan_run(imagenet, h100, classes=0)


def test_classes_are_counted_where_there_are_data(imagenet: Stage1Recipe, tiny_recipe: Make) -> None:
    h100 = named_processor("h100", "auto")
    none, thousand = plan_run(imagenet, h100, gpus=8), plan_run(imagenet, h100, gpus=8, classes=1000)
    name = "main_discriminator"
    assert thousand["parameters"][name] - none["parameters"][name] == 1000 * imagenet.adversarial.max_channels
    remarks = {row[0]: row[2] for row in plan_table(none)}
    assert remarks[f"parameters, {name}"] == "class embeddings not counted"
    assert not any("embeddings" in row[2] for row in plan_table(thousand))
    assert plan_run(tiny_recipe(), h100)["class_embeddings"] is None


def test_all_operations_are_counted_and_large_figures_are_written_out(imagenet: Stage1Recipe) -> None:
    plan = plan_run(imagenet, named_processor("h100", "auto"), gpus=64)
    cost = step_costs(imagenet, torch.bfloat16, 0).total(adversarial=True)
    assert plan["speed"]["gigaflops_an_image"] == pytest.approx((cost.flops + cost.flops_float32) / 1e9)
    assert plan["speed"]["before_discriminators"] > 1000
    rows = {row[0]: row for row in plan_table(plan)}
    assert re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+ images/s", rows["speed"][1])
    assert rows["speed"][2].endswith("% of the time in matrix products")


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


def test_disk_counts_what_is_there_or_a_million_images(imagenet: Stage1Recipe, tmp_path: Path) -> None:
    h100 = named_processor("h100", "auto")
    disk = plan_run(imagenet, h100, gpus=8)["disk"]
    assert disk["images"] == 1_000_000
    assert disk["tokens"] == 1_000_000 * 1024 * 2
    assert disk["shards"] == pytest.approx(27e9 * 1.125**2, rel=0.01)
    (tmp_path / "disparity" / "exact").mkdir(parents=True)
    (tmp_path / "shard-000000.tar").write_bytes(b"x" * 300)
    (tmp_path / "disparity" / "exact" / "shard-000000.tar").write_bytes(b"x" * 50)
    (tmp_path / "manifest.json").write_bytes(b"x" * 7)
    found = plan_run(imagenet, h100, gpus=8, samples=3, data=[tmp_path], labels=["exact"])["disk"]
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
    assert key_of("NVIDIA L40S") == "l40s"


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce GTX 1080",
        "NVIDIA L40",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA H100 NVL",
        "NVIDIA GH200 480GB",
    ],
)
def test_other_gpus_and_variants_are_measured(name: str) -> None:
    assert key_of(name) is None


def test_the_command_line_names_the_same_devices() -> None:
    assert set(get_args(PlannedDevice)) == {*PUBLISHED, "cpu"}


def test_precision_follows_what_the_gpu_multiplies() -> None:
    assert named_processor("v100", "auto").dtype == torch.float32
    assert named_processor("h100", "auto").dtype == torch.bfloat16
    assert named_processor("h100", "float32").flops_per_second < named_processor("h100", "auto").flops_per_second
    asked = named_processor("v100", "bfloat16")
    assert asked.dtype == torch.bfloat16
    assert "emulated" in asked.basis


def test_emulated_bfloat16_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto", cuda) == torch.float32
    assert resolve_precision("bfloat16", cuda) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # a PyTorch without the argument
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, expected in (((7, 0), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert resolve_precision("auto", cuda) == expected


def test_this_machine_is_measured(tiny_recipe: Make) -> None:
    processor = measured_processor(torch.device("cpu"), torch.float32, block_bytes=1 << 20)
    assert processor.flops_per_second > 1e8
    assert processor.bytes_per_second > 1e7
    assert find_processor(tiny_recipe(), torch.device("cpu"), "h200").name == "H200 SXM"
    assert find_processor(tiny_recipe(), torch.device("cpu")).memory_bytes == physical_memory_bytes()


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
    [
        ["--share", "1", "--dry-run"],
        ["--data", "x"],
        ["--out", "x"],
        ["--data", "x", "--out", "y", "--gpus", "2"],
        ["--device-name", "h100"],
    ],
)
def test_training_needs_data_and_plans_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-stage1", "toy-cpu", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
