"""Vector quantisation on the unit sphere (ViT-VQGAN, Yu et al., ICLR 2022, sec. 3.2), with remedies against collapse.

```
z -> (z - running mean) / running std -> l2 norm -> nearest l2-normalised code -> straight-through
```

Remedies: the normalisation by running statistics (the same in training and evaluation), a small commitment weight, a
start without quantisation, codes initialised from encoder outputs, dead codes revived from encoder outputs.

Legend: B batch, L tokens, D code_dim, K codebook_size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# A code is dead under this fraction of uniform use ...
_DEAD_FRACTION = 0.01
# ... over the last window of this many tokens a code.
_WINDOW_TOKENS_PER_CODE = 200
_STATISTICS_MOMENTUM = 0.01


class Quantized(NamedTuple):
    """Result of a quantisation."""

    embedding: Tensor  # `[B, L, D]`, unit length; carries the straight-through gradient in training
    codes: Tensor  # code indices `[B, L]`, int64
    commitment: Tensor  # squared distance from encoder output to (detached) code, summed over D, mean over tokens
    codebook: Tensor  # the same distance, pulling the code to the (detached) encoder output
    projected: Tensor  # encoder outputs on the unit sphere, `[B, L, D]`, detached; revived codes are picked from them
    raw: Tensor  # encoder outputs before normalisation, `[B, L, D]`, detached; the running statistics follow them


class Quantizer(nn.Module):
    """Nearest code on the unit sphere. Its buffers are training state and are saved with the weights."""

    mean: Tensor
    variance: Tensor
    window_counts: Tensor
    active: Tensor
    statistics_seen: Tensor

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        codebook = torch.empty(codebook_size, code_dim)
        if not codebook.is_meta:  # there, where shapes are all that is asked for, arithmetic imports for a second
            codebook = functional.normalize(codebook.normal_(), dim=-1)
        self.codebook = nn.Parameter(codebook)
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("variance", torch.ones(code_dim))
        self.register_buffer("window_counts", torch.zeros(codebook_size))
        self.register_buffer("active", torch.zeros((), dtype=torch.bool))
        self.register_buffer("statistics_seen", torch.zeros((), dtype=torch.bool))

    def project(self, z: Tensor) -> Tensor:
        """Encoder outputs `[..., D]` onto the unit sphere, normalised by the running statistics."""
        # 1e-5 is far below any variance that a trained encoder has; it only guards a dead channel.
        normalised = (z.float() - self.mean) * torch.rsqrt(self.variance + 1e-5)
        return functional.normalize(normalised, dim=-1)

    def nearest(self, projected: Tensor) -> Tensor:
        """Indices `[...]` of the nearest codes: on the sphere the largest inner product."""
        codebook = functional.normalize(self.codebook, dim=-1)
        return (projected @ codebook.T).argmax(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Code indices `[...]` to unit-length embeddings `[..., D]`."""
        return functional.normalize(functional.embedding(codes, self.codebook), dim=-1)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise encoder outputs `[B, L, D]`; passes them through, only projected, until `active` is set."""
        with torch.autocast(z.device.type, enabled=False):
            projected = self.project(z)
            with torch.no_grad():
                codes = self.nearest(projected)
            if not bool(self.active):
                zero = projected.sum() * 0.0 + self.codebook.sum() * 0.0
                return Quantized(projected, codes, zero, zero, projected.detach(), z.detach().float())
            code = self.embed(codes)
            commitment = (projected - code.detach()).square().sum(-1).mean()
            codebook = (projected.detach() - code).square().sum(-1).mean()
            embedding = projected + (code - projected).detach()
            return Quantized(embedding, codes, commitment, codebook, projected.detach(), z.detach().float())

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, mean_square: Tensor) -> None:
        """Follow the encoder's outputs, once an optimizer step, by means `[D]` over all of its tokens."""
        variance = (mean_square - mean.square()).clamp(min=0.0)
        # The first statistics are taken whole: a slow start from (0, 1) would normalise nothing for 100 steps.
        momentum = _STATISTICS_MOMENTUM if bool(self.statistics_seen) else 1.0
        self.mean.lerp_(mean, momentum)
        self.variance.lerp_(variance, momentum)
        self.statistics_seen.fill_(True)

    @torch.no_grad()
    def start(self, projected: Tensor, pick: Tensor) -> None:
        """Take all codes from encoder outputs on the sphere `[N, D]` and begin to quantise; `pick` as in `revive`."""
        self.codebook.copy_(projected[_spread_rows(pick, projected.shape[0])])
        self.window_counts.zero_()
        self.active.fill_(True)

    @torch.no_grad()
    def count(self, counts: Tensor) -> bool:
        """Add how often each code was used in a step, `[K]`; true when the window is full and codes may be judged."""
        self.window_counts += counts
        return bool(self.window_counts.sum() >= _WINDOW_TOKENS_PER_CODE * self.window_counts.shape[0])

    @torch.no_grad()
    def revive(self, projected: Tensor, pick: Tensor) -> Tensor:
        """Replace dead codes by encoder outputs on the sphere `[N, D]` and start a new window.

        Uniform numbers `[K]`, the same on every rank, choose rows. Returns the mask of the revived codes, bool `[K]`;
        their optimizer and EMA rows are to be reset.
        """
        uniform_use = self.window_counts.sum() / self.window_counts.shape[0]
        dead = self.window_counts < _DEAD_FRACTION * uniform_use
        self.codebook[dead] = projected[_spread_rows(pick[dead], projected.shape[0])]
        self.window_counts.zero_()
        return dead


def _spread_rows(pick: Tensor, rows: int) -> Tensor:
    """As many of `rows` as there are uniform numbers `[P]`, one from each of P strata: none twice while P <= rows."""
    edges = torch.arange(len(pick) + 1, device=pick.device) * rows // max(len(pick), 1)
    return edges[:-1] + (pick * edges.diff()).long()


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes, exp of the entropy of their use `[K]`: K when all are used alike, 1 when one is."""
    share = counts.float() / counts.sum().clamp(min=1.0)
    return torch.exp(torch.special.entr(share).sum())
