"""Counter-based randomness: a number is a pure function of (seed, purpose, index, position).

Nothing depends on rank, worker, batch size or the order of calls, so a resumed run, a run on more ranks and a
single image in any batch all see the same numbers. Purposes are names ("train", "eval", "crop", ...): equal seeds
under different purposes give unrelated numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Constants of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), as signed 64-bit integers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key(seed: int, purpose: str) -> int:
    """A signed 64-bit key for (seed, purpose)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for (seed, purpose, counters), for library calls that take one."""
    name = "/".join([purpose, *map(str, counters)])
    return torch.Generator().manual_seed(key(seed, name) & ((1 << 63) - 1))


def uniform(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), `count` for each global sample index int64 `[...]`.

    float32 `[..., count]` on the device of `index`; the same bits on every device.
    """
    position = torch.arange(count, device=index.device, dtype=torch.int64)
    row = _mix(index.to(torch.int64) * _GOLDEN_GAMMA + key(seed, purpose))
    bits = _mix(row[..., None] + (position + 1) * _GOLDEN_GAMMA)
    return (_shift_right(bits, 40)).to(torch.float32) * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 arithmetic wraps, which is what is wanted."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copied sign bits are masked off."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
