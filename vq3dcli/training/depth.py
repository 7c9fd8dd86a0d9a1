"""Training of a depth network, a teacher for photos, in one process; read from top to bottom, as `stage1.train`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from vq3dcli import seeding
from vq3dcli.config.schema import DepthRecipe
from vq3dcli.data.loader import Batch, TrainingLoader
from vq3dcli.errors import RecipeError
from vq3dcli.losses.depth import LABEL_NONE, relative_depth_loss
from vq3dcli.model.backbone import Backbone, backbone_config
from vq3dcli.model.build import build_depth_network
from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.depth_augmentation import augmented
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.finetune import initialise_depth
from vq3dcli.training.optim import learning_rate_at, set_learning_rate
from vq3dcli.training.run import Result, Run, RunOptions, peak_bytes
from vq3dcli.training.sheets import write_depth_sheet
from vq3dcli.training.state import RunState, average_of, require_finite
from vq3dcli.weights.third_party import EFFICIENTNET_LITE, encoder_weights

_PLANNED_STEPS = 3


def train_depth(
    recipe: DepthRecipe,
    data: TrainingLoader,
    out: Path,
    *,
    device: torch.device | None = None,
    facts: Mapping[str, Any] | None = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Train, or continue the run that `out` holds; arguments and errors as of `stage1.train`.

    All samples of `data` are labelled. Raises `UnavailableError`: the encoder's weights or the tracker are not there.
    """
    recipe = with_backbone(recipe)
    schedule, device = recipe.training, device or torch.device("cpu")
    run = Run(recipe, out, device=device, ranks=Ranks(), **options)
    with run.opened(facts or {}):
        # --- build, and resume where there is a checkpoint
        checkpoint = run.folder.newest(run.ranks)
        state = build_state(recipe, device, pretrained=checkpoint is None)
        first = next(data.batches(0))  # of every sheet

        def draw(path: Path, average: DepthNetwork) -> None:
            write_depth_sheet(path, average, recipe, first, device)

        run.start(state, checkpoint, draw, data.bad)
        batches = run.waited_for(data.batches(state.images_seen))
        losses: list[float] = []  # since the last record
        while state.images_seen < schedule.images:
            # --- step
            figures: dict[str, float] = {}
            with run.skipping():
                figures = take_step(recipe, state, next(batches), device)
                losses.append(figures["loss"])
            # --- report and save
            due = run.after_step(figures.get("loss", math.nan))
            if due.log:
                run.log({**figures, **({"loss": sum(losses) / len(losses)} if losses else {})})
                losses = []
            run.carry_out(due)
        return run.finish()


def take_step(
    recipe: DepthRecipe, state: RunState[DepthNetwork], batch: Batch, device: torch.device
) -> dict[str, float]:
    """Change `state` by one step; returns the figures of a record. Raises `DivergedError`."""
    schedule, model = recipe.training, state.model
    learning_rate = learning_rate_at(schedule, state.images_seen)
    set_learning_rate(state.optimizer, learning_rate)
    images, label = augmented(
        batch.image.to(device, non_blocking=True),
        batch.s.to(device, non_blocking=True),
        batch.index.to(device, non_blocking=True),
        settings=recipe.augmentation,
        input_px=recipe.model.input_px,
        seed=schedule.seed,
    )
    model.train()
    state.optimizer.zero_grad(set_to_none=True)
    autocast = resolve_precision(schedule.precision, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        predicted = model(images.contiguous(memory_format=torch.channels_last))
    labelled = (batch.label_kind != LABEL_NONE).to(device).float()
    per_image = relative_depth_loss(predicted, label, gradient=recipe.loss.gradient, scales=recipe.loss.gradient_scales)
    loss = (per_image * labelled).sum() / labelled.sum().clamp(min=1.0)
    loss.backward()
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], schedule.gradient_clip)
    require_finite(loss.detach(), norm, batch.keys, state.images_seen, Ranks())
    state.optimizer.step()
    state.images_seen += schedule.batch_size
    state.update_average(schedule)
    return {"loss": float(loss.detach()), "gradient_norm": float(norm), "learning_rate": learning_rate}


def build_state(recipe: DepthRecipe, device: torch.device, *, pretrained: bool) -> RunState[DepthNetwork]:
    """The state of a new run; `pretrained` from `training.init` if the recipe names it, else from ImageNet's encoder.

    Raises as `finetune.initialise_depth`, and `UnavailableError`: the encoder's weights are not there.
    """
    model, init, init_sha256 = build_depth_network(recipe), recipe.training.init, ""
    encoder = model.encoder
    if pretrained and init:
        init_sha256 = initialise_depth(model, recipe, Path(init))
    elif pretrained:
        if isinstance(encoder, Backbone):
            encoder.load_folder(Path(recipe.model.encoder))
        else:
            encoder.load_state_dict(encoder_weights(recipe.model.encoder, encoder.published_names()))
    model = model.to(device).to(memory_format=torch.channels_last)
    return RunState(model, average_of(model), _optimizer(model, recipe), init_sha256=init_sha256)


def with_backbone(recipe: DepthRecipe) -> DepthRecipe:
    """The recipe with what the folder that its encoder names says of a backbone, itself where it names none.

    Raises `RecipeError`: there is no such encoder; else as `backbone_config`.
    """
    name = recipe.model.encoder
    if name in EFFICIENTNET_LITE:
        return recipe
    if not Path(name).is_dir():
        raise RecipeError(
            f"no such encoder ({name})",
            remedy=f"--set model.encoder={', '.join(EFFICIENTNET_LITE)}, or the folder of a backbone of transformers",
        )
    model = recipe.model.model_copy(update={"backbone": backbone_config(Path(name))})
    return recipe.model_copy(update={"model": model})


def _optimizer(model: DepthNetwork, recipe: DepthRecipe) -> Optimizer:
    """AdamW with two learning rates; decay on the kernels of convolutions alone."""
    schedule = recipe.training
    groups = []
    for of_encoder, factor in ((True, schedule.encoder_learning_rate_factor), (False, 1.0)):
        for kernels, decay in ((True, schedule.weight_decay), (False, 0.0)):
            chosen = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and name.startswith("encoder.") == of_encoder
                and (parameter.ndim > 1) == kernels
            ]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
    return torch.optim.AdamW(groups, lr=schedule.learning_rate)


def plan_depth(recipe: DepthRecipe, device: torch.device) -> dict[str, Any]:
    """What a run takes, by a few steps on noise: speed, hours, memory, parameters in all and trained, bytes on disk."""
    state = build_state(with_backbone(recipe), device, pretrained=False)
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
    parameters = list(state.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    everything = sum(p.numel() for p in parameters)
    return {
        "images_per_second": rate,
        "hours": recipe.training.images / rate / 3600.0,
        "peak_memory_gb": round(peak_bytes(device) / 1e9, 3),
        "parameters": everything,
        "trained": trained,
        # A checkpoint holds weights, average and two moments of what is trained, in float32; the export is fp16.
        "disk_bytes": recipe.training.keep_checkpoints * 4 * (2 * everything + 2 * trained) + 2 * everything,
    }
