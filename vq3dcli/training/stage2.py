"""Training of Stage 2, read from top to bottom: build or resume, then step until done.

The same habits as `training/stage1.py`: every random number is a function of (seed, purpose, sample index), the rest
lies in the checkpoint; running the same command again continues, and on a CPU with as many threads N + N steps give
the same bits as 2 N.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.config.schema import PriorTrainingSection, Stage2Recipe
from vq3dcli.data.token_store import TokenBatch, TokenLoader, TokenStore
from vq3dcli.errors import DivergedError, RecipeError, StoppedError
from vq3dcli.files import write_json
from vq3dcli.losses.tokens import BITS_PER_NAT
from vq3dcli.training.arithmetic import denormals_flushed, resolve_precision
from vq3dcli.training.averaging import average_checkpoints
from vq3dcli.training.distributed import Ranks, join_ranks, shared, waiting
from vq3dcli.training.ema import update_average
from vq3dcli.training.gradients import require_finite
from vq3dcli.training.held_out import HeldOut, by_class, held_out_bits, unigram_bits
from vq3dcli.training.optim import learning_rate_at, passed, set_learning_rate
from vq3dcli.training.prior_guards import stage2_guards
from vq3dcli.training.prior_objective import PriorObjective
from vq3dcli.training.prior_sheets import write_sample_sheet
from vq3dcli.training.prior_state import PriorState, save_prior_state, start_or_resume_prior
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.stage1 import Progress, Result
from vq3dcli.training.watch import Watch
from vq3dcli.weights_file import LoadedWeights, TokenFacts, save_weights

_log = logging.getLogger(__name__)

HELD_OUT_NAME = "held_out.json"


@dataclass
class _Run:
    """What stays the same over a run, and its state."""

    recipe: Stage2Recipe
    loader: TokenLoader
    folder: RunFolder
    state: PriorState
    ranks: Ranks
    device: torch.device
    autocast_dtype: torch.dtype
    watch: Watch | None = None
    unigram: HeldOut | None = None
    draws: bool = False
    report: Callable[[Progress], None] = field(default=lambda progress: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)


def train_prior(
    recipe: Stage2Recipe,
    store: TokenStore,
    out: Path,
    *,
    stage1: LoadedWeights | None = None,
    device: torch.device | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    refresh_page: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    stop_after_images: int | None = None,
) -> Result:
    """Train, or continue the run that `out` holds.

    Args:
        recipe: The resolved recipe.
        store: The tokens.
        out: The run's folder.
        stage1: The weights that made the tokens, for sheets of samples; without them there are none.
        device: Where to train, on many GPUs this rank's own; the CPU by default.
        report: Called after each step; its loss is in bits per code.
        refresh_page: Called on the first rank after each sheet, and when the run ends, however it ends.
        should_stop: Polled between steps; when true, the run is saved and `StoppedError` raised.
        stop_after_images: Stop as if asked to after this many images.

    Raises:
        DivergedError: In several steps in a row the loss or a gradient was not finite, or weights became so; the last
            checkpoint is from before.
        StoppedError: Stopped on request, after saving, or `out` belongs to a running process.
        RecipeError: `out` holds a run with another recipe or other tokens, `training.init` does not fit, or the batch
            does not divide among ranks and micro-batches.
        UsageError: All images are held out.
        DataError: `out` holds a run that is damaged, or the tokens are of another Stage 1.
        UnavailableError: The tracker is not there.
    """
    device = device or torch.device("cpu")
    ranks = join_ranks(device)
    schedule = recipe.training
    # Before the folder is touched: a run that cannot start leaves nothing behind.
    micro_batches = schedule.accumulate * ranks.world_size
    if schedule.batch_size % micro_batches:
        raise RecipeError(
            f"training.batch_size ({schedule.batch_size}) does not divide into {ranks.world_size} ranks x "
            f"{schedule.accumulate} micro-batches",
            remedy=f"--set training.batch_size={max(schedule.batch_size // micro_batches, 1) * micro_batches}",
        )
    if stage1 is not None:
        store.check_stage1(*stage1.codes_of)
    loader = TokenLoader(
        store,
        batch_size=schedule.batch_size,
        seed=schedule.seed,
        held_out=schedule.held_out,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    folder = RunFolder(out)
    lock = folder.opened(recipe, _facts(store)) if ranks.is_main else contextlib.nullcontext()
    with lock, denormals_flushed():
        ranks.barrier()
        state = start_or_resume_prior(folder, recipe, token_facts(store), device=device, ranks=ranks)
        run = _Run(recipe, loader, folder, state, ranks, device, resolve_precision(schedule.precision, device))
        run.report, run.should_stop, run.draws = report, should_stop, stage1 is not None
        run.unigram = unigram_bits(loader, ranks, device)
        if ranks.is_main:
            folder.forget_metrics_after(state.images_seen)
            draw = _drawing(recipe, state, stage1, store.class_names)
            run.watch = Watch(folder, recipe, stage2_guards(recipe), draw, state.images_seen, refresh_page)
            if run.draws:
                run.watch.missing_sheet(state.images_seen)
            if 0 < state.images_seen < schedule.images:
                _log.info("continuing at %d images", state.images_seen)
        try:
            _step_until_done(run, stop_after_images)
            result = _finish(run)
        except BaseException:
            if run.watch is not None:
                run.watch.close(failed=True)
            raise
        if run.watch is not None:
            run.watch.close()
        return result


def token_facts(store: TokenStore) -> TokenFacts:
    """What a weights file says of the tokens it was trained on."""
    return TokenFacts(
        stage1_sha256=store.stage1_sha256,
        codebook_size=store.codebook_size,
        length=store.length,
        class_names=tuple(store.class_names),
        stage1_ancestors=tuple(store.manifest.stage1_ancestors),
    )


def _step_until_done(run: _Run, stop_after_images: int | None) -> None:
    recipe, state, ranks, schedule = run.recipe, run.state, run.ranks, run.recipe.training
    objective = PriorObjective(state.model, class_dropout=schedule.class_dropout, seed=schedule.seed)
    state.model.checkpoint_activations = schedule.checkpoint_activations
    if schedule.compile:
        for block in state.model.blocks:  # alike, so that one is compiled; names of tensors stay
            block.compile()
    forward = shared(objective, ranks)
    interval_start, interval_images = time.perf_counter(), state.images_seen
    batches = run.loader.batches(state.images_seen)
    while state.images_seen < schedule.images:
        batch = next(batches)
        learning_rate = learning_rate_at(
            state.images_seen,
            peak=schedule.learning_rate,
            warmup_images=schedule.warmup_images,
            total_images=schedule.images,
            final_factor=schedule.final_learning_rate_factor,
        )
        set_learning_rate(state.optimizer, learning_rate)

        # --- loss, gradient, update
        state.optimizer.zero_grad(set_to_none=True)
        loss = gradient_norm = None
        try:
            loss, gradient_norm = _compute_gradients(run, forward, batch, schedule)
            state.optimizer.step()
            state.skipped.in_a_row = 0
        except DivergedError as error:
            state.skipped.add(error, told=ranks.is_main)
        state.images_seen += schedule.batch_size
        if loss is not None:
            update_average(
                state.average,
                state.model,
                images_seen=state.images_seen,
                batch_size=schedule.batch_size,
                half_life_images=schedule.ema_half_life_images,
            )

        # --- report and save
        seen, size = state.images_seen, schedule.batch_size
        rate = (seen - interval_images) / max(time.perf_counter() - interval_start, 1e-9)
        bits = math.nan if loss is None else float(loss) * BITS_PER_NAT
        run.report(Progress(seen, schedule.images, rate, bits))
        done = seen >= schedule.images
        asked = run.should_stop() or (stop_after_images is not None and seen >= stop_after_images and not done)
        # A signal may reach the ranks at different steps: all of them stop as soon as one is asked to.
        stopping = ranks.any(asked, run.device)
        looking = done or passed(seen, schedule.sheet_every_images, size)
        if looking or passed(seen, schedule.log_every_images, size):
            record = {
                "images_seen": seen,
                **({} if loss is None else {"bits": float(ranks.mean(loss)) * BITS_PER_NAT}),
                **(_judge(run) if looking else {}),
                **({} if gradient_norm is None else {"gradient_norm": float(gradient_norm)}),
                **state.skipped.figures(),
                "learning_rate": learning_rate,
                "images_per_second": round(rate, 2),
            }
            if run.watch is not None:
                run.watch.log(record)
            interval_start, interval_images = time.perf_counter(), seen
        if run.watch is not None:
            if done or stopping or passed(seen, schedule.checkpoint_every_images, size):
                save_prior_state(run.folder, recipe, token_facts(run.loader.store), state)
            if looking and run.draws:
                run.watch.sheet(seen)
        if stopping:
            ranks.barrier()
            raise StoppedError(
                f"stopped at {seen} of {schedule.images} images, saved ({run.folder.path})",
                remedy="the same command again continues",
            )


def _compute_gradients(
    run: _Run, forward: nn.Module, batch: TokenBatch, schedule: PriorTrainingSection
) -> tuple[Tensor, Tensor]:
    """Leave the clipped gradient of the mean loss in the parameters, a micro-batch at a time.

    Returns:
        Nats per code over this rank's images, and the gradient's norm before clipping.
    """
    parts = []
    columns = [
        tensor.to(run.device).chunk(schedule.accumulate) for tensor in (batch.tokens, batch.class_index, batch.index)
    ]
    for position, (tokens, class_index, index) in enumerate(zip(*columns, strict=True)):
        if run.recipe.model.dropout > 0:
            _seed_dropout(schedule.seed, int(batch.index[position * len(tokens)]))
        with waiting(forward, position < schedule.accumulate - 1):
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast_dtype == torch.bfloat16):
                loss = forward(tokens, class_index, index)
            (loss / schedule.accumulate).backward()
        parts.append(loss.detach())
    gradient_norm = torch.nn.utils.clip_grad_norm_(run.state.model.parameters(), schedule.gradient_clip)
    total = torch.stack(parts).mean()
    names = [str(index) for index in batch.index.tolist()]
    require_finite(total, gradient_norm, names, run.state.images_seen, run.ranks)
    return total, gradient_norm


def _seed_dropout(seed: int, first: int) -> None:
    """Make dropout a function of the seed and the first position of a micro-batch; it draws from torch's generators."""
    torch.manual_seed(seeding.key(seed, f"dropout/{first}") & ((1 << 63) - 1))


