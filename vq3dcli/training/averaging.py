"""The uniform average of a run's last checkpoints (stochastic weight averaging, Izmailov et al., UAI 2018).

What is averaged are the exponential moving averages that the checkpoints hold: parameters only. Buffers, which are
statistics, counters and flags, come from the newest. One checkpoint is in memory at a time.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.tensor_file import check_tensors

_log = logging.getLogger(__name__)

_CODEBOOK, _QUANTISES = "quantizer.codebook", "quantizer.active"
# A code that points elsewhere than its newest self was revived in between: their mean would be neither.
_SAME_CODE_COSINE = 0.5


@torch.no_grad()
def average_checkpoints(checkpoints: Path, into: nn.Module, last: int) -> tuple[int, ...]:
    """Load the average of the newest checkpoints into a module, in place.

    Damaged checkpoints are passed over with a warning, and so are those from before quantisation began, if it has begun
    since: their decoder knew no codes. With one checkpoint the module holds its weights to the bit.

    Args:
        checkpoints: The folder `checkpoints` of a run.
        into: A module like the averaged one, on any device.
        last: How many checkpoints to average; fewer if there are fewer, with a warning.

    Returns:
        The images seen of the checkpoints that went in, newest first.

    Raises:
        InputMissingError: There are no checkpoints.
        DataError: All are damaged, or one is of another model.
    """
    assert last >= 1, last
    folders = sorted((p for p in checkpoints.glob("images-*") if re.fullmatch(r"images-\d{12}", p.name)), reverse=True)
    if not folders:
        raise InputMissingError(
            f"no checkpoints to average ({checkpoints})", remedy="the folder of a run that has saved"
        )
    expected, parameters = into.state_dict(), {name for name, _ in into.named_parameters()}
    newest: dict[str, Tensor] = {}
    mean: dict[str, Tensor] = {}
    moved: Tensor | None = None
    used: list[int] = []
    for folder in folders:
        if len(used) == last:
            break
        try:
            state = read_checkpoint(folder, check=("average",))[0]["average"]
        except DataError as error:
            _log.warning("%s; it does not go into the average", error.message)
            continue
        check_tensors(f"the checkpoint does not fit this model ({folder})", expected, state)
        if not newest:
            newest, mean = state, {name: state[name].float().clone() for name in parameters}
        elif _QUANTISES in state and bool(state[_QUANTISES]) != bool(newest[_QUANTISES]):
            break
        else:
            for name, value in mean.items():
                value.lerp_(state[name].float(), 1.0 / (len(used) + 1))
            if _CODEBOOK in mean:
                elsewhere = functional.cosine_similarity(state[_CODEBOOK], newest[_CODEBOOK]) < _SAME_CODE_COSINE
                moved = elsewhere if moved is None else moved | elsewhere
        used.append(int(folder.name.removeprefix("images-")))
    if not used:
        raise DataError(f"every checkpoint is damaged ({checkpoints})", remedy="another run")
    if moved is not None:
        mean[_CODEBOOK][moved] = newest[_CODEBOOK][moved].float()
    if len(used) < last:
        _log.warning("averaged %d checkpoints instead of %d: no more are fit for it", len(used), last)
    into.load_state_dict({**newest, **mean})
    return tuple(used)
