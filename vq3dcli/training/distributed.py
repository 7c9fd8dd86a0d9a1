"""The few facts and sums that ranks share; with one process all of them are trivial."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vq3dcli.training.launch import started_ranks
from vq3dcli.training.sharding import is_spread


@dataclass(frozen=True)
class Ranks:
    """Who we are among the processes of a run."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum of `value` over ranks, the same on all of them."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Mean of `value` over ranks."""
        return self.sum(value) / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is true on any rank, the same answer on all of them.

        `device` is one that the process group can reach: this rank's GPU under NCCL.
        """
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0) if self.world_size > 1 else flag

    def gather(self, value: Tensor) -> Tensor:
        """Rows of all ranks `[world_size * n, ...]`, in the order of ranks."""
        if self.world_size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def gather_texts(self, text: str) -> list[str]:
        """`text` of all ranks, in their order."""
        if self.world_size == 1:
            return [text]
        texts: list[str] = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return texts

    @contextlib.contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """One rank of each machine goes through the block before the others do: what it fetches, they find."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if not first:
            self.barrier()
        yield
        if first:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def shared(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module, on several ranks with gradients that are averaged over them, as those of a spread one are already.

    Its buffers are not broadcast: whatever changes ours is summed over ranks first.
    """
    if ranks.world_size == 1 or any(map(is_spread, module.parameters())):
        return module
    # PyTorch renamed the option in 2.14 and warns of the old name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    option: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **option)


def without_exchange(module: nn.Module, apart: bool) -> AbstractContextManager[object]:
    """Where `apart`, ranks keep their gradients of `module` to themselves: they exchange them once a step."""
    return module.no_sync() if apart and isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


@contextlib.contextmanager
def _stdout_for_results() -> Iterator[None]:
    """What C++ prints inside is lost: Gloo of torch 2.8 tells stdout, where `--json` answers, of its peers."""
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)


def join_ranks(device: torch.device) -> Ranks:
    """Join the process group that torchrun's environment describes, if any.

    On GPUs all that ranks exchange must lie on this rank's own `device`, since NCCL moves nothing else.
    """
    if started_ranks() == 1:
        return Ranks()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # barriers and unindexed `cuda` would all go to the first GPU
    if not dist.is_initialized():
        with contextlib.nullcontext() if device.type == "cuda" else _stdout_for_results():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
