"""Images to a token store, by the encoder of a Stage 1 weights file; resumable, the same bytes after interruptions.

Blocks of the images of a shard become a file each, a pure function of the plan, whoever makes it: processes share the
shards without a coordinator. Once all blocks are there, one process joins them to one file, and they go.

Legend: V views of an image, S side of the model's images in pixels, L codes of a view.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vq3dcli.data.images import decode_image, resize
from vq3dcli.data.shard_format import FORMAT_VERSION, MANIFEST_NAME, PLAN_NAME, stored_size
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.token_store import (
    CLASS_DTYPE,
    CLASSES_NAME,
    MAX_CODEBOOK_SIZE,
    TOKEN_DTYPE,
    TOKENS_NAME,
    TokenManifest,
    TokenSource,
    TokenStore,
    write_token_manifest,
)
from vq3dcli.data_tools.job import claimed, own_turn
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import json_bytes
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import atomic_path, make_folder, read_error, sha256_bytes, sha256_file, write_bytes
from vq3dcli.model.scene import to_model_range
from vq3dcli.seeding import uniform
from vq3dcli.weights_file import LoadedWeights

# The bits of an encoder's output depend on the batch that an image is in: the same batches in every run.
_IMAGES_A_BATCH = 16
# What a killed run loses at most. Whole batches, so that blocks move no batch; 10,000 files for ImageNet.
_IMAGES_A_BLOCK = 128
_MAX_DECODERS = 8
_DIGEST_BYTES = 32
_OURS = re.compile(r"block-\d{6,}\.u16|tokens\.u16|classes\.i32|plan\.json|manifest\.json")


def tokenize(
    weights: LoadedWeights,
    folders: Sequence[Path],
    out: Path,
    *,
    views: int = 2,
    seed: int = 0,
    device: str | torch.device = "cpu",
    part: Part = WHOLE,
    force: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenManifest | None:
    """Make the token store `out` or one part of it, or finish what an earlier call began.

    Args:
        weights: A Stage 1 as it was loaded from its file, whose hash goes into the store.
        folders: Finished shard folders of images; together they are one data set.
        out: Folder of the store.
        views: Of each image: the whole image, its mirror image, then random crops, every other one mirrored.
        seed: Of the crops.
        device: Where the encoder computes.
        part: The share of the shards that this process encodes.
        force: Delete a store that was made otherwise.
        on_progress: Called with (images done, images of this part).

    Returns:
        None while other parts have work left.

    Raises:
        UsageError: Images that are too small or, for crops, without a margin, or given twice, which would put copies of
            one image on both sides of a held-out split; or `out` was made otherwise.
        InputMissingError, DataError: The shards are missing, unfinished or damaged, or the codes do not fit 16 bits.
        StoppedError: Another process is writing there, or one that writes the same part.
        OutputError, StorageError: It cannot be written.
    """
    model = weights.recipe.model
    if model.codebook_size > MAX_CODEBOOK_SIZE:
        raise DataError(
            f"codes of a codebook of {model.codebook_size} do not fit 16 bits ({weights.path})",
            remedy=f"a Stage 1 of at most {MAX_CODEBOOK_SIZE} codes",
        )
    sources = [_open(folder, model.image_size, views) for folder in folders]
    hashes = [sha256_file(images.path / MANIFEST_NAME) for images in sources]
    for number, digest in enumerate(hashes):
        if digest in hashes[:number]:
            first, second = sources[hashes.index(digest)].path, sources[number].path
            raise UsageError(f"the same images twice ({first}, {second})", remedy="each folder once")
    total = sum(images.num_samples for images in sources)
    if total == 0:
        raise DataError(f"no samples in {', '.join(map(str, folders)) or 'no folders'}", remedy="other folders")
    length = (model.image_size // model.patch) ** 2
    facts = {
        "length": length,
        "codebook_size": model.codebook_size,
        "image_size": model.image_size,
        "stage1_sha256": weights.sha256,
        "views": views,
        "view_names": _view_names(views),
        "seed": seed,
        "images": total,
        "sources": [
            TokenSource(
                name=images.path.resolve().name,
                images=images.num_samples,
                manifest_sha256=digest,
            ).model_dump()
            for images, digest in zip(sources, hashes, strict=True)
        ],
    }
    plan = json_bytes({"format_version": FORMAT_VERSION, **facts})
    # Not in the plan, which has the weights' hash: stores that were begun before ancestors were kept can go on.
    facts["stage1_ancestors"] = list(weights.ancestors)
    make_folder(out)
    with claimed(out, part, plan, ours=_OURS, force=force):
        blocks = _blocks(sources, out)
        manifest = _finished(out)
        if manifest is not None:
            on_progress(total, total)
        else:
            encoder = _Encoder(weights, torch.device(device), views, seed)
            own = [block for block in blocks if part.has(block.shard)]
            _write_blocks(encoder, own, plan, length, on_progress)
            with own_turn(out, part):
                manifest = _finished(out)
                if manifest is None and all(_has_size(block, views, length) for block in blocks):
                    _write_blocks(encoder, blocks, plan, length)  # those of other parts that were damaged since
                    manifest = _join(out, blocks, facts, sources)
        if manifest is not None:
            for block in blocks:
                block.path.unlink(missing_ok=True)
        return manifest


@dataclass(frozen=True)
class _Block:
    """Some images of one shard of one source, and the file of their codes.

    `shard` and `first` number its shard and its first image over all sources.
    """

    images: ShardFolder
    shard: int
    positions: range
    first: int
    path: Path


def _open(folder: Path, size: int, views: int) -> ShardFolder:
    images = ShardFolder(folder)
    manifest = images.manifest
    if manifest.kind != "images":
        raise UsageError(f"holds labels, not images ({folder})", remedy="the shard folder above it")
    if size > manifest.image_size:
        raise UsageError(
            f"the images are smaller ({manifest.image_size}) than those of the weights ({size}) ({folder})",
            remedy=f"vq3d prepare-data with --size {size}",
        )
    if views > 2 and stored_size(size, manifest.margin) == size:
        raise UsageError(
            f"more than 2 views need room for crops, and these images have none ({folder})",
            remedy="--views 2, or vq3d prepare-data with --margin 1.125",
        )
    return images


def _view_names(views: int) -> list[str]:
    return ["plain", "flip", *("crop flip" if view % 2 else "crop" for view in range(2, views))][:views]


def _blocks(sources: Sequence[ShardFolder], out: Path) -> list[_Block]:
    blocks: list[_Block] = []
    shard = before = 0
    for images in sources:
        start = 0
        for entry in images.manifest.shards:
            stop = start + entry.samples
            for first in range(start, stop, _IMAGES_A_BLOCK):
                positions = range(first, min(first + _IMAGES_A_BLOCK, stop))
                path = out / f"block-{len(blocks):06d}.u16"
                blocks.append(_Block(images, shard, positions, before + first, path))
            shard, start = shard + 1, stop
        before += start
    return blocks


def _finished(out: Path) -> TokenManifest | None:
    """The manifest of a store that is finished and whole; the plan was compared before."""
    try:
        return TokenStore(out).manifest
    except (InputMissingError, DataError):
        return None


def _write_blocks(
    encoder: _Encoder,
    blocks: Sequence[_Block],
    plan: bytes,
    length: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the blocks that are not there; a block ends with a digest of the plan and of its codes."""
    done, total = 0, sum(len(block.positions) for block in blocks)
    on_progress(done, total)
    for block in blocks:
        if not _is_whole(block, encoder.views, length, plan):
            data = b""
            for codes in encoder.encode(block):
                data += codes.tobytes()
                on_progress(done + len(data) * len(block.positions) // _bytes(block, encoder.views, length), total)
            write_bytes(block.path, data + _digest(plan, data))
        done += len(block.positions)
        on_progress(done, total)


def _bytes(block: _Block, views: int, length: int) -> int:
    """Of its codes."""
    return len(block.positions) * views * length * TOKEN_DTYPE.itemsize


def _has_size(block: _Block, views: int, length: int) -> bool:
    """Whether the block is there; whoever made it or found it has checked its digest."""
    try:
        return block.path.stat().st_size == _bytes(block, views, length) + _DIGEST_BYTES
    except FileNotFoundError:
        return False


def _is_whole(block: _Block, views: int, length: int, plan: bytes) -> bool:
    if not _has_size(block, views, length):
        return False
    data = block.path.read_bytes()
    return data[-_DIGEST_BYTES:] == _digest(plan, data[:-_DIGEST_BYTES])


def _digest(plan: bytes, data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(plan).digest() + data).digest()


def _join(out: Path, blocks: Sequence[_Block], facts: dict[str, Any], sources: Sequence[ShardFolder]) -> TokenManifest:
    """Blocks to one file, the classes, and last the manifest."""
    names = list(dict.fromkeys(name for images in sources for name in images.manifest.class_names))
    with atomic_path(out / TOKENS_NAME) as temporary:
        with temporary.open("wb") as handle:
            for block in blocks:
                handle.write(_block_bytes(block.path)[:-_DIGEST_BYTES])
        tokens_sha256 = sha256_file(temporary)
    classes = np.concatenate([_classes(images, names) for images in sources]).tobytes()
    write_bytes(out / CLASSES_NAME, classes)
    manifest = TokenManifest.model_validate(
        {
            "format_version": FORMAT_VERSION,
            **facts,
            "class_names": names,
            "tokens_sha256": tokens_sha256,
            "classes_sha256": sha256_bytes(classes),
            "plan_sha256": sha256_file(out / PLAN_NAME),
        }
    )
    write_token_manifest(out, manifest)
    return manifest


def _block_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"a part of the token store has gone ({path})", remedy="the same command again, which makes it anew"
        ) from error
    except OSError as error:
        raise read_error(path, error) from error


