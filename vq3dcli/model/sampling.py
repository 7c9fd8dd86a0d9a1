"""Drawing codes from the prior: one after the other, by a static cache and inverse distribution functions.

Sample i of a seed has the same codes in any batch. Its randomness is L uniform numbers by (seed, i, place), and each
code is the inverse of the distribution function at one of them; rows are computed in groups of a fixed size, padded,
since the last bits of a matrix product depend on the number of rows but not on what the other rows hold.

Legend: N samples, R rows of a group, L codes of a sample, K codebook_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.errors import UsageError
from vq3dcli.model.kv_cache import KVCache
from vq3dcli.model.prior import Prior
from vq3dcli.seeding import uniform

# On a CPU 16 rows take about twice the time of one, and a sample in a full group a seventh of one alone.
ROWS_ON_CPU = 16
ROWS_ON_DEVICE = 64
NO_CLASS = -1


@dataclass(frozen=True)
class Sharpening:
    """How the prior's distribution is changed before a code is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the most probable code.
        top_k: Keep this many codes, the most probable ones; 0 for all.
        top_p: Keep the fewest most probable codes that have this probability together (Holtzman et al., ICLR 2020),
            after `temperature` and `top_k`; 1 for all.
        guidance: g of u + g (c - u), where c and u are the logits with and without the class (Ho and Salimans, 2022);
            1 is off, and costs nothing.

    Raises:
        UsageError: A value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for name, value, sound, remedy in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "--temperature 1"),
            ("top-k", self.top_k, self.top_k >= 0, "--top-k 0 for all codes"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "--top-p 1 for all codes"),
            ("guidance", self.guidance, math.isfinite(self.guidance), "--guidance 1 for none"),
        ):
            if not sound:
                raise UsageError(f"{name} out of range ({value})", remedy=remedy)


@torch.inference_mode()
def sample_tokens(
    prior: Prior,
    class_index: Tensor,
    *,
    seed: int,
    index: Tensor | None = None,
    sharpening: Sharpening | None = None,
    rows: int | None = None,
    on_token: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Draw one sample for each class index.

    On a CPU the codes are the same to the bit for any N and any order of the samples, for the same `rows`, number of
    threads and version of PyTorch. A GPU promises that only as far as its matrix products do.

    Args:
        prior: In evaluation mode; its device and dtype are used.
        class_index: int64 `[N]`; below 0, or `prior.classes`, for no class.
        seed: Seed of the samples.
        index: Number i of each sample, int64 `[N]`; 0 to N - 1 by default.
        sharpening: Temperature, top-k, top-p and guidance; default: the distribution as it is.
        rows: R; more are faster for many samples, and take more memory. Default: 16 on a CPU, else 64.
        on_token: Called with the number of new codes, of all samples together; N L in the end.

    Returns:
        Codes int64 `[N, L]` on the CPU.
    """
    assert not prior.training, "dropout would spoil the samples: prior.eval()"
    device = prior.positions.device
    rows = rows or (ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_DEVICE)
    index = torch.arange(len(class_index)) if index is None else index.cpu()
    uniforms = uniform(seed, "sample", index, prior.length)
    group = _Group(prior, rows, sharpening or Sharpening())
    parts = []
    for first in range(0, len(class_index), rows):
        chosen = torch.arange(first, first + rows).clamp(max=len(class_index) - 1)
        count = min(rows, len(class_index) - first)
        group.start(class_index.cpu()[chosen].to(device), uniforms[chosen].to(device))
        for slot in range(prior.length):
            group.cache.move_to(slot)
            group.step()
            on_token(count)
        parts.append(group.tokens[:count].to("cpu", copy=True))
    return torch.cat(parts) if parts else torch.empty(0, prior.length, dtype=torch.int64)


class _Group:
    """R samples that are drawn together; buffers are allocated once and nothing waits for the host."""

    def __init__(self, prior: Prior, rows: int, sharpening: Sharpening) -> None:
        self._prior = prior
        self._sharpening = sharpening
        self._guided = sharpening.guidance != 1.0
        all_rows = 2 * rows if self._guided else rows
        weight = prior.positions
        self._inputs = torch.zeros(all_rows, prior.width, device=weight.device, dtype=weight.dtype)
        self._given = torch.zeros_like(self._inputs)
        self._uniforms = torch.zeros(rows, prior.length, device=weight.device)
        self.tokens = torch.zeros(rows, prior.length, device=weight.device, dtype=torch.int64)
        self.cache: KVCache = prior.make_cache(all_rows)

    def start(self, class_index: Tensor, uniforms: Tensor) -> None:
        """Begin samples of the classes `[R]` by uniform numbers `[R, L]`."""
        if self._guided:
            class_index = torch.cat([class_index, torch.full_like(class_index, NO_CLASS)])
        self._given.copy_(self._prior.given(class_index))
        self._inputs.copy_(self._given)
        self._uniforms.copy_(uniforms)

    def step(self) -> None:
        """Draw the code of the cache's slot for all samples."""
        logits = self._prior.next_logits(self._inputs, self.cache).float()
        if self._guided:
            given, without = logits.chunk(2)
            logits = without + self._sharpening.guidance * (given - without)
        uniforms = self._uniforms.index_select(1, self.cache.slot)
        token = draw(distribution(logits, self._sharpening), uniforms[:, 0])
        self.tokens.index_copy_(1, self.cache.slot, token[:, None])
        codes = self._prior.code_embedding(torch.cat([token, token]) if self._guided else token)
        torch.add(codes, self._given, out=self._inputs)


def distribution(logits: Tensor, sharpening: Sharpening) -> Tensor:
    """Unnormalised probabilities of the codes after temperature, top-k and top-p, float64.

    Args:
        logits: `[..., K]`, guided if they are to be.
        sharpening: Its `guidance` is not used.
    """
    logits = logits.double()
    if sharpening.temperature == 0.0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sharpening.temperature
    if 0 < sharpening.top_k < logits.shape[-1]:
        kept, codes = logits.topk(sharpening.top_k)
    elif sharpening.top_p < 1.0:
        kept, codes = logits.sort(descending=True, stable=True)
    else:
        return logits.softmax(-1)
    probability = kept.softmax(-1)
    # A code is kept while those before it fall short of top_p: the first always is.
    before = probability.cumsum(-1) - probability
    probability = torch.where(before < sharpening.top_p, probability, 0.0)
    return torch.zeros_like(logits).scatter_(-1, codes, probability)


def draw(probability: Tensor, uniforms: Tensor) -> Tensor:
    """The codes at which distribution functions pass uniform numbers.

    Args:
        probability: Float64 `[..., K]`, not normalised.
        uniforms: `[...]` in [0, 1).

    Returns:
        int64 `[...]`; never a code of probability 0.
    """
    cumulative = probability.cumsum(-1)
    threshold = uniforms.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0]
