"""What a caller says is checked, and told in the library's own words.

Arguments are of the types that they are declared with, and what the command line calls `--max-depth` is `max_depth`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from vq3dcli.errors import UsageError, Vq3dError

_HELP = re.compile(r"\bvq3d ([a-z]+) --help")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
# What has no argument of the library: the format of a video is the end of its name.
_NONE = re.compile(r" or --format$|(?: with)? ?(?<![\w-])-o\b")
# What photos may be is more than their types, see `photos.photo_pixels`.
_CHECKED_ELSEWHERE = ("self", "photos", "return")
_ACCEPTED: dict[object, Any] = {int: Integral, float: Real, tuple: Iterable}
_CALLED: dict[object, str] = {Callable: "a function", tuple: "a few numbers"}
_CALLED |= {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "True", NoneType: "None"}
_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_own_words(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A public function that checks what it is given, and whose errors name arguments where commands name options."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
        try:
            signature, declared = _declared(function)
            for name, value in signature.bind(*arguments, **options).arguments.items():
                _check(name, value, declared.get(name, ()))
            return function(*arguments, **options)
        except Vq3dError as error:
            error.message = _plain(error.message)
            error.remedy = error.remedy and _plain(error.remedy)
            raise

    return call


@functools.cache
def _declared(function: Callable[..., object]) -> tuple[inspect.Signature, dict[str, tuple[Any, ...]]]:
    """The arguments of a function, and of each what it may be."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if name not in _CHECKED_ELSEWHERE}
    members = {n: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,) for n, hint in hints.items()}
    return inspect.signature(function), members


def _check(name: str, value: object, members: tuple[Any, ...]) -> None:
    """Raise `UsageError` unless a value is one of the words, or of one of the types, that a union has."""
    kinds = [(get_origin(member) or member, get_args(member)) for member in members]
    if not kinds or any(
        isinstance(value, str) and value in words if kind is Literal else isinstance(value, _ACCEPTED.get(kind, kind))
        for kind, words in kinds
    ):
        return
    told = [", ".join(words) if kind is Literal else _called(kind) for kind, words in kinds if kind is not NoneType]
    shown = repr(value)[:60] if isinstance(value, str | Real) or value is None else f"a {type(value).__name__}"
    raise UsageError(f"{name} cannot be {shown}", remedy=" or ".join(dict.fromkeys(told)))


def _called(kind: Any) -> str:
    if kind.__name__ == "Scene":
        return "a scene, as model.reconstruct(path) makes it"
    return _CALLED.get(kind) or f"a {kind.__name__}"


def _plain(text: str) -> str:
    text = _NONE.sub("", _HELP.sub(r"help(vq3d.\1)", text))
    return _OPTION.sub(lambda match: match[1].replace("-", "_"), text).strip()
