"""Tasks on several processes. They end with the process that started them, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from vq3dcli.errors import StoppedError
from vq3dcli.signals import end_with

Task = TypeVar("Task")
Result = TypeVar("Result")
Advance = Callable[[int], None]

_POLL_SECONDS = 0.5
_counter: Any = None  # of a worker process: how many items all workers have finished, shared with their parent


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task, Advance], Result], tasks: Iterable[Task], *, workers: int, advance: Advance
) -> Iterator[Result]:
    """Results of `function(task, advance)` as they are ready, not in the order of the tasks.

    Args:
        function: Of a module, so that other processes can import it; it calls `advance` with items finished since.
        tasks: Small enough to be sent to another process; taken only as fast as they are worked on.
        workers: Processes; with 1 the work is done here, in order.
        advance: Called here with what the workers reported.

    Raises `StoppedError`: a worker was killed; or whatever `function` raises first, when the others are stopped at
    once.
    """
    if workers == 1:
        for task in tasks:
            yield function(task, advance)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's thread pools without their threads
    counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter,))
    remaining = iter(tasks)
    pending: set[Future[Result]] = set()
    reported = 0
    try:
        while True:
            # Ctrl-C waits: a process that starts meanwhile inherits that, until `_start_worker` tells it to ignore it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                pending |= {pool.submit(function, t, _count) for t in islice(remaining, 2 * workers - len(pending))}
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if not pending:
                break
            ready, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            with counter.get_lock():
                news, reported = counter.value - reported, counter.value
            advance(news)
            for future in ready:
                yield future.result()
        pool.shutdown()
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise StoppedError(
                "a worker process was killed, perhaps for want of memory",
                remedy="the same command with fewer --workers; finished shards are kept",
            ) from error
        raise


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    # Each worker is one thread; torch, which the first task imports, reads this.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    # Ctrl-C goes to the whole group of processes; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with(parent.pid)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _count(items: int) -> None:
    with _counter.get_lock():
        _counter.value += items
