"""How fast processors are: published peaks of the GPUs that people train on, a short measurement for any other.

What an eager training step reaches of a peak is an assumption, stated here and in what `--dry-run` prints: half of the
arithmetic of matrix products, and six tenths of the bandwidth of everything else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from vq3dcli.config.schema import Recipe, Stage1Recipe
from vq3dcli.training.arithmetic import resolve_precision

MATMUL_SHARE = 0.5
BANDWIDTH_SHARE = 0.6
# Of what one product and one pass alone reach on a CPU, a whole step reaches these shares (docs/performance.md):
# caches are shared, and most operations are smaller.
CPU_MATMUL_SHARE = 0.85
CPU_BANDWIDTH_SHARE = 0.25
# No operation takes less: Python, PyTorch's dispatcher and autograd, of a GPU the launch.
_SECONDS_PER_OPERATION = 5e-6
# Bytes a second between processes of one machine by gloo, and of a GPU to other machines: 400 Gb/s, as in clusters of
# H100; assumptions. GB/s of PCIe 4.
LOOPBACK, NETWORK, PCIE = 1e9, 50e9 * BANDWIDTH_SHARE, 32.0
GPUS_A_MACHINE = 8
_MATMUL_SHAPE = (1024, 768, 768)
_SECONDS = 0.4
# The largest tensor of the step stands for all; beyond this size it makes no difference.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 64 << 20, 1 << 20


@dataclass(frozen=True)
class Processor:
    """What a step can count on."""

    name: str  # for people
    kind: str  # "cpu" or "cuda"
    flops_per_second: float  # of matrix products in the training precision
    flops_per_second_float32: float  # of those that stay in float32
    bytes_per_second: float  # read and written by everything else
    memory_bytes: int | None  # of the device, of the whole machine for a CPU; None where it is not known
    dtype: torch.dtype  # the training precision
    basis: str  # where the figures come from
    seconds_per_operation: float = _SECONDS_PER_OPERATION  # the least that one takes
    link_bytes_per_second: float = LOOPBACK  # to the others of its machine, each way
    share: float = 1.0  # which part of its peak `flops_per_second` is


class Published(NamedTuple):
    """Peaks by NVIDIA's data sheets of the product: dense (half of the figures "with sparsity"), no TF32.

    `link` in GB/s each way: NVLink, or PCIe 4.
    """

    name: str
    tflops_bfloat16: float | None
    tflops_float32: float
    terabytes_per_second: float
    gigabytes: int
    link: float


PUBLISHED = {
    "h200": Published("H200 SXM", 989.0, 67.0, 4.8, 141, 450.0),
    "h100": Published("H100 SXM", 989.0, 67.0, 3.35, 80, 450.0),
    "a100": Published("A100 SXM 80 GB", 312.0, 19.5, 2.039, 80, 300.0),
    "a100-40gb": Published("A100 SXM 40 GB", 312.0, 19.5, 1.555, 40, 300.0),
    "v100": Published("V100 SXM2", None, 15.7, 0.9, 32, 150.0),
    "l40s": Published("L40S", 362.0, 91.6, 0.864, 48, PCIE),
    "rtx4090": Published("GeForce RTX 4090", 165.2, 82.6, 1.008, 24, PCIE),
}
"""By the name that `--device-name` takes."""

# The word by which a driver names each, and words of variants with other peaks: slices of a GPU, mobile ones, other
# boards and chips of the same family. GH200 is a word of its own, listed for the reader.
_WORDS = {key: key.removeprefix("rtx").removesuffix("-40gb") for key in PUBLISHED}
_VARIANTS = frozenset({"mig", "laptop", "mobile", "pcie", "nvl", "gh200", "fhhl", "d"})


def find_processor(recipe: Recipe, device: torch.device, name: str | None = None) -> Processor:
    """The processor that is named (a key of `PUBLISHED`, or "cpu" for this machine's), or the one that is there.

    A GPU on the machine has its own memory, as the driver gives it, and the table's peaks where the table has it.
    """
    precision = recipe.training.precision
    if name is not None and name != "cpu":
        return named_processor(name, precision)
    if name == "cpu":
        device = torch.device("cpu")
    memory = physical_memory_bytes()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        key = key_of(torch.cuda.get_device_name(device))
        if key is not None:
            return replace(named_processor(key, precision), memory_bytes=memory)
    block = _LARGEST_BLOCK
    if isinstance(recipe, Stage1Recipe):
        micro_batch = recipe.training.batch_size // recipe.training.accumulate
        block = micro_batch * recipe.rendering.rays_per_image * recipe.rendering.samples * recipe.model.field_hidden * 4
        block = min(max(block, _SMALLEST_BLOCK), _LARGEST_BLOCK)
    return measured_processor(device, resolve_precision(precision, device), block_bytes=block, memory_bytes=memory)


def named_processor(name: str, precision: str) -> Processor:
    """A GPU of `PUBLISHED`, in a recipe's `precision`; `auto` is bfloat16 where the GPU multiplies it.

    One that is told to use bfloat16 and only emulates it is given its float32 speed, which is more than it will reach.
    """
    published = PUBLISHED[name]
    peak = published.tflops_bfloat16
    bfloat16 = precision == "bfloat16" or (precision == "auto" and peak is not None)
    basis = f"published peaks, {MATMUL_SHARE:.0%} of matrix products and {BANDWIDTH_SHARE:.0%} of bandwidth assumed"
    if bfloat16 and peak is None:
        basis += "; bfloat16 is emulated, and slower than this"
    return Processor(
        name=published.name,
        kind="cuda",
        flops_per_second=(peak if bfloat16 and peak else published.tflops_float32) * 1e12 * MATMUL_SHARE,
        flops_per_second_float32=published.tflops_float32 * 1e12 * MATMUL_SHARE,
        bytes_per_second=published.terabytes_per_second * 1e12 * BANDWIDTH_SHARE,
        memory_bytes=published.gigabytes * 10**9,
        dtype=torch.bfloat16 if bfloat16 else torch.float32,
        basis=basis,
        link_bytes_per_second=published.link * 1e9 * BANDWIDTH_SHARE,
        share=MATMUL_SHARE,
    )


def key_of(gpu_name: str) -> str | None:
    """The key of the table for a name as the driver gives it, for example `NVIDIA H100 80GB HBM3`.

    None for a GPU that is not in the table, and for variants of one that is: they are measured.
    """
    words = set(re.findall(r"[a-z0-9]+", gpu_name.lower()))
    if words & _VARIANTS:
        return None
    if "a100" in words:
        return "a100-40gb" if "40gb" in words else "a100"
    return next((key for key, word in _WORDS.items() if word in words), None)


def physical_memory_bytes() -> int | None:
    """Of this machine; None on systems that do not say."""
    try:
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return pages * page_bytes if pages > 0 and page_bytes > 0 else None


def measured_processor(
    device: torch.device, dtype: torch.dtype, *, block_bytes: int, memory_bytes: int | None = None
) -> Processor:
    """Multiply and rectify for about a second, with as many threads as PyTorch has.

    Where memory is fetched anew for each activation, its size decides the speed: `block_bytes` is a typical one.
    """
    on_cpu = device.type == "cpu"
    share, bandwidth_share = (CPU_MATMUL_SHARE, CPU_BANDWIDTH_SHARE) if on_cpu else (1.0, 1.0)
    flops = share * _matmul_speed(device, dtype)
    return Processor(
        name=f"cpu, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name(device),
        kind=device.type,
        flops_per_second=flops,
        flops_per_second_float32=flops if dtype == torch.float32 else share * _matmul_speed(device, torch.float32),
        bytes_per_second=bandwidth_share * _pass_speed(device, block_bytes),
        memory_bytes=memory_bytes,
        dtype=dtype,
        basis=f"{share:.0%} of a product and {bandwidth_share:.0%} of a pass measured here"
        if on_cpu
        else "measured here",
        link_bytes_per_second=LOOPBACK if on_cpu else PCIE * 1e9 * BANDWIDTH_SHARE,
        share=share,
    )


def _matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    rows, inner, columns = _MATMUL_SHAPE
    left = torch.ones(rows, inner, device=device, dtype=dtype)
    right = torch.ones(inner, columns, device=device, dtype=dtype)
    return 2.0 * rows * inner * columns / _least_seconds(lambda: left @ right, device)


def _pass_speed(device: torch.device, block_bytes: int) -> float:
    """Bytes a second of a rectifier and its gradient: five passes over a block that is allocated as in training."""
    values = torch.ones(max(block_bytes // 4, 1), device=device, requires_grad=True)
    gradient = torch.ones_like(values)

    def there_and_back() -> None:
        torch.autograd.grad(torch.relu(values), values, gradient)

    return 5.0 * 4.0 * values.numel() / _least_seconds(there_and_back, device)


def _least_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of several runs, which other programs disturbed least."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    best, spent, runs = float("inf"), 0.0, 0
    while spent < _SECONDS or runs < 3:
        seconds = once()
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return max(best, 1e-9)
