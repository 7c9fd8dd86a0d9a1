"""What a run of Stage 2 will take, before it starts; `--dry-run` prints it. As `training.plan` for Stage 1.

Legend: L codes of an image, D width, K codebook_size, e bytes of a number that is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.load import load_recipe, recipe_names
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import UsageError
from vq3dcli.model.build import build_prior
from vq3dcli.training.costs import PASSES, UPDATE_PASSES, Cost, transformer_cost
from vq3dcli.training.devices import Processor
from vq3dcli.training.optim import moments_bytes, optimizer_flops
from vq3dcli.training.plan import (
    MANY_GPUS_SHARE,
    PROCESS_BYTES,
    duration,
    least_change,
    memory_rows,
    memory_state,
    micro_batch_of,
    needed_bytes,
    three_digits,
)
from vq3dcli.weights_file import load_weights


@dataclass(frozen=True)
class Codes:
    """What a prior is trained on, as far as it is known.

    Attributes:
        length: L.
        codebook_size: K.
        source: Where these two come from, for people.
        classes: None where there is no store yet.
        images: Likewise.
        views: Views of an image; 2, as `vq3d tokenize` makes, where there is no store yet.
    """

    length: int
    codebook_size: int
    source: str
    classes: int | None = None
    images: int | None = None
    views: int = 2


def codes_of(recipe: str, store: TokenStore | None, weights: Path | None) -> Codes:
    """The codes of a store; or else of Stage 1 weights, or of the Stage 1 recipe of the same name without `-prior`.

    Raises:
        UsageError: None of them is there.
        InputMissingError, DataError, UnsafeFileError: As `load_weights`.
    """
    if store is not None:
        return Codes(
            store.length, store.codebook_size, str(store.path), len(store.class_names), store.num_images, store.views
        )
    if weights is not None:
        model, source = load_weights(weights).recipe.model, str(weights)
    else:
        source = recipe.removesuffix("-prior")
        if source == recipe or source not in recipe_names():
            raise UsageError(
                "how many codes an image has is not known", remedy="--data STORE, or --weights of the Stage 1"
            )
        model, source = load_recipe(source, Stage1Recipe).model, f"recipe {source}"
    return Codes((model.image_size // model.patch) ** 2, model.codebook_size, source)


def prior_cost(recipe: Stage2Recipe, codes: Codes, dtype: torch.dtype, *, on_cpu: bool = False) -> Cost:
    """An image in one step, forward and backward. All attention counts, though half of it is masked."""
    model, e = recipe.model, dtype.itemsize
    slots = float(codes.length * model.width)
    remade = recipe.training.checkpoint_activations
    blocks = transformer_cost(codes.length, model.width, model.heads, model.layers, e, remade=remade, on_cpu=on_cpu)
    # Beside what an encoder's block keeps: queries and keys after their rotation, and where dropout was, a byte each.
    more = slots * (2.0 * e + 2.0 * (model.dropout > 0)) * model.layers
    logits = 4.0 * codes.length * codes.codebook_size  # their logarithms wait, in float32
    ends = slots * (e + (model.dropout > 0)) + logits
    return blocks.plus(
        Cost(
            flops=6.0 * slots * codes.codebook_size,
            kept_bytes=ends + (0.0 if remade else more),
            moved_bytes=PASSES * (more + ends),
        )
    )


def plan_prior(recipe: Stage2Recipe, processor: Processor, codes: Codes, *, gpus: int = 1) -> dict[str, Any]:
    """Figures of a run by name, with the keys of `plan.plan_run` as far as they apply.

    Args:
        recipe: What is trained.
        processor: On which.
        codes: On what.
        gpus: How many processors; each holds the whole prior.

    Raises:
        UsageError: The batch cannot be shared among so many.
    """
    schedule = recipe.training
    micro_batch = micro_batch_of(schedule, gpus)
    with torch.device("meta"):
        model = build_prior(recipe, codebook_size=codes.codebook_size, length=codes.length, classes=codes.classes or 0)
    total = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.blocks.parameters())
    head = 0 if model.head is None else model.head.weight.numel()

    moments = moments_bytes(model, schedule.optimizer)

    def memory_of(images: int, remade: bool) -> dict[str, int]:
        changed = schedule.model_copy(update={"checkpoint_activations": remade})
        return _memory(recipe.model_copy(update={"training": changed}), codes, processor, total, moments, images, gpus)

    memory = memory_of(micro_batch, schedule.checkpoint_activations)
    needed, available = needed_bytes(memory, processor, gpus), processor.memory_bytes
    state = None if available is None else memory_state(needed, available)
    advice = ""
    if available is not None and state != "fits":
        advice = least_change(
            schedule, gpus, available, lambda size, remade: needed_bytes(memory_of(size, remade), processor, gpus)
        )
        advice = advice or "a smaller model: each GPU holds all of it"
    on_cpu = processor.kind == "cpu"
    cost = prior_cost(recipe, codes, processor.dtype, on_cpu=on_cpu)
    update_flops = optimizer_flops(model, schedule.optimizer) * gpus / schedule.batch_size
    multiplying = (cost.flops + update_flops) / processor.flops_per_second
    update_bytes = 4.0 * UPDATE_PASSES * total * gpus / schedule.batch_size
    seconds = multiplying + (cost.moved_bytes + update_bytes) / processor.bytes_per_second
    rate = gpus * (MANY_GPUS_SHARE if gpus > 1 else 1.0) / seconds
    images = 1_000_000 if codes.images is None else codes.images
    checkpoint = 8 * total + moments  # weights, average, optimizer; one more exists while it is written
    return {
        "parameters": {"blocks": blocks, "embeddings": total - blocks - head, "head": head, "total": total},
        "class_embeddings": codes.classes is not None,
        "memory": {**memory, "needed": needed, "available": available, "state": state, "advice": advice},
        "speed": {
            "training": rate,
            "training_multiplying_share": multiplying / seconds,
            "gigaflops_an_image": cost.flops / 1e9,
        },
        "days": schedule.images / rate / 86400.0,
        "disk": {
            "checkpoint": checkpoint,
            "checkpoints": checkpoint * (schedule.keep_checkpoints + 1),
            "weights": 2 * total,
            "images": images,
            "tokens": 2 * images * codes.views * codes.length,
        },
        "steps": -(-schedule.images // schedule.batch_size),
        "images": schedule.images,
        "tokens": codes.length,
        "codebook_size": codes.codebook_size,
        "codes_source": codes.source,
        "micro_batch": micro_batch,
        "precision": str(processor.dtype).removeprefix("torch."),
        "device": f"{gpus} x {processor.name}" if gpus > 1 else processor.name,
        "basis": processor.basis,
    }


def _memory(
    recipe: Stage2Recipe,
    codes: Codes,
    processor: Processor,
    parameters: int,
    moments: int,
    micro_batch: int,
    gpus: int,
) -> dict[str, int]:
    """Bytes of one processor at the worst moment of a step."""
    e, on_cpu = processor.dtype.itemsize, processor.kind == "cpu"
    half = 2 * parameters if e < 4 else 0  # autocast casts each weight once a step
    # Beside the logarithms that wait: the gradient of the logits in float32, and rounded.
    workspace = codes.length * codes.codebook_size * (4 + (e if e < 4 else 0))
    if recipe.training.checkpoint_activations:  # what one block keeps while it is made again
        once = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"checkpoint_activations": False})}
        )
        workspace += round(prior_cost(once, codes, processor.dtype, on_cpu=on_cpu).kept_bytes / recipe.model.layers)
    memory = {
        "weights": 4 * parameters + half,
        "gradients": 4 * parameters * (2 if gpus > 1 else 1),  # DistributedDataParallel keeps them in buckets, too
        "optimizer": moments,
        "average": 4 * parameters,
        "activations": round(micro_batch * prior_cost(recipe, codes, processor.dtype, on_cpu=on_cpu).kept_bytes),
        "workspace": micro_batch * workspace,
        "process": round(PROCESS_BYTES[processor.kind]),
    }
    memory["total"] = sum(memory.values())
    return memory


def prior_table(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A plan in rows of three for people: what, how much, a remark."""
    speed, disk = plan["speed"], plan["disk"]
    rows = [("what", "figure", "remark"), ("device", plan["device"], plan["basis"])]
    rows.append(("codes of an image", f"{plan['tokens']} of {plan['codebook_size']}", f"by {plan['codes_source']}"))
    for name, count in plan["parameters"].items():
        remark = "those of classes not counted" if name == "embeddings" and not plan["class_embeddings"] else ""
        rows.append((f"parameters, {name}", f"{count / 1e6:.2f} M", remark))
    rows += memory_rows(plan["memory"])
    share = f"{speed['training_multiplying_share']:.0%} of the time in matrix products"
    return [
        *rows,
        ("speed", f"{three_digits(speed['training'])} images/s", share),
        ("operations", f"{three_digits(speed['gigaflops_an_image'])} GFLOP an image", ""),
        ("precision", plan["precision"], ""),
        ("time", duration(plan["days"]), f"{plan['images']} images, {plan['steps']} steps"),
        ("disk, checkpoints", f"{disk['checkpoints'] / 1e9:.2f} GB", f"{disk['checkpoint'] / 1e9:.2f} GB each"),
        ("disk, weights", f"{disk['weights'] / 1e9:.3f} GB", "fp16"),
        ("disk, tokens", f"{disk['tokens'] / 1e9:.3f} GB", f"of {disk['images']} images"),
    ]
