"""What is measured of a set of images, block by block, so that several processes can share the work.

A block is a thousand images. What is known of one is a file of statistics until somebody has all of them, and joins
them to one. A file's name and metadata hold the hash of everything that its numbers depend on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vq3dcli.data_tools.job import own_turn
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import make_folder, sha256_bytes
from vq3dcli.pipelines.evaluation.image_sets import ImageSet
from vq3dcli.tensor_file import read_tensors, write_tensors

_BLOCK_IMAGES = 1024
_log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


class OthersAtWorkError(Exception):
    """This part is done, and others have work left."""


def in_parts(
    images: ImageSet,
    look: Callable[[range], Tensors],
    join: Callable[[Iterable[Tensors]], Tensors],
    *,
    part: Part,
    folder: Path | None,
    kind: str,
    facts: Mapping[str, Any],
) -> tuple[Tensors, bool]:
    """What `join` makes of what `look` sees of each block of the images; `remembered` in a folder of statistics.

    `look` gets the numbers of a block's images; `join` the blocks in order, each made or read when it is asked for.
    One of several parts needs a folder. Raises `OthersAtWorkError`: of a part, where others have work left.
    """
    # Whole steps: the bits of an image may depend on those that are made with it.
    size = images.step * -(-_BLOCK_IMAGES // images.step)
    blocks = [range(first, min(first + size, len(images))) for first in range(0, len(images), size)]

    def whole() -> tuple[Tensors, bool]:
        return remembered(folder, kind, facts, lambda: join(map(look, blocks)))

    if part == WHOLE or folder is None:
        return whole()

    def facts_of(number: int) -> dict[str, Any]:
        return {**facts, "block": number}

    def block(number: int) -> Tensors:
        return remembered(folder, f"{kind}-block", facts_of(number), lambda: look(blocks[number]))[0]

    make_folder(folder)
    if not (joined := _path(folder, kind, facts)).is_file():
        for number in filter(part.has, range(len(blocks))):
            block(number)
        with own_turn(folder, part):
            paths = [_path(folder, f"{kind}-block", facts_of(number)) for number in range(len(blocks))]
            if not joined.is_file() and not all(path.is_file() for path in paths):
                raise OthersAtWorkError
            remembered(folder, kind, facts, lambda: join(map(block, range(len(blocks)))))
            for path in paths:
                path.unlink(missing_ok=True)
    return whole()


def remembered(
    folder: Path | None, kind: str, facts: Mapping[str, Any], make: Callable[[], Tensors]
) -> tuple[Tensors, bool]:
    """Tensors that depend on `facts` alone, and whether a file in the folder had them; else they are made and kept."""
    text = json.dumps(facts, sort_keys=True)
    path = None if folder is None else _path(folder, kind, facts)
    if path is not None and path.is_file():
        try:
            header, tensors, _ = read_tensors(path, what="statistics")
            if header["facts"] != text:
                raise ValueError("it is of something else")
            return tensors, True
        except (DataError, InputMissingError, ValueError, KeyError) as error:
            _log.warning("damaged statistics are measured again (%s): %s", path, error)
    made = make()
    if path is not None:
        make_folder(path.parent)
        write_tensors(path, {name: value.contiguous() for name, value in made.items()}, {"facts": text})
    return made, False


def _path(folder: Path, kind: str, facts: Mapping[str, Any]) -> Path:
    text = json.dumps(facts, sort_keys=True)
    return folder / f"{kind}-{sha256_bytes(text.encode())[:16]}.safetensors"
