r"""Sampling with the static cache beside two plain loops: all fed again, and caches grown by concatenation.

The same weights, uniform numbers and draws; the loops must give the same codes, or there is no figure. Process CPU
time, each round in the order A B C C B A, medians over rounds.

With `--windows` only a few places are drawn, evenly spread, and only the two caches are compared: both begin each
window with the same keys and values, and all that the plain one does is `torch.cat`, as DynamicCache of transformers.

Example:
    python benchmarks/prior_sampling.py
    python benchmarks/prior_sampling.py --windows 4 --table
    python benchmarks/prior_sampling.py --width 512 --layers 10 --length 1024 --rows 1 --skip feeding_again
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.model.draw_codes import Sharpening, distribution, draw, sample_tokens
from vq3dcli.model.prior import Prior
from vq3dcli.model.vit import KVCache
from vq3dcli.seeding import uniform

SEED = 0


STEPS_A_WINDOW = 3
# Width, layers, heads, length, rows, guidance: the embedded prior's shape, then that of `demo128-prior` with 1024 codes
# an image.
TABLE = [
    (192, 6, 6, 256, 1, 1.0),
    (192, 6, 6, 256, 16, 1.0),
    (192, 6, 6, 256, 16, 3.0),
    (512, 8, 8, 1024, 1, 1.0),
    (512, 8, 8, 1024, 1, 1.75),
    (512, 8, 8, 1024, 16, 1.0),
    (512, 8, 8, 1024, 16, 1.75),
]


class GrowingCache:
    """Keys and values joined by `torch.cat`, as most sampling loops do."""

    def __init__(self, device: torch.device, kept: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._kept = dict(kept or {})

    def move_to(self, slot: int) -> None:
        """Fill `slot` next."""
        self.slot.fill_(slot)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far."""
        if layer in self._kept:
            keys, values = self._kept[layer]
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        self._kept[layer] = key, value
        return key, value


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Logits of the guided half, or as they are."""
    if guidance == 1.0:
        return logits
    given, without = logits.chunk(2)
    return without + guidance * (given - without)


def with_both(class_index: Tensor, guidance: float) -> Tensor:
    """The classes, and for guidance the same rows without one."""
    return class_index if guidance == 1.0 else torch.cat([class_index, torch.full_like(class_index, -1)])


@torch.inference_mode()
def feed_again(prior: Prior, class_index: Tensor, options: Sharpening) -> Tensor:
    """Each code from a pass over all codes before it; the head sees the last slot only."""
    uniforms = uniform(SEED, "sample", torch.arange(len(class_index)), prior.length).to(class_index.device)
    given = prior.given(with_both(class_index, options.guidance))
    slots = given[:, None]
    tokens = []
    for place in range(prior.length):
        hidden = slots + prior.positions[: place + 1]
        for block in prior.blocks:
            hidden = block(hidden, prior.rotation[:, : place + 1])
        head = prior.code_embedding if prior.head is None else prior.head
        logits = nn.functional.linear(prior.norm(hidden[:, -1]), head.weight).float()
        token = draw(distribution(guided(logits, options.guidance), options), uniforms[:, place])
        tokens.append(token)
        new = given + prior.code_embedding(with_both_tokens(token, options.guidance))
        slots = torch.cat([slots, new[:, None]], 1)
    return torch.stack(tokens, 1).cpu()


@torch.inference_mode()
def grow_caches(prior: Prior, class_index: Tensor, options: Sharpening) -> Tensor:
    """Each code from one slot, with caches joined by concatenation."""
    uniforms = uniform(SEED, "sample", torch.arange(len(class_index)), prior.length).to(class_index.device)
    cache = GrowingCache(class_index.device)
    given = prior.given(with_both(class_index, options.guidance))
    read = given
    tokens = []
    for place in range(prior.length):
        cache.slot.fill_(place)
        logits = prior.next_logits(read, cache).float()  # type: ignore[arg-type]
        token = draw(distribution(guided(logits, options.guidance), options), uniforms[:, place])
        tokens.append(token)
        read = given + prior.code_embedding(with_both_tokens(token, options.guidance))
    return torch.stack(tokens, 1).cpu()


def with_both_tokens(token: Tensor, guidance: float) -> Tensor:
    """The new codes, for guidance twice."""
    return token if guidance == 1.0 else torch.cat([token, token])


def fill(cache: KVCache, filled: dict[int, tuple[Tensor, Tensor]], slots: range) -> None:
    """Write keys and values `[B, H, L, C]` of each layer into slots of a cache."""
    for slot in slots:
        cache.move_to(slot)
        for layer, (keys, values) in filled.items():
            cache.extend(layer, keys[:, :, slot : slot + 1], values[:, :, slot : slot + 1])


@torch.inference_mode()
def compare_caches(prior: Prior, rows: int, guidance: float, windows: int, rounds: int) -> dict[str, float]:
    """Milliseconds a place with either cache, CPU and wall, and how many times faster the static one is."""
    options = Sharpening(guidance=guidance)
    class_index = with_both(torch.arange(rows) % 10, guidance)
    given = prior.given(class_index)
    shape = (len(class_index), prior.heads, prior.length, prior.width // prior.heads)
    filled = {layer: (torch.randn(shape), torch.randn(shape)) for layer in range(len(prior.blocks))}
    static = prior.make_cache(len(class_index))
    fill(static, filled, range(prior.length))
    spent: dict[str, list[list[float]]] = {name: [] for name in ("static", "growing", "static wall", "growing wall")}
    for window in range(windows):
        first = (2 * window + 1) * prior.length // (2 * windows)
        before = {layer: tuple(part[:, :, :first].contiguous() for part in both) for layer, both in filled.items()}
        taken: dict[str, list[float]] = {name: [] for name in spent}
        expected: Tensor | None = None
        for name in ("static", "growing", "growing", "static") * rounds:
            cache = static if name == "static" else GrowingCache(given.device, before)  # type: ignore[arg-type]
            started, wall = time.process_time(), time.perf_counter()
            read, tokens = given, []
            for place in range(first, first + STEPS_A_WINDOW):
                cache.move_to(place)
                logits = prior.next_logits(read, cache).double()  # type: ignore[arg-type]
                token = draw(distribution(guided(logits, guidance), options), torch.full((rows,), 0.3))
                tokens.append(token)
                read = given + prior.code_embedding(with_both_tokens(token, guidance))
            taken[name].append(time.process_time() - started)
            taken[f"{name} wall"].append(time.perf_counter() - wall)
            drawn = torch.stack(tokens)
            expected = drawn if expected is None else expected
            assert torch.equal(drawn, expected), f"{name} gives other codes"
        fill(static, filled, range(first, first + STEPS_A_WINDOW))  # what this window wrote over
        for name, values in taken.items():
            spent[name].append(values)
    each = {
        name: 1e3 * statistics.fmean(statistics.median(values) for values in found) / STEPS_A_WINDOW
        for name, found in spent.items()
    }
    return {
        "static_ms": each["static"],
        "growing_ms": each["growing"],
        "ratio": each["growing"] / each["static"],
        "static_wall_ms": each["static wall"],
        "growing_wall_ms": each["growing wall"],
        "wall_ratio": each["growing wall"] / each["static wall"],
    }


def make_prior(*, codes: int, length: int, width: int, layers: int, heads: int) -> Prior:
    """A prior with weights that make its codes differ."""
    torch.manual_seed(SEED)
    prior = Prior(codebook_size=codes, length=length, classes=10, width=width, layers=layers, heads=heads)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.05)
    return prior.eval()


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8, help="Samples drawn together.")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--skip", nargs="*", default=[], help="Loops to leave out: feeding_again takes minutes at 1024."
    )
    parser.add_argument(
        "--keep-freed-memory", action="store_true", help="Allocate as the commands do, which spares the plain loops."
    )
    parser.add_argument("--windows", type=int, default=0, help="Draw at so many places only, on a CPU.")
    parser.add_argument("--table", action="store_true", help="With --windows: the shapes of docs/measurements.md.")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.keep_freed_memory:
        keep_freed_memory()
    shapes = [(options.width, options.layers, options.heads, options.length, options.rows, options.guidance)]
    if options.windows:
        for width, layers, heads, length, rows, guidance in TABLE if options.table else shapes:
            prior = make_prior(codes=options.codes, length=length, width=width, layers=layers, heads=heads)
            found = compare_caches(prior, rows, guidance, options.windows, options.rounds)
            shape = {"width": width, "layers": layers, "length": length, "rows": rows, "guidance": guidance}
            print(json.dumps({**shape, **{name: round(value, 2) for name, value in found.items()}}), flush=True)
        return
    prior = make_prior(
        codes=options.codes, length=options.length, width=options.width, layers=options.layers, heads=options.heads
    ).to(options.device)
    class_index = (torch.arange(options.rows) % 10).to(options.device)
    sharpening = Sharpening(guidance=options.guidance)
    loops: dict[str, Callable[[], Tensor]] = {
        "static_cache": lambda: sample_tokens(prior, class_index, seed=SEED, sharpening=sharpening, rows=options.rows),
        "growing_caches": lambda: grow_caches(prior, class_index, sharpening),
        "feeding_again": lambda: feed_again(prior, class_index, sharpening),
    }
    loops = {name: loop for name, loop in loops.items() if name not in options.skip}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    expected: Tensor | None = None
    for _ in range(options.rounds):
        for name in [*loops, *reversed(loops)]:
            started = time.process_time() if options.device == "cpu" else time.perf_counter()
            tokens = loops[name]()
            ended = time.process_time() if options.device == "cpu" else time.perf_counter()
            seconds[name].append(ended - started)
            expected = tokens if expected is None else expected
            assert torch.equal(tokens, expected), f"{name} gives other codes"
    each = {name: statistics.median(values) / options.length for name, values in seconds.items()}
    result = {
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "threads": torch.get_num_threads(),
        "rows": options.rows,
        "length": options.length,
        "guidance": options.guidance,
        "keep_freed_memory": options.keep_freed_memory,
        "tokens_identical": True,
        "ms_a_place": {name: 1e3 * value for name, value in each.items()},
        "static_cache_is_faster_by": {name: value / each["static_cache"] for name, value in each.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
