"""Training of a depth network, read from top to bottom: build or resume, then step until done.

The same habits as `training/stage1.py`, in one process: every random number is a function of (seed, purpose, place of
the stream), the rest lies in the checkpoint, and on a CPU with as many threads N + N steps give the same bits as 2 N.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli import seeding
from vq3dcli.config.schema import DepthRecipe
from vq3dcli.data.images import encode_png
from vq3dcli.data.loader import Batch
from vq3dcli.errors import DivergedError, RecipeError, StoppedError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.losses.depth import LABEL_NONE, relative_depth_loss
from vq3dcli.model.build import build_depth_network
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.training.arithmetic import denormals_flushed, resolve_precision
from vq3dcli.training.depth_augmentation import augmented
from vq3dcli.training.depth_guards import depth_guards
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.ema import average_of, update_average
from vq3dcli.training.gradients import require_finite
from vq3dcli.training.optim import (
    OptimizerLike,
    learning_rate_at,
    passed,
)
from vq3dcli.training.resume import manifest_of, parts_of, restore
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.skipping import Skipped
from vq3dcli.training.stage1 import Data, Progress, Result
from vq3dcli.training.watch import Watch
from vq3dcli.weights.third_party import encoder_weights
from vq3dcli.weights_file import load_depth, save_weights, weights_header

_log = logging.getLogger(__name__)

_ALONE = Ranks()
_SHEET_IMAGES = 8
_PLANNED_STEPS = 3


@dataclass
class DepthState:
    """A run at a moment: the network, its moving average, which is exported, the optimizer, steps passed over."""

    model: DepthNetwork
    average: DepthNetwork
    optimizer: OptimizerLike
    images_seen: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    init_sha256: str = ""


def train_depth(
    recipe: DepthRecipe,
    data: Data,
    out: Path,
    *,
    device: torch.device | None = None,
    facts: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    refresh_page: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    stop_after_images: int | None = None,
) -> Result:
    """Train, or continue the run that `out` holds.

    Args:
        recipe: The resolved recipe.
        data: A loader made with the recipe's batch size and seed, all of whose samples are labelled.
        out: The run's folder.
        device: Where to train; the CPU by default.
        facts: Recorded with the run; a later call with other facts is refused.
        report: Called after each step.
        refresh_page: Called after each contact sheet, and when the run ends, however it ends.
        should_stop: Polled between steps; when true, the run is saved and `StoppedError` raised.
        stop_after_images: Stop as if asked to after this many images.

    Raises:
        DivergedError: Several steps in a row were not finite.
        StoppedError: Stopped on request, after saving, or `out` belongs to a running process.
        RecipeError: `out` holds a run with another recipe or other facts, or `training.init` does not fit.
        DataError: `out` holds a run that is damaged.
        UnavailableError: The encoder's weights or the tracker are not there.
    """
    device = device or torch.device("cpu")
    folder = RunFolder(out)
    with folder.opened(recipe, facts or {}), denormals_flushed():
        state = _start_or_resume(folder, recipe, device)
        folder.forget_metrics_after(state.images_seen)
        first = next(data.batches(0))
        watch = Watch(
            folder,
            recipe,
            depth_guards(recipe),
            lambda path: _write_sheet(path, recipe, state.average, first, device),
            state.images_seen,
            refresh_page,
        )
        watch.missing_sheet(state.images_seen)
        if 0 < state.images_seen < recipe.training.images:
            _log.info("continuing at %d images", state.images_seen)
        try:
            _step_until_done(recipe, data, folder, state, device, watch, report, should_stop, stop_after_images)
            digest = folder.exported(state.images_seen)
            if not digest:
                card = folder.card(state.images_seen, state.init_sha256)
                digest = save_weights(folder.weights, state.average, recipe, card)
        except BaseException:
            watch.close(failed=True)
            raise
        watch.close()
        return Result(folder.weights, digest, state.images_seen, folder.last_metrics())


def take_step(recipe: DepthRecipe, state: DepthState, batch: Batch, device: torch.device) -> dict[str, float]:
    """Change `state` by one step; returns the figures of a record. Raises `DivergedError`."""
    schedule = recipe.training
    learning_rate = learning_rate_at(
        state.images_seen,
        peak=schedule.learning_rate,
        warmup_images=schedule.warmup_images,
        total_images=schedule.images,
        final_factor=schedule.final_learning_rate_factor,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]
    images, label = augmented(
        batch.image.to(device),
        batch.s.to(device),
        batch.index.to(device),
        settings=recipe.augmentation,
        input_px=recipe.model.input_px,
        seed=schedule.seed,
    )
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    dtype = resolve_precision(schedule.precision, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        predicted = state.model(images.contiguous(memory_format=torch.channels_last))
    labelled = (batch.label_kind != LABEL_NONE).to(device).float()
    per_image = relative_depth_loss(predicted, label, gradient=recipe.loss.gradient, scales=recipe.loss.gradient_scales)
    loss = (per_image * labelled).sum() / labelled.sum().clamp(min=1.0)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for p in state.model.parameters() if p.requires_grad], schedule.gradient_clip)
    require_finite(loss.detach(), norm, batch.keys, state.images_seen, _ALONE)
    state.optimizer.step()
    state.images_seen += schedule.batch_size
    update_average(
        state.average,
        state.model,
        images_seen=state.images_seen,
        batch_size=schedule.batch_size,
        half_life_images=schedule.ema_half_life_images,
    )
    return {"loss": float(loss.detach()), "gradient_norm": float(norm), "learning_rate": learning_rate}


def _step_until_done(
    recipe: DepthRecipe,
    data: Data,
    folder: RunFolder,
    state: DepthState,
    device: torch.device,
    watch: Watch,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    stop_after_images: int | None,
) -> None:
    schedule, size = recipe.training, recipe.training.batch_size
    interval_start, interval_images = time.perf_counter(), state.images_seen
    running: list[float] = []
    batches = data.batches(state.images_seen)
    while state.images_seen < schedule.images:
        figures: dict[str, float] = {}
        try:
            figures = take_step(recipe, state, next(batches), device)
            running.append(figures["loss"])
            state.skipped.in_a_row = 0
        except DivergedError as error:
            state.skipped.add(error, told=True)
            state.images_seen += size

        # --- report and save
        seen = state.images_seen
        rate = (seen - interval_images) / max(time.perf_counter() - interval_start, 1e-9)
        report(Progress(seen, schedule.images, rate, figures.get("loss", math.nan)))
        done = seen >= schedule.images
        stopping = should_stop() or (stop_after_images is not None and seen >= stop_after_images and not done)
        if passed(seen, schedule.log_every_images, size) or done:
            mean = {"loss": sum(running) / len(running)} if running else {}
            speed = {"images_per_second": round(rate, 2)}
            watch.log({"images_seen": seen, **figures, **mean, **state.skipped.figures(), **speed})
            interval_start, interval_images, running = time.perf_counter(), seen, []
        if done or stopping or passed(seen, schedule.checkpoint_every_images, size):
            _save(folder, recipe, state)
        if done or passed(seen, schedule.sheet_every_images, size):
            watch.sheet(seen)
        if stopping:
            raise StoppedError(
                f"stopped at {seen} of {schedule.images} images, saved ({folder.path})",
                remedy="the same command again continues",
            )


def plan_depth(recipe: DepthRecipe, device: torch.device) -> dict[str, Any]:
    """What a run takes, by a few steps on noise: speed, hours, parameters in all and trained, bytes on disk."""
    model = build_depth_network(recipe).to(device).to(memory_format=torch.channels_last)
    state = DepthState(model, average_of(model), _optimizer(model, recipe))
    size, side = recipe.training.batch_size, recipe.model.input_px
    noise = seeding.uniform(0, "plan", torch.arange(size), 4 * side * side).reshape(size, 4, side, side)
    batch = Batch(
        image=(255.0 * noise[:, :3]).byte(),
        s=noise[:, 3],
        label_kind=torch.ones(size, dtype=torch.int8),
        class_index=torch.full((size,), -1),
        index=torch.arange(size),
        keys=[""] * size,
    )
    seconds = []
    for _ in range(_PLANNED_STEPS):
        start = time.perf_counter()
        take_step(recipe, state, batch, device)  # its figures are read, so that the device has ended
        seconds.append(time.perf_counter() - start)
    rate = size / min(seconds)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    everything = sum(p.numel() for p in parameters)
    return {
        "images_per_second": rate,
        "hours": recipe.training.images / rate / 3600.0,
        "parameters": everything,
        "trained": trained,
        # A checkpoint holds weights, average and two moments of what is trained, in float32; the export is fp16.
        "disk_bytes": recipe.training.keep_checkpoints * 4 * (2 * everything + 2 * trained) + 2 * everything,
    }


def _start_or_resume(folder: RunFolder, recipe: DepthRecipe, device: torch.device) -> DepthState:
    schedule = recipe.training
    saved = folder.newest(_ALONE)
    model, init_sha256 = build_depth_network(recipe), ""
    if saved is None and schedule.init:
        init_sha256 = _initialise(model, recipe, Path(schedule.init))
    elif saved is None:
        model.encoder.load_state_dict(encoder_weights(recipe.model.encoder, model.encoder.published_names()))
    model = model.to(device).to(memory_format=torch.channels_last)
    state = DepthState(model, average_of(model), _optimizer(model, recipe), init_sha256=init_sha256)
    if saved is not None:
        restore(state, saved, folder.checkpoints, device=device, ranks=_ALONE)
    return state


def _initialise(model: DepthNetwork, recipe: DepthRecipe, path: Path) -> str:
    """Fine-tuning: another network's weights, in place, with a fresh optimizer; returns the file's hash."""
    loaded = load_depth(path)
    if (loaded.recipe.model.encoder, loaded.recipe.model.widths) != (recipe.model.encoder, recipe.model.widths):
        shape = loaded.recipe.model
        raise RecipeError(
            f"the weights to start from have another shape ({path})",
            remedy=f"--set model.encoder={shape.encoder} --set 'model.widths={list(shape.widths)}'",
        )
    model.load_state_dict(loaded.model.state_dict())
    return loaded.sha256


def _optimizer(model: DepthNetwork, recipe: DepthRecipe) -> OptimizerLike:
    """AdamW with two learning rates; decay on the kernels of convolutions alone."""
    schedule = recipe.training
    groups = []
    for part, factor in ((model.encoder, schedule.encoder_learning_rate_factor), (None, 1.0)):
        named = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("encoder.") == (part is not None)
        ]
        for kernels in (True, False):
            chosen = [parameter for parameter in named if (parameter.ndim > 1) == kernels]
            if chosen:
                decay = schedule.weight_decay if kernels else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


def _save(folder: RunFolder, recipe: DepthRecipe, state: DepthState) -> None:
    header = weights_header(recipe, folder.card(state.images_seen, state.init_sha256))
    folder.save(
        state.images_seen, parts_of(state), manifest_of(state, recipe), header, keep=recipe.training.keep_checkpoints
    )


def _write_sheet(path: Path, recipe: DepthRecipe, model: DepthNetwork, batch: Batch, device: torch.device) -> None:
    """Images, the average's maps and the labels, the maps each in its own range."""
    side = recipe.model.input_px
    image, label = batch.image[:_SHEET_IMAGES], batch.s[:_SHEET_IMAGES]
    shown = functional.interpolate(image.float(), (side, side), mode="bilinear", antialias=True).clamp(0.0, 255.0)
    with torch.inference_mode():
        maps = model(shown.to(device).contiguous(memory_format=torch.channels_last)).cpu()
    tiles = []
    for picture, predicted, exact in zip(shown.round().byte(), maps, label, strict=True):
        tiles += [picture, _coloured(predicted, side), _coloured(exact, side)]
    write_bytes(path, encode_png(grid(tiles, columns=6)))


def _coloured(disparity: Tensor, side: int) -> Tensor:
    low, high = float(disparity.min()), float(disparity.max())
    scaled = (disparity - low) / max(high - low, 1e-6)
    return colour_map(functional.interpolate(scaled[None, None], (side, side))[0, 0], *display_range(scaled))
