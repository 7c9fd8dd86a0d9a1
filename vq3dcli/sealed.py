"""Files that carry a hash of themselves, and JSON and TOML that are checked before anything believes them.

A sealed file begins with a mark and 64 hexadecimal digits: the SHA-256 of all its other bytes. A flipped bit in the
mark, in the digits or anywhere else is found on reading; a file without the mark is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from vq3dcli.errors import DataError
from vq3dcli.files import as_bytes, json_text, read_bytes, write_bytes

if TYPE_CHECKING:
    from pydantic import ValidationError

BLANK = "0" * 64
# Ours have five levels; what is parsed may be shown and written again, which recurses.
_MAX_DEPTH = 32
_MAX_SQUARED_DOTS = 2 * 10**7
_CHUNK = 1 << 20
# What is wrong with a value, by pydantic's name of it, where its own words are a programmer's.
_REASONS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section of keys"),
    "string_type": "must be text",
    "missing": "missing",
    "extra_forbidden": "unknown key",
}


class Seal(NamedTuple):
    """Where the digits of a kind of file are."""

    start: int  # where the mark begins
    mark: bytes  # what is in front of the digits


JSON = Seal(0, b'{\n  "file_sha256": "')
TENSORS = Seal(8, b'{"__metadata__":{"vq3d":"{\\"file_sha256\\": \\"')  # safetensors, see `tensor_file`


def seal(handle: IO[bytes], kind: Seal) -> None:
    """Write the hash of a file into its place, which holds `BLANK`."""
    handle.seek(0)
    digest, _, _ = _digests(handle, kind)
    assert digest is not None, "the file does not begin with its mark"
    handle.seek(kind.start + len(kind.mark))
    handle.write(digest.encode())


def check_seal(handle: IO[bytes], kind: Seal, *, name: str, remedy: str) -> str:
    """Compare a file with the hash that it carries; reads all of it from its start. Returns its SHA-256 as a whole.

    `name` is what an error calls it, as `scene (a.vq3d.safetensors)`. Raises `DataError`: it is damaged, or carries no
    hash.
    """
    handle.seek(0)
    actual, written, whole = _digests(handle, kind)
    if actual is None:
        raise DataError(f"damaged {name}, or of an older version: it carries no hash", remedy=remedy)
    if actual.encode() != written:
        raise DataError(f"damaged {name}: its content is not what its hash says", remedy=remedy)
    return whole


def _digests(handle: IO[bytes], kind: Seal) -> tuple[str | None, bytes, str]:
    """Hash of all but the digits (None without a mark), the digits, and the hash of everything."""
    place = kind.start + len(kind.mark)
    head = handle.read(place + len(BLANK))
    whole, rest = hashlib.sha256(head), hashlib.sha256(head[:place])
    while chunk := handle.read(_CHUNK):
        whole.update(chunk)
        rest.update(chunk)
    marked = head[kind.start : place] == kind.mark and len(head) == place + len(BLANK)
    return rest.hexdigest() if marked else None, head[place:], whole.hexdigest()


def sealed_bytes(kind: Seal, rest: bytes) -> bytes:
    """The bytes of a sealed file whose digits begin it: its mark, its hash, `rest`."""
    handle = io.BytesIO(kind.mark + BLANK.encode() + rest)
    seal(handle, kind)
    return handle.getvalue()


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value`, which has a key, as `files.write_json` does, with its hash."""
    write_bytes(path, sealed_bytes(JSON, as_bytes(f'",{json_text(value)[1:]}')))


def read_sealed_json(path: Path, *, what: str, remedy: str) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote; `what` is its name in errors, as `record`.

    Raises `DataError`: it is damaged, or carries no hash; else as `read_bytes`.
    """
    data, name = read_bytes(path, remedy), f"{what} ({path})"
    check_seal(io.BytesIO(data), JSON, name=name, remedy=remedy)
    value = parse_json(data, name=name, remedy=remedy)
    return {key: item for key, item in value.items() if key != "file_sha256"}


def parse_json(data: bytes | str, *, name: str, remedy: str) -> dict[str, Any]:
    """The object in JSON text that may be damaged or hostile: of bounded depth, its numbers finite.

    Raises `DataError` if it is no such object, which `name`, for example `record (a.json)`, and `remedy` are for.
    """
    try:
        value = json_value(data, finite=True)
    except ValueError as error:
        raise DataError(f"damaged {name}: {error}", remedy=remedy) from error
    if not isinstance(value, dict):
        raise DataError(f"damaged {name}: not a JSON object", remedy=remedy)
    return value


def json_value(data: bytes | str, *, finite: bool = False) -> Any:
    """The value of JSON that others may have written, of bounded depth and, if asked for, of finite numbers.

    Raises `ValueError` for whatever is wrong with it.
    """
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    _check_plain(value, finite=finite)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of TOML that others wrote. Raises `ValueError` for whatever is wrong with it."""
    # The parser keeps every beginning of a dotted key: memory in the square of its dots.
    if sum(line.count(".") ** 2 for line in text.splitlines()) > _MAX_SQUARED_DOTS:
        raise ValueError("too many dots in a line")
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    _check_plain(values)
    return values


def _check_plain(value: object, *, finite: bool = False) -> None:
    """Raise `ValueError` unless parsed JSON or TOML is of bounded depth, and, if asked for, its numbers are finite."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        if finite and any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise ValueError("a number that is not finite")
        inside = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inside for item in items]
        if not level:
            return
    raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")


def first_problem(error: ValidationError) -> str:
    """The first thing that a schema refuses, `key.0.name: why`, in one line of bounded length."""
    first = error.errors(include_url=False, include_input=False)[0]
    return " ".join(f"{'.'.join(map(str, first['loc']))}: {plain_reason(first)}".split())[:200]


def plain_reason(problem: Mapping[str, Any]) -> str:
    """Why a schema refuses a value, of one of pydantic's `errors`, in plain words."""
    known = _REASONS.get(problem["type"])
    reason = problem["msg"].removeprefix("Value error, ") if known is None else known
    return re.sub(r"^\w+ should ", "must ", reason)
