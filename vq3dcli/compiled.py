"""Functions that numba compiles on their first call, kept on disk for later processes where a place can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` as machine code, in IEEE 754 arithmetic: nothing is reordered, so its results have the same bits.

    numba keeps it beside the source, or below the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    try:
        return cast(F, numba.njit(cache=True, fastmath=False)(function))
    except RuntimeError:  # none of these places can be written: each process compiles for itself
        return cast(F, numba.njit(fastmath=False)(function))
