"""Training of Stage 1, read from top to bottom: build or resume, then step until done.

Every random number is a function of (seed, purpose, sample index), and everything else that a step depends on lies in
the checkpoint. So running the same command again continues, and on a CPU with as many threads N + N steps give the
same bits as 2 N.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.errors import DivergedError, RecipeError, StoppedError
from vq3dcli.losses.perceptual import build_perceptual
from vq3dcli.model.quantizer import perplexity
from vq3dcli.rendering.cameras import CAMERA_RADIUS, FAR, FOV_RAD, NEAR
from vq3dcli.training.arithmetic import denormals_flushed, resolve_precision
from vq3dcli.training.averaging import average_checkpoints
from vq3dcli.training.codes import update_codes
from vq3dcli.training.distributed import Ranks, join_ranks, shared
from vq3dcli.training.ema import update_average
from vq3dcli.training.gradients import Step, compute_gradients
from vq3dcli.training.guards import stage1_guards
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.optim import learning_rate_at, passed, set_learning_rate
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.sheets import write_sheet
from vq3dcli.training.state import RunState, card_of, save_state, start_or_resume
from vq3dcli.training.watch import Watch
from vq3dcli.weights_file import save_weights

_log = logging.getLogger(__name__)

_CHROMA_MOMENTUM = 0.05
_SHEET_IMAGES = 6


class Data(Protocol):
    """Where batches come from: `data.loader.TrainingLoader`."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; empty for data without any."""
        ...

    @property
    def metric_labels(self) -> bool:
        """Whether any labels are metric."""
        ...

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
class _Callbacks:
    """What a caller does while a run goes on; see `train`."""

    report: Callable[[Progress], None]
    should_stop: Callable[[], bool]


