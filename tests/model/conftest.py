"""A prior whose logits differ well between contexts: freshly initialised, all branches would be zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vq3dcli.model.prior import Prior


@pytest.fixture(scope="session")
def make_prior() -> Callable[..., Prior]:
    """A small prior in evaluation mode: 32 codes, 16 places, 3 classes, unless told otherwise."""

    def make(codes: int = 32, length: int = 16, *, tied_head: bool = False, dropout: float = 0.0) -> Prior:
        torch.manual_seed(0)
        prior = Prior(
            codebook_size=codes,
            length=length,
            classes=3,
            width=32,
            layers=2,
            heads=2,
            dropout=dropout,
            tied_head=tied_head,
        ).eval()
        for parameter in prior.parameters():
            nn.init.normal_(parameter, std=0.3)
        return prior

    return make
