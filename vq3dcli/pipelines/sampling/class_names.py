"""Which classes are meant: names, WordNet ids or numbers, in any case, with a suggestion for what is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.errors import UsageError

NO_CLASS = -1
_SHOWN = 8
_MAX_DIGITS = 18
_MAX_QUOTED = 60

Named = Mapping[str, tuple[int, ...]]
"""The indices of the classes that have a name."""


def pick_classes(text: str | None, names: Sequence[str]) -> list[int]:
    """Indices of the classes that a text names, each once, in its order.

    A part between commas is the first of these that there is: a class's own name as it is spelled; a number, which
    indexes `names`; an own name but for upper and lower case, spaces, hyphens and underscores; and, where names are
    WordNet ids of ImageNet, one of their English names, spelled as loosely.

    Args:
        text: For example `torus,3`; None, or `all` where no class is called so, for all classes.
        names: By class index; empty for weights without classes.

    Returns:
        Class indices; `[NO_CLASS]` for weights without classes.

    Raises:
        UsageError: There is no such class, and the nearest name is suggested; or a name is that of several, as
            `crane` is of a bird and of a machine in ImageNet: their numbers are listed.
    """
    if text is None:
        return list(range(len(names))) or [NO_CLASS]
    exact, plain = own_names(names)
    loose = {**english_names(names), **plain}
    if _plain(text) == "all" and "all" not in loose:
        return pick_classes(None, names)
    if "," in text and _plain(text) in plain:  # a name that has a comma itself
        return [_only(text, exact.get(text.strip(), plain[_plain(text)]), names)]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("no class is named", remedy=f"--class with some of {_some(names)}")
    return list(dict.fromkeys(_pick(part, names, exact, loose) for part in parts))


def some_classes(classes: Sequence[int], most: int) -> list[int]:
    """At most so many of some class indices, evenly spread over them."""
    count = min(most, len(classes))
    return [classes[i * len(classes) // count] for i in range(count)]


def own_names(names: Sequence[str]) -> tuple[Named, Named]:
    """Classes by their own names: as these are spelled, and in plain spelling."""
    exact = _gathered((name.strip(), index) for index, name in enumerate(names))
    return exact, _gathered((_plain(name), index) for index, name in enumerate(names))


def english_names(names: Sequence[str]) -> Named:
    """Classes by the English names of ImageNet, in plain spelling; empty if no name is a WordNet id."""
    english = imagenet_names() if any(map(_is_wordnet_id, names)) else {}
    return _gathered((_plain(other), index) for index, name in enumerate(names) for other in english.get(name, ()))


def shown_name(name: str) -> str:
    """What to call a class: the first English name of a WordNet id of ImageNet, else the name itself."""
    return next(iter(imagenet_names().get(name, (name,)))) if _is_wordnet_id(name) else name


def classes_argument(classes: Iterable[int], names: Sequence[str]) -> str:
    """The text of which `pick_classes` makes these class indices: their numbers.

    A number that is also a class's own name gets zeros in front.
    """
    exact, plain = own_names(names)
    text = ",".join(_number(index, exact) for index in classes)
    while _plain(text) in plain and "," in text:
        text += ","
    return text


def _pick(part: str, names: Sequence[str], exact: Named, loose: Named) -> int:
    if part in exact:
        return _only(part, exact[part], names)
    if re.fullmatch(r"-?[0-9]+", part):
        number = int(part) if len(part) <= _MAX_DIGITS else len(names)
        if 0 <= number < len(names):
            return number
        raise UsageError(
            f"no class of the number {_cut(part)}", remedy=f"0 to {len(names) - 1}" if names else "no --class"
        )
    plain = _plain(part)
    if plain in loose:
        return _only(part, loose[plain], names)
    near = difflib.get_close_matches(plain[:_MAX_QUOTED], loose, n=3) or [name for name in loose if plain in name][:3]
    raise UsageError(f"no class is called {_cut(part)!r}", remedy=" or ".join(near) if near else _some(names))


def _only(part: str, found: tuple[int, ...], names: Sequence[str]) -> int:
    """The class that a name means. Raises `UsageError` if it means several."""
    if len(found) == 1:
        return found[0]
    exact, _ = own_names(names)
    numbers = [_number(index, exact) for index in found]
    classes = [f"{number} ({names[index]})" for number, index in zip(numbers, found, strict=True)]
    raise UsageError(
        f"{len(found)} classes are called {_cut(part)!r}: {_listed(classes, 'and')}",
        remedy=f"--class {_listed(numbers, 'or')}",
    )


def _number(index: int, exact: Named) -> str:
    """A class's number as `pick_classes` reads it: one that is no class's name."""
    text = str(index)
    while text in exact:
        text = f"0{text}"
    return text


def _gathered(pairs: Iterable[tuple[str, int]]) -> Named:
    found: dict[str, dict[int, None]] = {}
    for name, index in pairs:
        found.setdefault(name, {})[index] = None
    return {name: tuple(indices) for name, indices in found.items()}


def _listed(parts: Sequence[str], last: str) -> str:
    shown = list(parts[:_SHOWN]) + ([f"{len(parts) - _SHOWN} more"] if len(parts) > _SHOWN else [])
    return f"{', '.join(shown[:-1])} {last} {shown[-1]}"


def _is_wordnet_id(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\s_-]+", " ", name).casefold().split())


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no --class: these weights know no classes"
    return ", ".join(map(shown_name, names[:_SHOWN])) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )
