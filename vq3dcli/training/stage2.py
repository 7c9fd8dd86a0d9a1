"""Training of Stage 2, the prior: cross-entropy of the codes given the class, which is dropped now and then.

`train_prior` is read from top to bottom, as `stage1.train`.

Legend: B images of a micro-batch, L codes of an image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.token_store import TokenBatch, TokenLoader, TokenStore
from vq3dcli.files import write_json
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.model.build import build_prior
from vq3dcli.model.prior import Prior
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.distributed import Ranks, join_ranks, shared, without_exchange
from vq3dcli.training.finetune import initialise_prior
from vq3dcli.training.held_out import HeldOut, by_class, held_out_bits, unigram_bits
from vq3dcli.training.optim import learning_rate_at, set_learning_rate
from vq3dcli.training.run import Result, Run, RunOptions, require_whole_batches
from vq3dcli.training.sharding import whole
from vq3dcli.training.sheets import write_prior_sheet
from vq3dcli.training.state import RunState, new_state, require_finite
from vq3dcli.weights_file import LoadedWeights, TokenFacts

HELD_OUT_NAME = "held_out.json"
_BETAS = (0.9, 0.95)  # as LlamaGen (Sun et al., 2024, sec. 3.1)
NO_CLASS = -1


class Step(NamedTuple):
    """A step that was taken: nats per code over this rank's images, and what else a record says, over all ranks."""

    nats: Tensor
    figures: dict[str, float]


