"""Writing shard folders: shard by shard, resumable, the same bytes after any number of interruptions.

A source is a list of positions, a shard holds what became of a fixed range of them. So each shard is a pure function
of the plan, whoever makes it and when.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_tools.claim import claim_folder
from vq3dcli.data.schema import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    REJECTS_NAME,
    Manifest,
    Member,
    RejectEntry,
    SampleEntry,
    ShardEntry,
    ShardIndex,
    read_record,
    shard_name,
)
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import atomic_path, lock_folder, make_folder, sha256_bytes, sha256_file, write_bytes

_OURS = re.compile(r"shard-\d{6,}\.(tar|index\.json)|plan\.json|manifest\.json|rejects\.jsonl")
_LEFTOVER = re.compile(r"\.(shard-\d{6,}(\.index)?|plan|manifest|rejects)\.[0-9a-f]{8}\.tmp\.(tar|json|jsonl)")


@dataclass(frozen=True)
class Sample:
    """What is written for one source position; `members` are bytes by extension."""

    key: str
    class_index: int | None
    members: dict[str, bytes]


@dataclass(frozen=True)
class Reject:
    """A source position that gives no sample."""

    path: str
    reason: str


@dataclass(frozen=True)
class Job:
    """A shard folder to be made.

    Attributes:
        kind: `images` or `disparity`.
        preset: See `Manifest`.
        image_size: Side of the training images in pixels.
        margin: Stored side over `image_size`.
        own_disparity: Whether samples carry their own disparity.
        class_names: By class index.
        shards: Source positions of each shard, from 0 on without gaps.
        plan: JSON values that the bytes depend on; a run into the same folder must have the same.
        make: Samples and rejects of the positions in a range, in order.
        max_bad: Fraction of the positions that may be rejected.
    """

    kind: Literal["images", "disparity"]
    preset: str
    image_size: int
    margin: float
    own_disparity: bool
    class_names: list[str]
    shards: list[range]
    plan: dict[str, Any]
    make: Callable[[range], Iterable[Sample | Reject]]
    max_bad: float = 0.0

    @property
    def num_positions(self) -> int:
        """Length of the source."""
        return self.shards[-1].stop if self.shards else 0


def shard_ranges(num_positions: int, shard_size: int) -> list[range]:
    """Source positions of each shard, `shard_size` in all but the last."""
    starts = range(0, num_positions, shard_size)
    return [range(start, min(start + shard_size, num_positions)) for start in starts]


def write_folder(out: Path, job: Job, *, force: bool, progress: Callable[[int, int], None]) -> Manifest:
    """Make the shard folder `out`, or finish what an earlier call began.

    Shards that are complete are kept, after their hash was checked. The manifest is written last.

    Args:
        force: Delete an existing shard folder that was made with another plan.
        progress: Called with (positions done, all positions).

    Raises:
        UsageError: `out` holds something else, or another plan without `force`.
        DataError: More than `max_bad` rejects; they are in `rejects.jsonl`.
        StoppedError: Another process is writing there.
        OutputError, StorageError: It cannot be written.
    """
    make_folder(out)
    with lock_folder(out):
        plan = json_bytes({"format_version": FORMAT_VERSION, **job.plan})
        claim_folder(out, plan, ours=_OURS, leftover=_LEFTOVER, force=force)
        rejects: list[RejectEntry] = []
        entries: list[ShardEntry] = []
        done = 0
        progress(0, job.num_positions)
        for number, positions in enumerate(job.shards):
            index = _complete_index(out, number, sha256_bytes(plan))
            if index is None:
                index = _write_shard(
                    out, number, job, positions, sha256_bytes(plan), lambda n: progress(n, job.num_positions)
                )
            rejects += index.rejects
            entries.append(_entry(out, index))
            done += len(positions)
            progress(done, job.num_positions)
            if len(rejects) > job.max_bad * job.num_positions:
                _write_rejects(out, rejects)
                raise _too_many(out, rejects, job)
        _write_rejects(out, rejects)
        manifest = _manifest(job, entries, len(rejects))
        write_bytes(out / MANIFEST_NAME, json_bytes(manifest.model_dump(mode="json")))
        return manifest


def json_bytes(value: Any) -> bytes:
    """`value` as JSON whose bytes depend on nothing but the value."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def compact_json(value: Any) -> bytes:
    """`value` as one line of JSON."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _write_shard(
    out: Path, number: int, job: Job, positions: range, plan_sha256: str, progress: Callable[[int], None]
) -> ShardIndex:
    name = shard_name(number)
    samples: list[SampleEntry] = []
    rejects: list[RejectEntry] = []
    with atomic_path(out / f"{name}.tar") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for done, item in enumerate(job.make(positions), start=1):
                if isinstance(item, Sample):
                    members = {ext: _add(tar, f"{item.key}.{ext}", data) for ext, data in item.members.items()}
                    samples.append(SampleEntry(key=item.key, class_index=item.class_index, members=members))
                else:
                    rejects.append(RejectEntry(path=item.path, reason=item.reason))
                progress(positions.start + done)
        size, sha256 = temporary.stat().st_size, sha256_file(temporary)
    index = ShardIndex(
        format_version=FORMAT_VERSION,
        name=name,
        size=size,
        sha256=sha256,
        plan_sha256=plan_sha256,
        samples=samples,
        rejects=rejects,
    )
    write_bytes(out / f"{name}.index.json", compact_json(index.model_dump(mode="json")) + b"\n")
    return index


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> Member:
    """Append one member; times, owners and modes are constants, so that the bytes depend on the data only."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block: USTAR has no extension blocks
    tar.addfile(header, io.BytesIO(data))
    return Member(offset=offset, size=len(data), sha256=sha256_bytes(data))


def _complete_index(out: Path, number: int, plan_sha256: str) -> ShardIndex | None:
    """The index of a shard that is there and whole, else None."""
    path = out / f"{shard_name(number)}.index.json"
    tar = out / f"{shard_name(number)}.tar"
    try:
        index = read_record(path, ShardIndex, remedy="")
        whole = index.plan_sha256 == plan_sha256 and tar.stat().st_size == index.size
        return index if whole and sha256_file(tar) == index.sha256 else None
    except (DataError, InputMissingError, FileNotFoundError):
        return None


def _entry(out: Path, index: ShardIndex) -> ShardEntry:
    return ShardEntry(
        name=index.name,
        samples=len(index.samples),
        size=index.size,
        sha256=index.sha256,
        index_sha256=sha256_file(out / f"{index.name}.index.json"),
    )


def _manifest(job: Job, entries: list[ShardEntry], num_rejects: int) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        kind=job.kind,
        preset=job.preset,
        image_size=job.image_size,
        margin=job.margin,
        own_disparity=job.own_disparity,
        num_samples=sum(entry.samples for entry in entries),
        num_rejects=num_rejects,
        class_names=job.class_names,
        options=job.plan,
        shards=entries,
    )


def _write_rejects(out: Path, rejects: list[RejectEntry]) -> None:
    lines = b"".join(compact_json(reject.model_dump()) + b"\n" for reject in rejects)
    write_bytes(out / REJECTS_NAME, lines)


def _too_many(out: Path, rejects: list[RejectEntry], job: Job) -> DataError:
    first = f"{rejects[0].path}: {rejects[0].reason}"
    return DataError(
        f"{len(rejects)} of {job.num_positions} files are bad, more than the allowed {job.max_bad:.1%} "
        f"({out / REJECTS_NAME}), the first: {first}",
        remedy="mend or remove these files, or raise --max-bad",
    )
