"""Models on the Hugging Face Hub: a repository has the weights of each kind under one name."""

from __future__ import annotations

import re
from pathlib import Path

from vq3dcli.remote.cache import local_copy

_REPOSITORY = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/?")
_ADDRESS = re.compile(r"(?:https?|s3|gs|hf)://.+")


def weights_name(kind: str) -> str:
    """The file of the weights of a kind."""
    return f"{kind}.safetensors"


def repository(address: str) -> tuple[str, str | None] | None:
    """OWNER/NAME and revision of `hf://OWNER/NAME[@REVISION]`; None for any other text."""
    match = _REPOSITORY.fullmatch(address)
    return match and (match[1], match[2])


def file_address(address: str, kind: str) -> str:
    """The address of the weights of a kind in a repository; any other address as it is."""
    return address if repository(address) is None else f"{address.rstrip('/')}/{weights_name(kind)}"


def local_weights(path: str | Path, kind: str) -> str | Path:
    """A path, or the local copy of the weights of a kind at an address. Raises as `cache.local_copy`."""
    if isinstance(path, Path) or not _ADDRESS.fullmatch(path):
        return path
    return local_copy(file_address(path, kind))
