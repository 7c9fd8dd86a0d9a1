"""Attention of a training step on a CPU: PyTorch's fused kernel beside plain matrix products, forward and backward.

Ratios above 1 are for the plain one. CPU time of one thread, the least of several rounds, in turn.

Example:
    python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.model.vit import Attention
from vq3dcli.training.arithmetic import flush_denormals

SHAPES = ((64, 192, 3), (256, 192, 3), (256, 512, 8), (1024, 512, 8))  # tokens, width, heads


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(1)
    found = []
    for length, width, heads in SHAPES:
        attention = Attention(width, heads)
        tokens = torch.randn(options.batch, length, width, requires_grad=True)
        for dtype in (torch.float32, torch.bfloat16):
            seconds: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, training in (("fused", False), ("plain", True)):  # the fused kernel is that of inference
                    taken = step_seconds(attention.train(training), tokens, dtype)
                    seconds[name] = min(taken, seconds.get(name, taken))
            row = {"tokens": length, "width": width, "heads": heads, "dtype": str(dtype).removeprefix("torch.")}
            found.append({**row, **seconds, "ratio": seconds["fused"] / seconds["plain"]})
    print(json.dumps({"batch": options.batch, "torch": torch.__version__, "found": found}, indent=1))


def step_seconds(attention: Attention, tokens: Tensor, dtype: torch.dtype) -> float:
    """CPU seconds of one forward and backward pass."""
    started = time.process_time()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = attention(tokens)
    out.float().square().mean().backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
