"""A pre-norm vision transformer (Dosovitskiy et al., ICLR 2021; the layout of ViT-VQGAN, Yu et al., ICLR 2022).

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(C)) v.

    In bfloat16 on a CPU the fused kernel's backward pass takes longer than that of matrix products, forward alone less
    (benchmarks/attention.py, docs/measurements.md): where a gradient is wanted, these are taken there.

    Args:
        query: `[B, H, L, C]`.
        key: `[B, H, L, C]`.
        value: `[B, H, L, C]`.
        causal: A token sees itself and those before it alone.

    Returns:
        `[B, H, L, C]`.
    """
    differentiated = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if differentiated and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return attend_by_products(query, key, value, causal=causal)
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """The same by matrix products, which keep L x L weights a head for the backward pass."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value


class Attention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        width: Channels D.
        heads: Number of heads; divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, f"heads {heads} must divide width {width}"
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm with a residual connection."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        return tokens + self.mlp(self.norm_mlp(tokens))


class Transformer(nn.Module):
    """Learned positions, `layers` blocks and a final LayerNorm.

    Both branches of a block end in a linear map that starts at zero: an untrained block passes its tokens on unchanged
    (Goyal et al., 2017, sec. 5.1; Zhang et al., ICLR 2019). Colour then reaches the decoder from the first step, and
    not through nine layers of noise, which cost thousands of images (docs/measurements.md).

    Attributes:
        checkpoint_activations: In training, keep only the tokens between blocks, and compute a block anew in the
            backward pass: less memory for about a third more work.
    """

    def __init__(self, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.positions = nn.Parameter(nn.init.trunc_normal_(nn.Parameter().new_empty(1, length, width), std=0.02))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                for last in (module.attention.out, module.mlp[-1]):
                    assert isinstance(last, nn.Linear)
                    nn.init.zeros_(last.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        tokens = tokens + self.positions
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.norm(tokens)


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
