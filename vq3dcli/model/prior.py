"""Stage 2: a class-conditional decoder-only transformer over Stage 1's codes, in raster order.

```
slot      0        1        2     ...  L - 1
reads     class    code 0   code 1     code L - 2     and each of them the class, too
predicts  code 0   code 1   code 2     code L - 1
```

The class is added to every slot, not put before the codes alone: it says little about a single code, and is looked up
late otherwise (docs/decisions.md).

Pre-norm blocks (Radford et al., 2019). Slot i carries the place on the grid that it predicts: a learned vector, and
in attention a rotation by row and column (Su et al., 2021; axial, with base 100, as Heo et al., ECCV 2024, sec. 3.2).
The class may be dropped in training for classifier-free guidance (Ho and Salimans, 2022).

Legend: B batch, L codes of an image, K codebook_size, D width, H heads, C channels a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vq3dcli.model.vit import attend


class KVCache:
    """Keys and values of all layers for up to L slots.

    Attention sees just the slots that are filled; what an earlier use left in later ones is never read.

    Args:
        rows: B.
        layers: Number of attention layers.
        heads: H.
        length: L.
        head_width: C.
        device: Where the model is.
        dtype: Of the model's keys.

    Attributes:
        slot: The slot that the next keys fill, int64 `[1]`, on the device.
    """

    def __init__(
        self,
        *,
        rows: int,
        layers: int,
        heads: int,
        length: int,
        head_width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._keys = torch.zeros(layers, rows, heads, length, head_width, device=device, dtype=dtype)
        self._values = torch.zeros_like(self._keys)
        self._visible = 1
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)

    @staticmethod
    def bytes_a_row(*, layers: int, heads: int, length: int, head_width: int, dtype: torch.dtype) -> int:
        """Bytes of memory that a cache takes for each of its rows."""
        return 2 * layers * heads * length * head_width * dtype.itemsize

    def move_to(self, slot: int) -> None:
        """Fill `slot` next; attention sees it and all before it."""
        self.slot.fill_(slot)
        self._visible = slot + 1

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one slot's key and value, `[B, H, 1, C]`; all visible ones, `[B, H, visible, C]`."""
        keys, values = self._keys[layer], self._values[layer]
        keys.index_copy_(2, self.slot, key)
        values.index_copy_(2, self.slot, value)
        return keys[:, :, : self._visible], values[:, :, : self._visible]


