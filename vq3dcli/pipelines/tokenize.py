"""Images to a token store, by the encoder of a Stage 1 weights file; resumable, the same bytes after interruptions.

Blocks of the images of a shard become a file each, a pure function of the plan, whoever makes it: processes share the
shards without a coordinator. Once all blocks are there, one process joins them to one file, and they go.

Legend: V views of an image, S side of the model's images in pixels, L codes of a view.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli.data.ahead import ahead
from vq3dcli.data.images import resize
from vq3dcli.data.shard_format import FORMAT_VERSION, PLAN_NAME, stored_size
from vq3dcli.data.shard_reader import ShardFolder, open_images
from vq3dcli.data.token_store import (
    CLASS_DTYPE,
    CLASSES_NAME,
    MAX_CODEBOOK_SIZE,
    TOKEN_DTYPE,
    TOKENS_NAME,
    TokenManifest,
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
    """Make the token store `out` of shard folders or one part of it, or finish what an earlier call began.

    Args:
        views: Of each image: the whole image, its mirror image, then random crops, every other one mirrored.
        part: The share of the shards that this process encodes; None is returned while others have work left.
        force: Delete a store that was made otherwise.
        on_progress: Called with (images done, images of this part).

    Raises:
        UsageError: Images that are too small or, for crops, without a margin, or given twice, which would put copies of
            one image on both sides of a held-out split; or `out` was made otherwise.
        InputMissingError, DataError: The shards are missing, unfinished or damaged, or the codes do not fit 16 bits.
        StoppedError: Another process is writing there, or one that writes the same part.
    """
    model = weights.recipe.model
    if model.codebook_size > MAX_CODEBOOK_SIZE:
        raise DataError(
            f"codes of a codebook of {model.codebook_size} do not fit 16 bits ({weights.path})",
            remedy=f"a Stage 1 of at most {MAX_CODEBOOK_SIZE} codes",
        )
    size = model.image_size
    sources = [open_images(folder, least_px=size, of="those of the weights") for folder in folders]
    first: dict[str, Path] = {}
    for images in sources:
        if first.setdefault(images.sha256, images.path) is not images.path:
            raise UsageError(
                f"the same images twice ({first[images.sha256]}, {images.path})", remedy="each folder once"
            )
        if views > 2 and stored_size(size, images.manifest.margin) == size:
            raise UsageError(
                f"more than 2 views need room for crops, and these images have none ({images.path})",
                remedy="--views 2, or vq3d prepare-data with --margin 1.125",
            )
    total = sum(images.num_samples for images in sources)
    if total == 0:
        raise DataError(f"no samples in {', '.join(map(str, folders)) or 'no folders'}", remedy="other folders")
    length = (size // model.patch) ** 2
    facts = {
        "length": length,
        "codebook_size": model.codebook_size,
        "image_size": size,
        "stage1_sha256": weights.sha256,
        "views": views,
        "view_names": ["plain", "flip", *("crop flip" if view % 2 else "crop" for view in range(2, views))][:views],
        "seed": seed,
        "images": total,
        "sources": [
            {"name": images.path.resolve().name, "images": images.num_samples, "manifest_sha256": images.sha256}
            for images in sources
        ],
    }
    plan = json_bytes({"format_version": FORMAT_VERSION, **facts})
    # Not in the plan, which has the weights' hash: stores that were begun before ancestors were kept can go on.
    facts["stage1_ancestors"] = list(weights.ancestors)
    make_folder(out)
    with claimed(out, part, plan, ours=_OURS, force=force):
        blocks = _blocks(sources, out, 2 * views * length, hashlib.sha256(plan).digest())
        manifest = _finished(out)
        if manifest is not None:
            on_progress(total, total)
        else:
            encode = _encoder(weights, torch.device(device), views, seed)
            _write_blocks(encode, [block for block in blocks if part.has(block.shard)], on_progress)
            with own_turn(out, part):
                manifest = _finished(out)
                if manifest is None and all(block.has_size() for block in blocks):
                    _write_blocks(encode, blocks)  # those of other parts that were damaged since
                    manifest = _join(out, blocks, facts, sources)
        if manifest is not None:
            for block in blocks:
                block.path.unlink(missing_ok=True)
        return manifest


@dataclass(frozen=True)
class _Block:
    """Some images of one shard of one source, and the file of their codes, which ends with a digest of plan and codes.

    `shard` and `first` number its shard and its first image over all sources; `size` counts the bytes of its codes.
    """

    images: ShardFolder
    shard: int
    positions: range
    first: int
    path: Path
    size: int
    plan: bytes

    def sealed(self, codes: bytes) -> bytes:
        return codes + hashlib.sha256(self.plan + codes).digest()

    def has_size(self) -> bool:
        """Whether the file is there; whoever made it or found it has checked its digest."""
        try:
            return self.path.stat().st_size == self.size + _DIGEST_BYTES
        except FileNotFoundError:
            return False

    def is_whole(self) -> bool:
        return self.has_size() and (data := self.path.read_bytes()) == self.sealed(data[: self.size])


def _blocks(sources: Sequence[ShardFolder], out: Path, image_bytes: int, plan: bytes) -> list[_Block]:
    blocks: list[_Block] = []
    shard = before = 0
    for images in sources:
        start = 0
        for entry in images.manifest.shards:
            stop = start + entry.samples
            for first in range(start, stop, _IMAGES_A_BLOCK):
                positions = range(first, min(first + _IMAGES_A_BLOCK, stop))
                path, size = out / f"block-{len(blocks):06d}.u16", len(positions) * image_bytes
                blocks.append(_Block(images, shard, positions, before + first, path, size, plan))
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
    encode: Callable[[_Block], Iterator[bytes]],
    blocks: Sequence[_Block],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the blocks that are not there."""
    done, total = 0, sum(len(block.positions) for block in blocks)
    on_progress(done, total)
    for block in blocks:
        if not block.is_whole():
            data = b""
            for codes in encode(block):
                data += codes
                on_progress(done + len(data) * len(block.positions) // block.size, total)
            write_bytes(block.path, block.sealed(data))
        done += len(block.positions)
        on_progress(done, total)


def _join(out: Path, blocks: Sequence[_Block], facts: dict[str, Any], sources: Sequence[ShardFolder]) -> TokenManifest:
    """Blocks to one file, the classes, and last the manifest."""
    names = list(dict.fromkeys(name for images in sources for name in images.class_names))
    with atomic_path(out / TOKENS_NAME) as temporary:
        with temporary.open("wb") as handle:
            for block in blocks:
                handle.write(_block_bytes(block.path)[: block.size])
        tokens_sha256 = sha256_file(temporary)
    number = [np.array([*map(names.index, images.class_names), -1], CLASS_DTYPE) for images in sources]
    columns = [of[images.index.class_index] for of, images in zip(number, sources, strict=True)]
    classes = np.concatenate(columns).tobytes()
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


def _encoder(
    weights: LoadedWeights, device: torch.device, views: int, seed: int
) -> Callable[[_Block], Iterator[bytes]]:
    """From a block to its codes, `[b, V, L]` of a few images after the other."""
    model = weights.model.to(device)

    def encode(block: _Block) -> Iterator[bytes]:
        images = ahead(lambda i: _views(block, i, weights.recipe.model.image_size, views, seed), block.positions)
        with contextlib.closing(images):
            while batch := list(islice(images, _IMAGES_A_BATCH)):
                with torch.inference_mode():
                    codes = model.codes(to_model_range(torch.cat(batch).to(device)))
                yield codes.cpu().numpy().astype(TOKEN_DTYPE).tobytes()

    return encode


def _views(block: _Block, i: int, size: int, views: int, seed: int) -> Tensor:
    """The views of image `i` of the block's folder, uint8 `[V, 3, S, S]`."""
    image = block.images.image(i)
    plain = resize(image, size, size)
    made = [plain, plain.flip(-1)][:views]
    if views > 2:
        side = stored_size(size, block.images.manifest.margin)
        image = resize(image, side, side)
        number = torch.tensor([block.first + i - block.positions.start])
        places = uniform(seed, "tokenize crop", number, 2 * views)[0].reshape(-1, 2)
        for view in range(2, views):
            top, left = (places[view] * (side - size + 1)).long().tolist()
            crop = image[:, top : top + size, left : left + size]
            made.append(crop.flip(-1) if view % 2 else crop)
    return torch.stack(made)
