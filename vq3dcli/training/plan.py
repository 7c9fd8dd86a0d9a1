"""What a run will take, before it starts: parameters, memory, speed, days, disk. `--dry-run` prints it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.schema import Recipe, ScheduleSection, Stage1Recipe
from vq3dcli.data.loader import CACHE_BYTES, CACHED_BYTES_A_PIXEL
from vq3dcli.data.shard_reader import label_folder
from vq3dcli.errors import RecipeError, UsageError
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.costs import StepCosts, build_discriminators, perceptual_parameters, step_costs
from vq3dcli.training.devices import (
    Processor,
    key_of,
    measured_processor,
    named_processor,
    physical_memory_bytes,
)
from vq3dcli.training.optim import moments_bytes, optimizer_flops

# Python with PyTorch imported and what its allocator holds without using it (docs/measurements.md); on a GPU the
# driver's context and libraries.
PROCESS_BYTES = {"cpu": 850e6, "cuda": 800e6}
# What gradients cost on the way between GPUs, though it overlaps with the backward pass: an assumption.
MANY_GPUS_SHARE = 0.9
# A stored photo of 256 pixels a side takes about 27 kB (35 GB for ImageNet), a label two bytes at half the side.
_JPEG_BYTES_PER_PIXEL = 27e3 / 256**2
_STORED_MARGIN = 1.125
# The largest tensor of the step stands for all; beyond this size it makes no difference.
_LARGEST_BLOCK = 64 << 20
_SMALLEST_BLOCK = 1 << 20
# Of a memory. Above it a plan is called tight: allocators fragment, other programs want some, and the count is a count.
TIGHT_SHARE = 0.7


def find_processor(recipe: Recipe, device: torch.device, name: str | None = None) -> Processor:
    """The processor that is named, or the one that is there.

    A GPU on the machine has its own memory, as the driver gives it, and the table's peaks where the table has it.

    Args:
        recipe: What is trained.
        device: Where it would train here.
        name: Another one than that, a key of `devices.PUBLISHED`; "cpu" is the one of this machine.
    """
    precision = recipe.training.precision
    if name is not None and name != "cpu":
        return named_processor(name, precision)
    if name == "cpu":
        device = torch.device("cpu")
    memory = physical_memory_bytes()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        key = key_of(torch.cuda.get_device_name(device))
        if key is not None:
            return replace(named_processor(key, precision), memory_bytes=memory)
    dtype = resolve_precision(precision, device)
    block = _LARGEST_BLOCK
    if isinstance(recipe, Stage1Recipe):
        micro_batch = recipe.training.batch_size // recipe.training.accumulate
        block = micro_batch * recipe.rendering.rays_per_image * recipe.rendering.samples * recipe.model.field_hidden * 4
        block = min(max(block, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    return measured_processor(device, dtype, block_bytes=block, memory_bytes=memory)


def plan_run(
    recipe: Stage1Recipe,
    processor: Processor,
    *,
    gpus: int = 1,
    classes: int | None = None,
    samples: int | None = None,
    data: Sequence[Path] = (),
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of a run by name; bytes, seconds and images a second, nested.

    `parameters` by part and in all, and whether `class_embeddings` are among them (None where there are none);
    `memory` of one processor by purpose, and the `state` of it: "fits", "tight", "does not fit", or None where the
    available memory is not known, with `advice` for the middle two; `speed`, see `_speeds`; `days`; `disk`; `steps`,
    `images`, `tokens` an image, `micro_batch`, `precision`, `device`, `basis` of the speed.

    Args:
        recipe: What is trained.
        processor: On which.
        gpus: How many of them.
        classes: Of the data, for class-conditional discriminators; None where there are no data yet.
        samples: Images in the data; None where there are none yet.
        data: Their folders of shards.
        labels: Name of the disparity labels beside each.

    Raises:
        UsageError: The batch cannot be shared among so many, or their shares are no whole minibatch groups.
        RecipeError: The recipe wants classes, and the data have none.
    """
    schedule = recipe.training
    micro_batch = micro_batch_of(schedule, gpus)
    group = _group(recipe)
    if micro_batch % group:
        raise UsageError(
            f"adversarial.minibatch_group ({group}) does not divide the {micro_batch} images of a processor's "
            "micro-batch",
            remedy=f"--set adversarial.minibatch_group={math.gcd(group, micro_batch)}, or another --gpus",
        )
    conditional = recipe.adversarial.on and recipe.adversarial.class_conditional
    if conditional and classes == 0:
        raise RecipeError(
            "adversarial.class_conditional needs classes, and the data have none",
            remedy="--set adversarial.class_conditional=false",
        )
    with torch.device("meta"):
        model = build_autoencoder(recipe)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(parts.values())
    judges = {
        f"{name}_discriminator": sum(p.numel() for p in judge.parameters())
        for name, judge in build_discriminators(recipe, classes or 0).items()
    }
    judging = sum(judges.values())
    moments = moments_bytes(model, schedule.optimizer)
    costs = step_costs(recipe, processor.dtype, total, judging, on_cpu=processor.kind == "cpu")
    rates = _speeds(recipe, costs, processor, gpus, optimizer_flops(model, schedule.optimizer))
    memory = _memory(recipe, costs, processor, total, moments, judging, micro_batch, gpus, samples or 0)
    needed, available = needed_bytes(memory, processor, gpus), processor.memory_bytes
    state = None if available is None else memory_state(needed, available)
    advice = ""
    if available is not None and state != "fits":
        advice = _advice(recipe, processor, total, moments, judging, gpus, samples or 0, available)
    return {
        "parameters": {**parts, "total": total, **judges},
        "class_embeddings": classes is not None if conditional else None,
        "memory": {**memory, "needed": needed, "available": available, "state": state, "advice": advice},
        "speed": rates,
        "days": _days(recipe, rates),
        "disk": _disk(recipe, total, moments, judging, samples, data, labels),
        "steps": -(-schedule.images // schedule.batch_size),
        "images": schedule.images,
        "tokens": (recipe.model.image_size // recipe.model.patch) ** 2,
        "micro_batch": micro_batch,
        "precision": str(processor.dtype).removeprefix("torch."),
        "device": f"{gpus} x {processor.name}" if gpus > 1 else processor.name,
        "basis": processor.basis,
    }


def micro_batch_of(schedule: ScheduleSection, gpus: int) -> int:
    """Images of a processor at a time. Raises `UsageError` where the batch cannot be shared."""
    if schedule.batch_size % (gpus * schedule.accumulate):
        raise UsageError(
            f"a batch of {schedule.batch_size} cannot be shared by {gpus} processors of {schedule.accumulate} "
            "micro-batches",
            remedy="another --gpus, or --set training.batch_size or training.accumulate",
        )
    return schedule.batch_size // (gpus * schedule.accumulate)


def _group(recipe: Stage1Recipe) -> int:
    """What a micro-batch must be a multiple of."""
    return recipe.adversarial.minibatch_group if recipe.adversarial.on else 1


def _memory(
    recipe: Stage1Recipe,
    costs: StepCosts,
    processor: Processor,
    parameters: int,
    moments: int,
    judges: int,
    micro_batch: int,
    gpus: int,
    samples: int,
) -> dict[str, int]:
    """Bytes of one processor at the worst moment of a step."""
    half_copies = 2 * parameters if processor.dtype == torch.bfloat16 else 0  # autocast casts each weight once a step
    on_cpu = processor.kind == "cpu"
    # The loader keeps all decoded samples, eight-bit colours and 16-bit disparity, if they fit.
    decoded = round(samples * CACHED_BYTES_A_PIXEL * _stored_pixels(recipe))
    memory = {
        "weights": 4 * parameters + half_copies,
        "gradients": 4 * parameters * (2 if gpus > 1 else 1),  # DistributedDataParallel keeps them in buckets, too
        "optimizer": moments,
        "average": 4 * parameters,
        "discriminators": 16 * judges,
        "perceptual": 4 * perceptual_parameters(recipe),
        "activations": round(micro_batch * costs.total(adversarial=recipe.adversarial.on).kept_bytes),
        "workspace": round(micro_batch * costs.workspace_bytes),
        "process": round(PROCESS_BYTES[processor.kind]),
        "data": decoded if on_cpu and decoded <= CACHE_BYTES else 0,
    }
    memory["total"] = sum(memory.values())
    return memory


def needed_bytes(memory: Mapping[str, int], processor: Processor, gpus: int) -> int:
    """Bytes that share one memory: processes on a CPU have one for all of them."""
    return memory["total"] * (gpus if processor.kind == "cpu" else 1)


def memory_state(needed: int, available: int) -> str:
    """Whether it `fits`, is `tight`, or `does not fit`."""
    if needed > available:
        return "does not fit"
    return "tight" if needed > TIGHT_SHARE * available else "fits"


def _advice(
    recipe: Stage1Recipe,
    processor: Processor,
    parameters: int,
    moments: int,
    judges: int,
    gpus: int,
    samples: int,
    available: int,
) -> str:
    @cache  # discriminators are counted by running them, and a batch has hundreds of divisors
    def costs_of(remade: bool) -> StepCosts:
        changed = recipe.training.model_copy(update={"checkpoint_activations": remade})
        other = recipe.model_copy(update={"training": changed})
        return step_costs(other, processor.dtype, parameters, judges, on_cpu=processor.kind == "cpu")

    def needed(micro_batch: int, remade: bool) -> int:
        costs = costs_of(remade)
        memory = _memory(recipe, costs, processor, parameters, moments, judges, micro_batch, gpus, samples)
        return needed_bytes(memory, processor, gpus)

    found = least_change(recipe.training, gpus, available, needed, group=_group(recipe))
    return found or "a smaller model, or fewer rendering.rays_per_image and samples"


def least_change(
    schedule: ScheduleSection, gpus: int, available: int, needed: Callable[[int, bool], int], *, group: int = 1
) -> str:
    """The least change of settings that makes it fit easily, or else just so; it leads to no plan that is refused.

    Args:
        schedule: Of the recipe.
        gpus: Processors that share the batch.
        available: Bytes.
        needed: Bytes for a micro-batch of so many images, with activations made again or not.
        group: What a micro-batch must be a multiple of.

    Returns:
        Options for the command line; empty if there are none.
    """
    share = schedule.batch_size // gpus
    sizes = [size for size in range(share // schedule.accumulate, 0, -1) if share % size == 0 and size % group == 0]
    for limit in (TIGHT_SHARE * available, available):
        for remade in sorted({schedule.checkpoint_activations, True}):
            for size in sizes:
                if needed(size, remade) <= limit:
                    wanted = {"accumulate": share // size, "checkpoint_activations": remade}
                    now = schedule.model_dump()
                    return " ".join(f"--set training.{k}={str(v).lower()}" for k, v in wanted.items() if v != now[k])
    return ""


def _speeds(
    recipe: Stage1Recipe, costs: StepCosts, processor: Processor, gpus: int, update_flops: float
) -> dict[str, float | None]:
    """Images a second over all processors, before the discriminators start and with them.

    With each the share of a step's time that is spent in matrix products, `..._multiplying_share`; and
    `gigaflops_an_image`, all operations of a step in either precision.
    """
    share = MANY_GPUS_SHARE if gpus > 1 else 1.0
    speeds: dict[str, float | None] = {}
    for name, adversarial in (("before_discriminators", False), ("with_discriminators", True)):
        if adversarial and not recipe.adversarial.on:
            speeds[name] = None
            continue
        cost = costs.total(adversarial=adversarial)
        multiplied = cost.flops + update_flops * gpus / recipe.training.batch_size  # each processor updates everything
        multiplying = multiplied / processor.flops_per_second + cost.flops_float32 / processor.flops_per_second_float32
        update_bytes = costs.update_bytes + (costs.discriminators_update_bytes if adversarial else 0.0)
        update = update_bytes * gpus / recipe.training.batch_size / processor.bytes_per_second
        seconds = multiplying + cost.moved_bytes / processor.bytes_per_second + update
        speeds[name] = gpus * share / seconds
        speeds[f"{name}_multiplying_share"] = multiplying / seconds
    most = costs.total(adversarial=recipe.adversarial.on)
    speeds["gigaflops_an_image"] = (most.flops + most.flops_float32) / 1e9
    return speeds


def _days(recipe: Stage1Recipe, speeds: Mapping[str, float | None]) -> float:
    before, after = speeds["before_discriminators"], speeds["with_discriminators"]
    assert before is not None
    images = recipe.training.images
    first = min(recipe.adversarial.start_images, images) if after is not None else images
    return (first / before + (images - first) / (after or before)) / 86400.0


def _disk(
    recipe: Stage1Recipe,
    parameters: int,
    moments: int,
    judges: int,
    samples: int | None,
    data: Sequence[Path],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Bytes of the run and of its data; of a million images where there are none yet."""
    training, tokens = recipe.training, (recipe.model.image_size // recipe.model.patch) ** 2
    # Weights, average and the optimizer; of the discriminators no average. One more exists while it is written.
    checkpoint = 8 * parameters + moments + 12 * judges
    stored = _stored_pixels(recipe)
    count = 1_000_000 if samples is None else samples
    shards, sidecars = round(count * stored * _JPEG_BYTES_PER_PIXEL), round(count * stored / 4 * 2)
    if data:
        shards = sum(_bytes_in(folder) for folder in data)
        sidecars = sum(_bytes_in(label_folder(folder, name)) for folder, name in zip(data, labels, strict=False))
    return {
        "checkpoint": checkpoint,
        "checkpoints": checkpoint * (training.keep_checkpoints + 1),
        "weights": 2 * parameters,
        "images": count,
        "shards": shards,
        "labels": sidecars,
        "tokens": 2 * count * tokens,
    }


def _stored_pixels(recipe: Stage1Recipe) -> float:
    return float((recipe.model.image_size * (_STORED_MARGIN if recipe.training.crop else 1.0)) ** 2)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("shard-*") if path.is_file())


def plan_table(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A plan in rows of three for people: what, how much, a remark."""
    memory, speed, disk = plan["memory"], plan["speed"], plan["disk"]
    rows = [("what", "figure", "remark"), ("device", plan["device"], plan["basis"])]
    for name, count in plan["parameters"].items():
        without = plan["class_embeddings"] is False and name.endswith("_discriminator")
        rows.append((f"parameters, {name}", f"{count / 1e6:.2f} M", "class embeddings not counted" if without else ""))
    rows += memory_rows(memory)
    for name, label in (("before_discriminators", "speed"), ("with_discriminators", "speed, with discriminators")):
        if speed[name] is not None:
            share = f"{speed[f'{name}_multiplying_share']:.0%} of the time in matrix products"
            rows.append((label, f"{three_digits(speed[name])} images/s", share))
    rows.append(("operations", f"{three_digits(speed['gigaflops_an_image'])} GFLOP an image", ""))
    kept = "with density, code search, perceptual network and R1 in float32" if plan["precision"] == "bfloat16" else ""
    rows.append(("precision", plan["precision"], kept))
    rows.append(("time", duration(plan["days"]), f"{plan['images']} images, {plan['steps']} steps"))
    of = f"of {disk['images']} images"
    rows += [
        ("disk, checkpoints", f"{disk['checkpoints'] / 1e9:.2f} GB", f"{disk['checkpoint'] / 1e9:.2f} GB each"),
        ("disk, weights", f"{disk['weights'] / 1e9:.3f} GB", "fp16"),
        ("disk, shards", f"{disk['shards'] / 1e9:.2f} GB", of),
        ("disk, labels", f"{disk['labels'] / 1e9:.2f} GB", of),
        ("disk, tokens", f"{disk['tokens'] / 1e9:.3f} GB", f"{of}, {plan['tokens']} each"),
    ]
    return rows


def memory_rows(memory: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The memory of a plan, by purpose."""
    remark = {"fits": "fits", "tight": "tight", "does not fit": "DOES NOT FIT", None: ""}[memory["state"]]
    remark += f": {memory['advice']}" if memory["advice"] else ""
    rows = []
    for name, size in memory.items():
        if name not in ("needed", "available", "state", "advice") and size:
            rows.append((f"memory, {name}", f"{size / 1e9:.2f} GB", remark if name == "total" else ""))
    if memory["available"]:
        together = f"{memory['needed'] / 1e9:.2f} GB by all processes" if memory["needed"] > memory["total"] else ""
        rows.append(("memory, of the device", f"{memory['available'] / 1e9:.2f} GB", together))
    return rows


def three_digits(value: float) -> str:
    """A figure for people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(days: float) -> str:
    """Days in the unit that suits them."""
    if days >= 2:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"
