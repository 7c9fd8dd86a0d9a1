"""What commands take as an input picture: a file, `-` for stdin, or a toy scene by class.

`toyscene:CLASS` or `toyscene:CLASS:SEED` stands for the canonical view of a toy scene that training never sees; a
file of such a name is `./toyscene:...`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor

from vq3dcli.data.images import decode_image, read_image, to_square
from vq3dcli.data.toyscenes import CLASS_NAMES, render_scenes, sample_scenes
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.rendering.cameras import canonical_camera

Fit = Literal["crop", "squash"]

STDIN = "-"
_TOYSCENE = "toyscene:"
_MAX_STDIN_BYTES = 1 << 29
_SCENES_AT_ONCE = 256


@dataclass(frozen=True)
class ToyPick:
    """The first scene of a class under a seed."""

    class_index: int
    seed: int


@dataclass(frozen=True)
class Source:
    """Where a picture comes from.

    Attributes:
        text: As the user wrote it.
        stem: What outputs are named after.
        toy: Set for a toy scene.
    """

    text: str
    stem: str
    toy: ToyPick | None = None

    @property
    def is_file(self) -> bool:
        """Whether `text` is a path."""
        return self.toy is None and self.text != STDIN


@dataclass(frozen=True)
class Picture:
    """An input as a model takes it.

    Attributes:
        image: uint8 `[3, size, size]`.
        aspect: Width / height of what `image` shows; 1 if it was cropped to a square.
    """

    image: Tensor
    aspect: float


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Understand all inputs of a command, without opening any; equal stems get a number.

    Raises:
        UsageError: No input, stdin twice, or a toy scene that does not exist.
    """
    if not texts:
        raise UsageError("no input", remedy="a photo, - for stdin, or toyscene:sphere")
    if list(texts).count(STDIN) > 1:
        raise UsageError("stdin (-) can be read only once", remedy="file names for the other inputs")
    sources: list[Source] = []
    taken: set[str] = set()
    for text in texts:
        source = _parse_source(text)
        stem, number = source.stem, 2
        while stem in taken:
            stem, number = f"{source.stem}_{number}", number + 1
        taken.add(stem)
        sources.append(Source(text, stem, source.toy))
    return sources


def read_picture(source: Source, size_px: int, *, fit: Fit, stdin: IO[bytes] | None = None) -> Picture:
    """Read an input and fit it to a square.

    Args:
        source: From `parse_sources`.
        size_px: Side of the square.
        fit: `crop` takes the centre square, `squash` keeps all of the picture at a changed aspect ratio.
        stdin: What `-` reads.

    Raises:
        InputMissingError: No such file, or stdin is closed.
        DataError: Not an image, damaged, or too large.
    """
    if source.toy is not None:
        return Picture(_toy_image(source.toy, size_px), 1.0)
    image = _read_stdin(stdin) if source.text == STDIN else read_image(Path(source.text))
    aspect = 1.0 if fit == "crop" else image.shape[2] / image.shape[1]
    return Picture(to_square(image, size_px, fit=fit), aspect)


def _parse_source(text: str) -> Source:
    if text == STDIN:
        return Source(text, "stdin")
    if not text.startswith(_TOYSCENE):
        return Source(text, Path(text).stem or "input")
    name, colon, seed = text.removeprefix(_TOYSCENE).partition(":")
    if name not in CLASS_NAMES:
        nearest = difflib.get_close_matches(name, CLASS_NAMES, n=1, cutoff=0.5)
        remedy = f"{_TOYSCENE}{nearest[0]}" if nearest else f"one of {', '.join(CLASS_NAMES)}"
        raise UsageError(f"no toy scene of that class ({text})", remedy=remedy)
    if colon and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise UsageError(f"the seed of a toy scene is a whole number ({text})", remedy=f"{_TOYSCENE}{name}:1")
    stem = f"toyscene-{name}-{int(seed)}" if colon else f"toyscene-{name}"
    return Source(text, stem, ToyPick(CLASS_NAMES.index(name), int(seed) if colon else 0))


def _toy_image(pick: ToyPick, size_px: int) -> Tensor:
    start = 0
    while True:  # a class is missing from 256 scenes once in ten million times
        index = torch.arange(start, start + _SCENES_AT_ONCE)
        scenes = sample_scenes(index, seed=pick.seed, purpose="input")
        found = (scenes.class_index == pick.class_index).nonzero()[:1, 0]
        if len(found):
            camera = canonical_camera(1, height_px=size_px, width_px=size_px)
            return render_scenes(scenes.select(found), camera).rgb[0]
        start += _SCENES_AT_ONCE


def _read_stdin(stdin: IO[bytes] | None) -> Tensor:
    if stdin is None:
        raise InputMissingError("stdin is closed", remedy="a file name instead of -")
    data = stdin.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise DataError(f"more than {_MAX_STDIN_BYTES >> 20} MiB on stdin", remedy="a single image")
    return decode_image(data, name="stdin")
