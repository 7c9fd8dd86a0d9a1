"""A weights file that the user names in place of the published one: read without running code."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError
from vq3dcli.files import read_error, text_path
from vq3dcli.weights.third_party import read_state_dict

_log = logging.getLogger(__name__)


def read_given_weights(path: Path, *, official_name: str, official_sha256: str) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` file, or of a PyTorch file that holds nothing else.

    Here, and nowhere else, a pickle is read whose SHA-256 nobody knows: a trunk may be cut to the layers that are
    needed, renamed, or trained by the user. `weights_only=True` lets the unpickler build tensors and plain containers,
    and refuses every other name that a pickle may call, so that nothing in the file is executed; what it cannot know
    is whether the numbers are those that published distances were measured with, hence a warning.

    Args:
        path: The file. One with the official name must be the official file; others may hold any tensors, with a
            warning in the log unless their SHA-256 is the official one.
        official_name: Name of the published file.
        official_sha256: Its SHA-256.

    Raises:
        InputMissingError: There is no such file, or it may not be read.
        UnsafeFileError: It holds more than tensors, or has the official name and another content.
        DataError: It is damaged, or no table of named tensors.
    """
    remedy = f"another copy of {official_name}"
    if not path.is_file():
        raise InputMissingError(f"no such weights file ({path})", remedy="check the path")
    if path.name == official_name:
        return read_state_dict(path, official_sha256)
    try:
        if _sha256(path) != official_sha256:
            _log.warning(
                "the SHA-256 of %s is not that of %s: distances may differ from published ones", path, official_name
            )
        if path.suffix == ".safetensors":
            with text_path(path) as name_of_text:
                return load_file(name_of_text)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"refused weights that are no plain table of tensors ({path})", remedy=remedy) from error
    except OSError as error:
        raise read_error(path, error) from error
    except Exception as error:  # a damaged archive may raise anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"damaged weights ({path}): {reason}", remedy=remedy) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"weights that are no table of named tensors ({path})", remedy=remedy)
    return {str(name): value for name, value in state.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