def train_prior(
    recipe: Stage2Recipe,
    store: TokenStore,
    out: Path,
    *,
    stage1: LoadedWeights | None = None,
    device: torch.device | None = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Train, or continue the run that `out` holds; arguments and errors as of `stage1.train`.

    Args:
        stage1: The weights that made the tokens, for sheets of samples; without them there are none.

    Raises `UsageError`: all images are held out; `DataError`: the tokens are of another Stage 1.
    """
    schedule, device = recipe.training, device or torch.device("cpu")
    ranks, facts = join_ranks(device), token_facts(store)
    # Before the folder is touched: a run that cannot start leaves nothing behind.
    require_whole_batches(schedule, ranks)
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
    run = Run(recipe, out, device=device, ranks=ranks, tokens=facts, **options)
    with run.opened(_run_facts(store)):
        # --- build, and resume where there is a checkpoint
        checkpoint = run.folder.newest(ranks)
        state = build_state(recipe, facts, device=device, ranks=ranks, fresh=checkpoint is None)
        unigram = unigram_bits(loader, ranks, device)

        def draw(path: Path, average: Prior) -> None:
            assert stage1 is not None
            write_prior_sheet(path, average, stage1, store.class_names, recipe.sampling, schedule.seed)

        run.start(state, checkpoint, None if stage1 is None else draw)
        state.model.checkpoint_activations = schedule.checkpoint_activations
        if schedule.compile:
            for block in state.model.blocks:  # alike, so that one is compiled; names of tensors stay
                block.compile()
        objective = PriorObjective(state.model, class_dropout=schedule.class_dropout, seed=schedule.seed)
        forward, batches = shared(objective, ranks), run.waited_for(loader.batches(state.images_seen))
        while state.images_seen < schedule.images:
            # --- step
            taken = None
            with run.skipping():
                taken = take_step(recipe, state, forward, next(batches), device=device, ranks=ranks)
            # --- report, measure, save
            due = run.after_step(math.nan if taken is None else float(taken.nats) * BITS_PER_NAT)
            if due.log or due.sheet:
                bits = {} if taken is None else {"bits": float(ranks.mean(taken.nats)) * BITS_PER_NAT}
                held_out = _held_out_figures(run, loader, unigram) if due.sheet else {}
                run.log({**bits, **held_out, **({} if taken is None else taken.figures)})
            run.carry_out(due)
        return run.finish()


def build_state(
    recipe: Stage2Recipe, tokens: TokenFacts, *, device: torch.device, ranks: Ranks, fresh: bool = True
) -> RunState[Prior]:
    """The state of a new run, from `training.init` if the recipe names it and the run is `fresh`.

    Raises as `finetune.initialise_prior`.
    """
    schedule, classes = recipe.training, len(tokens.class_names)
    model = build_prior(recipe, codebook_size=tokens.codebook_size, length=tokens.length, classes=classes)
    init_sha256 = initialise_prior(model, tokens, Path(schedule.init)) if fresh and schedule.init else ""
    state = new_state(model, schedule, ranks, device, betas=_BETAS)
    state.init_sha256 = init_sha256
    return state


def take_step(
    recipe: Stage2Recipe,
    state: RunState[Prior],
    forward: nn.Module,
    batch: TokenBatch,
    *,
    device: torch.device,
    ranks: Ranks,
) -> Step:
    """Change `state` by one step, a micro-batch at a time.

    `forward` is its `PriorObjective`, `shared` on several ranks. Raises `DivergedError`: the loss or gradient is not
    finite; nothing was changed.
    """
    schedule = recipe.training
    learning_rate = learning_rate_at(schedule, state.images_seen)
    set_learning_rate(state.optimizer, learning_rate)
    state.optimizer.zero_grad(set_to_none=True)
    parts = []
    autocast = resolve_precision(schedule.precision, device) == torch.bfloat16
    columns = [
        each.to(device, non_blocking=True).chunk(schedule.accumulate)
        for each in (batch.tokens, batch.class_index, batch.index)
    ]
    for position, (tokens, class_index, index) in enumerate(zip(*columns, strict=True)):
        if recipe.model.dropout > 0:
            # Dropout draws from torch's generators: a function of the seed and the first position of a micro-batch.
            first = int(batch.index[position * len(tokens)])
            torch.manual_seed(seeding.key(schedule.seed, f"dropout/{first}") & ((1 << 63) - 1))
        with without_exchange(forward, position < schedule.accumulate - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = forward(tokens, class_index, index)
            (loss / schedule.accumulate).backward()
        parts.append(loss.detach())
    gradient_norm = whole(nn.utils.clip_grad_norm_(state.model.parameters(), schedule.gradient_clip))
    nats = torch.stack(parts).mean()
    require_finite(nats, gradient_norm, [str(index) for index in batch.index.tolist()], state.images_seen, ranks)
    state.optimizer.step()
    state.images_seen += schedule.batch_size
    state.update_average(schedule)
    return Step(nats, {"gradient_norm": float(gradient_norm), "learning_rate": learning_rate})


class PriorObjective(nn.Module):
    """The mean loss of a micro-batch, as a module, so that DistributedDataParallel can wrap it.

    `class_dropout` is the share of images that lose their class.
    """

    def __init__(self, model: Prior, *, class_dropout: float, seed: int) -> None:
        super().__init__()
        self.model, self.class_dropout, self.seed = model, class_dropout, seed

    def forward(self, tokens: Tensor, class_index: Tensor, index: Tensor) -> Tensor:
        """Nats per code of tokens int64 `[B, L]`, given classes int64 `[B]`, below 0 for none.

        `index` `[B]` are positions in the stream.
        """
        given = drop_classes(class_index, index, seed=self.seed, probability=self.class_dropout)
        return token_nats(self.model(tokens, given), tokens).mean()


def drop_classes(class_index: Tensor, index: Tensor, *, seed: int, probability: float) -> Tensor:
    """Replace some classes by none, so that one network learns both sides of guidance (Ho and Salimans, 2022).

    A class, int64 `[B]`, is lost with a probability, by its position in the stream `[B]` and the seed alone.
    """
    lost = seeding.uniform(seed, "class-dropout", index, 1)[..., 0] < probability
    return torch.where(lost, NO_CLASS, class_index)


def token_facts(store: TokenStore) -> TokenFacts:
    """What a weights file says of the tokens it was trained on."""
    return TokenFacts(
        stage1_sha256=store.stage1_sha256,
        codebook_size=store.codebook_size,
        length=store.length,
        class_names=tuple(store.class_names),
        stage1_ancestors=tuple(store.manifest.stage1_ancestors),
    )


def _run_facts(store: TokenStore) -> dict[str, Any]:
    """What may not change over a run's life."""
    return {
        "images": store.num_images,
        "views": store.views,
        "classes": len(store.class_names),
        "tokens_sha256": store.manifest.tokens_sha256,
        "classes_sha256": store.manifest.classes_sha256,
        "stage1_sha256": store.stage1_sha256,
    }


def _held_out_figures(run: Run, loader: TokenLoader, unigram: HeldOut) -> dict[str, float]:
    """Figures of the average on held-out images, and on disk the same by class; none where nothing is held out."""
    assert isinstance(run.recipe, Stage2Recipe)
    schedule = run.recipe.training
    if not len(loader.held_out_images):
        return {}
    measured = held_out_bits(
        run.state.average,
        loader,
        batch_size=max(schedule.batch_size // schedule.accumulate // run.ranks.world_size, 1),
        autocast_dtype=resolve_precision(schedule.precision, run.device),
        device=run.device,
        ranks=run.ranks,
    )
    if not math.isfinite(measured.mean):
        return {}
    table = by_class(measured, unigram, loader.store.class_names)
    if run.ranks.is_main:
        write_json(run.folder.path / HELD_OUT_NAME, {"images_seen": run.state.images_seen, **table})
    names = {"held_out_bits": "bits", "unigram_bits": "unigram_bits", "held_out_share": "share"}
    return {name: table[key] for name, key in names.items() if table[key] is not None}
