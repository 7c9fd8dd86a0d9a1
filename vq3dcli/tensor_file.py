"""Tensors with a header of JSON values in one safetensors file that carries its own hash: weights, priors, scenes."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError
from vq3dcli.files import atomic_path, sha256_file, text_path
from vq3dcli.sealed import BLANK, TENSORS, check_seal, parse_json, seal

# Zip archives (torch.save), pickle protocols 2 to 5, and gzip around either.
_PICKLE_SIGNATURES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")
# Names, shapes and header; a prior of 1000 classes and 48 layers has a tenth of it.
_MAX_HEADER_BYTES = 4 << 20
_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"))


class TensorFile(NamedTuple):
    """What a file holds."""

    header: dict[str, Any]  # JSON values
    tensors: dict[str, Tensor]  # by name, on the CPU; all numbers are finite
    sha256: str  # the file's hash


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write tensors and a header, which has a key, atomically; the same content has the same SHA-256, which it returns.

    Raises `OutputError` or `StorageError`.
    """
    text = f'{{"file_sha256": "{BLANK}", {json.dumps(dict(header), sort_keys=True, allow_nan=False)[1:]}'
    # One entry: safetensors writes several in random order, and the same tensors would have another hash each time.
    with atomic_path(path) as temporary:
        save_tensors(temporary, tensors, {"vq3d": text})
        with temporary.open("r+b") as handle:
            seal(handle, TENSORS)
    return sha256_file(path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write plain safetensors, readable by all; raises `OSError`, where the library has an error of its own."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
    path.chmod(0o644)


def read_tensors(path: Path, *, what: str) -> TensorFile:
    """Read what `write_tensors` wrote; `what` is its name in errors.

    Raises `InputMissingError`: there is no such file, or it cannot be read; `UnsafeFileError`: it is a pickle;
    `DataError`: it is damaged, carries no hash, or has numbers that are not finite.
    """
    name, remedy = f"{what} ({path})", "another copy of the file"
    try:
        with path.open("rb") as handle:
            head = handle.read(9)
            # The first eight bytes of safetensors are a length, which may look like a pickle's; its header follows.
            if head.startswith(_PICKLE_SIGNATURES) and head[8:] != b"{":
                raise UnsafeFileError(
                    f"refused {name}: a pickle or an archive, and loading one can run any code",
                    remedy="a .safetensors file",
                )
            if (length := int.from_bytes(head[:8], "little")) > _MAX_HEADER_BYTES:
                raise DataError(f"damaged {name}: a header of {length} bytes", remedy=remedy)
            sha256 = check_seal(handle, TENSORS, name=name, remedy=remedy)
    except FileNotFoundError as error:
        raise InputMissingError(f"no such {what} file ({path})", remedy="check the path") from error
    except OSError as error:
        raise InputMissingError(f"cannot read {what} ({path}): {error.strerror}", remedy="check the path") from error
    try:
        with text_path(path) as name_of_text, safe_open(name_of_text, framework="pt") as opened:
            metadata = (opened.metadata() or {}).get("vq3d", "")
            names = list(opened.keys())
            if odd := {opened.get_slice(each).get_dtype() for each in names} - _DTYPES:
                raise ValueError(f"numbers of type {min(odd)}")
            tensors = {each: opened.get_tensor(each) for each in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"damaged {name}: {error}", remedy=remedy) from error
    check_finite(tensors, f"damaged {name}", remedy=remedy)
    header = parse_json(metadata, name=name, remedy=remedy)
    return TensorFile({key: value for key, value in header.items() if key != "file_sha256"}, tensors, sha256)


def check_finite(tensors: Mapping[str, Tensor], message: str, *, remedy: str) -> None:
    """Raise `DataError` with `message` if a number is NaN or infinite."""
    if name := first_not_finite(tensors):
        raise DataError(f"{message}: numbers that are not finite, first in {name}", remedy=remedy)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a number that is NaN or infinite; empty if there is none."""
    for name, value in tensors.items():
        # The largest one tells, ten times faster than a mask of all.
        if value.is_floating_point() and value.numel() and not bool(value.abs().amax().isfinite()):
            return name
    return ""


def check_tensors(message: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise `DataError` with `message` unless names, shapes and kinds of number are those expected."""

    def kind(value: Tensor) -> object:
        return value.shape, value.is_floating_point()

    wrong = [n for n, v in expected.items() if n not in tensors or kind(tensors[n]) != kind(v)]
    wrong += [name for name in tensors if name not in expected]
    if wrong:
        raise DataError(
            f"{message}: {len(wrong)} tensors, first {wrong[0]}", remedy="the version of vq3d that wrote them"
        )


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules that are built inside have shapes and no memory: a header may say anything."""
    with torch.device("meta"), _NoFirstValues():
        yield


# What `torch.nn.init` is made of, where it does not itself ask who takes its place, as in PyTorch 2.8.
_FIRST_VALUES = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_)


class _NoFirstValues(TorchFunctionMode):
    """Drawing values for tensors without memory would import PyTorch's compiler, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FIRST_VALUES or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
