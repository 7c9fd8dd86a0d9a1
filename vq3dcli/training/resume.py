"""Resuming, for all kinds of runs: what their checkpoints have in common, and a word where bits will differ."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vq3dcli.checkpoint import Parts
from vq3dcli.config.schema import Recipe
from vq3dcli.errors import DataError
from vq3dcli.tensor_file import check_tensors
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.ema import as_mapping
from vq3dcli.training.optim import OptimizerLike, optimizer_tensors, restore_optimizer
from vq3dcli.training.skipping import Skipped

_log = logging.getLogger(__name__)


class Resumable(Protocol):
    """A run at a moment, whatever it trains."""

    images_seen: int
    skipped: Skipped
    init_sha256: str

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def average(self) -> nn.Module:
        """Its moving average."""
        ...

    @property
    def optimizer(self) -> OptimizerLike:
        """Of the model."""
        ...


def parts_of(state: Resumable) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a checkpoint."""
    return {
        "weights": as_mapping(state.model),
        "average": as_mapping(state.average),
        "optimizer": optimizer_tensors(state.optimizer, state.model),
    }


def manifest_of(state: Resumable, recipe: Recipe) -> dict[str, Any]:
    """The JSON values of a checkpoint."""
    return {
        "images_seen": state.images_seen,
        **state.skipped.as_manifest(),
        "init_sha256": state.init_sha256,
        "recipe": json.loads(recipe.model_dump_json()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def restore(
    state: Resumable,
    saved: tuple[Parts, Mapping[str, Any]],
    checkpoints: Path,
    *,
    device: torch.device,
    ranks: Ranks,
    more: Callable[[Parts, Mapping[str, Any]], None] = lambda parts, manifest: None,
) -> None:
    """Continue at a checkpoint, in place.

    Args:
        state: That of a new run.
        saved: The checkpoint.
        checkpoints: Where it lies, for errors.
        device: Where to train.
        ranks: This process among those of the run.
        more: Restores what only this kind of run has.

    Raises:
        DataError: The checkpoint is of another model, or misses something.
    """
    parts, manifest = saved
    misfit = f"the checkpoint does not fit this model ({checkpoints})"
    for name, module in (("weights", state.model), ("average", state.average)):
        tensors = parts.get(name, {})
        check_tensors(misfit, module.state_dict(), tensors)
        module.load_state_dict(tensors)
    try:
        restore_optimizer(state.optimizer, state.model, parts["optimizer"])
        state.images_seen, state.init_sha256 = int(manifest["images_seen"]), str(manifest["init_sha256"])
        state.skipped = Skipped.from_manifest(manifest)
        more(parts, manifest)
        _warn_of_other_threads(manifest["threads"], device, ranks)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{misfit}: {error}", remedy="the version of vq3d that wrote it, or another --out") from error


def _warn_of_other_threads(threads: int, device: torch.device, ranks: Ranks) -> None:
    """On a CPU, bits depend on the number of threads: say so once where it is another than the checkpoint's."""
    if ranks.is_main and device.type == "cpu" and threads != torch.get_num_threads():
        _log.warning(
            "the run used %d threads and now has %d: it continues, but not to the same bits",
            threads,
            torch.get_num_threads(),
        )
