"""Networks in the layout of transformers: a folder with `config.json` and safetensors.

Only safetensors are loaded, nothing is fetched, and no code that a folder brings is run.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError, Vq3dError
from vq3dcli.sealed import json_value
from vq3dcli.weights.third_party import import_package

PACKAGES = "pip install 'vq3d[depth]'"
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """What `config.json` says of `what`, a noun for errors.

    Raises:
        InputMissingError: There is none, or no weights.
        DataError: It is damaged.
        UnsafeFileError: The weights are a pickle.
    """
    if not (folder / "config.json").is_file():
        raise InputMissingError(
            f"not {what} in the layout of transformers ({folder}): config.json is missing",
            remedy="the folder that `hf download` made",
        )
    try:
        config = dict(json_value((folder / "config.json").read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"damaged folder of {what} ({folder / 'config.json'}): no JSON object", remedy="fetch it again"
        ) from error
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise UnsafeFileError(
                f"refused weights that are a pickle ({folder / sorted(pickles)[0]}): loading one can run any code",
                remedy="the same model as .safetensors or .onnx",
            )
        raise InputMissingError(f"no weights in the folder of {what} ({folder})", remedy="fetch it again")
    return config


def image_statistics(path: Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of a `preprocessor_config.json`, as far as it says them. Raises `DataError`."""
    try:
        said = dict(json_value(path.read_bytes()))
        known = {name: [float(x) for x in said[name]] for name in ("image_mean", "image_std") if name in said}
        if any(len(values) != 3 for values in known.values()) or min(known.get("image_std", [1.0])) <= 0:
            raise ValueError("mean or deviation")
    except (ValueError, TypeError) as error:
        raise DataError(f"damaged file ({path}): {error}", remedy="fetch it again") from error
    return known


def open_processor(folder: Path, what: str) -> Any:
    """What prepares images for the network; errors as of `open_network`."""
    package = import_package("transformers", f"{what} of this layout", PACKAGES)
    with _errors_named(folder, what):
        return package.AutoImageProcessor.from_pretrained(folder, **_LOCAL)


def open_network(kind: Any, folder: Path, what: str, *, new: tuple[str, ...] = (), **options: Any) -> Any:
    """The network of a class of transformers, float32, in evaluation mode; names that start with `new` may be missing.

    Raises:
        DataError: Files are damaged or tensors missing.
        UnsafeFileError: It brings its own code.
    """
    with _errors_named(folder, what):
        network, info = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **_LOCAL, **options
        )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(new or ("\0",)))
    if missing:
        raise _unloadable(folder, what, f"{len(missing)} tensors are missing, first {missing[0]}")
    return network.eval()


@contextlib.contextmanager
def _errors_named(folder: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises, of almost any type for damaged files, into one line."""
    try:
        with quiet():
            yield
    except Vq3dError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UnsafeFileError(
                f"refused {what} that brings its own code ({folder})", remedy="a model of transformers itself"
            ) from error
        raise _unloadable(folder, what, f"{type(error).__name__}: {text[:200]}") from error


def _unloadable(folder: Path, what: str, reason: str) -> DataError:
    return DataError(
        f"cannot load {what} ({folder}): {reason}", remedy="fetch it again, or pip install --upgrade 'vq3d[depth]'"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and logging: what matters is raised as an error."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