def _classes(images: ShardFolder, names: list[str]) -> NDArray[np.int32]:
    number = [names.index(name) for name in images.manifest.class_names]
    found = (images.entry(i).class_index for i in range(images.num_samples))
    return np.array([-1 if index is None else number[index] for index in found], CLASS_DTYPE)


class _Encoder:
    """Codes of the views of the images of a block; images are decoded ahead in threads."""

    def __init__(self, weights: LoadedWeights, device: torch.device, views: int, seed: int) -> None:
        self._model = weights.model.to(device)
        self._device = device
        self._size = weights.recipe.model.image_size
        self._seed = seed
        self.views = views

    def encode(self, block: _Block) -> Iterator[NDArray[np.uint16]]:
        """Codes of a few images after the other, `[b, V, L]`."""
        starts = list(range(block.positions.start, block.positions.stop, _IMAGES_A_BATCH))
        batches = [range(start, min(start + _IMAGES_A_BATCH, block.positions.stop)) for start in starts]
        with ThreadPoolExecutor(min(_MAX_DECODERS, os.cpu_count() or 1)) as pool:

            def begin(batch: range) -> list[Future[Tensor]]:
                return [pool.submit(self._views, block, i) for i in batch]

            try:
                ahead = begin(batches[0]) if batches else []
                for number in range(len(batches)):
                    now, ahead = ahead, begin(batches[number + 1]) if number + 1 < len(batches) else []
                    yield self._codes(torch.stack([future.result() for future in now]))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    @torch.inference_mode()
    def _codes(self, images: Tensor) -> NDArray[np.uint16]:
        """Codes `[b, V, L]` of uint8 images `[b, V, 3, S, S]`."""
        codes = self._model.codes(to_model_range(images.flatten(0, 1).to(self._device)))
        return codes.reshape(*images.shape[:2], -1).cpu().numpy().astype(TOKEN_DTYPE)

    def _views(self, block: _Block, i: int) -> Tensor:
        """The views of image `i` of the block's folder, uint8 `[V, 3, S, S]`."""
        images = block.images
        extension = images.image_extension(i)
        name = f"{images.path}, key {images.entry(i).key}"
        image = decode_image(images.read(i, [extension])[extension], name=name, apply_orientation=False)
        if image.shape[1] != image.shape[2]:
            raise DataError(f"stored image is not square ({name})", remedy="vq3d prepare-data with --force")
        plain = resize(image, self._size, self._size)
        found = [plain, plain.flip(-1)][: self.views]
        if self.views > 2:
            side = stored_size(self._size, images.manifest.margin)
            image = resize(image, side, side)
            number = torch.tensor([block.first + i - block.positions.start])
            places = uniform(self._seed, "tokenize crop", number, 2 * self.views)[0].reshape(-1, 2)
            for view in range(2, self.views):
                top, left = (places[view] * (side - self._size + 1)).long().tolist()
                crop = image[:, top : top + self._size, left : left + self._size]
                found.append(crop.flip(-1) if view % 2 else crop)
        return torch.stack(found)
