"""Training of Stage 1, read from top to bottom: build or resume, then step, report and save until done.

Every random number is a function of (seed, purpose, sample index), and everything else that a step depends on lies in
the checkpoint. So running the same command again continues, and on a CPU with as many threads N + N steps give the
same bits as 2 N.

Legend: B images of this rank, L tokens, D code_dim, K codes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch, TrainingLoader
from vq3dcli.errors import RecipeError
from vq3dcli.losses.depth import LABEL_NONE
from vq3dcli.losses.perceptual import build_perceptual
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.quantizer import perplexity
from vq3dcli.rendering.cameras import CAMERA_RADIUS, FAR, FOV_RAD, NEAR
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.codes import update_codes
from vq3dcli.training.distributed import Ranks, join_ranks, shared, without_exchange
from vq3dcli.training.finetune import freeze_codes, initialise
from vq3dcli.training.held_out import held_out_views
from vq3dcli.training.objective import NovelViews, Objective, Stage1Objective
from vq3dcli.training.optim import learning_rate_at, set_learning_rate
from vq3dcli.training.run import Result, Run, RunOptions, require_whole_batches
from vq3dcli.training.sharding import whole
from vq3dcli.training.sheets import write_stage1_sheet
from vq3dcli.training.state import RunState, new_state, require_finite
from vq3dcli.weights_file import load_depth

_log = logging.getLogger(__name__)

_CHROMA_MOMENTUM = 0.05


def train(
    recipe: Stage1Recipe,
    data: TrainingLoader,
    out: Path,
    *,
    device: torch.device | None = None,
    facts: Mapping[str, Any] | None = None,
    perceptual_weights: Path | None = None,
    held_out: Batch | None = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Train, or continue the run that `out` holds.

    Args:
        data: A loader made with the recipe's batch size and seed.
        device: Where to train, on many GPUs this rank's own; the CPU by default.
        facts: Recorded with the run; a later call with other facts is refused.
        perceptual_weights: The trunk of the perceptual loss in a file; by default fetched, or from a package.
        held_out: Images that never train, on which the average is measured with each sheet.
        **options: Who hears of the run, and when it stops.

    Raises:
        DivergedError: In several steps in a row a loss or gradient was not finite, or weights became so; the last
            checkpoint is from before.
        StoppedError: Stopped on request, after saving, or `out` belongs to a running process.
        RecipeError: `out` holds a run with another recipe or other facts, `training.init` does not fit, metric labels
            are of another camera, or the batch does not divide among ranks and micro-batches.
        DataError: `out` holds a run that is damaged, or of another version's model.
        UnavailableError: The perceptual network or the tracker is not there.
    """
    schedule, device = recipe.training, device or torch.device("cpu")
    ranks = join_ranks(device)
    # Before the folder is touched: a run that cannot start leaves nothing behind.
    require_whole_batches(schedule, ranks)
    _check_camera(recipe, metric_labels=data.metric_labels)
    perceptual = None
    if recipe.loss.any_perceptual:
        with ranks.one_a_machine_first():
            perceptual = build_perceptual(recipe.loss.perceptual_network, perceptual_weights).to(device)
    run = Run(recipe, out, device=device, ranks=ranks, **options)
    with run.opened(facts or {}):
        # --- build, and resume where there is a checkpoint
        checkpoint = run.folder.newest(ranks)
        state = build_state(recipe, classes=len(data.class_names), device=device, ranks=ranks, fresh=checkpoint is None)
        first = next(data.batches(0)) if ranks.is_main else None  # of every sheet

        def draw(path: Path, average: Autoencoder) -> None:
            assert first is not None
            write_stage1_sheet(path, average, recipe, first, device)

        run.start(state, checkpoint, draw, data.bad)
        if checkpoint is not None and schedule.freeze_codes:
            freeze_codes(state.model)
        if schedule.checkpoint_activations:
            state.model.checkpoint_activations()
        if schedule.compile:
            state.model.compile_parts()
        forward = shared(Stage1Objective(state.model, recipe, state.adversary, perceptual), ranks)
        batches = run.waited_for(data.batches(state.images_seen))
        while state.images_seen < schedule.images:
            # --- step
            step = None
            with run.skipping():
                step = take_step(recipe, state, forward, next(batches), device=device, ranks=ranks)
            # --- report, measure, save
            due = run.after_step(math.nan if step is None else float(step.objective.loss))
            measured = due.sheet and held_out is not None
            if due.log or measured:
                figures = {} if step is None else _figures(step, ranks)
                if measured:
                    assert held_out is not None
                    average = state.whole_average(device, keep=True)
                    figures |= held_out_views(average, recipe, held_out, device=device, ranks=ranks)
                run.log({**figures, "quantizing": bool(state.model.quantizer.active)})
            run.carry_out(due)
        if ranks.is_main and not bool(state.model.quantizer.active):
            _log.warning("the run ended before quantisation began: its codes are untrained; train for more images")
        return run.finish()


