"""Resuming, for both stages: weights and their average from a checkpoint, and a word where bits will differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vq3dcli.tensor_file import check_tensors
from vq3dcli.training.distributed import Ranks

_log = logging.getLogger(__name__)


def restore_weights(
    parts: Mapping[str, Mapping[str, Tensor]], model: nn.Module, average: nn.Module, *, misfit: str
) -> None:
    """Load the parts `weights` and `average` of a checkpoint, in place. Raises `DataError` with `misfit`."""
    for name, module in (("weights", model), ("average", average)):
        tensors = parts.get(name, {})
        check_tensors(misfit, module.state_dict(), tensors)
        module.load_state_dict(tensors)


def warn_of_other_threads(manifest: Mapping[str, Any], device: torch.device, ranks: Ranks) -> None:
    """On a CPU, bits depend on the number of threads: say so once where it is another than the checkpoint's."""
    threads = manifest["threads"]
    if ranks.is_main and device.type == "cpu" and threads != torch.get_num_threads():
        _log.warning(
            "the run used %d threads and now has %d: it continues, but not to the same bits",
            threads,
            torch.get_num_threads(),
        )
