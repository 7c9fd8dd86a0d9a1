"""A static cache of attention keys and values: allocated once, filled in place, never copied.

Legend: B rows, H heads, L slots, C channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
