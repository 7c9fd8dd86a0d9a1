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
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vq3dcli.data.shard_format import MANIFEST_NAME, PLAN_NAME, shard_name, validated
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.seeding import generator, uniform

TOKENS_NAME = "tokens.u16"
CLASSES_NAME = "classes.i32"
TOKEN_DTYPE = np.dtype("<u2")
CLASS_DTYPE = np.dtype("<i4")
MAX_CODEBOOK_SIZE = 1 << 16

_IMAGES_AT_ONCE = 4096
_TOKENIZE_AGAIN = "vq3d tokenize again, with --force if need be"
# Which images are held out may not change with the seed of a training: stores are compared over seeds.
_HELD_OUT_SEED = 0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenSource(_Record):
    """A shard folder that a store was made of.

    Attributes:
        name: Its name, without the folders above it.
        images: Its number of images; they follow those of the sources before it.
        manifest_sha256: Of its `manifest.json`.
    """

    name: str
    images: int = Field(ge=0)
    manifest_sha256: str


class TokenManifest(_Record):
    """`manifest.json` of a token store.

    Attributes:
        images: N.
        views: V.
        view_names: What each view is: `plain`, `flip`, `crop` or `crop flip`.
        length: L.
        codebook_size: Codes are below this.
        image_size: Side in pixels of the images that were encoded.
        stage1_sha256: Hash of the Stage 1 weights file that made and can read these codes.
        stage1_ancestors: Hashes of the weights that its training began from, the nearest first.
        class_names: By class index.
        seed: Of the crops.
        sources: Where the images came from, in order.
        tokens_sha256: Of `tokens.u16`.
        classes_sha256: Of `classes.i32`.
        plan_sha256: Of `plan.json`.
    """

    format_version: int
    images: int = Field(ge=1, le=2**40)
    views: int = Field(ge=1, le=2**16)
    view_names: list[str]
    length: int = Field(ge=1, le=2**18)
    codebook_size: int = Field(ge=1, le=MAX_CODEBOOK_SIZE)
    image_size: int = Field(ge=1, le=2**16)
    stage1_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    stage1_ancestors: list[str] = []
    class_names: list[str]
    seed: int
    sources: list[TokenSource]
    tokens_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    classes_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    plan_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def write_token_manifest(path: Path, manifest: TokenManifest) -> None:
    """Write the manifest of the token store `path`, which is finished by that."""
    write_sealed_json(path / MANIFEST_NAME, manifest.model_dump(mode="json"))


def read_token_manifest(path: Path) -> TokenManifest:
    """The manifest of the token store `path`. Raises `InputMissingError` or `DataError`."""
    values = read_sealed_json(path / MANIFEST_NAME, what="token store", remedy=_TOKENIZE_AGAIN)
    return validated(values, TokenManifest, name=str(path / MANIFEST_NAME), remedy=_TOKENIZE_AGAIN)


