"""Ranks end together: how one ends, or that it no longer answers, is known to all others within seconds.

A thread of each rank tells a store every second that the rank lives, and looks at the rank before it and at how the
first one ended that did. A second thread notices when the first one gets no answer: then the store's process is gone.
So a rank that waits in a collective for one that will never come ends, too, with the same exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vq3dcli import signals
from vq3dcli.errors import Vq3dError
from vq3dcli.training.launch import LOST, RankLostError, started_ranks

_PULSE_SECONDS = 1.0
# In pulses. Steps, pages and checkpoints may take any time: they leave the threads of Python alone.
_LOST_AFTER = 12
# In pulses, for a rank to end by itself that learns of the end of another; the first may be writing the run's page.
_GRACE, _GRACE_OF_FIRST = 3, 6
_CONNECT = timedelta(minutes=10)
_WORDS_OF_LIBRARIES = ("gloo", "nccl", "tcpstore", "connection", "process group")


class OtherRankError(Exception):
    """Another rank has said why the run ends."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"another rank ended with {exit_code}")
        self.exit_code = exit_code


@contextlib.contextmanager
def shared_fate() -> Iterator[None]:
    """Run a block that all ranks of this run are in. Nothing happens in a run of one process.

    Raises:
        OtherRankError: Another rank failed before this one did.
        RankLostError: Another rank is gone; only one rank raises this.
    """
    if (world_size := started_ranks()) == 1:
        yield
        return
    pulse = _Pulse(int(os.environ["RANK"]), world_size)
    try:
        yield
    except BaseException as error:
        code = pulse.settle(error)
        if code is None:
            raise
        if code == RankLostError.exit_code and not _launched():
            raise _lost() from error
        raise OtherRankError(code) from error
    finally:
        pulse.leave()


class _Pulse:
    """This rank's heart, and its ear for the others."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.store = _connect(rank)
        self.end = threading.Event()
        self.rounds = self.silent_rounds = 0
        self.verdict = ""
        self.lost = False
        self.parent = os.getppid()
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name="vq3d-fate", daemon=True).start()

    def settle(self, error: BaseException) -> int | None:
        """Tell the others how this rank ends; the exit code where another was first or is lost, else None."""
        self.lost = lost = _is_of_communication(error)
        for _ in range(_GRACE if lost else 0):  # the one that is gone may have said why, or be about to
            if not self.verdict:
                self.end.wait(_PULSE_SECONDS)
        code = RankLostError.exit_code if lost else _code_of(error)
        if not self.verdict:
            with contextlib.suppress(RuntimeError):
                self.verdict = self._claim(code)
        first, _, theirs = self.verdict.partition(" ")
        if first and int(first) != self.rank:
            return int(theirs)
        if lost:
            return LOST if _launched() else code
        return None

    def leave(self) -> None:
        """Stop, and stay for the others where the store is ours."""
        self.end.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"pulse/{self.rank}", "left")
            if self.rank == 0 and not self.lost and not _agent_has_store():
                keys = [f"pulse/{other}" for other in range(1, self.world_size)]
                for _ in range(_GRACE * 10):
                    if all(self.store.check([key]) and self.store.get(key) == b"left" for key in keys):
                        break
                    threading.Event().wait(_PULSE_SECONDS / 10)

    def _claim(self, code: int) -> str:
        return self.store.compare_set("end", "", f"{self.rank} {code}").decode()

    def _talk(self) -> None:
        before, last = f"pulse/{(self.rank - 1) % self.world_size}", b""
        with contextlib.suppress(RuntimeError):  # then `_judge` counts in vain
            store = _connect(self.rank, host=False)
            while not self.end.wait(_PULSE_SECONDS):
                store.set(f"pulse/{self.rank}", str(self.rounds))
                if store.check(["end"]):
                    self.verdict = store.get("end").decode()
                seen = store.get(before) if store.check([before]) else b""
                # Until it has come, and once it has left, there is nothing to hear.
                self.silent_rounds = 0 if seen != last or seen in (b"", b"left") else self.silent_rounds + 1
                last = seen
                self.rounds += 1

    def _judge(self) -> None:
        rounds, unanswered, told = 0, 0, 0
        while not self.end.wait(_PULSE_SECONDS):
            if os.getppid() != self.parent and _agent():
                os._exit(LOST)
            unanswered = 0 if self.rounds != rounds else unanswered + 1
            rounds = self.rounds
            told += bool(self.verdict)
            if told > (_GRACE if self.rank else _GRACE_OF_FIRST):
                _exit(int(self.verdict.partition(" ")[2]))
            if max(unanswered, self.silent_rounds) > _LOST_AFTER:
                self._end_lost(answered=not unanswered)

    def _end_lost(self, *, answered: bool) -> None:
        if _launched():
            _exit(LOST)
        first = f"{self.rank} "
        if answered:
            with contextlib.suppress(RuntimeError):
                first = self._claim(RankLostError.exit_code)
        if first.startswith(f"{self.rank} ") and sys.stderr is not None:
            sys.stderr.write(f"error: {_lost()}\n")
        _exit(RankLostError.exit_code)


def _connect(rank: int, *, host: bool = True) -> Any:
    """A connection to the store of this attempt of the run; the first rank's process holds it, or torchrun's."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=host and rank == 0 and not _agent_has_store(),
        timeout=_CONNECT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"vq3d/{attempt}", store)  # type: ignore[attr-defined]


def _agent_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _launched() -> bool:
    return signals.LAUNCHER in os.environ


def _agent() -> bool:
    """Whether our parent lives as long as the run does."""
    return _launched() or "TORCHELASTIC_RUN_ID" in os.environ


def _is_of_communication(error: BaseException) -> bool:
    """Whether a collective failed; libraries throw bare `RuntimeError`s."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _WORDS_OF_LIBRARIES)


def _code_of(error: BaseException) -> int:
    if isinstance(error, Vq3dError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 74 if isinstance(error, OSError) else 70


def _lost() -> RankLostError:
    return RankLostError(
        f"another rank than {os.environ['RANK']} is gone or no longer answers",
        remedy="the same command again, which continues at the newest checkpoint",
    )


def _exit(code: int) -> None:
    """End although the main thread waits for what will never come."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
