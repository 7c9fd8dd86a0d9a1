"""How the C library hands out memory: large tensors that are freed are kept for the next ones.

By default glibc maps each large block afresh and returns it when it is freed. A training step on a CPU then touches
tens of thousands of new pages, which the kernel has to find and clear, a fifth of its time.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1
# glibc's own; its thresholds rise to these by themselves in a process that frees large blocks.
_MAPPED_BLOCKS = 65536
_MAPPED_BYTES = 32 << 20


def keep_freed_memory() -> None:
    """Never map blocks one by one and never trim the heap, for the life of the process; nothing without glibc."""
    _set(_M_MMAP_MAX, 0)
    _set(_M_TRIM_THRESHOLD, _NEVER)


@contextlib.contextmanager
def plain_allocator() -> Iterator[None]:
    """In here memory is handed out as in any other program, afterwards as `keep_freed_memory` has it."""
    _set(_M_MMAP_MAX, _MAPPED_BLOCKS)
    _set(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    _set(_M_TRIM_THRESHOLD, 2 * _MAPPED_BYTES)
    try:
        yield
    finally:
        keep_freed_memory()


def _set(name: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            mallopt(name, value)
