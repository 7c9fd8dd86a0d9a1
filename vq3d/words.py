"""Errors in the library's own words: what the command line calls `--max-depth` is an argument `max_depth` here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vq3dcli.errors import Vq3dError

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
_OUT = re.compile(r"(?: with)? ?(?<![\w-])-o\b")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_own_words(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A public function whose errors name arguments where those of the commands name options."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
        try:
            return function(*arguments, **options)
        except Vq3dError as error:
            error.message = _plain(error.message)
            error.remedy = error.remedy and _plain(error.remedy)
            raise

    return call


def _plain(text: str) -> str:
    return _OUT.sub("", _OPTION.sub(lambda match: match[1].replace("-", "_"), text)).strip()
