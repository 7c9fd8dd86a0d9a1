"""Attention of a training step on a CPU: PyTorch's fused kernel beside matrix products, and of inference.

Ratios above 1 are for the products. CPU time of one thread, the least of several rounds, in turn.

Example:
    python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.model.vit import attend_by_products
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
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [torch.randn(options.batch, heads, length, width // heads, dtype=dtype) for _ in range(3)]
            seconds: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, attend in (("fused", scaled_dot_product_attention), ("products", attend_by_products)):
                    for suffix, taken in zip(("", "_forward"), step_seconds(attend, inputs), strict=True):
                        seconds[name + suffix] = min(taken, seconds.get(name + suffix, taken))
            row = {"tokens": length, "width": width, "heads": heads, "dtype": str(dtype).removeprefix("torch.")}
            ratios = {f"ratio{s}": seconds["fused" + s] / seconds["products" + s] for s in ("", "_forward")}
            found.append({**row, **seconds, **ratios})
    print(json.dumps({"batch": options.batch, "torch": torch.__version__, "found": found}, indent=1))


def step_seconds(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[float, float]:
    """CPU seconds of a forward and backward pass, and of a forward pass without gradients."""
    leaves = [tensor.requires_grad_() for tensor in inputs]
    started = time.process_time()
    out = attend(*leaves)
    torch.autograd.grad(out.float().square().mean(), leaves)
    both = time.process_time() - started
    started = time.process_time()
    with torch.no_grad():
        attend(*leaves)
    return both, time.process_time() - started


if __name__ == "__main__":
    main()
