"""Transformers: attention, pre-norm blocks, and the vision transformer of Stage 1.

Dosovitskiy et al., ICLR 2021, in the layout of ViT-VQGAN (Yu et al., ICLR 2022). The prior's blocks are the same, but
causal, with rotations and a cache.

Legend: B batch (rows of a cache), H heads, L tokens, D width, C channels a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_cpu_is_cpu = True

# On a GPU a slot's attention reads a multiple of so many, those to come masked: the same work for all of these slots.
_SLOTS_TOGETHER = 256


@contextmanager
def as_on_gpus(wanted: bool) -> Iterator[None]:
    """Compute as a GPU does, whatever the device: a plan for one is made on a CPU."""
    global _cpu_is_cpu
    before, _cpu_is_cpu = _cpu_is_cpu, not wanted
    try:
        yield
    finally:
        _cpu_is_cpu = before


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether to compute with it as a CPU does."""
    return _cpu_is_cpu and tensor.device.type == "cpu"


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(C)) v (Vaswani et al., NeurIPS 2017, eq. 1); all four are `[B, H, L, C]`.

    In bfloat16 on a CPU the fused kernel's backward pass takes longer than that of matrix products, forward alone less
    (benchmarks/attention.py, docs/performance.md): where a gradient is wanted, these are taken there. With `causal` a
    token sees itself and those before it alone.
    """
    differentiated = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if differentiated and is_on_cpu(query) and query.dtype == torch.bfloat16:
        return attend_by_products(query, key, value, causal=causal)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """The same by matrix products, which keep L x L weights a head for the backward pass."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if scores.shape[-1] % 16 or not _by_vectors(scores):
        return scores.softmax(-1).to(value.dtype) @ value
    from vq3dcli.model.pointwise import FastSoftmax  # numba takes half a second

    shares: Tensor = FastSoftmax.apply(scores)
    return shares @ value


def _by_vectors(x: Tensor) -> bool:
    """Whether to compute by `model.pointwise`: on a CPU, where a gradient is wanted, neither fake nor traced."""
    plain = type(x) is Tensor and not torch.compiler.is_compiling() and x.dtype != torch.float64
    return plain and torch.is_grad_enabled() and x.requires_grad and is_on_cpu(x)


class KVCache:
    """Keys and values of all layers for up to L tokens: allocated once, filled in place, never copied.

    Attention sees just the slots that are filled; what an earlier use left in later ones has no share. The shape is
    (layers, B, H, L, C), device and dtype those of `like`; `slot`, int64 `[1]` on the device, is what the next keys
    fill, and attention reads the first `visible` slots.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        self._keys = torch.zeros(shape, device=like.device, dtype=like.dtype)
        self._values = torch.zeros_like(self._keys)
        self._places = torch.arange(shape[3], device=like.device)
        self.slot = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.move_to(0)

    def move_to(self, slot: int) -> None:
        """Fill `slot` next; attention sees it and all before it."""
        self.slot.fill_(slot)
        self.visible = slot + 1 if is_on_cpu(self.slot) else (slot // _SLOTS_TOGETHER + 1) * _SLOTS_TOGETHER

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep one slot's key and value; what its query sees of all that are visible. All four are `[B, H, 1, C]`."""
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(2, self.slot, key)
        values.index_copy_(2, self.slot, value)
        by_cpu = is_on_cpu(query)
        if by_cpu and query.dtype == torch.float32 and query.shape[-1] % 16 == 0 and not query.requires_grad:
            from vq3dcli.model.pointwise import attend_to_slots  # numba takes half a second

            return attend_to_slots(query, keys, values, self.visible)
        shown = slice(self.visible)
        filled = None if by_cpu else (self._places[shown] <= self.slot)[None]
        return functional.scaled_dot_product_attention(query, keys[:, :, shown], values[:, :, shown], attn_mask=filled)


class Attention(nn.Module):
    """Multi-head self-attention: over all tokens, or `causal`, a token seeing itself and those before it."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        assert width % heads == 0, f"heads {heads} must divide width {width}"
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, tokens: Tensor, rotation: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """`[B, n, D]` to `[B, n, D]`.

        Queries and keys are turned by a rotation, see `rotate`. The cache of a layer holds the tokens before the one, n
        = 1, that is given.
        """
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        # At once: an index would fill all with zeros in the backward pass, a part at a time.
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is None:
            mixed = attend(query, key, value, causal=self.causal)
        else:
            mixed = cache.attend(layer, query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs (c, c + C / 2) of channels of `[..., n, C]` by angles: cosines and sines `[2, n, C / 2]`."""
    cosine, sine = rotation.to(heads.dtype)
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class TanhGELU(nn.Module):
    """GELU by tanh: where a gradient is wanted on a CPU by `model.pointwise`, whose last bits differ."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each number."""
        if not _by_vectors(x):
            return functional.gelu(x, approximate="tanh")
        from vq3dcli.model.pointwise import FastGELU  # numba takes half a second

        result: Tensor = FastGELU.apply(x)
        return result


class Block(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm with a residual connection."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), TanhGELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, rotation: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """`[B, n, D]` to `[B, n, D]`, see `Attention.forward`."""
        tokens = tokens + self.dropout(self.attention(self.norm_attention(tokens), rotation, cache, layer))
        return tokens + self.dropout(self.mlp(self.norm_mlp(tokens)))


def initialise(transformer: nn.Module) -> None:
    """Xavier weights and zero biases; both branches of a block end in a linear map that starts at zero.

    So an untrained block passes its tokens on unchanged (Goyal et al., 2017, sec. 5.1; Zhang et al., ICLR 2019). Colour
    then reaches the decoder from the first step, and not through nine layers of noise, which cost thousands of images
    (docs/notes/measurements.md).
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in transformer.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.attention.out.weight)
            nn.init.zeros_(module.mlp[-1].weight)  # type: ignore[arg-type] # a Linear


class Transformer(nn.Module):
    """Learned positions, `layers` blocks and a final LayerNorm.

    With `checkpoint_activations` only the tokens between blocks are kept in training, and a block is computed anew in
    the backward pass: less memory for about a third more work.
    """

    def __init__(self, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.positions = nn.Parameter(nn.init.trunc_normal_(nn.Parameter().new_empty(1, length, width), std=0.02))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = run_block(block, tokens, recompute=self.checkpoint_activations)
        return self.norm(tokens)


def run_block(block: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """A block's output, computed anew in the backward pass if asked for."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images `[B, C, H, W]` to row-major patches `[B, (H/p) (W/p), C p p]`."""
    batch, channels, height, width = images.shape
    patches = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """Inverse of `patchify` for a square grid: `[B, L, C p p]` to `[B, C, side p, side p]`."""
    batch, length, _ = patches.shape
    side = round(length**0.5)
    images = patches.reshape(batch, side, side, channels, patch, patch)
    return images.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * patch, side * patch)
