"""Stage 2: a class-conditional decoder-only transformer over Stage 1's codes, in raster order.

```
slot      0        1        2     ...  L - 1
reads     class    code 0   code 1     code L - 2     and each of them the class, too
predicts  code 0   code 1   code 2     code L - 1
```

The class is added to every slot, not put before the codes alone: it says little about a single code, and is looked up
late otherwise (docs/notes/decisions.md).

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

from vq3dcli.model.vit import Block, KVCache, initialise, run_block

_ROTARY_BASE = 100.0
_INITIAL_STD = 0.02


class Prior(nn.Module):
    """The distribution of the codes of an image given its class.

    Args:
        codebook_size: Number of codes K.
        length: Codes an image L, a square number: the grid is `sqrt(L)` x `sqrt(L)`.
        classes: Number of classes; index `classes` (or any below 0) stands for no class.
        width: Channels D.
        heads: Number of heads H; `width / heads` is a multiple of 4.
        dropout: Of embeddings and of both branches of a block, in training. It draws from torch's generator of the
            device, which the trainer seeds for each step.
        tied_head: The output layer uses the code embeddings: K D parameters less.
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
        self.checkpoint_activations = False  # as of `vit.Transformer`
        self.code_embedding = nn.Embedding(codebook_size, width)
        self.class_embedding = nn.Embedding(classes + 1, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, causal=True, dropout=dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        # A tied head is no parameter of its own: two names of one tensor cannot be saved or averaged.
        self.head = None if tied_head else nn.Linear(width, codebook_size, bias=False)
        self.register_buffer("rotation", axial_rotation(math.isqrt(length), width // heads), persistent=False)
        initialise(self)
        small = [self.code_embedding.weight, self.class_embedding.weight, self.positions]
        for weight in small if self.head is None else [*small, self.head.weight]:
            nn.init.trunc_normal_(weight, std=_INITIAL_STD)

    def forward(self, tokens: Tensor, class_index: Tensor) -> Tensor:
        """Logits `[B, L, K]` of all L codes given those before them.

        Row i predicts `tokens[:, i]` of int64 `[B, L]` from `tokens[:, :i]`; nobody reads the last. A class index `[B]`
        of `classes`, or below 0, is no class.
        """
        before = functional.pad(self.code_embedding(tokens[:, :-1]), (0, 0, 1, 0))  # nothing before slot 0
        slots = self.dropout(before + self.given(class_index)[:, None] + self.positions)
        for block in self.blocks:
            slots = run_block(block, slots, self.rotation, recompute=self.checkpoint_activations)
        return self._logits(slots)

    def next_logits(self, inputs: Tensor, cache: KVCache) -> Tensor:
        """Logits `[B, K]` of the code that slot `cache.slot` predicts, given what the slots before left in the cache.

        What the slot reads, `[B, D]`, is `given(class_index)`, from slot 1 on plus the `code_embedding(...)` of the
        code before. The cache's slot is filled.
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
        shape = (len(self.blocks), rows, self.heads, self.length, self.width // self.heads)
        return KVCache(shape, self.positions)

    def cache_bytes(self) -> int:
        """Bytes of memory that a cache takes for each of its rows."""
        return 2 * len(self.blocks) * self.length * self.width * self.positions.dtype.itemsize

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