class TokenStore:
    """A finished token store.

    Args:
        path: The folder that holds `manifest.json`.
        check_hashes: Read every byte and compare with the manifest: about a second for a gigabyte. Sizes, classes and
            the manifest itself are checked always.

    Attributes:
        manifest: What the store holds.
        tokens: Codes, a read-only memory map uint16 `[N, V, L]`.
        class_index: int64 `[N]`, -1 for no class.

    Raises:
        InputMissingError: Not a token store, or an unfinished one.
        UsageError: A folder of shards.
        DataError: It is damaged.
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
        self.manifest = found = read_token_manifest(path)
        self._check_hash(PLAN_NAME, found.plan_sha256)
        self._check(TOKENS_NAME, found.images * found.views * found.length * TOKEN_DTYPE.itemsize)
        self._check(CLASSES_NAME, found.images * CLASS_DTYPE.itemsize)
        if check_hashes:
            self._check_hash(TOKENS_NAME, found.tokens_sha256)
            self._check_hash(CLASSES_NAME, found.classes_sha256)
        shape = (found.images, found.views, found.length)
        # A plain array over the map: each slice of a `np.memmap` would cost as much as the reading itself.
        self.tokens: NDArray[np.uint16] = np.asarray(np.memmap(path / TOKENS_NAME, TOKEN_DTYPE, "r", shape=shape))
        self._rows = self.tokens.reshape(-1, found.length)
        self.class_index = torch.from_numpy(np.fromfile(path / CLASSES_NAME, CLASS_DTYPE).astype(np.int64))
        self._check_facts()
        if check_hashes:
            self._check_codes()

    def _check_facts(self) -> None:
        """What hashes cannot tell: a manifest that does not go with its own data."""
        found = self.manifest
        wrong = None
        if math.isqrt(found.length) ** 2 != found.length:
            wrong = f"{found.length} codes an image are no square grid"
        elif len(found.view_names) != found.views:
            wrong = f"{len(found.view_names)} names for {found.views} views"
        elif int(self.class_index.max()) >= len(found.class_names) or int(self.class_index.min()) < -1:
            wrong = f"classes {int(self.class_index.min())} to {int(self.class_index.max())}, "
            wrong += f"{len(found.class_names)} names"
        if wrong is not None:
            raise DataError(f"damaged token store ({self.path}): {wrong}", remedy=_TOKENIZE_AGAIN)

    def _check_codes(self) -> None:
        highest = max(
            int(self._rows[i : i + _IMAGES_AT_ONCE].max()) for i in range(0, len(self._rows), _IMAGES_AT_ONCE)
        )
        if highest >= self.codebook_size:
            raise DataError(
                f"damaged token store ({self.path}): code {highest} of {self.codebook_size}", remedy=_TOKENIZE_AGAIN
            )

    def _check(self, name: str, size: int) -> None:
        try:
            found = (self.path / name).stat().st_size
        except FileNotFoundError as error:
            raise DataError(
                f"damaged token store ({self.path / name}): no such file", remedy=_TOKENIZE_AGAIN
            ) from error
        if found != size:
            raise DataError(
                f"damaged token store ({self.path / name}): {found} bytes instead of {size}", remedy=_TOKENIZE_AGAIN
            )

    def _check_hash(self, name: str, sha256: str) -> None:
        if not (self.path / name).exists() or sha256_file(self.path / name) != sha256:
            raise DataError(
                f"damaged token store ({self.path / name}): its hash differs from the manifest",
                remedy=_TOKENIZE_AGAIN,
            )

    @property
    def num_images(self) -> int:
        """N."""
        return self.manifest.images

    @property
    def views(self) -> int:
        """V; view 0 is the plain one."""
        return self.manifest.views

    @property
    def length(self) -> int:
        """L."""
        return self.manifest.length

    @property
    def codebook_size(self) -> int:
        """Codes are below this."""
        return self.manifest.codebook_size

    @property
    def class_names(self) -> list[str]:
        """By class index."""
        return self.manifest.class_names

    @property
    def stage1_sha256(self) -> str:
        """Hash of the Stage 1 weights file that the codes belong to."""
        return self.manifest.stage1_sha256

    def check_stage1(self, *sha256: str) -> None:
        """Raise `DataError` unless the codes were made with a Stage 1 weights file of one of these hashes."""
        if self.stage1_sha256 not in sha256:
            raise DataError(
                f"tokens of another Stage 1 ({self.path}): made with weights {self.stage1_sha256[:12]}, "
                f"not with {sha256[0][:12]}",
                remedy="vq3d tokenize with these weights, or the weights that the tokens were made with",
            )

    def read(self, image: Tensor, view: Tensor | int = 0) -> Tensor:
        """Codes of views of images.

        Args:
            image: int64 `[B]`, below N.
            view: int64 `[B]`, below V, or one for all.

        Returns:
            int64 `[B, L]`.
        """
        return self.read_rows(image * self.views + view)

    def read_rows(self, row: Tensor) -> Tensor:
        """Codes int64 `[B, L]` of rows int64 `[B]`: image number x V + view."""
        return torch.from_numpy(self._rows.take(row.numpy(), axis=0).astype(np.int64))


@dataclass(frozen=True)
class TokenBatch:
    """Samples of one step on one rank.

    Attributes:
        tokens: Codes int64 `[B, L]`.
        class_index: int64 `[B]`, -1 for no class.
        index: Positions in the endless stream, int64 `[B]`; of held-out batches the numbers of the images.
    """

    tokens: Tensor
    class_index: Tensor
    index: Tensor


class TokenLoader:
    """Batches from a token store: an endless stream that can start at any position.

    As `loader.TrainingLoader`: position p belongs to epoch p // n, the order of an epoch depends only on
    (seed, epoch), the view only on (seed, p).

    Args:
        store: Where the tokens are.
        batch_size: Of all ranks together.
        seed: Of order and views.
        held_out: Fraction of the images that training never sees, see `split`.
        rank: This process takes rows `rank * B ... (rank + 1) * B - 1` of each global batch.
        world_size: Number of processes; must divide `batch_size`.

    Attributes:
        train_images: Numbers of the images of the stream, int64 `[n]`.
        held_out_images: Numbers of the images held out, int64.

    Raises:
        UsageError: The ranks do not divide the batch, or nothing is left for training.
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
        if batch_size % world_size:
            raise UsageError(
                f"the batch size ({batch_size}) is not a multiple of the number of ranks ({world_size})",
                remedy=f"--set training.batch_size={-(-batch_size // world_size) * world_size}",
            )
        self.store = store
        self.train_images, self.held_out_images = split(store.num_images, held_out)
        if not len(self.train_images):
            raise UsageError(
                f"all {store.num_images} images are held out, none is left for training ({store.path})",
                remedy="--set training.held_out=0",
            )
        self.batch_size = batch_size
        self._seed = seed
        self._rows = slice(rank * (batch_size // world_size), (rank + 1) * (batch_size // world_size))
        self._orders: dict[int, Tensor] = {}

    @property
    def num_images(self) -> int:
        """Images of an epoch, n."""
        return len(self.train_images)

    def batches(self, images_seen: int) -> Iterator[TokenBatch]:
        """This rank's rows of the global batches from position `images_seen` on, endless."""
        while True:
            yield self.batch_at(images_seen)
            images_seen += self.batch_size

    def batch_at(self, images_seen: int) -> TokenBatch:
        """This rank's rows of the global batch that starts at position `images_seen`."""
        start, stop = images_seen + self._rows.start, images_seen + self._rows.stop
        first, last = start // self.num_images, (stop - 1) // self.num_images
        chosen = [
            self.order(epoch)[max(start - epoch * self.num_images, 0) : stop - epoch * self.num_images]
            for epoch in range(first, last + 1)
        ]
        row = chosen[0] if len(chosen) == 1 else torch.cat(chosen)
        image = row // self.store.views
        return TokenBatch(self.store.read_rows(row), self.store.class_index[image], torch.arange(start, stop))

    def order(self, epoch: int) -> Tensor:
        """What an epoch reads, in its order: image number x V + view, int64 `[n]`."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            permutation = torch.randperm(self.num_images, generator=generator(self._seed, "order", epoch))
            views = self.store.views
            position = torch.arange(epoch * self.num_images, (epoch + 1) * self.num_images)
            # The top number is 1 - 2^-24: its product with a view count, rounded to float32, stays below the count.
            view = (uniform(self._seed, "view", position, 1)[:, 0] * views).long()
            self._orders[epoch] = self.train_images[permutation] * views + view
        return self._orders[epoch]

    def held_out_batches(self, batch_size: int) -> Iterator[TokenBatch]:
        """The plain views of all held-out images in order, the same on every rank; the last batch may be smaller."""
        for image in self.held_out_images.split(batch_size):
            if len(image):
                yield TokenBatch(self.store.read(image), self.store.class_index[image], image)


def split(images: int, held_out: float) -> tuple[Tensor, Tensor]:
    """Numbers of the images for training and of those held out, by a hash of the number: the same for every seed.

    Args:
        images: N.
        held_out: Fraction held out, in [0, 1].
    """
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
