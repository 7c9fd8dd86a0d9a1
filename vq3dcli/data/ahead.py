"""Results that threads make before they are asked for."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

# More than most machines have cores for: some wait for a disk while others decode.
THREADS = 8


def pinned(batch: Item) -> Item:
    """A dataclass of tensors in memory from which a GPU copies by itself, while the CPU goes on."""
    tensors: dict[str, Any] = {}
    for field in dataclasses.fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value.pin_memory()
        elif dataclasses.is_dataclass(value):
            tensors[field.name] = pinned(value)
    return dataclasses.replace(batch, **tensors)  # type: ignore[type-var]


def ahead(
    make: Callable[[Item], Result], items: Iterable[Item], *, threads: int = THREADS, most: int | None = None
) -> Generator[Result, None, None]:
    """`make` of each item, in order, in threads that end with the iterator; errors come in their item's turn.

    `most` results are begun before the first of them is taken; by default as many as threads.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vq3d-ahead")
    pending: deque[Future[Result]] = deque()
    try:
        for item in islice(remaining, most or threads):
            pending.append(pool.submit(make, item))
        while pending:
            result = pending.popleft().result()
            for item in islice(remaining, 1):
                pending.append(pool.submit(make, item))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
