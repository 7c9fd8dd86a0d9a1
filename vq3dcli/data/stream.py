"""Which sample stands at which place of the training stream: an endless sequence that can start anywhere.

Places that share an epoch, or a block of a mixed stream, are permuted by (seed, number) alone, so the stream does not
depend on batches or ranks, and a run continues from the number of images that it has seen.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from vq3dcli.errors import UsageError
from vq3dcli.seeding import generator

BLOCK = 1000  # places of a mixed stream in which every folder has its share exactly
_REMEMBERED = 8  # permutations; a stream walks through them in order


class Stream:
    """The samples of one or several folders in the order of training; threads may share one.

    Without shares, all samples of all folders come once an epoch. With them, positive numbers that are scaled to a sum
    of 1, a folder has its share of every BLOCK places, and its own samples come once before any comes again.

    Raises `UsageError`: other shares than folders, a share that is not positive or too small for BLOCK, or one of a
    folder that is empty.
    """

    def __init__(self, counts: Sequence[int], seed: int, shares: Sequence[float] | None = None) -> None:
        self._counts, self._seed = list(counts), seed
        self._starts = [0, *itertools.accumulate(counts)]
        self._slots = None if shares is None else _slots(counts, shares)
        self._permutations: dict[tuple[str, int], Tensor] = {}
        self._block, self._places = -1, list[tuple[int, int]]()
        self._lock = threading.Lock()

    def at(self, position: int) -> tuple[int, int]:
        """The folder and the sample within it at a place of the stream."""
        with self._lock:
            if self._slots is None:
                epoch, step = divmod(position, self._starts[-1])
                i = int(self._permuted("order", epoch, self._starts[-1])[step])
                folder = next(f for f, end in enumerate(self._starts[1:]) if i < end)
                return folder, i - self._starts[folder]
            block, place = divmod(position, BLOCK)
            if block != self._block:
                self._block, self._places = block, self._laid_out(block, self._slots)
            folder, turn = self._places[place]
            epoch, step = divmod(turn, self._counts[folder])
            return folder, int(self._permuted(f"order of folder {folder}", epoch, self._counts[folder])[step])

    def _laid_out(self, block: int, slots: Sequence[int]) -> list[tuple[int, int]]:
        """For each place of a block, its folder and how many places that folder has had in the whole stream before."""
        folders = torch.repeat_interleave(torch.tensor(slots))[self._permuted("mix", block, BLOCK)]
        turns = [block * slots[folder] for folder in range(len(slots))]
        places = []
        for folder in folders.tolist():
            places.append((folder, turns[folder]))
            turns[folder] += 1
        return places

    def _permuted(self, purpose: str, number: int, count: int) -> Tensor:
        """A permutation of `count` things, int64, the same for equal (seed, purpose, number)."""
        known = self._permutations.get((purpose, number))
        if known is None:
            if len(self._permutations) >= _REMEMBERED:
                del self._permutations[next(iter(self._permutations))]
            known = torch.randperm(count, generator=generator(self._seed, purpose, number))
            self._permutations[purpose, number] = known
        return known


def rows_of_rank(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of each global batch that a rank takes. Raises `UsageError` if ranks get different numbers of them."""
    if batch_size % world_size:
        raise UsageError(
            f"the batch size ({batch_size}) is not a multiple of the number of ranks ({world_size})",
            remedy=f"--set training.batch_size={-(-batch_size // world_size) * world_size}",
        )
    rows = batch_size // world_size
    return slice(rank * rows, (rank + 1) * rows)


def _slots(counts: Sequence[int], shares: Sequence[float]) -> list[int]:
    if len(shares) != len(counts):
        raise UsageError(
            f"{len(shares)} shares for {len(counts)} folders", remedy="one --share for each --data, in the same order"
        )
    total = sum(shares)
    if not all(math.isfinite(share) and share * BLOCK >= total for share in shares) or total <= 0:
        raise UsageError(
            f"a share of {', '.join(f'{share:g}' for share in shares)} is below 1 of {BLOCK} images",
            remedy="positive numbers, for example --share 0.5 --share 0.5",
        )
    if 0 in counts:
        raise UsageError("a folder without samples has a share", remedy="only folders with samples")
    return spread(BLOCK, shares)


def spread(count: int, shares: Sequence[float]) -> list[int]:
    """`count` in whole numbers as near as can be to `shares`, by largest remainders; ties go to the first."""
    total = sum(shares)
    exact = [count * share / total for share in shares]
    whole = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole


def evenly(total: int, most: int) -> list[int]:
    """At most so many numbers below `total`, evenly spread, ascending."""
    count = min(most, total)
    return [i * total // count for i in range(count)]
