"""How the C library hands out memory: large tensors that are freed are kept for the next ones.

By default glibc maps each large block afresh and returns it when it is freed. A training step on a CPU then touches
tens of thousands of new pages, which the kernel has to find and clear, a fifth of its time.
"""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Never map blocks one by one and never trim the heap, for the life of the process; nothing without glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
