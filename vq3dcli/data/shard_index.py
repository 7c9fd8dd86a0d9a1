"""Where each member of each sample of a shard folder lies: read from the JSON indices, kept as columns.

A large folder has `index.columns` beside its JSON indices, from which it is made whenever it is missing, damaged, or of
another manifest. Columns are mapped, and the processes of a machine share them; of members, which are most of the file,
only those that are asked for are read. For ImageNet that is 25 MB of 220.

    32 bytes           SHA-256 of all that follows
    8 bytes            length of the header
    header             JSON: {"columns_version", "manifest_sha256", "samples", "extensions"}, padded with spaces
    keys               int64 [n], ascending
    starts             int64 [n + 1]: sample i has the members number starts[i] ... starts[i + 1] - 1
    classes            int32 [n], -1 for none, padded to 8 bytes
    members            extension's number int32, offset int64, size int64, SHA-256
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vq3dcli.data.open_files import OpenFile
from vq3dcli.data.shard_format import (
    COLUMNS_NAME,
    Manifest,
    Member,
    SampleEntry,
    ShardEntry,
    ShardIndex,
    parse_record,
    sample_key,
    view_extensions,
)
from vq3dcli.errors import DataError, InputMissingError, OutputError, StorageError, UnavailableError
from vq3dcli.files import read_bytes, sha256_bytes, write_bytes
from vq3dcli.remote.cache import ensure
from vq3dcli.sealed import parse_json

PREPARE_AGAIN = "vq3d prepare-data again, for labels vq3d depth-labels, with --force if need be"
# A folder of fewer samples is read from JSON within a second, and nothing is left in it.
LEAST_KEPT = 20_000

_VERSION = 1
_MEMBER = struct.Struct("<iqq32s")


class FolderIndex:
    """The samples of a shard folder in order."""

    def __init__(self, data: bytes | mmap.mmap, read: Callable[[int, int], bytes]) -> None:
        (length,) = struct.unpack_from("<q", data, 32)
        header = parse_json(data[40 : 40 + length], name=COLUMNS_NAME, remedy=PREPARE_AGAIN)
        self.manifest_sha256 = header["manifest_sha256"] if header["columns_version"] == _VERSION else None
        self._extensions, self._read, count, at = header["extensions"], read, header["samples"], 40 + length
        # Positions in the source, ascending; `sample_key` of them are the keys.
        self.keys: NDArray[np.int64] = np.frombuffer(data, "<i8", count, at)
        self._starts: NDArray[np.int64] = np.frombuffer(data, "<i8", count + 1, at + 8 * count)
        self.class_index: NDArray[np.int32] = np.frombuffer(data, "<i4", count, at + 16 * count + 8)  # -1 for none
        self._members_at = at + 16 * count + 8 + 8 * -(-count // 2)

    def entry(self, i: int) -> SampleEntry:
        """Key, class and members of sample `i`."""
        start, stop = int(self._starts[i]), int(self._starts[i + 1])
        rows = self._read(self._members_at + start * _MEMBER.size, (stop - start) * _MEMBER.size)
        members = {
            self._extensions[number]: Member.model_construct(offset=offset, size=size, sha256=digest.hex())
            for number, offset, size, digest in _MEMBER.iter_unpack(rows)
        }
        number = int(self.class_index[i])
        key = sample_key(int(self.keys[i]))
        return SampleEntry.model_construct(key=key, class_index=None if number < 0 else number, members=members)

    def position(self, key: int) -> int | None:
        """Which sample has a key; None if there is none."""
        i = int(np.searchsorted(self.keys, key))
        return i if i < len(self.keys) and self.keys[i] == key else None


def open_index(folder: Path, manifest: Manifest, manifest_sha256: str) -> FolderIndex:
    """The index of a shard folder; of a large one it is left there for the next time, where it can be written.

    Raises `InputMissingError` or `DataError`: a JSON index is missing or damaged.
    """
    path, large = folder / COLUMNS_NAME, manifest.num_samples >= LEAST_KEPT
    if large:
        with contextlib.suppress(InputMissingError, UnavailableError):
            ensure(path)
    kept = _kept(path, manifest_sha256) if large else None
    if kept is not None:
        return kept
    data = _columns(folder, manifest, manifest_sha256)
    if large:
        with contextlib.suppress(OutputError, StorageError):  # processes that come at once write the same bytes
            write_bytes(path, data)
        kept = _kept(path, manifest_sha256)
    return kept or FolderIndex(data, lambda start, size: data[start : start + size])


def _kept(path: Path, manifest_sha256: str) -> FolderIndex | None:
    """The columns of a file; None if there are none, if a byte is wrong, or if they are of another manifest."""
    try:
        with path.open("rb") as file:
            expected = file.read(32)
            if hashlib.file_digest(file, "sha256").digest() != expected:
                return None
            columns = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = FolderIndex(columns, OpenFile(os.dup(file.fileno())).read)
    except OSError:
        return None
    return index if index.manifest_sha256 == manifest_sha256 else None


def _columns(folder: Path, manifest: Manifest, manifest_sha256: str) -> bytes:
    keys, starts, classes, rows = array("q"), array("q", [0]), array("i"), bytearray()
    extensions: dict[str, int] = {}
    for listed in manifest.shards:
        for sample in read_shard_index(folder, listed, manifest).samples:
            keys.append(int(sample.key))
            classes.append(-1 if sample.class_index is None else sample.class_index)
            starts.append(starts[-1] + len(sample.members))
            for extension, m in sample.members.items():
                number = extensions.setdefault(extension, len(extensions))
                rows += _MEMBER.pack(number, m.offset, m.size, bytes.fromhex(m.sha256))
    if (np.diff(np.frombuffer(keys, "<i8")) <= 0).any():
        raise DataError(f"damaged index ({folder}): keys do not ascend", remedy=PREPARE_AGAIN)
    facts = {"columns_version": _VERSION, "manifest_sha256": manifest_sha256, "samples": len(keys)}
    header = json.dumps({**facts, "extensions": list(extensions)}).encode()
    header += b" " * (-len(header) % 8)
    classes.extend([-1] * (len(classes) % 2))
    columns = [column.tobytes() for column in (keys, starts, classes)]
    parts: list[bytes | bytearray] = [struct.pack("<q", len(header)), header, *columns, rows]
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return b"".join([whole.digest(), *parts])


def read_shard_index(folder: Path, listed: ShardEntry, manifest: Manifest) -> ShardIndex:
    """The JSON index of a shard. Raises `InputMissingError` or `DataError`."""
    path = folder / f"{listed.name}.index.json"
    ensure(path, sha256=listed.index_sha256)
    text = read_bytes(path, PREPARE_AGAIN)
    if sha256_bytes(text) != listed.index_sha256:
        raise DataError(f"damaged index ({path})", remedy=PREPARE_AGAIN)
    index = parse_record(text, ShardIndex, name=str(path), remedy=PREPARE_AGAIN)
    # What hashes cannot tell: an index that goes neither with its manifest nor with itself.
    wrong, classes = None, len(manifest.class_names)
    if (index.name, index.size, len(index.samples)) != (listed.name, listed.size, listed.samples):
        wrong = "not the shard that the manifest lists"
    elif any(m.offset + m.size > index.size for sample in index.samples for m in sample.members.values()):
        wrong = "members beyond the end of the shard"
    elif any(sample.class_index is not None and sample.class_index >= classes for sample in index.samples):
        wrong = f"classes beyond {classes}"
    elif any(
        extension not in s.members
        for s in index.samples
        for v in range(manifest.views)
        for extension in view_extensions(v)
    ):
        wrong = f"samples without the {manifest.views} views of the manifest"
    elif not all(s.key[:18].isdecimal() and sample_key(int(s.key[:18])) == s.key for s in index.samples):
        wrong = "keys that are no positions"
    if wrong is not None:
        raise DataError(f"damaged index ({path}): {wrong}", remedy=PREPARE_AGAIN)
    return index
