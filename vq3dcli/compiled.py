"""Functions that numba compiles on their first call, kept on disk for later processes where a place can be written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

F = TypeVar("F", bound=Callable[..., Any])
FAST = ("contract", "reassoc", "nsz", "arcp", "afn")
"""What fast arithmetic may do: reorder and approximate; NaN and infinity keep their meaning, so that both show."""


def compiled(function: F) -> F:
    """`function` as machine code, in IEEE 754 arithmetic: nothing is reordered, so its results have the same bits."""
    return _kept(function, fastmath=False)


def compiled_fast(function: F) -> F:
    """`function` in fast arithmetic, equal for equal calls on one machine; other threads run beside it."""
    return _kept(function, fastmath=set(FAST), nogil=True)


def inlined_fast(function: F) -> F:
    """`function` as a part of those that `compiled_fast` compiles."""
    return cast(F, numba.njit(fastmath=set(FAST), inline="always")(function))


def _kept(function: F, **how: Any) -> F:
    """Numba keeps machine code beside the source, or below the user's cache folder, or in NUMBA_CACHE_DIR."""
    try:
        kept = numba.njit(cache=True, **how)(function)
        index = kept._cache._cache_file
        index._source_stamp = (
            index._source_stamp,
            *(sha256(path.read_bytes()).digest() for path in parts_of(function)),
        )
        return cast(F, kept)
    except RuntimeError:  # none of these places can be written: each process compiles for itself
        return cast(F, numba.njit(**how)(function))


def is_kept(function: Any) -> bool:
    """Whether an earlier process has compiled it, and its machine code is loaded in a second or two."""
    index = getattr(function._cache, "_cache_file", None)
    return index is not None and bool(index._load_index())


def parts_of(function: Callable[..., Any]) -> list[Path]:
    """The files of what a function may be made of: numba itself looks at the function's alone."""
    modules: set[str] = set()
    unread = {function.__module__}
    while unread:
        modules |= unread
        values = [value for name in unread for value in vars(sys.modules[name]).values()]
        unread = {value.__module__ for value in values if isinstance(value, (Dispatcher, _Intrinsic))} - modules
    return sorted(Path(str(sys.modules[name].__file__)) for name in modules)