_ROTARY_BASE = 100.0
_INITIAL_STD = 0.02


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a slot sees itself and the slots before it.

    Args:
        width: Channels D.
        heads: Number of heads H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, slots: Tensor, rotation: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """`[B, n, D]` to `[B, n, D]`: n = L slots without a cache, n = 1 slot with one."""
        batch, count, width = slots.shape
        qkv = self.qkv(slots).reshape(batch, count, 3, self.heads, width // self.heads)
        both, value = qkv.permute(2, 0, 3, 1, 4).split([2, 1])
        query, key = rotate(both, rotation)
        value = value[0]
        if cache is None:
            mixed = attend(query, key, value, causal=True)
        else:
            key, value = cache.extend(layer, key, value)
            mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class CausalBlock(nn.Module):
    """Causal attention, then an MLP, each behind a LayerNorm with a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(approximate="tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Tensor, rotation: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """`[B, n, D]` to `[B, n, D]`."""
        slots = slots + self.dropout(self.attention(self.norm_attention(slots), rotation, cache, layer))
        return slots + self.dropout(self.mlp(self.norm_mlp(slots)))


class Prior(nn.Module):
    """The distribution of the codes of an image given its class.

    Both branches of a block end in a linear map that starts at zero, as in `model.vit`.

    Args:
        codebook_size: Number of codes K.
        length: Codes an image L, a square number: the grid is `sqrt(L)` x `sqrt(L)`.
        classes: Number of classes; index `classes` (or any below 0) stands for no class.
        width: Channels D.
        layers: Number of blocks.
        heads: Number of heads H; `width / heads` is a multiple of 4.
        dropout: Of embeddings and of both branches of a block, in training. It draws from torch's generator of the
            device, which the trainer seeds for each step.
        tied_head: The output layer uses the code embeddings: K D parameters less.

    Attributes:
        checkpoint_activations: In training, keep only the slots between blocks, and compute a block anew in the
            backward pass: less memory for about a third more work.
    """

    rotation: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        length: int,
        classes: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        tied_head: bool = False,
    ) -> None:
        super().__init__()
        assert math.isqrt(length) ** 2 == length, f"length {length} must be a square number"
        assert width % (4 * heads) == 0, f"width {width} must be a multiple of 4 x heads {heads}"
        self.codebook_size, self.length, self.classes, self.width = codebook_size, length, classes, width
        self.heads = heads
        self.checkpoint_activations = False
        self.code_embedding = nn.Embedding(codebook_size, width)
        self.class_embedding = nn.Embedding(classes + 1, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([CausalBlock(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        # A tied head is no parameter of its own: two names of one tensor cannot be saved or averaged.
        self.head = None if tied_head else nn.Linear(width, codebook_size, bias=False)
        self.register_buffer("rotation", axial_rotation(math.isqrt(length), width // heads), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, CausalBlock)
            for last in (block.attention.out, block.mlp[-1]):
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
        small = [self.code_embedding.weight, self.class_embedding.weight, self.positions]
        for weight in small if self.head is None else [*small, self.head.weight]:
            nn.init.trunc_normal_(weight, std=_INITIAL_STD)

    def forward(self, tokens: Tensor, class_index: Tensor) -> Tensor:
        """Logits of all codes given those before them.

        Args:
            tokens: Codes int64 `[B, L]`; the last one is read by nobody.
            class_index: int64 `[B]`; `classes` or below 0 for no class.

        Returns:
            `[B, L, K]`; row i predicts `tokens[:, i]` from the class and `tokens[:, :i]`.
        """
        before = functional.pad(self.code_embedding(tokens[:, :-1]), (0, 0, 1, 0))  # nothing before slot 0
        slots = self.dropout(before + self.given(class_index)[:, None] + self.positions)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                slots = checkpoint(block, slots, self.rotation, use_reentrant=False)
            else:
                slots = block(slots, self.rotation)
        return self._logits(slots)

    def next_logits(self, inputs: Tensor, cache: KVCache) -> Tensor:
        """Logits of the code that slot `cache.slot` predicts, given what the slots before it left in the cache.

        Args:
            inputs: What the slot reads, `[B, D]`: `given(class_index)`, from slot 1 on plus the `code_embedding(...)`
                of the code before.
            cache: From `make_cache`; its slot is filled.

        Returns:
            `[B, K]`.
        """
        slots = (inputs + self.positions.index_select(0, cache.slot))[:, None]
        rotation = self.rotation.index_select(1, cache.slot)
        for layer, block in enumerate(self.blocks):
            slots = block(slots, rotation, cache, layer)
        return self._logits(slots)[:, 0]

    def _logits(self, slots: Tensor) -> Tensor:
        head = self.code_embedding if self.head is None else self.head
        return functional.linear(self.norm(slots), head.weight)

    def make_cache(self, rows: int) -> KVCache:
        """An empty cache for `rows` sequences."""
        weight = self.positions
        return KVCache(
            rows=rows,
            layers=len(self.blocks),
            heads=self.heads,
            length=self.length,
            head_width=self.width // self.heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def given(self, class_index: Tensor) -> Tensor:
        """What every slot reads of the class: int64 `[B]`, below 0 or `classes` for none, to `[B, D]`."""
        return self.class_embedding(torch.where(class_index < 0, self.classes, class_index))


def axial_rotation(side: int, head_width: int) -> Tensor:
    """Cosines and sines of the angles of each grid place, `[2, side^2, head_width / 2]`.

    The first half of the angles grows with the row, the second with the column.
    """
    rotation = torch.empty(2, side * side, head_width // 2)
    if rotation.is_meta:  # its shape is all that is asked for, and arithmetic there imports for a second
        return rotation
    quarter = head_width // 4
    frequency = _ROTARY_BASE ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(side * side)
    rows, columns = place // side, place % side
    angle = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], 1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of channels of `[..., n, C]` by the angles `[2, n, C / 2]`; the pairs are (c, c + C / 2)."""
    cosine, sine = rotation.to(heads.dtype)
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
