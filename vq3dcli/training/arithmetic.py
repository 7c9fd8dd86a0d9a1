"""How a processor computes during training: in which precision, and what becomes of denormal numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def flush_denormals() -> None:
    """Flush them for the life of the process; call it before the first tensor operation.

    The setting belongs to a thread, and PyTorch's pool inherits it when it starts: set later, it reaches the calling
    thread alone, and the bits of a run would depend on what the process did before.
    """
    _flush()


def _flush() -> None:
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # which numpy 1 works out when first asked, and warns of a least number that is zero
    torch.set_flush_denormal(True)


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Gradients behind opaque surfaces, and their squares in Adam, are denormal, slow on some CPUs.

    Afterwards they are kept if they were before.
    """
    half_of_least = torch.full((1,), torch.finfo(torch.float32).tiny) * 0.5
    kept = bool(half_of_least != 0)  # PyTorch can set this and not tell it
    _flush()
    try:
        yield
    finally:
        if kept:
            torch.set_flush_denormal(False)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; `auto` is bfloat16 where the device multiplies it natively.

    Those are GPUs since Ampere, and CPUs made for it. Others emulate it: a CPU 60 times slower than float32, measured.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if _cuda_has_bf16(device) else torch.float32
    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    has_bf16 = "AVX512" in capabilities and _cpu_has("avx512_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def _cuda_has_bf16(device: torch.device) -> bool:
    try:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    except TypeError:  # a PyTorch without that argument says yes to GPUs that only emulate it
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _cpu_has(flag: str) -> bool:
    with contextlib.suppress(OSError):
        return flag in Path("/proc/cpuinfo").read_text().split("flags", 2)[1].split()
    return False
