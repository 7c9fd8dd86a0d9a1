"""The loss of Stage 2: cross-entropy of the codes given the class, which is dropped now and then.

Legend: B images of a micro-batch, L codes of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.losses.tokens import token_nats
from vq3dcli.model.prior import Prior

NO_CLASS = -1


def drop_classes(class_index: Tensor, index: Tensor, *, seed: int, probability: float) -> Tensor:
    """Replace some classes by none, so that one network learns both sides of guidance (Ho and Salimans, 2022).

    Args:
        class_index: int64 `[B]`.
        index: Positions in the stream `[B]`: what is dropped depends on (seed, position) alone.
        seed: Of the run.
        probability: Of losing the class.
    """
    lost = seeding.uniform(seed, "class-dropout", index, 1)[..., 0] < probability
    return torch.where(lost, NO_CLASS, class_index)


class PriorObjective(nn.Module):
    """The mean loss of a micro-batch, as a module, so that DistributedDataParallel can wrap it.

    Args:
        model: The prior.
        class_dropout: Share of images that lose their class.
        seed: Of the run.
    """

    def __init__(self, model: Prior, *, class_dropout: float, seed: int) -> None:
        super().__init__()
        self.model, self.class_dropout, self.seed = model, class_dropout, seed

    def forward(self, tokens: Tensor, class_index: Tensor, index: Tensor) -> Tensor:
        """Nats per code.

        Args:
            tokens: int64 `[B, L]`.
            class_index: int64 `[B]`, below 0 for none.
            index: Positions in the stream `[B]`.
        """
        given = drop_classes(class_index, index, seed=self.seed, probability=self.class_dropout)
        return token_nats(self.model(tokens, given), tokens).mean()
