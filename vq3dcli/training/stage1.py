"""Training of Stage 1, read from top to bottom: validate, build, resume, then step until done.

Every random number is a function of (seed, purpose, sample index), and everything else that a step depends on lies in
the checkpoint. So running the same command again continues, and on a CPU with as many threads N + N steps give the
same bits as 2 N.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vq3dcli import seeding
from vq3dcli.checkpoint import check_tensors, save_weights
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.errors import DataError, DivergedError, StoppedError
from vq3dcli.losses.depth import LABEL_NONE
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.quantizer import perplexity
from vq3dcli.training.arithmetic import denormals_flushed, resolve_precision
from vq3dcli.training.distributed import Ranks, join_ranks
from vq3dcli.training.ema import as_mapping, average_of, update_average
from vq3dcli.training.objective import Objective, Stage1Objective
from vq3dcli.training.optim import (
    build_optimizer,
    learning_rate_at,
    optimizer_tensors,
    reset_rows,
    restore_optimizer,
    set_learning_rate,
)
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.sheets import write_sheet

_log = logging.getLogger(__name__)

# The share of the target's colourfulness that a reconstruction has before quantisation starts ...
_CHROMA_ENOUGH = 0.5
# ... and the multiple of `quantize_from_images` at which it starts all the same.
_QUANTIZE_PATIENCE = 4
_CHROMA_MOMENTUM = 0.05
# The normalisation before the codes is frozen after this fraction of a run: the decoder then sees a fixed code space.
_FREEZE_STATISTICS_AFTER = 0.5
_SHEET_IMAGES = 6


class Data(Protocol):
    """Where batches come from: `data.loader.TrainingLoader`."""

    def batches(self, images_seen: int) -> Iterator[Batch]:
        """This rank's rows of the global batches, endless, from a position of the stream."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a caller may show after a step.

    Attributes:
        images_seen: Images seen so far.
        total_images: Images of the whole run.
        images_per_second: Over the last interval.
        loss: The total loss of the last step.
    """

    images_seen: int
    total_images: int
    images_per_second: float
    loss: float


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        weights: The exported weights file.
        sha256: Its hash; empty on ranks other than the first, which do not write it.
        images_seen: Images seen.
        metrics: The last line of the metrics.
    """

    weights: Path
    sha256: str
    images_seen: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class _State:
    """Scalars that a step depends on and that no tensor holds."""

    images_seen: int = 0
    chroma: float = 0.0


def train(
    recipe: Stage1Recipe,
    data: Data,
    out: Path,
    *,
    device: torch.device | None = None,
    facts: Mapping[str, Any] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    stop_after_images: int | None = None,
) -> Result:
    """Train, or continue the run that `out` holds.

    Args:
        recipe: The resolved recipe.
        data: A loader made with the recipe's batch size and seed.
        out: The run's folder.
        device: Where to train, on many GPUs this rank's own; the CPU by default.
        facts: Recorded with the run; a later call with other facts is refused.
        report: Called after each step.
        should_stop: Polled between steps; when true, the run is saved and `StoppedError` raised.
        stop_after_images: Stop as if asked to after this many images.

    Raises:
        DivergedError: The loss or a gradient is not finite; nothing was updated by that step.
        StoppedError: Stopped on request, after saving, or `out` belongs to a running process.
        RecipeError: `out` holds a run with another recipe or other facts.
        DataError: `out` holds a run that is damaged, or of another version's model.
    """
    device = device or torch.device("cpu")
    ranks = join_ranks(device)
    folder = RunFolder(out)
    lock = folder.opened(recipe, facts or {}) if ranks.is_main else contextlib.nullcontext()
    with lock, denormals_flushed():
        ranks.barrier()
        return _train(recipe, data, folder, device, ranks, report, should_stop, stop_after_images)


