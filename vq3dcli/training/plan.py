"""What a run of either stage will take, before it starts: parameters, memory, speed, days, disk; for `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vq3dcli.config.load import load_recipe, recipe_names
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import CACHE_BYTES, CACHED_BYTES_A_PIXEL
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import UsageError
from vq3dcli.model.build import build_autoencoder, build_prior
from vq3dcli.model.vit import Block
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.devices import GPUS_A_MACHINE, NETWORK, Processor
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.optim import moments_bytes
from vq3dcli.training.run import require_whole_batches
from vq3dcli.training.sharding import is_sharded
from vq3dcli.training.trace import PERCEPTUAL, Work, of_one_processor, prior_work, stage1_work
from vq3dcli.weights_file import load_weights

# Python with PyTorch imported and what its allocator holds without using it (docs/performance.md); on a GPU the
# driver's context and libraries.
PROCESS_BYTES = {"cpu": 850_000_000, "cuda": 800_000_000}
# Of a step's work.
_BACKWARD_SHARE = 2 / 3
# A stored photo of 256 pixels a side takes about 40 kB (docs/data.md), a label two bytes at half the side.
_JPEG_BYTES_PER_PIXEL = 40e3 / 256**2
_STORED_MARGIN = 1.125
# Of a memory. Above it a plan is called tight: allocators fragment, other programs want some, and the count is a count.
TIGHT_SHARE = 0.7

# What a step with R1 takes more, of what discriminators take: 0.1 to 0.5 by tracing some recipes.
_R1_SHARE = 0.3


class Codes(NamedTuple):
    """What a prior is trained on: codes of an image, how many there are, where these two come from, for people.

    Without a store classes and images are not known, and of views there are two, as `vq3d tokenize` makes.
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


