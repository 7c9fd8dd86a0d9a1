"""What a run will take, before it starts: parameters, memory, speed, days, disk. `--dry-run` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import CACHE_BYTES
from vq3dcli.errors import UsageError
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.costs import StepCosts, build_discriminators, perceptual_parameters, step_costs
from vq3dcli.training.devices import Processor, key_of, measured_processor, named_processor

# Python with PyTorch imported, and on a GPU the driver's context and libraries.
_PROCESS_BYTES = {"cpu": 350e6, "cuda": 800e6}
# What gradients cost on the way between GPUs, though it overlaps with the backward pass: an assumption.
_MANY_GPUS_SHARE = 0.9
# A stored photo of 256 pixels a side takes about 27 kB (35 GB for ImageNet), a label two bytes at half the side.
_JPEG_BYTES_PER_PIXEL = 27e3 / 256**2
_STORED_MARGIN = 1.125
# The largest tensor of the step stands for all; beyond this size it makes no difference.
_LARGEST_BLOCK = 64 << 20
_SMALLEST_BLOCK = 1 << 20


def find_processor(recipe: Stage1Recipe, device: torch.device, name: str | None = None) -> Processor:
    """The processor that is named, or the one that is there.

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
    memory = None
    if device.type == "cuda":
        key = key_of(torch.cuda.get_device_name(device))
        if key is not None:
            return named_processor(key, precision)
        memory = torch.cuda.get_device_properties(device).total_memory
    dtype = resolve_precision(precision, device)
    micro_batch = recipe.training.batch_size // recipe.training.accumulate
    block = micro_batch * recipe.rendering.rays_per_image * recipe.rendering.samples * recipe.model.field_hidden * 4
    block = min(max(block, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    return measured_processor(device, dtype, block_bytes=block, memory_bytes=memory)


def plan_run(
    recipe: Stage1Recipe,
    processor: Processor,
    *,
    gpus: int = 1,
    samples: int | None = None,
    data: Sequence[Path] = (),
    labels: str | None = None,
) -> dict[str, Any]:
    """Figures of a run by name; bytes, seconds and images a second, nested.

    `parameters` by part and in all; `memory` of one processor by purpose; `speed` before and after the discriminators
    start; `days`; `disk`; `steps`, `images`, `tokens` an image, `precision`, `device`, `basis` of the speed.

    Args:
        recipe: What is trained.
        processor: On which.
        gpus: How many of them.
        samples: Images in the data; None where there are none yet.
        data: Their folders of shards.
        labels: Name of the disparity labels beside them.

    Raises:
        UsageError: The batch cannot be shared among so many.
    """
    schedule = recipe.training
    if schedule.batch_size % (gpus * schedule.accumulate):
        raise UsageError(
            f"a batch of {schedule.batch_size} cannot be shared by {gpus} processors of {schedule.accumulate} "
            "micro-batches",
            remedy="another --gpus, or --set training.batch_size or training.accumulate",
        )
    with torch.device("meta"):
        model = build_autoencoder(recipe)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total = sum(parts.values())
    judges = {
        f"{name}_discriminator": sum(p.numel() for p in judge.parameters())
        for name, judge in build_discriminators(recipe).items()
    }
    costs = step_costs(recipe, processor.dtype, total)
    micro_batch = schedule.batch_size // (gpus * schedule.accumulate)
    rates = _speeds(recipe, costs, processor, gpus)
    return {
        "parameters": {**parts, "total": total, **judges},
        "memory": _memory(recipe, costs, processor, total, sum(judges.values()), micro_batch, gpus, samples or 0),
        "speed": rates,
        "days": _days(recipe, rates),
        "disk": _disk(recipe, total, sum(judges.values()), samples, data, labels),
        "steps": -(-schedule.images // schedule.batch_size),
        "images": schedule.images,
        "tokens": (recipe.model.image_size // recipe.model.patch) ** 2,
        "micro_batch": micro_batch,
        "precision": str(processor.dtype).removeprefix("torch."),
        "device": f"{gpus} x {processor.name}" if gpus > 1 else processor.name,
        "basis": processor.basis,
    }


def _memory(
    recipe: Stage1Recipe,
    costs: StepCosts,
    processor: Processor,
    parameters: int,
    judges: int,
    micro_batch: int,
    gpus: int,
    samples: int,
) -> dict[str, Any]:
    """Bytes of one processor at the worst moment of a step."""
    half_copies = 2 * parameters if processor.dtype == torch.bfloat16 else 0  # autocast casts each weight once a step
    on_cpu = processor.memory_bytes is None
    # The loader keeps all decoded samples, eight-bit colours and float32 disparity, if they fit.
    decoded = round(samples * 7 * _stored_pixels(recipe))
    memory: dict[str, Any] = {
        "weights": 4 * parameters + half_copies,
        "gradients": 4 * parameters * (2 if gpus > 1 else 1),  # DistributedDataParallel keeps them in buckets, too
        "optimizer": 8 * parameters,
        "average": 4 * parameters,
        "discriminators": 16 * judges,
        "perceptual": 4 * perceptual_parameters(recipe),
        "activations": round(micro_batch * costs.total(adversarial=recipe.adversarial.on).kept_bytes),
        "workspace": round(micro_batch * costs.workspace_bytes),
        "process": round(_PROCESS_BYTES["cpu" if on_cpu else "cuda"]),
        "data": decoded if on_cpu and decoded <= CACHE_BYTES else 0,
    }
    memory["total"] = sum(memory.values())
    memory["available"] = processor.memory_bytes
    memory["fits"] = None if on_cpu else memory["total"] <= (processor.memory_bytes or 0)
    return memory


def _speeds(recipe: Stage1Recipe, costs: StepCosts, processor: Processor, gpus: int) -> dict[str, float | None]:
    """Images a second over all processors, and what share of a GPU's peak that is."""
    share = _MANY_GPUS_SHARE if gpus > 1 else 1.0
    update = costs.update_bytes * gpus / recipe.training.batch_size / processor.bytes_per_second
    speeds: dict[str, float | None] = {}
    for name, adversarial in (("before_discriminators", False), ("with_discriminators", True)):
        if adversarial and not recipe.adversarial.on:
            speeds[name] = None
            continue
        cost = costs.total(adversarial=adversarial)
        multiplying = cost.flops / processor.flops_per_second + cost.flops_float32 / processor.flops_per_second_float32
        seconds = multiplying + cost.moved_bytes / processor.bytes_per_second + update
        speeds[name] = gpus * share / seconds
        speeds[f"{name}_multiplying_share"] = multiplying / seconds
    speeds["gigaflops_an_image"] = costs.total(adversarial=recipe.adversarial.on).flops / 1e9
    return speeds


def _days(recipe: Stage1Recipe, speeds: Mapping[str, float | None]) -> float:
    before, after = speeds["before_discriminators"], speeds["with_discriminators"]
    assert before is not None
    images = recipe.training.images
    first = min(recipe.adversarial.start_images, images) if after is not None else images
    return (first / before + (images - first) / (after or before)) / 86400.0


def _disk(
    recipe: Stage1Recipe, parameters: int, judges: int, samples: int | None, data: Sequence[Path], labels: str | None
) -> dict[str, Any]:
    """Bytes of the run and of its data; of a million images where there are none yet."""
    training, tokens = recipe.training, (recipe.model.image_size // recipe.model.patch) ** 2
    # Weights, average and two moments; of the discriminators no average. One more exists while it is written.
    checkpoint = 16 * parameters + 12 * judges
    stored = _stored_pixels(recipe)
    count = 1_000_000 if samples is None else samples
    shards, sidecars = round(count * stored * _JPEG_BYTES_PER_PIXEL), round(count * stored / 4 * 2)
    if data:
        shards = sum(_bytes_in(folder) for folder in data)
        sidecars = sum(_bytes_in(folder / "disparity" / labels) for folder in data) if labels else 0
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
    rows += [(f"parameters, {name}", f"{count / 1e6:.2f} M", "") for name, count in plan["parameters"].items()]
    fits = {True: "fits", False: "DOES NOT FIT: raise training.accumulate or --gpus", None: ""}[memory["fits"]]
    for name, size in memory.items():
        if name not in ("available", "fits") and size:
            rows.append((f"memory, {name}", f"{size / 1e9:.2f} GB", fits if name == "total" else ""))
    if memory["available"]:
        rows.append(("memory, of the device", f"{memory['available'] / 1e9:.2f} GB", ""))
    for name, label in (("before_discriminators", "speed"), ("with_discriminators", "speed, with discriminators")):
        if speed[name] is not None:
            share = f"{speed[f'{name}_multiplying_share']:.0%} of it matrix products, {plan['precision']}"
            rows.append((label, f"{speed[name]:.3g} images/s", share))
    rows.append(("time", _duration(plan["days"]), f"{plan['images']} images, {plan['steps']} steps"))
    of = f"of {disk['images']} images"
    rows += [
        ("disk, checkpoints", f"{disk['checkpoints'] / 1e9:.2f} GB", f"{disk['checkpoint'] / 1e9:.2f} GB each"),
        ("disk, weights", f"{disk['weights'] / 1e9:.3f} GB", "fp16"),
        ("disk, shards", f"{disk['shards'] / 1e9:.2f} GB", of),
        ("disk, labels", f"{disk['labels'] / 1e9:.2f} GB", of),
        ("disk, tokens", f"{disk['tokens'] / 1e9:.3f} GB", f"{of}, {plan['tokens']} each"),
    ]
    return rows


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"