def _judge(run: _Run) -> dict[str, float]:
    """Figures on held-out images, and on disk the same by class; none where nothing is held out."""
    if not len(run.loader.held_out_images):
        return {}
    size = max(run.recipe.training.batch_size // run.recipe.training.accumulate // run.ranks.world_size, 1)
    found = held_out_bits(
        run.state.average,
        run.loader,
        batch_size=size,
        autocast_dtype=run.autocast_dtype,
        device=run.device,
        ranks=run.ranks,
    )
    if run.unigram is None or not math.isfinite(found.mean):
        return {}
    table = by_class(found, run.unigram, run.loader.store.class_names)
    write_json(run.folder.path / HELD_OUT_NAME, {"images_seen": run.state.images_seen, **table})
    figures = {
        "held_out_bits": table["bits"],
        "unigram_bits": table["unigram_bits"],
        "held_out_share": table["share"],
    }
    return {name: value for name, value in figures.items() if value is not None}


def _drawing(
    recipe: Stage2Recipe, state: PriorState, stage1: LoadedWeights | None, class_names: list[str]
) -> Callable[[Path], None]:
    """Draws samples of the average."""

    def draw(path: Path) -> None:
        if stage1 is not None:
            write_sample_sheet(path, state.average, stage1, class_names, recipe.sampling, recipe.training.seed)

    return draw


def _facts(store: TokenStore) -> dict[str, Any]:
    """What may not change over a run's life."""
    return {
        "images": store.num_images,
        "views": store.views,
        "classes": len(store.class_names),
        "tokens_sha256": store.manifest.tokens_sha256,
        "classes_sha256": store.manifest.classes_sha256,
        "stage1_sha256": store.stage1_sha256,
    }


def _finish(run: _Run) -> Result:
    """Export the averaged weights, unless a call before did."""
    recipe, state, folder = run.recipe, run.state, run.folder
    digest = folder.exported(state.images_seen, recipe.training.average_last) if run.ranks.is_main else ""
    if run.ranks.is_main and not digest:
        card = folder.card(state.images_seen, state.init_sha256)
        if recipe.training.average_last > 1:
            card["averaged"] = average_checkpoints(folder.checkpoints, state.average, recipe.training.average_last)
        digest = save_weights(folder.weights, state.average, recipe, card, token_facts(run.loader.store))
    run.ranks.barrier()
    return Result(folder.weights, digest, state.images_seen, folder.last_metrics())
