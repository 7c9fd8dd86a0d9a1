"""Drawing codes beside two plain loops: all codes fed again for each new one, and caches grown by concatenation.

The embedded prior, the same uniform numbers; a ratio counts only where all codes are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from vq3dcli.model.draw_codes import ROWS_ON_CPU, Sharpening, distribution, draw, sample_tokens
from vq3dcli.model.prior import Prior
from vq3dcli.pipelines.bench.measure import Gate, Work
from vq3dcli.seeding import uniform
from vq3dcli.weights_file import load_prior

SEED = 0


class GrowingCache:
    """Keys and values joined by `torch.cat`, as most sampling loops do."""

    def __init__(self, device: torch.device) -> None:
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What a query sees of all keys and values so far."""
        if layer in self._kept:
            keys, values = self._kept[layer]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        self._kept[layer] = key, value
        return nn.functional.scaled_dot_product_attention(query, key, value)


def works(device: torch.device) -> Iterator[Work]:
    """One sample against feeding again, a full group against concatenation."""
    prior = load_prior(device=device).model
    for rows, name, way in ((1, "feeding again", feed_again), (ROWS_ON_CPU, "torch.cat", grow_caches)):
        class_index = (torch.arange(rows) % 10).to(device)
        yield Work(
            f"embedded prior, {rows} x {prior.length} codes",
            partial(sample_tokens, prior, class_index, seed=SEED, rows=rows),
            rows * prior.length,
            "codes",
            name,
            partial(way, prior, class_index),
            lambda ours, theirs: Gate("equal_codes", float((ours == theirs).float().mean()), 1.0),
        )


@torch.inference_mode()
def feed_again(prior: Prior, class_index: Tensor) -> Tensor:
    """Each code from a pass over all codes before it; the head sees the last slot only."""
    uniforms = uniform(SEED, "sample", torch.arange(len(class_index)), prior.length).to(class_index.device)
    given = prior.given(class_index)
    slots = given[:, None]
    tokens: list[Tensor] = []
    for place in range(prior.length):
        hidden = slots + prior.positions[: place + 1]
        for block in prior.blocks:
            hidden = block(hidden, prior.rotation[:, : place + 1])
        head = prior.code_embedding if prior.head is None else prior.head
        logits = nn.functional.linear(prior.norm(hidden[:, -1]), head.weight)
        tokens.append(draw(distribution(logits, Sharpening()), uniforms[:, place]))
        slots = torch.cat([slots, (given + prior.code_embedding(tokens[-1]))[:, None]], 1)
    return torch.stack(tokens, 1).cpu()


@torch.inference_mode()
def grow_caches(prior: Prior, class_index: Tensor) -> Tensor:
    """Each code from one slot, with caches joined by concatenation."""
    uniforms = uniform(SEED, "sample", torch.arange(len(class_index)), prior.length).to(class_index.device)
    cache = GrowingCache(class_index.device)
    read = given = prior.given(class_index)
    tokens: list[Tensor] = []
    for place in range(prior.length):
        cache.slot.fill_(place)
        logits = prior.next_logits(read, cache)  # type: ignore[arg-type]
        tokens.append(draw(distribution(logits, Sharpening()), uniforms[:, place]))
        read = given + prior.code_embedding(tokens[-1])
    return torch.stack(tokens, 1).cpu()