def build_state(
    recipe: Stage1Recipe, *, classes: int, device: torch.device, ranks: Ranks, fresh: bool = True
) -> RunState[Autoencoder]:
    """The state of a new run, from `training.init` if the recipe names it and the run is `fresh`.

    `classes` are those of the data, for class-conditional discriminators; of a run that is not `fresh` a checkpoint
    will replace the weights.

    Raises `RecipeError`: the weights to start from do not fit the recipe, or the discriminators not the data;
    `UnavailableError`: the recipe asks for an embedded depth network that is not there; else as
    `weights_file.load_weights`.
    """
    schedule = recipe.training
    model = build_autoencoder(recipe)
    if fresh and model.depth_network is not None:
        model.depth_network.load_state_dict(load_depth().model.state_dict())
    start = initialise(model, recipe, Path(schedule.init)) if fresh and schedule.init else None
    state = new_state(model, schedule, ranks, device)
    state.adversary = Adversary(recipe, classes=classes, device=device, ranks=ranks)
    if start is not None:
        source = start.source
        state.init_sha256, state.init_ancestors, state.init_codes_of = source.sha256, source.ancestors, source.codes_of
    if fresh and schedule.freeze_codes:
        freeze_codes(model, start)
    return state


class Step(NamedTuple):
    """A step that was taken."""

    objective: Objective  # of this rank's micro-batches together
    figures: dict[str, float]  # what else a record says, over all ranks
    code_counts: Tensor  # how often each code was used by all ranks, `[K]`


def take_step(
    recipe: Stage1Recipe,
    state: RunState[Autoencoder],
    forward: nn.Module,
    batch: Batch,
    *,
    device: torch.device,
    ranks: Ranks,
) -> Step:
    """Change `state` by one step: autoencoder, discriminators, codes, moving average.

    `forward` is its objective, `shared` on several ranks. Raises `DivergedError`: a loss or gradient is not finite;
    nothing was changed.
    """
    schedule, adversary = recipe.training, state.adversary
    learning_rate = learning_rate_at(schedule, state.images_seen)
    set_learning_rate(state.optimizer, learning_rate)
    state.optimizer.zero_grad(set_to_none=True)
    trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    objective, norm = compute_gradients(recipe, forward, batch, trained, state.images_seen, device=device, ranks=ranks)
    figures = {"gradient_norm": float(norm)}
    if adversary is not None and objective.views:  # the discriminators first, since they may find that they diverge
        factor = learning_rate / schedule.learning_rate
        figures |= adversary.update(objective.views, state.images_seen, learning_rate_factor=factor)
    state.optimizer.step()
    state.images_seen += schedule.batch_size
    state.chroma += _CHROMA_MOMENTUM * (float(ranks.mean(objective.terms["chroma_ratio"])) - state.chroma)
    code_counts = update_codes(state, schedule, objective, ranks)
    state.update_average(schedule)
    return Step(objective, {**figures, "learning_rate": learning_rate}, code_counts)


def compute_gradients(
    recipe: Stage1Recipe,
    forward: nn.Module,
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    images_seen: int,
    *,
    device: torch.device,
    ranks: Ranks,
) -> tuple[Objective, Tensor]:
    """Add the clipped gradient of the batch's mean loss to `parameters`, a micro-batch at a time.

    Also returns the gradient's norm before clipping, that of all ranks' mean.

    Raises `DivergedError`: the loss or the gradient is not finite; all ranks raise together.
    """
    schedule = recipe.training
    accumulate, count = schedule.accumulate, batch.image.shape[0]
    assert count % accumulate == 0, (count, accumulate)
    autocast = resolve_precision(schedule.precision, device) == torch.bfloat16
    labelled_share = ranks.mean((batch.label_kind != LABEL_NONE).float().mean().to(device))
    views = None
    if batch.views is not None:
        share = torch.tensor(float(len(batch.views.row)), device=device) / count
        views = NovelViews(batch.views.to(device), ranks.mean(share))
    columns = [
        each.to(device, non_blocking=True).chunk(accumulate)
        for each in (batch.image, batch.s, batch.label_kind, batch.index, batch.class_index)
    ]
    parts: list[Objective] = []
    for position, (image, label, kind, index, classes) in enumerate(zip(*columns, strict=True)):
        novel = None if views is None else views.of_rows(position * len(image), (position + 1) * len(image))
        with without_exchange(forward, position < accumulate - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                part: Objective = forward(image, label, kind, index, labelled_share, classes, images_seen, novel)
            (part.loss / accumulate).backward()
        parts.append(part._replace(loss=part.loss.detach()))
    gradient_norm = whole(nn.utils.clip_grad_norm_(parameters, schedule.gradient_clip))
    objective = Objective.of(parts)
    require_finite(objective.loss, gradient_norm, batch.keys, images_seen, ranks)
    return objective, gradient_norm


def _figures(step: Step, ranks: Ranks) -> dict[str, float]:
    """What a record says of a step, over all ranks; relief only where there are labels, novel losses with views."""
    figures = {"loss": float(ranks.mean(step.objective.loss))}
    figures |= {name: float(ranks.mean(value)) for name, value in step.objective.terms.items()}
    if figures.get("novel_views") == 0:  # no loss is known where there was nothing to compare with
        figures = {name: value for name, value in figures.items() if name == "novel_views" or name[:6] != "novel_"}
    relief, count = ranks.sum(step.objective.relief).tolist()
    if count:
        figures["relief"] = relief / count
    return {**figures, **step.figures, "perplexity": float(perplexity(step.code_counts))}


def _check_camera(recipe: Stage1Recipe, *, metric_labels: bool) -> None:
    """Metric labels are s between fixed planes, novel views are of fixed cameras: others would train on wrong depth."""
    camera = recipe.camera
    if metric_labels and (camera.near, camera.far) != (NEAR, FAR):
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