def _train(
    recipe: Stage1Recipe,
    data: Data,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    stop_after_images: int | None,
) -> Result:
    schedule = recipe.training
    autocast_dtype = resolve_precision(schedule.precision, device)
    model = build_autoencoder(recipe).to(device)
    average = average_of(model)
    optimizer = build_optimizer(model, learning_rate=schedule.learning_rate, weight_decay=schedule.weight_decay)
    objective = Stage1Objective(model, recipe)
    forward = DistributedDataParallel(objective) if ranks.world_size > 1 else objective
    state = _resume(folder, model, average, optimizer, device)
    if ranks.is_main:
        folder.forget_metrics_after(state.images_seen)
    if state.images_seen:
        _log.info("continuing at %d images", state.images_seen)

    sheet_batch = _first_images(data) if ranks.is_main else None
    interval_start, interval_images = time.perf_counter(), state.images_seen
    batches = data.batches(state.images_seen)
    while state.images_seen < schedule.images:
        batch = next(batches)
        set_learning_rate(
            optimizer,
            learning_rate_at(
                state.images_seen,
                peak=schedule.learning_rate,
                warmup_images=schedule.warmup_images,
                total_images=schedule.images,
                final_factor=schedule.final_learning_rate_factor,
            ),
        )

        # --- loss and gradient
        labelled = ranks.mean((batch.label_kind != LABEL_NONE).float().mean().to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast_dtype == torch.bfloat16):
            result: Objective = forward(
                batch.image.to(device),
                batch.s.to(device),
                batch.label_kind.to(device),
                batch.index.to(device),
                labelled,
            )
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.gradient_clip)
        _require_finite(result.loss, gradient_norm, batch, state, ranks)

        # --- update
        optimizer.step()
        seen = state.images_seen + schedule.batch_size
        chroma = float(ranks.mean(result.terms["chroma_ratio"]))
        state = _State(seen, state.chroma + _CHROMA_MOMENTUM * (chroma - state.chroma))
        counts = _update_codes(recipe, model, average, optimizer, result, state, ranks)
        update_average(
            average,
            model,
            images_seen=seen,
            batch_size=schedule.batch_size,
            half_life_images=schedule.ema_half_life_images,
        )

        # --- report
        elapsed = time.perf_counter() - interval_start
        rate = (seen - interval_images) / max(elapsed, 1e-9)
        report(Progress(seen, schedule.images, rate, float(result.loss.detach())))
        done = seen >= schedule.images
        asked = should_stop() or (stop_after_images is not None and seen >= stop_after_images and not done)
        # A signal may reach the ranks at different steps: all of them stop as soon as one is asked to.
        stopping = ranks.any(asked, device)
        if _passed(seen, schedule.log_every_images, schedule.batch_size) or done:
            terms = {name: float(ranks.mean(value)) for name, value in result.terms.items()}
            record = {
                "images_seen": seen,
                "loss": float(ranks.mean(result.loss.detach())),
                **terms,
                "perplexity": float(perplexity(counts)),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "gradient_norm": float(gradient_norm),
                "quantizing": bool(model.quantizer.active),
                "images_per_second": round(rate, 2),
            }
            if ranks.is_main:
                folder.log(record)
            interval_start, interval_images = time.perf_counter(), seen
        if sheet_batch is not None and (_passed(seen, schedule.sheet_every_images, schedule.batch_size) or done):
            write_sheet(
                folder.sheets / f"images-{seen:012d}.png",
                average,
                recipe,
                sheet_batch.image.to(device),
                sheet_batch.s,
                sheet_batch.label_kind,
            )
        if ranks.is_main and (done or stopping or _passed(seen, schedule.checkpoint_every_images, schedule.batch_size)):
            _save(folder, recipe, model, average, optimizer, state)
        if stopping:
            ranks.barrier()
            raise StoppedError(
                f"stopped at {seen} of {schedule.images} images, saved ({folder.path})",
                remedy="the same command again continues",
            )

    if not bool(model.quantizer.active):
        _log.warning("the run ended before quantisation began: its codes are untrained; train for more images")
    digest = ""
    if ranks.is_main:
        # Without the speed, the same run gives the same file on any machine of its kind.
        figures = {name: value for name, value in folder.last_metrics().items() if name != "images_per_second"}
        card = {"images_seen": state.images_seen, "training": figures}
        digest = save_weights(folder.weights, average, recipe, card)
    ranks.barrier()
    return Result(folder.weights, digest, state.images_seen, folder.last_metrics())


