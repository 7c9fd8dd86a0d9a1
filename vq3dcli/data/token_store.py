"""The token store: the codes of a data set, several views of each image, memory-mapped; and the loader of Stage 2.

A store is a folder:
    plan.json        what was asked for, written first; the same command run again must ask for the same
    tokens.u16       codes, little-endian uint16 `[images, views, length]`
    classes.i32      class of each image, little-endian int32 `[images]`, -1 for none
    manifest.json    what these bytes are, and the hashes of all files; written last: a folder without it is unfinished

Legend: N images, V views of each, L codes of a view, B samples of this rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vq3dcli.data.shard_format import MANIFEST_NAME, PLAN_NAME, StrictRecord, shard_name, validated
from vq3dcli.data.stream import Stream, rows_of_rank
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.remote.cache import ensure
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.seeding import uniform

TOKENS_NAME = "tokens.u16"
CLASSES_NAME = "classes.i32"
TOKEN_DTYPE = np.dtype("<u2")
CLASS_DTYPE = np.dtype("<i4")
MAX_CODEBOOK_SIZE = 1 << 16

_IMAGES_AT_ONCE = 4096
_TOKENIZE_AGAIN = "vq3d tokenize again, with --force if need be"
# Which images are held out may not change with the seed of a training: stores are compared over seeds.
_HELD_OUT_SEED = 0


class TokenSource(StrictRecord):
    """A shard folder that a store was made of: its name without the folders above it; its images follow the last's."""

    name: str
    images: int = Field(ge=0)
    manifest_sha256: str


class TokenManifest(StrictRecord):
    """`manifest.json` of a token store."""

    format_version: int
    images: int = Field(ge=1, le=2**40)  # N
    views: int = Field(ge=1, le=2**16)  # V
    view_names: list[str]  # what each view is: `plain`, `flip`, `crop` or `crop flip`
    length: int = Field(ge=1, le=2**18)  # L
    codebook_size: int = Field(ge=1, le=MAX_CODEBOOK_SIZE)  # codes are below this
    image_size: int = Field(ge=1, le=2**16)  # side in pixels of the images that were encoded
    stage1_sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the weights file that made and can read these codes
    stage1_ancestors: list[str] = Field(default_factory=list)  # of what its training began from, the nearest first
    class_names: list[str]  # by class index
    seed: int  # of the crops
    sources: list[TokenSource]  # where the images came from, in order
    tokens_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    classes_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    plan_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"damaged token store ({path}): {why}", remedy=_TOKENIZE_AGAIN)


def write_token_manifest(path: Path, manifest: TokenManifest) -> None:
    """Write the manifest of the token store `path`, which is finished by that."""
    write_sealed_json(path / MANIFEST_NAME, manifest.model_dump(mode="json"))


def read_token_manifest(path: Path) -> TokenManifest:
    """The manifest of the token store `path`. Raises `InputMissingError` or `DataError`."""
    values = read_sealed_json(path / MANIFEST_NAME, what="token store", remedy=_TOKENIZE_AGAIN)
    return validated(values, TokenManifest, name=str(path / MANIFEST_NAME), remedy=_TOKENIZE_AGAIN)


