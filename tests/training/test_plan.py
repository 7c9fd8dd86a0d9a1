"""Plans: their sums, their scaling, what they refuse; docs/performance.md has them beside real steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.commands.train import PlannedDevice
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import RecipeError
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.devices import (
    PUBLISHED,
    Processor,
    find_processor,
    key_of,
    measured_processor,
    named_processor,
    physical_memory_bytes,
)
from vq3dcli.training.plan import Codes, codes_of, plan_prior, plan_run
from vq3dcli.training.plan_table import plan_table, too_few_images

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


H100 = named_processor("h100", "auto")
_ADVERSARIAL = ("adversarial.main=0.1", "adversarial.novel=0.1")


@pytest.fixture(scope="module")
def imagenet() -> dict[int, dict[str, Any]]:
    """Plans of `imagenet256` by the number of GPUs."""
    recipe = load_recipe("imagenet256", Stage1Recipe)
    return {gpus: plan_run(recipe, H100, gpus=gpus) for gpus in (8, 64)}


def test_memory_adds_up_and_scales_with_the_micro_batch(imagenet: dict[int, dict[str, Any]]) -> None:
    for plan in imagenet.values():
        assert plan["memory"]["total"] == sum(plan["memory"][name] for name in PURPOSES)
    assert (imagenet[8]["micro_batch"], imagenet[64]["micro_batch"]) == (32, 4)
    eight, many = imagenet[8]["memory"], imagenet[64]["memory"]
    assert eight["activations"] == pytest.approx(8 * many["activations"], rel=0.02)
    assert eight["weights"] == many["weights"] == 6 * imagenet[8]["parameters"]["total"]
    assert (eight["state"], eight["advice"]) == ("fits", "")


def test_memory_is_judged_in_three_states_on_gpus_and_cpus(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    cpu = Processor("cpu", "cpu", 1e10, 1e10, 1e10, None, torch.float32, "made up")
    needed = plan_run(recipe, cpu)["memory"]
    assert (needed["state"], needed["advice"]) == (None, "")
    for kind, shares in (("cpu", (1.01, 0.99, 0.71, 0.69)), ("cuda", (0.71, 0.69))):
        judged, processes = [], 2
        alone = plan_run(recipe, replace(cpu, kind=kind), gpus=processes)["memory"]["total"]
        together = alone * (processes if kind == "cpu" else 1)  # processes on a CPU share its memory
        for share in shares:
            processor = replace(cpu, kind=kind, memory_bytes=int(together / share))
            memory = plan_run(recipe, processor, gpus=processes)["memory"]
            assert bool(memory["advice"]) == (memory["state"] != "fits")
            assert "checkpoint_activations" not in memory["advice"] or not recipe.training.checkpoint_activations
            judged.append(memory["state"])
        assert judged == ["does not fit", "tight", "tight", "fits"][-len(shares) :]
    assert (physical_memory_bytes() or 0) > 1e8


def test_what_training_refuses_is_not_planned(tiny_recipe: Make) -> None:
    sizes = (*_ADVERSARIAL, "training.batch_size=16", "adversarial.class_conditional=true")
    with pytest.raises(RecipeError, match="minibatch_group=2") as caught:
        plan_run(tiny_recipe(*sizes), H100, gpus=8)  # two images each, four to a group
    (override,) = re.findall(r"--set ([^\s,]+)", str(caught.value))
    assert plan_run(tiny_recipe(*sizes, override), H100, gpus=8)["micro_batch"] == 2
    with pytest.raises(RecipeError, match="have none"):
        plan_run(tiny_recipe(*sizes), H100, classes=0)
    with pytest.raises(RecipeError, match="does not divide into 3 ranks"):
        plan_run(tiny_recipe(*sizes), H100, gpus=3)


def test_classes_are_counted_where_there_are_data(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(*_ADVERSARIAL, "adversarial.class_conditional=true")
    unknown, one, thousand = (plan_run(recipe, H100, classes=classes)["parameters"] for classes in (None, 1, 1000))
    width = recipe.adversarial.max_channels
    assert unknown == one
    assert thousand["main_discriminator"] - one["main_discriminator"] == 999 * width


def test_all_operations_are_counted_and_large_figures_are_written_out(imagenet: dict[int, dict[str, Any]]) -> None:
    plan = imagenet[64]
    assert plan["speed"]["gigaflops_an_image"] == pytest.approx(977, rel=0.05)  # by hand, layer by layer
    assert plan["speed"]["before_discriminators"] > 1000
    rows = {row[0]: row for row in plan_table(plan)}
    assert re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+ images/s", rows["speed"][1])
    assert rows["speed"][2].endswith("% of the time in matrix products")


def test_speed_scales_with_gpus_and_days_follow(imagenet: dict[int, dict[str, Any]]) -> None:
    for phase in ("before_discriminators", "with_discriminators"):
        assert 3.5 < imagenet[64]["speed"][phase] / imagenet[8]["speed"][phase] <= 8.0
    speed, schedule = imagenet[8]["speed"], load_recipe("imagenet256", Stage1Recipe)
    assert speed["with_discriminators"] < speed["before_discriminators"]
    images, start = schedule.training.images, schedule.adversarial.start_images
    seconds = start / speed["before_discriminators"] + (images - start) / speed["with_discriminators"]
    assert imagenet[8]["days"] == pytest.approx(seconds / 86400)


def test_gpus_exchange_gradients_and_too_few_images_are_named(imagenet: dict[int, dict[str, Any]]) -> None:
    parts = imagenet[8]["parameters"]
    trained = parts["total"] + parts["main_discriminator"] + parts["novel_discriminator"]
    for gpus, plan in imagenet.items():
        assert plan["speed"]["exchange_bytes"] == 8 * trained * (gpus - 1) // gpus
    assert too_few_images(imagenet[8]) == ""
    assert "fewer GPUs" in too_few_images(imagenet[64])
    rows = {row[0]: row for row in plan_table(imagenet[64])}
    assert rows["images of a processor at a time"][1:] == ("4", f"TOO FEW: {too_few_images(imagenet[64])}")
    slow = plan_run(load_recipe("imagenet256", Stage1Recipe), replace(H100, link_bytes_per_second=1e8), gpus=8)
    assert slow["speed"]["exchange_share"] > 0.5
    assert slow["speed"]["before_discriminators"] < 0.5 * imagenet[8]["speed"]["before_discriminators"]


def test_a_spread_prior_takes_a_share_of_its_memory_and_more_exchange(imagenet_prior: Stage2Recipe) -> None:
    codes = codes_of("imagenet256-prior", None, None)
    plans = {}
    for shard in ("never", "auto"):
        schedule = imagenet_prior.training.model_copy(update={"shard": shard})
        plans[shard] = plan_prior(imagenet_prior.model_copy(update={"training": schedule}), H100, codes, gpus=8)
    alone, spread = plans["never"]["memory"], plans["auto"]["memory"]
    total = plans["auto"]["parameters"]["total"]
    assert spread["average"] == -(-total // 8) * 4
    assert spread["optimizer"] == pytest.approx(alone["optimizer"] / 8)
    assert spread["total"] < alone["total"] - 20e9
    assert plans["auto"]["speed"]["exchange_bytes"] == 12 * imagenet_prior.training.accumulate * total * 7 // 8
    assert plans["never"]["speed"]["exchange_bytes"] == 8 * total * 7 // 8


def test_without_discriminators_there_is_one_speed(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    plan = plan_run(recipe, named_processor("a100", "auto"))
    assert plan["speed"]["with_discriminators"] is None
    assert plan["days"] == pytest.approx(64 / plan["speed"]["before_discriminators"] / 86400)
    assert len(plan_table(plan)) > 10


def test_disk_is_of_the_images_or_of_a_million(imagenet: dict[int, dict[str, Any]], tiny_recipe: Make) -> None:
    disk = imagenet[8]["disk"]
    assert disk["images"] == 1_000_000
    assert disk["tokens"] == 1_000_000 * 1024 * 2
    assert disk["shards"] == pytest.approx(40e9 * 1.125**2, rel=0.01)
    recipe = tiny_recipe()
    tokens = (recipe.model.image_size // recipe.model.patch) ** 2
    found = plan_run(recipe, H100, samples=3)["disk"]
    assert (found["images"], found["tokens"]) == (3, 3 * 2 * tokens)
    assert 0 < found["labels"] < found["shards"] < 3 * 3 * recipe.model.image_size**2


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
    command = ["train-stage1", "toy-cpu", "--dry-run", "--device-name", "h100", "--gpus", "8"]
    assert run([*command, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["device"] == "8 x H100 SXM"
    assert metrics["speed"]["before_discriminators"] > 0
    assert run(command) == 0
    assert re.search(r"memory, total +[0-9.]+ GB +fits", capsys.readouterr().out)


_ON_A_V100 = ("--dry-run", "--device-name", "v100")


def test_a_plan_that_does_not_fit_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-stage1", "toy-cpu", "--set", "training.batch_size=65536", *_ON_A_V100, "--json"]) == 0
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


CODES = Codes(64, 96, "a test", classes=3, images=10)


@pytest.fixture(scope="module")
def imagenet_prior() -> Stage2Recipe:
    return load_recipe("imagenet256-prior", Stage2Recipe)


def test_a_prior_s_memory_adds_up_and_checkpoints_take_less_of_it(imagenet_prior: Stage2Recipe) -> None:
    codes, h100 = codes_of("imagenet256-prior", None, None), named_processor("h100", "auto")
    assert (codes.length, codes.codebook_size) == (1024, 8192)
    plan = plan_prior(imagenet_prior, h100, codes, gpus=8)
    memory = plan["memory"]
    purposes = ("weights", "gradients", "optimizer", "average", "gathered", "activations", "workspace", "process")
    assert memory["total"] == sum(memory[name] for name in purposes)
    assert 1.3e9 < plan["parameters"]["total"] < 1.5e9
    assert plan["micro_batch"] == 8
    remade = imagenet_prior.training.model_copy(update={"checkpoint_activations": True})
    less = plan_prior(imagenet_prior.model_copy(update={"training": remade}), h100, codes, gpus=8)
    assert less["memory"]["activations"] + less["memory"]["workspace"] < 0.3 * memory["activations"]
    assert less["speed"]["training"] < plan["speed"]["training"]
    assert any(row[0] == "codes of an image" and row[1] == "1024 of 8192" for row in plan_table(plan))
    with pytest.raises(RecipeError, match="does not divide into 7 ranks"):
        plan_prior(imagenet_prior, h100, codes, gpus=7)


def test_a_prior_s_memory_is_judged(tiny_prior_recipe: Callable[..., Stage2Recipe]) -> None:
    recipe = tiny_prior_recipe("model.width=64", "model.layers=3", "model.heads=2", "model.dropout=0.0")
    cpu = Processor("cpu", "cpu", 1e10, 1e10, 1e10, None, torch.float32, "made up")
    needed = plan_prior(recipe, cpu, CODES)["memory"]["needed"]
    plan = plan_prior(recipe, replace(cpu, memory_bytes=int(needed / 0.9)), CODES)
    assert plan["memory"]["state"] == "tight"
    plan = plan_prior(recipe, replace(cpu, memory_bytes=int(needed * 3)), CODES)
    assert (plan["memory"]["state"], plan["memory"]["advice"]) == ("fits", "")


def test_a_dry_run_takes_the_codes_of_what_there_is(
    tiny_weights: Path, write_store: Callable[..., TokenStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "store")
    command = ["train-stage2", "toy-cpu-prior", "--dry-run", "--device-name", "h100", "--json"]
    found = []
    for more in ([], ["--weights", str(tiny_weights)], ["--data", str(store.path)]):
        assert run([*command, *more]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        found.append((metrics["tokens"], metrics["codebook_size"]))
    assert found == [(64, 512), (16, 32), (16, store.codebook_size)]
    own = tmp_path / "own.toml"
    assert run(["recipes", "copy", "toy-cpu-prior", str(own)]) == 0
    assert run(["train-stage2", str(own), "--dry-run", "--device-name", "h100"]) == 2
    assert run(["train-stage2", "toy-cpu-prior", "--data", str(store.path)]) == 2
    assert "--data and --out are needed" in capsys.readouterr().err


def test_a_frozen_depth_network_has_no_gradients(tiny_recipe: Make) -> None:
    blind, seeing = (
        plan_run(tiny_recipe(f"model.depth_input={network}"), H100, gpus=2) for network in ("none", "depth-lite0")
    )
    frozen, channel = seeing["parameters"]["depth_network"], 16 * 32  # a patch of 4 x 4, a width of 32
    assert seeing["memory"]["weights"] - blind["memory"]["weights"] == 6 * (frozen + channel)
    assert seeing["memory"]["gradients"] - blind["memory"]["gradients"] == 8 * channel
    assert seeing["speed"]["exchange_bytes"] - blind["speed"]["exchange_bytes"] == 4 * channel
