"""Where to compute."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vq3dcli.data_tools.part import number_in
from vq3dcli.errors import UnavailableError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device for `--device`; under torchrun each process gets the GPU of its local rank, and under SLURM, too.

    SLURM may show each of its tasks all GPUs of a machine, or one of its own.

    Raises `UnavailableError`: CUDA or MPS is asked for and is not there, or there are fewer GPUs than processes.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UnavailableError("no CUDA device is available", remedy="--device cpu, or vq3d doctor to see why")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UnavailableError("no MPS device is available", remedy="--device cpu, or vq3d doctor")
        return torch.device("mps")
    if not available or name == "cpu":
        return torch.device("cpu")
    in_slurm = number_in(os.environ, "SLURM_LOCALID", 0) % max(torch.cuda.device_count(), 1)
    local_rank = number_in(os.environ, "LOCAL_RANK", in_slurm)
    if local_rank >= torch.cuda.device_count():
        raise UnavailableError(
            f"process {local_rank} of this machine has no GPU of its own ({torch.cuda.device_count()} are there)",
            remedy=f"--nproc {torch.cuda.device_count()}, or as many for torchrun",
        )
    return torch.device("cuda", local_rank)
