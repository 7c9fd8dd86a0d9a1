"""Several ranks of one training run on this machine: they start together, and the shell learns how they ended.

What ranks say to each other is `torch.distributed`'s business; how one of them learns of the end of another, that of
`training.fate`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vq3dcli import signals
from vq3dcli.errors import StoppedError, UsageError, Vq3dError

# The variables of torchrun come from those of SLURM: without an agent in between, signals reach the ranks, and the job
# ends with what they say.
_SBATCH = """\
#!/bin/bash
# Add what your cluster asks for: --partition, --account, modules.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={nproc}
#SBATCH --gpus-per-node={nproc}
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE={ranks} LOCAL_WORLD_SIZE={nproc}
srun --kill-on-bad-exit=0 --gpu-bind=none bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank \\
  {command}
code=$?
# 75: saved five minutes before its time was over, or for another job; the same command continues.
[ "$code" -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
"""

# What a rank ends with that lost another: which one, and how, is for the launcher to say.
LOST = 83
_POLL_SECONDS = 0.1
# From the end of the first rank to that of the last: the others notice within a second, and the first may be
# writing the run's page.
_GRACE_SECONDS = 8.0


class RankLostError(Vq3dError):
    """A process of a run ended without a word, or no longer answers."""

    exit_code = 79


def started_ranks() -> int:
    """How many processes share this run: what torchrun, or `launch`, says in the environment; 1 where nobody does.

    Raises `UsageError`: a part of what it says is missing, or is no number.
    """
    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR")}
    if said["WORLD_SIZE"] in ("", "1"):
        return 1
    wrong = [name for name, value in said.items() if not (value if name == "MASTER_ADDR" else value.isdecimal())]
    if not wrong and int(said["RANK"]) >= int(said["WORLD_SIZE"]):
        wrong = ["RANK"]
    if wrong:
        raise UsageError(
            f"the environment is no whole one of torchrun: {', '.join(f'{name} is {said[name]!r}' for name in wrong)}",
            remedy="unset WORLD_SIZE and --nproc, or torchrun",
        )
    return int(said["WORLD_SIZE"])


def sbatch(arguments: Sequence[str], out: Path, *, nodes: int, nproc: int) -> str:
    """The text of a file for `sbatch` that runs `vq3d ARGUMENTS` on so many machines, `nproc` ranks on each.

    `--slurm` and `--nproc` among the arguments are left out.
    """
    words, kept = iter(arguments), list[str]()
    for word in words:
        if word in ("--slurm", "--nproc"):
            next(words)
        elif not word.startswith(("--slurm=", "--nproc=")):
            kept.append(word)
    name = re.sub(r"[^\w.-]", "-", out.resolve().name).lstrip("-.") or "vq3d"
    command = shlex.join([sys.executable, "-m", "vq3dcli", *kept])
    return _SBATCH.format(name=name, nodes=nodes, nproc=nproc, ranks=nodes * nproc, command=command)


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `vq3d ARGUMENTS` as `count` ranks and wait for them; what they write goes where ours does.

    A signal is passed on: the ranks save and end.

    Returns:
        The exit code of the first rank that said why it ended; 0 if all are done.

    Raises:
        RankLostError: A rank was killed, or did not end although another had.
        StoppedError: A signal ended the ranks before their first step.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    for watched in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signals.handle(watched, ask)
    ranks = _start(arguments, count)
    ended: list[subprocess.Popen[bytes]] = []  # in this order
    heard, deadline = 0, float("inf")
    killed: list[str] = []
    unanswered: list[str] = []
    while len(ended) < count:
        time.sleep(_POLL_SECONDS)
        ended += [rank for rank in ranks if rank not in ended and rank.poll() is not None]
        if any(rank.returncode for rank in ended) and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline and not unanswered:
            unanswered = [f"rank {number} no longer answered" for number, rank in enumerate(ranks) if rank not in ended]
            killed = _killed(ranks)
            for rank in ranks:
                rank.kill()
        while heard < len(asked):
            heard += 1
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
    said = [rank.returncode for rank in ended if rank.returncode > 0 and rank.returncode != LOST]
    if said or not any(rank.returncode for rank in ranks):
        return said[0] if said else 0
    if asked and not unanswered:
        if signal.SIGINT in asked or len(asked) > 1:
            raise KeyboardInterrupt
        raise StoppedError(signals.BEFORE_FIRST_STEP, remedy=signals.AGAIN)
    causes = (killed if unanswered else _killed(ranks)) or unanswered or ["the ranks lost each other"]
    raise RankLostError(
        f"{'; '.join(causes)} (of {count})",
        remedy="the same command again, which continues at the newest checkpoint",
    )


def _killed(ranks: Sequence[subprocess.Popen[bytes]]) -> list[str]:
    """Those that a signal has ended so far."""
    codes = enumerate(rank.returncode for rank in ranks)
    return [f"rank {number} was killed by signal {-code}" for number, code in codes if code is not None and code < 0]


def _start(arguments: Sequence[str], count: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        signals.LAUNCHER: str(os.getpid()),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "vq3dcli", *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal reaches us alone, and we pass it on once
        )
        for rank in range(count)
    ]