def train(
    recipe: Stage1Recipe,
    data: Data,
    out: Path,
    *,
    device: torch.device | None = None,
    facts: Mapping[str, Any] | None = None,
    perceptual_weights: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    refresh_page: Callable[[], object] = lambda: None,
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
        perceptual_weights: The trunk of the perceptual loss in a file; by default fetched, or from a package.
        report: Called after each step.
        refresh_page: Called on the first rank after each contact sheet, and when the run ends, however it ends.
        should_stop: Polled between steps; when true, the run is saved and `StoppedError` raised.
        stop_after_images: Stop as if asked to after this many images.

    Raises:
        DivergedError: In several steps in a row a loss or gradient was not finite, or weights became so; the last
            checkpoint is from before.
        StoppedError: Stopped on request, after saving, or `out` belongs to a running process.
        RecipeError: `out` holds a run with another recipe or other facts, `training.init` does not fit, metric labels
            are of another camera, or the batch does not divide among ranks and micro-batches.
        DataError: `out` holds a run that is damaged, or of another version's model.
        UnavailableError: The perceptual network or the tracker is not there.
    """
    device = device or torch.device("cpu")
    ranks = join_ranks(device)
    # Before the folder is touched: a run that cannot start leaves nothing behind.
    micro_batches = recipe.training.accumulate * ranks.world_size
    if recipe.training.batch_size % micro_batches:
        raise RecipeError(
            f"training.batch_size ({recipe.training.batch_size}) does not divide into {ranks.world_size} ranks x "
            f"{recipe.training.accumulate} micro-batches",
            remedy=f"--set training.batch_size={max(recipe.training.batch_size // micro_batches, 1) * micro_batches}",
        )
    _check_camera(recipe, data)
    perceptual = None
    if recipe.loss.any_perceptual:
        with ranks.one_a_machine_first():
            perceptual = build_perceptual(recipe.loss.perceptual_network, perceptual_weights).to(device)
    folder = RunFolder(out)
    lock = folder.opened(recipe, facts or {}) if ranks.is_main else contextlib.nullcontext()
    with lock, denormals_flushed():
        ranks.barrier()
        state = start_or_resume(folder, recipe, classes=len(data.class_names), device=device, ranks=ranks)
        if recipe.training.checkpoint_activations:
            state.model.checkpoint_activations()
        if recipe.training.compile:
            state.model.compile_parts()
        objective = Stage1Objective(state.model, recipe, state.adversary, perceptual)
        callbacks = _Callbacks(report, should_stop)
        watch = None
        if ranks.is_main:
            folder.forget_metrics_after(state.images_seen)
            first = next(data.batches(0))
            draw = _drawing(recipe, state, first, device)
            watch = Watch(folder, recipe, stage1_guards(recipe), draw, state.images_seen, refresh_page)
            watch.missing_sheet(state.images_seen)
        if ranks.is_main and 0 < state.images_seen < recipe.training.images:
            _log.info("continuing at %d images", state.images_seen)
        try:
            _step_until_done(recipe, data, folder, state, objective, ranks, device, watch, callbacks, stop_after_images)
            result = _finish(recipe, folder, state, ranks)
        except BaseException:
            if watch is not None:
                watch.close(failed=True)
            raise
        if watch is not None:
            watch.close()
        return result


def _step_until_done(
    recipe: Stage1Recipe,
    data: Data,
    folder: RunFolder,
    state: RunState,
    objective: Stage1Objective,
    ranks: Ranks,
    device: torch.device,
    watch: Watch | None,
    callbacks: _Callbacks,
    stop_after_images: int | None,
) -> None:
    schedule = recipe.training
    forward = shared(objective, ranks)
    interval_start, interval_images = time.perf_counter(), state.images_seen
    batches = data.batches(state.images_seen)
    while state.images_seen < schedule.images:
        taken = None
        try:
            taken = take_step(recipe, state, forward, next(batches), device=device, ranks=ranks)
            state.skipped.in_a_row = 0
        except DivergedError as error:
            state.skipped.add(error, told=ranks.is_main)
            state.images_seen += schedule.batch_size

        # --- report and save
        seen, size = state.images_seen, schedule.batch_size
        rate = (seen - interval_images) / max(time.perf_counter() - interval_start, 1e-9)
        callbacks.report(Progress(seen, schedule.images, rate, math.nan if taken is None else float(taken.step.loss)))
        done = seen >= schedule.images
        asked = callbacks.should_stop() or (stop_after_images is not None and seen >= stop_after_images and not done)
        # A signal may reach the ranks at different steps: all of them stop as soon as one is asked to.
        stopping = ranks.any(asked, device)
        if passed(seen, schedule.log_every_images, size) or done:
            record = {
                "images_seen": seen,
                **({} if taken is None else _figures(taken, ranks)),
                **state.skipped.figures(),
                "quantizing": bool(state.model.quantizer.active),
                "images_per_second": round(rate, 2),
            }
            if watch is not None:
                watch.log(record)
            interval_start, interval_images = time.perf_counter(), seen
        if watch is not None:
            if done or stopping or passed(seen, schedule.checkpoint_every_images, size):
                save_state(folder, recipe, state)
            if done or passed(seen, schedule.sheet_every_images, size):
                watch.sheet(seen)
        if stopping:
            ranks.barrier()
            raise StoppedError(
                f"stopped at {seen} of {schedule.images} images, saved ({folder.path})",
                remedy="the same command again continues",
            )


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        step: Losses and codes.
        scores: Of the discriminators, over all ranks; empty before their start.
        code_counts: How often each code was used by all ranks, `[K]`.
        learning_rate: Of the autoencoder.
    """

    step: Step
    scores: dict[str, float]
    code_counts: Tensor
    learning_rate: float


def take_step(
    recipe: Stage1Recipe, state: RunState, forward: nn.Module, batch: Batch, *, device: torch.device, ranks: Ranks
) -> Taken:
    """Change `state` by one step: autoencoder, discriminators, codes, moving average.

    Args:
        recipe: The resolved recipe.
        state: The run's state.
        forward: Its objective, wrapped by DistributedDataParallel on several ranks.
        batch: This rank's rows of the global batch.
        device: Where to compute.
        ranks: This process among those of the run.

    Raises:
        DivergedError: A loss or gradient is not finite; nothing was changed.
    """
    schedule = recipe.training
    learning_rate = learning_rate_at(
        state.images_seen,
        peak=schedule.learning_rate,
        warmup_images=schedule.warmup_images,
        total_images=schedule.images,
        final_factor=schedule.final_learning_rate_factor,
    )
    set_learning_rate(state.optimizer, learning_rate)
    state.optimizer.zero_grad(set_to_none=True)
    step = compute_gradients(
        forward,
        batch,
        parameters=[parameter for parameter in state.model.parameters() if parameter.requires_grad],
        images_seen=state.images_seen,
        accumulate=schedule.accumulate,
        gradient_clip=schedule.gradient_clip,
        autocast_dtype=resolve_precision(schedule.precision, device),
        device=device,
        ranks=ranks,
    )
    scores = {}
    if step.views:  # the discriminators first, since they may find that they diverge
        factor = learning_rate / schedule.learning_rate
        scores = state.adversary.update(step.views, state.images_seen, learning_rate_factor=factor)
    state.optimizer.step()
    state.images_seen += schedule.batch_size
    state.chroma += _CHROMA_MOMENTUM * (float(ranks.mean(step.terms["chroma_ratio"])) - state.chroma)
    counts = update_codes(state, schedule, codes=step.codes, projected=step.projected, raw=step.raw, ranks=ranks)
    update_average(
        state.average,
        state.model,
        images_seen=state.images_seen,
        batch_size=schedule.batch_size,
        half_life_images=schedule.ema_half_life_images,
    )
    return Taken(step, scores, counts, learning_rate)


def _drawing(recipe: Stage1Recipe, state: RunState, first: Batch, device: torch.device) -> Callable[[Path], None]:
    """Draws what the average makes of a batch's first images."""
    image, label, label_kind = (tensor[:_SHEET_IMAGES] for tensor in (first.image, first.s, first.label_kind))
    views = None if first.views is None else first.views.of_rows(0, _SHEET_IMAGES).to(device)
    return lambda path: write_sheet(path, state.average, recipe, image.to(device), label, label_kind, views)


def _figures(taken: Taken, ranks: Ranks) -> dict[str, float]:
    """What a record says of a step, over all ranks; relief only where there are labels, novel losses with views."""
    step = taken.step
    figures = {"loss": float(ranks.mean(step.loss))}
    figures |= {name: float(ranks.mean(value)) for name, value in step.terms.items()}
    if figures.get("novel_views") == 0:  # no loss is known where there was nothing to compare with
        figures = {name: value for name, value in figures.items() if name == "novel_views" or name[:6] != "novel_"}
    relief, count = ranks.sum(step.relief).tolist()
    if count:
        figures["relief"] = relief / count
    return {
        **figures,
        "gradient_norm": float(step.gradient_norm),
        **taken.scores,
        "perplexity": float(perplexity(taken.code_counts)),
        "learning_rate": taken.learning_rate,
    }


def _check_camera(recipe: Stage1Recipe, data: Data) -> None:
    """Metric labels are s between fixed planes, novel views are of fixed cameras: others would train on wrong depth.

    Raises:
        RecipeError: It is such a recipe.
    """
    camera = recipe.camera
    if data.metric_labels and (camera.near, camera.far) != (NEAR, FAR):
        raise RecipeError(
            f"the data have metric labels between near {NEAR} and far {FAR}, and the recipe has {camera.near} and "
            f"{camera.far}",
            remedy=f"--set camera.near={NEAR} --set camera.far={FAR}, or relative labels",
        )
    theirs = {"near": NEAR, "far": FAR, "radius": CAMERA_RADIUS, "fov_deg": math.degrees(FOV_RAD)}
    wrong = {name: value for name, value in theirs.items() if not math.isclose(getattr(camera, name), value)}
    if recipe.loss.novel and wrong:
        raise RecipeError(
            "novel views are seen by other cameras than the recipe's: "
            + ", ".join(f"camera.{name} {value:g}, not {getattr(camera, name):g}" for name, value in wrong.items()),
            remedy=" ".join(f"--set camera.{name}={value:g}" for name, value in wrong.items()),
        )


def _finish(recipe: Stage1Recipe, folder: RunFolder, state: RunState, ranks: Ranks) -> Result:
    """Export the averaged weights, unless a call before did."""
    if ranks.is_main and not bool(state.model.quantizer.active):
        _log.warning("the run ended before quantisation began: its codes are untrained; train for more images")
    digest = folder.exported(state.images_seen, recipe.training.average_last) if ranks.is_main else ""
    if ranks.is_main and not digest:
        card = card_of(folder, recipe, state)
        if recipe.training.average_last > 1:
            card["averaged"] = average_checkpoints(folder.checkpoints, state.average, recipe.training.average_last)
        digest = save_weights(folder.weights, state.average, recipe, card)
    ranks.barrier()
    return Result(folder.weights, digest, state.images_seen, folder.last_metrics())