class TokenStore:
    """A finished token store.

    Unless asked not to, every byte is read and compared with the manifest: about a second for a gigabyte. Sizes,
    classes and the manifest itself are checked always.

    Attributes:
        manifest: What the store holds; `num_images` (N), `views` (V; view 0 is the plain one), `length` (L),
            `codebook_size`, `class_names` and `stage1_sha256` are from it.
        tokens: Codes, a read-only memory map uint16 `[N, V, L]`.
        class_index: int64 `[N]`, -1 for no class.

    Raises `InputMissingError`: not a token store, or an unfinished one; `UsageError`: a folder of shards; `DataError`:
    it is damaged.
    """

    def __init__(self, path: Path, *, check_hashes: bool = True) -> None:
        self.path = path
        if not path.is_dir():
            raise InputMissingError(f"no such token store ({path})", remedy="check the path, or vq3d tokenize")
        if not (path / MANIFEST_NAME).exists():
            raise InputMissingError(
                f"no finished token store ({path}): {MANIFEST_NAME} is missing",
                remedy="vq3d tokenize into this folder, until it ends",
            )
        if (path / f"{shard_name(0)}.index.json").exists():
            raise UsageError(f"a shard folder, not a token store ({path})", remedy=f"vq3d tokenize --data {path}")
        self.manifest = manifest = read_token_manifest(path)
        self.num_images, self.views, self.length = shape = (manifest.images, manifest.views, manifest.length)
        self.codebook_size, self.class_names = manifest.codebook_size, manifest.class_names
        self.stage1_sha256 = manifest.stage1_sha256
        for name, sha256, size in (
            (PLAN_NAME, manifest.plan_sha256, None),
            (TOKENS_NAME, manifest.tokens_sha256, math.prod(shape) * TOKEN_DTYPE.itemsize),
            (CLASSES_NAME, manifest.classes_sha256, self.num_images * CLASS_DTYPE.itemsize),
        ):
            ensure(path / name, sha256=sha256, size=size)
            if not (path / name).exists():
                raise _damaged(path / name, "no such file")
            if size not in (None, there := (path / name).stat().st_size):
                raise _damaged(path / name, f"{there} bytes instead of {size}")
            if (check_hashes or size is None) and sha256_file(path / name) != sha256:
                raise _damaged(path / name, "its hash differs from the manifest")
        # A plain array over the map: each slice of a `np.memmap` would cost as much as the reading itself.
        self.tokens: NDArray[np.uint16] = np.asarray(np.memmap(path / TOKENS_NAME, TOKEN_DTYPE, "r", shape=shape))
        self._rows = self.tokens.reshape(-1, self.length)
        self.class_index = torch.from_numpy(np.fromfile(path / CLASSES_NAME, CLASS_DTYPE).astype(np.int64))
        # What hashes cannot tell: a manifest that does not go with its own data.
        least, most = int(self.class_index.min()), int(self.class_index.max())
        if math.isqrt(self.length) ** 2 != self.length:
            raise _damaged(path, f"{self.length} codes an image are no square grid")
        if len(manifest.view_names) != self.views:
            raise _damaged(path, f"{len(manifest.view_names)} names for {self.views} views")
        if most >= len(self.class_names) or least < -1:
            raise _damaged(path, f"classes {least} to {most}, {len(self.class_names)} names")
        if check_hashes:
            rows = range(0, len(self._rows), _IMAGES_AT_ONCE)
            highest = max(int(self._rows[i : i + _IMAGES_AT_ONCE].max()) for i in rows)
            if highest >= self.codebook_size:
                raise _damaged(path, f"code {highest} of {self.codebook_size}")

    def check_stage1(self, *sha256: str) -> None:
        """Raise `DataError` unless the codes were made with a Stage 1 weights file of one of these hashes."""
        if self.stage1_sha256 not in sha256:
            raise DataError(
                f"tokens of another Stage 1 ({self.path}): made with weights {self.stage1_sha256[:12]}, "
                f"not with {sha256[0][:12]}",
                remedy="vq3d tokenize with these weights, or the weights that the tokens were made with",
            )

    def read(self, image: Tensor, view: Tensor | int = 0) -> Tensor:
        """Codes int64 `[B, L]` of views, int64 `[B]` or one for all, of images int64 `[B]`."""
        row = image * self.views + view
        return torch.from_numpy(self._rows.take(row.numpy(), axis=0).astype(np.int64))


@dataclass(frozen=True)
class TokenBatch:
    """Samples of one step on one rank."""

    tokens: Tensor  # codes int64 `[B, L]`
    class_index: Tensor  # int64 `[B]`, -1 for no class
    index: Tensor  # positions in the endless stream, int64 `[B]`; of held-out batches the numbers of the images


class TokenLoader:
    """Batches from a token store: an endless stream that can start at any position, as `loader.TrainingLoader`.

    The view depends only on the seed and the position. The fraction `held_out` of the images is never trained on, see
    `split`: `train_images` are the numbers of those of the stream, int64 `[n]`, `held_out_images` the others.

    Raises `UsageError`: the ranks do not divide the batch, or nothing is left for training.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch_size: int,
        seed: int,
        held_out: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.store = store
        self.train_images, self.held_out_images = split(store.num_images, held_out)
        if not len(self.train_images):
            raise UsageError(
                f"all {store.num_images} images are held out, none is left for training ({store.path})",
                remedy="--set training.held_out=0",
            )
        self.batch_size, self._seed = batch_size, seed
        self._rows = rows_of_rank(batch_size, rank, world_size)
        self._stream = Stream([len(self.train_images)], seed)

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        """This rank's rows of the global batches from position `images_seen` on, endless."""
        while True:
            yield self.batch_at(images_seen)
            images_seen += self.batch_size

    def batch_at(self, images_seen: int) -> TokenBatch:
        """This rank's rows of the global batch that starts at position `images_seen`."""
        position = torch.arange(images_seen, images_seen + self.batch_size)[self._rows]
        image = self.train_images[[self._stream.at(int(place))[1] for place in position]]
        # The top number is 1 - 2^-24: its product with a view count, rounded to float32, stays below the count.
        view = (uniform(self._seed, "view", position, 1)[:, 0] * self.store.views).long()
        return TokenBatch(self.store.read(image, view), self.store.class_index[image], position)

    def held_out_batch(self, image: Tensor) -> TokenBatch:
        """The plain views of some images, int64 `[B]`."""
        return TokenBatch(self.store.read(image), self.store.class_index[image], image)


def split(images: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Numbers of N images for training and of the fraction held out, by a hash of the number: alike for every seed."""
    number = torch.arange(images)
    kept_back = uniform(_HELD_OUT_SEED, "held-out", number, 1)[:, 0] < held_out
    return number[~kept_back], number[kept_back]


def code_use(store: TokenStore) -> dict[str, float]:
    """How many codes the plain views use, and the exponential of the entropy of their use (`perplexity`)."""
    counts = torch.zeros(store.codebook_size, dtype=torch.int64)
    for images in torch.arange(store.num_images).split(_IMAGES_AT_ONCE):
        counts += torch.bincount(store.read(images).flatten(), minlength=store.codebook_size)
    share = counts.double() / counts.sum()
    return {"codes_used": int((counts > 0).sum()), "perplexity": float(torch.special.entr(share).sum().exp())}
