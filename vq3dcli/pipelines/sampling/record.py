"""Which classes are meant, and what `samples.json` says: all that makes the same samples again, and the codes.

Classes are named in any case, by WordNet ids or by numbers, with a suggestion for what is not there.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.data.stream import evenly
from vq3dcli.errors import DataError, UsageError
from vq3dcli.model.draw_codes import NO_CLASS, Sharpening, sample_index
from vq3dcli.sealed import first_problem, read_sealed_json
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, embedded_path

if TYPE_CHECKING:
    from vq3dcli.pipelines.film import Shot  # both import us by `inputs`
    from vq3dcli.pipelines.geometry import Geometry

_SHOWN = 8
_MAX_DIGITS = 18
_MAX_QUOTED = 60

FORMAT_VERSION = 1
_NOTE = "the same command makes the same samples again"

Named = Mapping[str, tuple[int, ...]]
"""The indices of the classes that have a name."""


def pick_classes(text: str | None, names: Sequence[str]) -> list[int]:
    """Indices of the classes that a text names, each once, in its order; `[NO_CLASS]` where there are none.

    A part between commas is the first of these that there is: a class's own name as it is spelled; a number, which
    indexes `names`; an own name but for upper and lower case, spaces, hyphens and underscores; and, where names are
    WordNet ids of ImageNet, one of their English names, spelled as loosely.

    Args:
        text: For example `torus,3`; None, or `all` where no class is called so, for all classes.
        names: By class index; empty for weights without classes.

    Raises `UsageError`: there is no such class, and the nearest name is suggested; or a name is that of several, as
    `crane` is of a bird and of a machine in ImageNet: their numbers are listed.
    """
    if text is None:
        return list(range(len(names))) or [NO_CLASS]
    exact, plain = _own_names(names)
    english = imagenet_names() if any(map(_is_wordnet_id, names)) else {}
    loose = {**_gathered((_plain(o), i) for i, name in enumerate(names) for o in english.get(name, ())), **plain}
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
    return [classes[i] for i in evenly(len(classes), most)]


def shown_name(name: str) -> str:
    """What to call a class: the first English name of a WordNet id of ImageNet, else the name itself."""
    return next(iter(imagenet_names().get(name, (name,)))) if _is_wordnet_id(name) else name


def classes_argument(classes: Iterable[int], names: Sequence[str]) -> str:
    """The text of which `pick_classes` makes these class indices: numbers, with zeros before one that is a name."""
    exact, plain = _own_names(names)
    text = ",".join(_number(index, exact) for index in classes)
    while _plain(text) in plain and "," in text:
        text += ","
    return text


def _own_names(names: Sequence[str]) -> tuple[Named, Named]:
    """Classes by their own names: as these are spelled, and in plain spelling."""
    exact = _gathered((name.strip(), index) for index, name in enumerate(names))
    return exact, _gathered((_plain(name), index) for index, name in enumerate(names))


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


def _only(part: str, indices: tuple[int, ...], names: Sequence[str]) -> int:
    """The class that a name means. Raises `UsageError` if it means several."""
    if len(indices) == 1:
        return indices[0]
    exact, _ = _own_names(names)
    numbers = [_number(index, exact) for index in indices]
    classes = [f"{number} ({names[index]})" for number, index in zip(numbers, indices, strict=True)]
    raise UsageError(
        f"{len(indices)} classes are called {_cut(part)!r}: {_listed(classes, 'and')}",
        remedy=f"--class {_listed(numbers, 'or')}",
    )


def _number(index: int, exact: Named) -> str:
    text = str(index)
    while text in exact:
        text = f"0{text}"
    return text


def _gathered(pairs: Iterable[tuple[str, int]]) -> Named:
    gathered: dict[str, dict[int, None]] = {}
    for name, index in pairs:
        gathered.setdefault(name, {})[index] = None
    return {name: tuple(indices) for name, indices in gathered.items()}


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
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown_name, names[:_SHOWN])) + more


class SampleEntry(BaseModel):
    """What a record says of a sample, as far as it is read again; codes are apart by spaces."""

    file: str
    class_name: str | None = Field(alias="class")
    codes: str


class SampleRecord(BaseModel):
    """What is read again of a `samples.json`."""

    stage1_sha256: str
    samples: list[SampleEntry]


@dataclass(frozen=True)
class SampleWish:
    """Which samples, and what is written of them."""

    classes: Sequence[int]  # indices, each once; -1 for no class
    count: int  # samples of each class
    seed: int  # of all samples
    sharpening: Sharpening  # temperature, top-k, top-p and guidance
    shot: Shot | None = None  # how to film a scene; None for pictures alone
    filmed: int | None = None  # how many samples are filmed; all by default
    disparity: bool = False  # write a picture (and a video) of each sample's disparity, too
    # write all pictures as `samples_NxSxSx3.npz`, as ADM's evaluation reads them (Dhariwal and Nichol, 2021)
    npz: bool = False
    # of films that carry the pixels of the first view to novel views; None films the plain NeRF
    geometry: Geometry | None = None

    @property
    def total(self) -> int:
        """Number of samples N."""
        return len(self.classes) * self.count


@dataclass(frozen=True)
class Drawn:
    """One sample."""

    name: str  # what its files are called, without suffix
    class_name: str  # as it is shown; empty for none
    class_index: int  # below 0 for none
    number: int  # its number j in its class
    codes: Tensor = field(repr=False)  # int64 `[L]`

    def entry(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "file": f"{self.name}.png",
            "class": self.class_name or None,
            "class_index": self.class_index,
            "number": self.number,
            "index": sample_index(self.class_index, self.number),
            "codes": " ".join(map(str, self.codes.tolist())),  # a list would take a line a code
        }


def record_header(stage1: LoadedWeights, prior: LoadedPrior, wish: SampleWish) -> dict[str, Any]:
    """The record without its samples: the command, weights by path and hash, options, versions."""
    device = prior.device.type
    sharpening = wish.sharpening
    names = prior.tokens.class_names
    options: dict[str, object] = {} if -1 in wish.classes else {"--class": classes_argument(wish.classes, names)}
    options |= {"-n": wish.count, "--seed": wish.seed, "--temperature": sharpening.temperature}
    options |= {"--top-k": sharpening.top_k, "--top-p": sharpening.top_p, "--guidance": sharpening.guidance}
    options["--device"] = device
    for option, path, kind in (("--weights", stage1.path, "stage1"), ("--prior", prior.path, "stage2")):
        if Path(path) != embedded_path(kind):
            options[option] = path
    return {
        "format_version": FORMAT_VERSION,
        "note": _NOTE,
        "command": ["vq3d", "sample", *(str(part) for option in options.items() for part in option)],
        "versions": {"vq3d": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "device": device,
        "stage1_sha256": stage1.sha256,
        "prior_sha256": prior.sha256,
        "seed": wish.seed,
        "sharpening": asdict(sharpening),
        "samples_a_ray": EVALUATION_SAMPLES,
        "samples_asked_for": wish.total,
    }


def read_record(path: Path, *, finished: bool = True) -> SampleRecord:
    """What a `samples.json` says of its samples, which are `finished`. Raises `InputMissingError`, `DataError`."""
    remedy = "a samples.json of vq3d sample"
    values = read_sealed_json(path, what="record of samples", remedy=remedy)
    try:
        record = SampleRecord.model_validate(values)
    except ValidationError as error:
        raise DataError(f"not a record of samples ({path}): {first_problem(error)}", remedy=remedy) from error
    if finished and not record.samples:
        raise DataError(f"the samples are not finished ({path})", remedy="the same vq3d sample command again")
    return record


def file_names(shown: Mapping[int, str]) -> dict[int, str]:
    """A file name for each class, no two alike: its own in plain letters, and its index where others have that, too.

    `shown` has names by class index, below 0 for no class.
    """
    plain = {c: re.sub(r"[^\w]+", "-", name.casefold(), flags=re.ASCII).strip("-")[:48] for c, name in shown.items()}
    plain = {c: name or "sample" for c, name in plain.items()}
    times = Counter(plain.values())
    names = {c: name for c, name in plain.items() if times[name] == 1 or c < 0}
    taken = set(names.values())
    for c, name in plain.items():
        if c not in names:
            while (name := f"{name}-{c}") in taken:
                pass
            names[c] = name
            taken.add(name)
    return names
