"""Which classes are meant: names, WordNet ids or numbers, in any case, with a suggestion for what is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.errors import UsageError

NO_CLASS = -1
_SHOWN = 8


def pick_classes(text: str | None, names: Sequence[str]) -> list[int]:
    """Indices of the classes that a text names, each once, in its order.

    A part between commas is a number, which indexes `names`, or a name: its own, or, where names are WordNet ids of
    ImageNet, one of their English names. Upper and lower case, spaces, hyphens and underscores do not matter.

    Args:
        text: For example `torus,3`; None for all classes.
        names: By class index; empty for weights without classes.

    Returns:
        Class indices; `[NO_CLASS]` for weights without classes.

    Raises:
        UsageError: There is no such class; suggests the nearest name.
    """
    if text is None:
        return list(range(len(names))) or [NO_CLASS]
    known = aliases(names)
    if "," in text and _plain(text) in known:  # a name that has a comma itself
        return [known[_plain(text)]]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("no class is named", remedy=f"--class with some of {_some(names)}")
    return list(dict.fromkeys(_pick(part, names, known) for part in parts))


def aliases(names: Sequence[str]) -> dict[str, int]:
    """All names of all classes in plain spelling; of two classes with one name it means the first."""
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        known.setdefault(_plain(name), index)
    english = imagenet_names() if any(re.fullmatch(r"n\d{8}", name) for name in names) else {}
    for index, name in enumerate(names):
        for other in english.get(name, ()):
            known.setdefault(_plain(other), index)
    return known


def shown_name(name: str) -> str:
    """What to call a class: the first English name of a WordNet id of ImageNet, else the name itself."""
    if re.fullmatch(r"n\d{8}", name):
        return next(iter(imagenet_names().get(name, (name,))))
    return name


def _pick(part: str, names: Sequence[str], known: dict[str, int]) -> int:
    if re.fullmatch(r"-?\d+", part):
        if 0 <= int(part) < len(names):
            return int(part)
        raise UsageError(f"no class of the number {part}", remedy=f"0 to {len(names) - 1}" if names else "no --class")
    plain = _plain(part)
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=3) or [name for name in known if plain in name][:3]
    raise UsageError(f"no class is called {part!r}", remedy=" or ".join(near) if near else _some(names))


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\s_-]+", " ", name).casefold().split())


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no --class: these weights know no classes"
    return ", ".join(map(shown_name, names[:_SHOWN])) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )
