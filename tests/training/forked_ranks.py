"""Runs `vq3d` commands, each as several ranks: processes that share one import of PyTorch.

python forked_ranks.py '[[4, ["train-stage2", ...]], ...]'
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

PATIENCE_S = 550


def run_ranks(*jobs: tuple[int, Sequence[str]]) -> None:
    """Run jobs of (ranks, words of a command) one after the other; each rank must end with 0."""
    ended = subprocess.run(
        [sys.executable, __file__, json.dumps(jobs)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr


def main() -> int:
    """Fork the ranks of each job; the number of the job that failed."""
    for name in ("commands.train", "training.stage1", "training.stage2", "pipelines.run_report.page"):
        importlib.import_module(f"vq3dcli.{name}")
    cli = importlib.import_module("vq3dcli.cli")
    for number, (count, words) in enumerate(json.loads(sys.argv[1]), 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        children = []
        for rank in range(count):
            if (child := os.fork()) == 0:
                os.environ.update(address, WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
                code = 70
                try:
                    code = cli.run(words)
                finally:
                    os._exit(code)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            return number
    return 0


if __name__ == "__main__":
    sys.exit(main())
