"""One shard on disk: written whole with its index, or found whole."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vq3dcli.data.shard_format import (
    FORMAT_VERSION,
    Member,
    RejectEntry,
    SampleEntry,
    ShardEntry,
    ShardIndex,
    read_record,
    shard_name,
)
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import atomic_path, sha256_bytes, sha256_file, write_bytes


@dataclass(frozen=True)
class Sample:
    """What is written for one source position; `members` are bytes by extension."""

    key: str
    class_index: int | None
    members: dict[str, bytes]


Make = Callable[[range], Iterable[Sample | RejectEntry]]


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made: its number, its source positions, and what makes the samples of those."""

    out: Path
    number: int
    positions: range
    plan_sha256: str
    make: Make


def complete_shard(task: ShardTask, advance: Callable[[int], None]) -> tuple[int, ShardEntry, list[RejectEntry]]:
    """Keep the shard if it is whole by its hash, else make it; returns its number, manifest line and rejects."""
    index = _whole_index(task.out, task.number, task.plan_sha256, check_hash=True) or _write_shard(task, advance)
    return task.number, *_result(task.out, index)


def known_shard(out: Path, number: int, plan_sha256: str) -> tuple[ShardEntry, list[RejectEntry]] | None:
    """A shard that looks whole by its index and size; its hash was checked by whoever made it."""
    index = _whole_index(out, number, plan_sha256, check_hash=False)
    return None if index is None else _result(out, index)


def json_bytes(value: Any) -> bytes:
    """`value` as JSON whose bytes depend on nothing but the value."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def compact_json(value: Any) -> bytes:
    """`value` as one line of JSON."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _write_shard(task: ShardTask, advance: Callable[[int], None]) -> ShardIndex:
    name = shard_name(task.number)
    samples: list[SampleEntry] = []
    rejects: list[RejectEntry] = []
    with atomic_path(task.out / f"{name}.tar") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for item in task.make(task.positions):
                if isinstance(item, Sample):
                    members = {ext: _add(tar, f"{item.key}.{ext}", data) for ext, data in item.members.items()}
                    samples.append(SampleEntry(key=item.key, class_index=item.class_index, members=members))
                else:
                    rejects.append(item)
                advance(1)
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
    index = ShardIndex(
        format_version=FORMAT_VERSION,
        name=name,
        size=size,
        sha256=sha256,
        plan_sha256=task.plan_sha256,
        samples=samples,
        rejects=rejects,
    )
    text = compact_json(index.model_dump(mode="json", exclude_defaults=True)) + b"\n"
    write_bytes(task.out / f"{name}.index.json", text)
    return index


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> Member:
    """Append one member; times, owners and modes are constants, so that the bytes depend on the data only."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block: USTAR has no extension blocks
    tar.addfile(header, io.BytesIO(data))
    return Member(offset=offset, size=len(data), sha256=sha256_bytes(data))


def _whole_index(out: Path, number: int, plan_sha256: str, *, check_hash: bool) -> ShardIndex | None:
    tar = out / f"{shard_name(number)}.tar"
    try:
        index = read_record(tar.with_suffix(".index.json"), ShardIndex, remedy="")
        whole = index.plan_sha256 == plan_sha256 and tar.stat().st_size == index.size
        return index if whole and (not check_hash or sha256_file(tar) == index.sha256) else None
    except (DataError, InputMissingError, FileNotFoundError):
        return None


def _result(out: Path, index: ShardIndex) -> tuple[ShardEntry, list[RejectEntry]]:
    index_sha256 = sha256_file(out / f"{index.name}.index.json")
    entry = ShardEntry(
        name=index.name,
        samples=len(index.samples),
        size=index.size,
        sha256=index.sha256,
        index_sha256=index_sha256,
    )
    return entry, index.rejects
