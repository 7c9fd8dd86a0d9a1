"""What mesh scenes are made of: models by class and shape, and pictures for grounds and walls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vq3dcli.data.images import decode_square, read_file
from vq3dcli.errors import DataError
from vq3dcli.files import sha256_bytes
from vq3dcli.meshscenes.models import Model, Texture, make_texture, read_model
from vq3dcli.meshscenes.raster import Bytes, Singles
from vq3dcli.seeding import uniform
from vq3dcli.toyscenes.photos import SIDES_PX, PhotoBank
from vq3dcli.toyscenes.textures import NUM_TEXTURE_DRAWS, between, paint
from vq3dcli.toyscenes.textures import make_texture as make_waves

_CACHE_BYTES = 1 << 30
_DRAWS_AT_ONCE = 512
_WAVES_PX = 128


class Dice:
    """Random numbers of one scene, one after the other: a pure function of (seed, name, index)."""

    def __init__(self, seed: int, name: str, index: int) -> None:
        self._seed, self._name, self._index = seed, name, index
        self._numbers: list[float] = []
        self._blocks = 0

    def many(self, count: int) -> list[float]:
        """Numbers in [0, 1)."""
        return [self() for _ in range(count)]

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` to `high`."""
        if not self._numbers:
            name = f"{self._name}/{self._blocks}"
            block = uniform(self._seed, name, torch.tensor([self._index]), _DRAWS_AT_ONCE)[0]
            self._numbers = block.tolist()[::-1]
            self._blocks += 1
        return low + (high - low) * self._numbers.pop()

    def chance(self, share: float) -> bool:
        """True in `share` of all cases."""
        return self() < share

    def number(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        return min(int(self() * count), count - 1)

    def sign(self) -> float:
        """-1 or 1."""
        return -1.0 if self.chance(0.5) else 1.0

    def bell(self) -> float:
        """A number around 0 with deviation 1, at most 3."""
        return 2.0 * (self() + self() + self() - 1.5)


class Asset(NamedTuple):
    """A model: its path below the root, its class, the hash of its files, and what models of its shape share."""

    path: str
    class_index: int
    sha256: str
    shape: str


@dataclass(frozen=True)
class Assets:
    """What a folder holds."""

    root: Path  # the folder
    class_names: tuple[str, ...]  # by class index
    models: tuple[Asset, ...]  # in the order of their paths
    grounds: tuple[tuple[str, str], ...]  # paths of pictures for grounds and walls, and their hashes


class Photos:
    """The photos of a bank as textures, made when they are first needed."""

    def __init__(self, bank: PhotoBank) -> None:
        self.bank = bank
        self._textures: dict[int, Texture] = {}

    def texture(self, dice: Dice) -> Texture:
        """Any of them."""
        number = dice.number(len(self.bank))
        if number not in self._textures:
            rows = self.bank.texels.reshape(len(self.bank), -1, 3)[number].numpy()
            self._textures[number] = Texture(_opaque(rows), [(side, side) for side in SIDES_PX], 0)
        return self._textures[number]


class Library:
    """Models and pictures, read when they are first needed and kept while there is room.

    Raises `DataError`: from its methods, where a file has changed since the folder was looked through.
    """

    def __init__(self, assets: Assets, photos: PhotoBank | None, coats: PhotoBank | None = None) -> None:
        self.assets = assets
        self.photos, self.coats = (None if bank is None else Photos(bank) for bank in (photos, coats))
        self._shapes: list[list[list[int]]] = []
        for class_index in range(len(assets.class_names)):
            kinds: dict[str, list[int]] = {}
            for number, asset in enumerate(assets.models):
                if asset.class_index == class_index:
                    kinds.setdefault(asset.shape, []).append(number)
            self._shapes.append(list(kinds.values()))
        self._models: OrderedDict[int, Model] = OrderedDict()
        self._sizes: dict[int, Singles] = {}
        self._held_bytes = 0
        self._grounds: dict[int, Texture] = {}

    def pick(self, dice: Dice, class_index: int | None = None) -> tuple[int, int]:
        """Class and number of a model: every class as often, in it every shape, then any coat of that shape."""
        drawn = dice.number(len(self._shapes))
        shapes = self._shapes[drawn if class_index is None else class_index]
        coats = shapes[dice.number(len(shapes))]
        return drawn if class_index is None else class_index, coats[dice.number(len(coats))]

    def model(self, number: int) -> Model:
        """A model of `assets.models`."""
        if number in self._models:
            self._models.move_to_end(number)
            return self._models[number]
        asset = self.assets.models[number]
        read = read_model(self.assets.root / asset.path, self.assets.root)
        if read.sha256 != asset.sha256:
            raise _changed(self.assets.root / asset.path)
        self._models[number] = read.model
        self._held_bytes += read.model.num_bytes
        while self._held_bytes > _CACHE_BYTES and len(self._models) > 1:
            self._held_bytes -= self._models.popitem(last=False)[1].num_bytes
        return read.model

    def size(self, number: int) -> Singles:
        """Width, height and length `[3]` of a model; the longest is 1."""
        if number not in self._sizes:
            self._sizes[number] = self.model(number).size
        return self._sizes[number]

    def surface(self, dice: Dice) -> Texture:
        """What a ground or a wall shows: one of the folder's pictures, a photo, or a procedure's pattern."""
        kind, pattern = dice(), dice.many(NUM_TEXTURE_DRAWS + 4)
        grounds = 0.55 if self.assets.grounds else 0.0
        photos = grounds + (1.0 - grounds) * 0.6 if self.photos is not None else grounds
        if kind < grounds:
            return self._ground(int(kind / grounds * len(self.assets.grounds)))
        if kind < photos:
            assert self.photos is not None
            return self.photos.texture(dice)
        return _waves(pattern)

    def _ground(self, number: int) -> Texture:
        if number not in self._grounds:
            path, sha256 = self.assets.grounds[number]
            data = read_file(self.assets.root / path)
            if sha256_bytes(data) != sha256:
                raise _changed(self.assets.root / path)
            self._grounds[number] = make_texture(_opaque(read_picture(data, path).reshape(-1, 3)).reshape(256, 256, 4))
        return self._grounds[number]


def read_picture(data: bytes, name: str) -> Bytes:
    """The middle square of a picture, uint8 `[256, 256, 3]`. Raises `DataError`."""
    square = decode_square(data, 256, name=name, apply_orientation=True).image
    return np.ascontiguousarray(square.permute(1, 2, 0).numpy())


def _changed(path: Path) -> DataError:
    return DataError(f"changed while scenes were made of it ({path})", remedy="the same command with --force")


def _opaque(rgb: Bytes) -> Bytes:
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], -1)


def _waves(draws: Sequence[float]) -> Texture:
    """A pattern of the toy scenes, from NUM_TEXTURE_DRAWS + 4 draws."""
    numbers = [torch.tensor([number]) for number in draws]
    hue, saturation, value, rate = numbers[NUM_TEXTURE_DRAWS:]
    colour = (hue, saturation * saturation * 0.8, between(value, 0.3, 0.95))
    shown = make_waves(
        numbers[:NUM_TEXTURE_DRAWS], colour, hue_shift=(rate - 0.5) * 0.2, plain=0.3, frequency=(1.0, 9.0)
    )
    at = (torch.arange(_WAVES_PX) + 0.5) / _WAVES_PX
    u, v = at.repeat(_WAVES_PX)[None], at.repeat_interleave(_WAVES_PX)[None]
    rgb = torch.stack(paint(shown[:, None], u, v), -1)[0]
    texels = (rgb * 255.0 + 0.5).clamp(0.0, 255.0).to(torch.uint8).numpy()
    return make_texture(_opaque(texels).reshape(_WAVES_PX, _WAVES_PX, 4))
