"""What keeps the codebook alive in training: when quantisation starts, and which codes start anew."""

from __future__ import annotations

import torch
from torch import Tensor

from vq3dcli import seeding
from vq3dcli.config.schema import TrainingSection
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Objective
from vq3dcli.training.optim import reset_rows
from vq3dcli.training.sharding import changing, local, part
from vq3dcli.training.state import RunState

# The share of the target's colourfulness that a reconstruction has before quantisation starts ...
_CHROMA_ENOUGH = 0.5
# ... and the multiple of `quantize_from_images` at which it starts all the same.
_QUANTIZE_PATIENCE = 4
# The normalisation before the codes is frozen after this fraction of a run: the decoder then sees a fixed code space.
_FREEZE_STATISTICS_AFTER = 0.5


@torch.no_grad()
def update_codes(state: RunState[Autoencoder], schedule: TrainingSection, step: Objective, ranks: Ranks) -> Tensor:
    """Follow the encoder's statistics, start quantisation when it is time, revive dead codes; after a step.

    By what this rank saw in the step; returns how often each code was used in it by all ranks, `[K]`.
    """
    quantizer = state.model.quantizer
    size = quantizer.codebook.shape[0]
    counts = ranks.sum(torch.bincount(step.codes.flatten(), minlength=size).float())
    if schedule.freeze_codes:
        return counts
    if state.images_seen <= _FREEZE_STATISTICS_AFTER * schedule.images:
        flat = step.raw.flatten(0, 1)
        quantizer.update_statistics(ranks.mean(flat.mean(0)), ranks.mean(flat.square().mean(0)))
    step_index = torch.tensor(state.images_seen, device=counts.device)
    fresh: Tensor | None = None
    if not bool(quantizer.active):
        patience = 1 if state.chroma >= _CHROMA_ENOUGH else _QUANTIZE_PATIENCE
        if state.images_seen >= schedule.quantize_from_images * patience:
            # Fresh statistics: `step.projected` was computed before they moved, a step's difference.
            outputs = ranks.gather(step.projected.flatten(0, 1))
            with changing(quantizer, "codebook"):
                quantizer.start(outputs, seeding.uniform(schedule.seed, "codes", step_index, size))
            fresh = torch.ones(size, dtype=torch.bool, device=counts.device)
    elif quantizer.count(counts):
        outputs = ranks.gather(step.projected.flatten(0, 1))
        with changing(quantizer, "codebook"):
            fresh = quantizer.revive(outputs, seeding.uniform(schedule.seed, "codes", step_index, size))
    if fresh is not None:  # they have no past in the optimizer or the average
        reset_rows(state.optimizer, quantizer.codebook, fresh)
        rows = local(part(fresh, quantizer.codebook))
        local(state.average.quantizer.codebook)[rows] = local(quantizer.codebook)[rows]
    return counts
