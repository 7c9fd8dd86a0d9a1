"""Drawing codes from the prior: one after the other, by a static cache and inverse distribution functions.

Sample i of a seed has the same codes in any batch. Its randomness is L uniform numbers by (seed, i, place), and each
code is the inverse of the distribution function at one of them; rows are computed in groups of a fixed size, padded,
since the last bits of a matrix product depend on the number of rows but not on what the other rows hold. That holds on
a CPU; a GPU promises no bits, so its groups are as large as the samples and its memory allow.

Legend: N samples, R rows of a group, L codes of a sample, K codebook_size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.errors import DataError, UsageError
from vq3dcli.model.prior import Prior
from vq3dcli.model.vit import is_on_cpu
from vq3dcli.seeding import uniform

_log = logging.getLogger(__name__)

# On a CPU 16 rows take about twice the time of one, and a sample in a full group a seventh of one alone.
ROWS_ON_CPU = 16
_ROWS_ON_DEVICE = 64
# A fixed number, not a share of free memory: R may depend on the model and on guidance alone.
CACHE_BYTES_ON_CPU = 4 << 30
NO_CLASS = -1
_NUMBERS_A_CLASS = 1 << 32
# Far beyond what is of use (1 to 10), and far from where guided logits would overflow.
_MAX_GUIDANCE = 100.0
# Below this, logits that differ at all differ by more than softmax can tell; smaller divisors may be flushed to 0.
_MIN_TEMPERATURE = 1e-100


def sample_index(class_index: int, number: int) -> int:
    """The number i, among all samples of a seed, of sample `number` of a class (-1: of no class)."""
    return (class_index + 1) * _NUMBERS_A_CLASS + number


def sampling_dtype(device: torch.device) -> torch.dtype:
    """The dtype to sample in: bfloat16 on GPUs that multiply it natively, which halves the cache; else float32."""
    if device.type != "cuda":
        return torch.float32
    native = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


def rows_together(prior: Prior, count: int, *, guidance: float = 1.0, memory_share: float = 0.5) -> int:
    """How many rows R of samples to draw together, so that their cache fits: at least 1.

    On a CPU a function of the model and of whether it is guided, up to 16; on a GPU up to 64, and at most `count`, with
    a cache of `memory_share` of its free memory. Other guidance than 1 takes two rows of the cache a sample.
    """
    row_bytes = prior.cache_bytes() * (1 if guidance == 1.0 else 2)
    device = prior.positions.device
    if device.type != "cuda":
        return max(min(CACHE_BYTES_ON_CPU // row_bytes, ROWS_ON_CPU), 1)
    # With what PyTorch holds there without using it.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = int(memory_share * (torch.cuda.mem_get_info(device)[0] + idle))
    return max(min(budget // row_bytes, _ROWS_ON_DEVICE, count), 1)


@dataclass(frozen=True)
class Sharpening:
    """How the prior's distribution is changed before a code is drawn. Raises `UsageError`: a value out of its range."""

    temperature: float = 1.0  # divides the logits; 0 takes the most probable code
    top_k: int = 0  # keep this many codes, the most probable ones; 0 for all
    # keep the fewest most probable codes that have this probability together (Holtzman et al., ICLR 2020), after
    # `temperature` and `top_k`; 1 for all
    top_p: float = 1.0
    # g of u + g (c - u), where c and u are the logits with and without the class (Ho and Salimans, 2022); 1 is off, and
    # costs nothing. 0 to 100
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for name, value, sound, remedy in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "--temperature 1"),
            ("top-k", self.top_k, self.top_k >= 0, "--top-k 0 for all codes"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "--top-p 1 for all codes"),
            ("guidance", self.guidance, 0 <= self.guidance <= _MAX_GUIDANCE, "--guidance 1 for none"),
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
    on_token: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Draw one sample for each class index `[N]`, below 0 or `prior.classes` for none: codes int64 `[N, L]` on the CPU.

    On a CPU the codes are the same to the bit for any N and any order of the samples, for the same `rows`, number of
    threads and version of PyTorch. A GPU promises that only as far as its matrix products do.

    Args:
        prior: In evaluation mode; its device and dtype are used.
        index: Number i of each sample, int64 `[N]`; 0 to N - 1 by default.
        sharpening: Temperature, top-k, top-p and guidance; default: the distribution as it is.
        rows: R; more are faster for many samples, and take more memory. Default: by `rows_together`.
        on_token: Called with the number of new codes, of all samples together; N L in the end.

    Raises `DataError`: the prior's logits are not finite.
    """
    assert not prior.training, "dropout would spoil the samples: prior.eval()"
    device = prior.positions.device
    sharpening = sharpening or Sharpening()
    rows = rows or rows_together(prior, len(class_index), guidance=sharpening.guidance)
    class_index = class_index.cpu()
    index = torch.arange(len(class_index)) if index is None else index.cpu()
    group = _Group(prior, rows, sharpening)
    parts = []
    for first in range(0, len(class_index), rows):
        chosen = torch.arange(first, first + rows).clamp(max=len(class_index) - 1)
        count = min(rows, len(class_index) - first)
        uniforms = uniform(seed, "sample", index[chosen], prior.length)
        group.start(class_index[chosen].to(device), uniforms.to(device))
        for slot in range(prior.length):
            group.cache.move_to(slot)
            group.step()
            on_token(count)
        if not group.finite:  # once a group, as the host waits
            raise DataError("the prior's logits are not finite", remedy="another --prior, or an earlier checkpoint")
        parts.append(group.tokens[:count].to("cpu", copy=True))
    return torch.cat(parts) if parts else torch.empty(0, prior.length, dtype=torch.int64)


class _Group:
    """R samples that are drawn together; buffers are allocated once and nothing waits for the host.

    So on a GPU a step can be a graph, which is launched at once, for all slots whose attention reads as many. The first
    of them is drawn as on a CPU, which readies the libraries, the second is captured.
    """

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
        self.finite = torch.ones((), device=weight.device, dtype=torch.bool)
        self.cache = prior.make_cache(all_rows)
        self._steps: dict[int, Callable[[], None] | None] = {}  # by visible slots; None before they are captured

    def start(self, class_index: Tensor, uniforms: Tensor) -> None:
        """Begin samples of the classes `[R]` by uniform numbers `[R, L]`."""
        if self._guided:
            class_index = torch.cat([class_index, torch.full_like(class_index, NO_CLASS)])
        self._given.copy_(self._prior.given(class_index))
        self._inputs.copy_(self._given)
        self._uniforms.copy_(uniforms)

    def step(self) -> None:
        """Draw the code of the cache's slot for all samples."""
        visible = self.cache.visible
        if is_on_cpu(self.tokens) or visible not in self._steps:
            self._steps[visible] = None
            return self._draw()
        step = self._steps[visible] or captured(self._draw)
        self._steps[visible] = step
        return step()

    def _draw(self) -> None:
        logits = self._prior.next_logits(self._inputs, self.cache).double()
        self.finite.logical_and_(logits.isfinite().all())
        if self._guided:
            given, without = logits.chunk(2)
            logits = without + self._sharpening.guidance * (given - without)
        uniforms = self._uniforms.index_select(1, self.cache.slot)
        token = draw(distribution(logits, self._sharpening), uniforms[:, 0])
        self.tokens.index_copy_(1, self.cache.slot, token[:, None])
        codes = self._prior.code_embedding(torch.cat([token, token]) if self._guided else token)
        torch.add(codes, self._given, out=self._inputs)


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Work on a GPU as a graph, which is not run yet; as it is where the GPU's driver or libraries capture none."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError as error:
        _log.warning("codes are drawn more slowly: no CUDA graph (%s)", str(error).splitlines()[0])
        return work
    return graph.replay


def distribution(logits: Tensor, sharpening: Sharpening) -> Tensor:
    """Unnormalised probabilities of the codes after temperature, top-k and top-p, float64.

    `logits` `[..., K]` are guided already if they are to be.
    """
    logits = logits.double()
    if sharpening.temperature == 0.0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    # The largest first, so that whatever the temperature it stays 0.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sharpening.temperature, _MIN_TEMPERATURE)
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
    """The codes, int64 `[...]`, at which distribution functions pass uniform numbers `[...]` in [0, 1).

    Of probabilities float64 `[..., K]`, which need not be normalised; never a code of probability 0.
    """
    cumulative = probability.cumsum(-1)
    threshold = uniforms.double()[..., None] * cumulative[..., -1:]
    # An index past the end, which NaN would give, stops a GPU for good.
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=probability.shape[-1] - 1)
