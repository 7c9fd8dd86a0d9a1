"""One step's loss and gradient, over micro-batches and ranks.

Legend: B images of this rank, L tokens, D code_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vq3dcli.data.loader import Batch
from vq3dcli.errors import DivergedError
from vq3dcli.losses.depth import LABEL_NONE
from vq3dcli.training.distributed import Ranks, waiting
from vq3dcli.training.objective import NovelViews, Objective
from vq3dcli.training.views import AdversarialViews

CALMER = "the same command with --set of a lower training.learning_rate or training.gradient_clip"
"""What to do about a run that diverges: it goes on from its last checkpoint."""
# So many samples of a rank are named where a step cannot be taken.
_NAMED = 8


@dataclass(frozen=True)
class Step:
    """What micro-batches gave together; means over this rank's images unless said otherwise.

    Attributes:
        loss: The total.
        terms: Unweighted terms and other figures by name.
        relief: See `Objective.relief`; a sum.
        gradient_norm: Before clipping, of all ranks' mean gradient.
        codes: `[B, L]`.
        projected: `[B, L, D]`.
        raw: `[B, L, D]`.
        views: What the discriminators are shown next, a micro-batch each; empty before their start.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    relief: Tensor
    gradient_norm: Tensor
    codes: Tensor
    projected: Tensor
    raw: Tensor
    views: Sequence[AdversarialViews]


def compute_gradients(
    forward: nn.Module,
    batch: Batch,
    *,
    parameters: Sequence[nn.Parameter],
    images_seen: int,
    accumulate: int,
    gradient_clip: float,
    autocast_dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks,
) -> Step:
    """Add the clipped gradient of the batch's mean loss to `parameters`, a micro-batch at a time.

    Args:
        forward: The objective, wrapped by DistributedDataParallel on several ranks.
        batch: This rank's rows of the global batch.
        parameters: What is trained.
        images_seen: Before the step.
        accumulate: Number of micro-batches; divides B.
        gradient_clip: Greatest norm of the gradient.
        autocast_dtype: bfloat16 for mixed precision.
        device: Where to compute.
        ranks: This process among those of the run.

    Raises:
        DivergedError: The loss or the gradient is not finite; all ranks raise together.
    """
    labelled_share = ranks.mean((batch.label_kind != LABEL_NONE).float().mean().to(device))
    size = batch.image.shape[0] // accumulate
    views = None
    if batch.views is not None:
        count = torch.tensor(float(len(batch.views.row)), device=device)
        views = NovelViews(batch.views.to(device), ranks.mean(count / batch.image.shape[0]))
    columns = [
        tensor.to(device).chunk(accumulate)
        for tensor in (batch.image, batch.s, batch.label_kind, batch.index, batch.class_index)
    ]
    assert batch.image.shape[0] % accumulate == 0, (batch.image.shape[0], accumulate)
    parts: list[Objective] = []
    for position, (image, label, kind, index, classes) in enumerate(zip(*columns, strict=True)):
        with waiting(forward, position < accumulate - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast_dtype == torch.bfloat16):
                mine = None if views is None else views.of_rows(position * size, (position + 1) * size)
                part: Objective = forward(image, label, kind, index, labelled_share, classes, images_seen, mine)
            (part.loss / accumulate).backward()
        parts.append(part._replace(loss=part.loss.detach()))
    gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    loss = torch.stack([part.loss for part in parts]).mean()
    require_finite(loss, gradient_norm, batch.keys, images_seen, ranks)
    return Step(
        loss=loss,
        terms={name: torch.stack([part.terms[name] for part in parts]).mean() for name in parts[0].terms},
        relief=torch.stack([part.relief for part in parts]).sum(0),
        gradient_norm=gradient_norm,
        codes=torch.cat([part.codes for part in parts]),
        projected=torch.cat([part.projected for part in parts]),
        raw=torch.cat([part.raw for part in parts]),
        views=[part.views for part in parts if part.views is not None],
    )


def require_finite(loss: Tensor, gradient_norm: Tensor, samples: Sequence[str], images_seen: int, ranks: Ranks) -> None:
    """Refuse a non-finite update; every rank sees the same flag, so that all of them do.

    Args:
        loss: Of this rank.
        gradient_norm: Of all ranks' mean gradient.
        samples: Names of this rank's samples, for the message.
        images_seen: Before the step.
        ranks: This process among those of the run.

    Raises:
        DivergedError: A loss or the gradient is not finite.
    """
    finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
    if float(ranks.sum((~finite).float())) > 0:
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        damaged = ranks.gather_texts("" if bool(finite) else ", ".join(samples[:_NAMED]) + more)
        names = "; ".join(text for text in damaged if text)
        raise DivergedError(
            f"the loss is {float(loss)} and the gradient norm {float(gradient_norm)} "
            f"at {images_seen} images (samples {names}); this step was not applied",
            remedy=CALMER,
        )