def plan_run(
    recipe: Stage1Recipe,
    processor: Processor,
    *,
    gpus: int = 1,
    classes: int | None = None,
    samples: int | None = None,
) -> dict[str, Any]:
    """Figures of a run by name; bytes, seconds and images a second, nested.

    `parameters` by part and in all, of one class where there are no data yet; `memory` of one processor by purpose,
    and the `state` of it: "fits", "tight", "does not fit", or None where the available memory is not known, with
    `advice` for the middle two; `speed` in images a second over all processors, before the discriminators start and
    with them (None without any), with each the share of the time that is spent in matrix products, and
    `gigaflops_an_image`; `days`; `disk`; `steps`, `images`, `tokens` an image, `micro_batch`, `precision`, `device`,
    `basis` of the speed.

    Args:
        recipe: What is trained.
        processor: On which.
        gpus: How many of them.
        classes: Of the data, for class-conditional discriminators; None where there are no data yet.
        samples: Images in the data; None where there are none yet.

    Raises:
        RecipeError: As of a run: the batch cannot be shared among so many, their shares are no whole minibatch groups,
            or the recipe wants classes, and the data have none.
    """
    require_whole_batches(recipe.training, Ranks(world_size=gpus))
    schedule, adversarial = recipe.training, recipe.adversarial
    micro_batch = schedule.batch_size // (gpus * schedule.accumulate)
    with torch.device("meta"):
        model = build_autoencoder(recipe)
    alone = of_one_processor(recipe, processor, micro_batch)  # as a rank of many has it
    adversary = Adversary(alone, classes=1 if classes is None else classes, device=torch.device("meta"))
    discriminators = {
        f"{each.name}_discriminator": sum(p.numel() for p in each.discriminator.parameters())
        for each in adversary.discriminators
    }
    names = ("before_discriminators", "with_discriminators")[: 1 + adversarial.on]
    works = {
        name: stage1_work(recipe, processor, micro_batch, started=name == "with_discriminators", classes=classes or 0)
        for name in names
    }
    if adversarial.on and adversarial.r1 > 0:
        before, after = works.values()
        penalty = _R1_SHARE / adversarial.r1_every_steps * (after.seconds - before.seconds)
        works["with_discriminators"] = after._replace(seconds=after.seconds + penalty)
    more = sum(discriminators.values())
    # The loader keeps all decoded samples, eight-bit colours and 16-bit disparity, if they fit.
    stored = (recipe.model.image_size * (_STORED_MARGIN if schedule.crop else 1.0)) ** 2
    decoded = round((samples or 0) * CACHED_BYTES_A_PIXEL * stored)
    figures = _plan(
        recipe,
        processor,
        model,
        gpus,
        works,
        {
            "discriminators": 16 * more,
            "perceptual": 4 * PERCEPTUAL[recipe.loss.perceptual_network][2] if recipe.loss.any_perceptual else 0,
            "data": decoded if processor.kind == "cpu" and decoded <= CACHE_BYTES else 0,
        },
        "a smaller model, or fewer rendering.rays_per_image and samples",
        more,
    )
    speed = figures["speed"] = {"with_discriminators": None, **figures["speed"]}
    first = min(adversarial.start_images, schedule.images) if adversarial.on else schedule.images
    seconds = first / speed["before_discriminators"]
    if adversarial.on:
        seconds += (schedule.images - first) / speed["with_discriminators"]
    tokens = (recipe.model.image_size // recipe.model.patch) ** 2
    count = 1_000_000 if samples is None else samples
    total = figures["disk"]["weights"] // 2
    checkpoint = figures["disk"]["checkpoint"] + 12 * more  # without an average
    return {
        "parameters": {
            **{name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
            "total": total,
            **discriminators,
        },
        **figures,
        "days": seconds / 86400.0,
        "disk": {
            **_checkpoints(checkpoint, total, schedule.keep_checkpoints),
            "images": count,
            "shards": round(count * stored * _JPEG_BYTES_PER_PIXEL),
            "labels": round(count * stored / 4 * 2),
            "tokens": 2 * count * tokens,
        },
        "tokens": tokens,
    }


def plan_prior(recipe: Stage2Recipe, processor: Processor, codes: Codes, *, gpus: int = 1) -> dict[str, Any]:
    """Figures of a run of Stage 2 by name, as far as they apply with the keys and errors of `plan_run`.

    Each of `gpus` processors holds the whole prior, or a slice of it by `training.shard`.
    """
    require_whole_batches(recipe.training, Ranks(world_size=gpus))
    schedule, shape = recipe.training, {"codebook_size": codes.codebook_size, "length": codes.length}
    micro_batch, classes = schedule.batch_size // (gpus * schedule.accumulate), codes.classes or 0
    with torch.device("meta"):
        model = build_prior(recipe, classes=classes, **shape)
    work = prior_work(recipe, processor, micro_batch, classes=classes, **shape)
    shared = "--set training.shard=always, or " if gpus > 1 and not is_sharded(schedule.shard, model, gpus) else ""
    figures = _plan(recipe, processor, model, gpus, {"training": work}, {}, f"{shared}a smaller model")
    total = figures["disk"]["weights"] // 2
    blocks = sum(p.numel() for p in model.blocks.parameters())
    head = 0 if model.head is None else model.head.weight.numel()
    images = 1_000_000 if codes.images is None else codes.images
    return {
        "parameters": {"blocks": blocks, "embeddings": total - blocks - head, "head": head, "total": total},
        **figures,
        "days": schedule.images / figures["speed"]["training"] / 86400.0,
        "disk": {**figures["disk"], "images": images, "tokens": 2 * images * codes.views * codes.length},
        "tokens": codes.length,
        "codebook_size": codes.codebook_size,
        "codes_source": codes.source,
    }


def _plan(
    recipe: Stage1Recipe | Stage2Recipe,
    processor: Processor,
    model: nn.Module,
    gpus: int,
    works: Mapping[str, Work],
    more_memory: Mapping[str, int],
    advice: str,
    more: int = 0,
) -> dict[str, Any]:
    """What plans of both stages have in common; of `works` by phase the last takes most. `more` as of `_speeds`."""
    schedule, work = recipe.training, [*works.values()][-1]
    total, trained = _counts(model)
    moments = moments_bytes(model, schedule.optimizer)
    casts = 2 * total if processor.dtype == torch.bfloat16 else 0  # autocast casts each weight once a step
    sharded = is_sharded(schedule.shard, model, gpus)
    slices = gpus if sharded else 1
    own = -(-total // slices)
    # Slices are put together block by block: one computes, the next is on its way, and so are their gradients.
    largest = max((sum(p.numel() for p in m.parameters()) for m in model.modules() if isinstance(m, Block)), default=0)
    memory: dict[str, Any] = {
        "weights": 4 * own + casts,
        # DistributedDataParallel keeps them in buckets, too.
        "gradients": 4 * -(-trained // slices) * (2 if gpus > 1 and not sharded else 1),
        "optimizer": moments // slices,
        "average": 4 * own,
        "gathered": 16 * largest if sharded else 0,
        **more_memory,
        "activations": round(max(work.kept - casts, 0.0)),
        "workspace": round(max(work.extra, 0.0)),
        "process": PROCESS_BYTES[processor.kind],
    }
    memory["total"] = sum(memory.values())
    # Processes on a CPU share one memory.
    needed, available = memory["total"] * (gpus if processor.kind == "cpu" else 1), processor.memory_bytes
    state = None
    if available is not None:
        state = "does not fit" if needed > available else "tight" if needed > TIGHT_SHARE * available else "fits"
    micro_batch = schedule.batch_size // (gpus * schedule.accumulate)
    ways = ["a larger training.accumulate"] * (micro_batch > 1)
    ways += ["--set training.checkpoint_activations=true"] * (not schedule.checkpoint_activations)
    smaller = ", ".join([*ways, advice])
    memory |= {"needed": needed, "available": available, "state": state}
    return {
        "memory": {**memory, "advice": "" if state in (None, "fits") else smaller},
        "speed": _speeds(recipe, works, processor, model, gpus, more),
        "disk": _checkpoints(8 * total + moments, total, schedule.keep_checkpoints),
        "steps": -(-schedule.images // schedule.batch_size),
        "images": schedule.images,
        "micro_batch": micro_batch,
        "precision": str(processor.dtype).removeprefix("torch."),
        "device": f"{gpus} x {processor.name}" if gpus > 1 else processor.name,
        "basis": processor.basis,
    }


def _speeds(
    recipe: Stage1Recipe | Stage2Recipe,
    works: Mapping[str, Work],
    processor: Processor,
    model: nn.Module,
    gpus: int,
    more: int,
) -> dict[str, Any]:
    """Images a second over all processors by phase; of the last its operations, and what of a step is not computing.

    `exchange_bytes` a processor sends in a step, and receives. It is a ring's share of all float32 gradients, once to
    sum them and once to tell the sums; where slices are shared, of each micro-batch the weights for both passes, and
    the gradients. `more` parameters are in no slices.

    Each updates all weights. What it sends and receives is taken to be hidden behind backward passes, two thirds of
    the work, as far as they last: behind the last one where gradients are exchanged once, else behind all.
    """
    batch, accumulate = recipe.training.batch_size, recipe.training.accumulate
    sharded, (total, trained) = is_sharded(recipe.training.shard, model, gpus), _counts(model)
    numbers = accumulate * (2 * total + trained) if sharded else 2 * trained
    exchange = 4 * (numbers + 2 * more) * (gpus - 1) // gpus
    link = processor.link_bytes_per_second
    if processor.kind == "cuda" and gpus > GPUS_A_MACHINE:
        link = min(link, NETWORK)
    speeds: dict[str, Any] = {}
    for name, work in works.items():
        hidden = _BACKWARD_SHARE * work.seconds * (accumulate if sharded else 1)
        waits = max(exchange / link - hidden, 0.0)
        seconds = accumulate * work.seconds + work.update + waits
        speeds[name] = batch / seconds
        speeds[f"{name}_multiplying_share"] = (accumulate * work.multiplying + work.update_multiplying) / seconds
        speeds["gigaflops_an_image"] = work.flops * accumulate * gpus / batch / 1e9
        speeds["exchange_bytes"], speeds["exchange_share"] = exchange, waits / seconds
        wasted = accumulate * work.waiting + work.update + waits
        speeds["wasted_share"] = wasted / seconds if gpus > 1 else 0.0
    return speeds


def _counts(model: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those that are trained: a frozen depth network has no gradients."""
    counts = [(p.numel(), p.numel() * p.requires_grad) for p in model.parameters()]
    return sum(count for count, _ in counts), sum(count for _, count in counts)


def _checkpoints(checkpoint: int, parameters: int, kept: int) -> dict[str, int]:
    """Bytes on disk: weights, average, optimizer; one checkpoint more exists while it is written."""
    return {"checkpoint": checkpoint, "checkpoints": checkpoint * (kept + 1), "weights": 2 * parameters}