def _update_codes(
    recipe: Stage1Recipe,
    model: Autoencoder,
    average: Autoencoder,
    optimizer: torch.optim.Optimizer,
    result: Objective,
    state: _State,
    ranks: Ranks,
) -> Tensor:
    """Everything that keeps the codebook alive; returns how often each code was used in this step, `[K]`."""
    quantizer, schedule = model.quantizer, recipe.training
    if state.images_seen <= _FREEZE_STATISTICS_AFTER * schedule.images:
        raw = result.raw.flatten(0, 1)
        quantizer.update_statistics(ranks.mean(raw.mean(0)), ranks.mean(raw.square().mean(0)))
    size = quantizer.codebook.shape[0]
    counts = ranks.sum(torch.bincount(result.codes.flatten(), minlength=size).float())
    step_index = torch.tensor(state.images_seen, device=counts.device)
    if not bool(quantizer.active):
        enough = state.chroma >= _CHROMA_ENOUGH
        if state.images_seen >= schedule.quantize_from_images * (1 if enough else _QUANTIZE_PATIENCE):
            # Fresh statistics: `projected` was computed before they moved, a step's difference.
            everything = ranks.gather(result.projected.flatten(0, 1))
            quantizer.start(everything, seeding.uniform(schedule.seed, "codes", step_index, size))
            _replace_rows(model, average, optimizer, torch.ones(size, dtype=torch.bool, device=counts.device))
    elif quantizer.count(counts):
        everything = ranks.gather(result.projected.flatten(0, 1))
        revived = quantizer.revive(everything, seeding.uniform(schedule.seed, "codes", step_index, size))
        _replace_rows(model, average, optimizer, revived)
    return counts


@torch.no_grad()
def _replace_rows(model: Autoencoder, average: Autoencoder, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    """Codes that start anew have no past in the optimizer or the average."""
    reset_rows(optimizer, model.quantizer.codebook, rows)
    average.quantizer.codebook[rows] = model.quantizer.codebook[rows]


def _require_finite(loss: Tensor, gradient_norm: Tensor, batch: Batch, state: _State, ranks: Ranks) -> None:
    """Stop before a non-finite update; every rank sees the same flag, so that all of them stop."""
    finite = torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm)
    if float(ranks.sum((~finite).float())) > 0:
        names = ", ".join(batch.keys[:8]) + (" ..." if len(batch.keys) > 8 else "")
        raise DivergedError(
            f"the loss is {float(loss.detach())} and the gradient norm {float(gradient_norm)} "
            f"at {state.images_seen} images (samples {names}); this step was not applied",
            remedy="a lower training.learning_rate with another --out; the last checkpoint is intact",
        )


def _passed(seen: int, every: int, batch_size: int) -> bool:
    """Whether a multiple of `every` lies in the step that ended at `seen` images."""
    return seen // every > (seen - batch_size) // every


def _first_images(data: Data) -> Batch:
    batch = next(data.batches(0))
    n = _SHEET_IMAGES
    return replace(batch, image=batch.image[:n], s=batch.s[:n], label_kind=batch.label_kind[:n])


def _save(
    folder: RunFolder,
    recipe: Stage1Recipe,
    model: Autoencoder,
    average: Autoencoder,
    optimizer: torch.optim.Optimizer,
    state: _State,
) -> None:
    parts = {
        "weights": as_mapping(model),
        "average": as_mapping(average),
        "optimizer": optimizer_tensors(optimizer, model),
    }
    manifest = {
        "images_seen": state.images_seen,
        "chroma": state.chroma,
        "recipe": json.loads(recipe.model_dump_json()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    folder.save(state.images_seen, parts, manifest, recipe.training.keep_checkpoints)


def _resume(
    folder: RunFolder,
    model: Autoencoder,
    average: Autoencoder,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> _State:
    saved = folder.newest()
    if saved is None:
        return _State()
    parts, manifest = saved
    misfit = f"the checkpoint does not fit this model ({folder.checkpoints})"
    for name, module in (("weights", model), ("average", average)):
        check_tensors(misfit, module.state_dict(), parts.get(name, {}))
        module.load_state_dict(parts[name])
    try:
        restore_optimizer(optimizer, model, parts["optimizer"])
        threads, state = manifest["threads"], _State(int(manifest["images_seen"]), float(manifest["chroma"]))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{misfit}: {error}", remedy="the version of vq3d that wrote it, or another --out") from error
    if device.type == "cpu" and threads != torch.get_num_threads():
        _log.warning(
            "the run used %d threads and now has %d: it continues, but not to the same bits",
            threads,
            torch.get_num_threads(),
        )
    assert math.isfinite(state.chroma)
    return state
