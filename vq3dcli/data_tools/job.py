"""Writing shard folders: shard by shard, resumable, the same bytes after any number of interruptions.

A source is a list of positions, a shard holds what became of a fixed range of them. So each shard is a pure function
of the plan, whoever makes it and when: any number of processes, on any number of machines, may share the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vq3dcli.data.shard_format import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    PLAN_NAME,
    REJECTS_NAME,
    SUMS_NAME,
    Manifest,
    RejectEntry,
)
from vq3dcli.data_tools.claim import claimed
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import (
    Make,
    Reject,
    Sample,
    ShardResult,
    ShardTask,
    compact_json,
    complete_shard,
    found_shard,
    json_bytes,
)
from vq3dcli.data_tools.workers import run_tasks
from vq3dcli.errors import DataError, UsageError
from vq3dcli.files import make_folder, sha256_bytes, write_bytes

__all__ = [
    "Job",
    "Reject",
    "Sample",
    "compact_json",
    "json_bytes",
    "rejects_text",
    "shard_ranges",
    "sums_text",
    "write_folder",
    "write_part",
]

_OURS = re.compile(r"shard-\d{6,}\.(tar|index\.json)|plan\.json|manifest\.json|rejects\.jsonl|SHA256SUMS")

# Each is two files of a folder, and some hundred bytes of the manifest.
_MOST_SHARDS = 10**5


@dataclass(frozen=True)
class Job:
    """A shard folder to be made.

    Attributes:
        kind: `images` or `disparity`.
        preset: See `Manifest`.
        image_size: Side of the training images in pixels.
        margin: Stored side over `image_size`.
        own_disparity: Whether samples carry their own disparity.
        views: See `Manifest`.
        class_names: By class index.
        class_titles: See `Manifest`.
        shards: Source positions of each shard, from 0 on without gaps.
        plan: JSON values that the bytes depend on; a run into the same folder must have the same.
        make: Samples and rejects of the positions in a range, in order.
        portable: What makes the samples of one shard's positions, small enough to be sent to another process;
            None: the work is always done in this process.
        max_bad: Fraction of the positions that may be rejected as bad.
        num_sources: What that is a fraction of, where the positions are not the source's files.
        known_rejects: Rejects that are known before any shard is made; `make` gives them too.
    """

    kind: Literal["images", "disparity"]
    preset: str
    image_size: int
    margin: float
    own_disparity: bool
    class_names: list[str]
    shards: list[range]
    plan: dict[str, Any]
    make: Make
    class_titles: list[str] = field(default_factory=list)
    portable: Callable[[range], Make] | None = None
    max_bad: float = 0.0
    views: int = 0
    num_sources: int | None = None
    known_rejects: Sequence[Reject] = ()

    @property
    def num_positions(self) -> int:
        """Length of the source."""
        return self.shards[-1].stop if self.shards else 0


def shard_ranges(num_positions: int, shard_size: int) -> list[range]:
    """Source positions of each shard, `shard_size` in all but the last. Raises `UsageError` for too many shards."""
    if num_positions > shard_size * _MOST_SHARDS:
        raise UsageError(
            f"{-(-num_positions // shard_size):,} shards of {shard_size} samples, more than {_MOST_SHARDS:,}",
            remedy=f"--shard-size {-(-num_positions // _MOST_SHARDS)} or more",
        )
    starts = range(0, num_positions, shard_size)
    return [range(start, min(start + shard_size, num_positions)) for start in starts]


def write_folder(
    out: Path, job: Job, *, force: bool, progress: Callable[[int, int], None], workers: int = 1
) -> Manifest:
    """Make the shard folder `out`, or finish what an earlier call began; see `write_part`."""
    manifest = write_part(out, job, WHOLE, force=force, progress=progress, workers=workers)
    assert manifest is not None
    return manifest


def write_part(
    out: Path, job: Job, part: Part, *, force: bool, progress: Callable[[int, int], None], workers: int = 1
) -> Manifest | None:
    """Make one part of the shard folder `out`, or finish what an earlier call began.

    Shards that are complete are kept, after their hash was checked. The manifest is written last, by the part that
    ends last, and before it the hashes of all files.

    Args:
        force: Delete an existing shard folder that was made with another plan.
        progress: Called with (positions done, positions of this part).
        workers: Processes that make shards.

    Returns:
        None while other parts have work left.

    Raises:
        UsageError: `out` holds something else, or another plan without `force`.
        DataError: More than `max_bad` rejects; they are in `rejects.jsonl`.
        StoppedError: Another process is writing there, or a worker was killed.
        OutputError, StorageError: It cannot be written.
    """
    make_folder(out)
    plan = json_bytes({"format_version": FORMAT_VERSION, **job.plan})
    with claimed(out, part, plan, ours=_OURS, force=force):
        _check_budget(out, [RejectEntry(path=r.path, reason=r.reason, kind=r.kind) for r in job.known_rejects], job)
        results = _make_shards(out, job, part, sha256_bytes(plan), progress, workers)
        for number in range(len(job.shards)):
            found = results.get(number) or found_shard(out, number, sha256_bytes(plan))
            if found is None:
                return None
            results[number] = found
        rejects = _rejects(results)
        _check_budget(out, rejects, job)
        _write_rejects(out, rejects)
        manifest = _manifest(job, results, len(rejects))
        text = json_bytes(manifest.model_dump(mode="json", exclude_defaults=True))
        write_bytes(out / SUMS_NAME, sums_text(_sums(manifest, plan, rejects, text)))
        write_bytes(out / MANIFEST_NAME, text)
        return manifest


def _make_shards(
    out: Path, job: Job, part: Part, plan_sha256: str, progress: Callable[[int, int], None], workers: int
) -> dict[int, ShardResult]:
    """The shards of a part by number. What was there before counts as done at once, and not for the speed."""
    numbers = [number for number in range(len(job.shards)) if part.has(number)]
    total = sum(len(job.shards[number]) for number in numbers)
    there = {number for number in numbers if found_shard(out, number, plan_sha256) is not None}
    done = before = sum(len(job.shards[number]) for number in there)
    progress(done, total)

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)  # a shard that proves to be damaged is made a second time
        progress(done, total)

    tasks = (
        ShardTask(out, number, job.shards[number], plan_sha256, job.portable(job.shards[number]))
        if job.portable is not None and workers > 1
        else ShardTask(out, number, job.shards[number], plan_sha256, job.make)
        for number in numbers
    )
    processes = 1 if job.portable is None else max(1, min(workers, len(numbers)))
    results: dict[int, ShardResult] = {}
    for result in run_tasks(complete_shard, tasks, workers=processes, advance=advance):
        results[result.number] = result
        _check_budget(out, _rejects(results), job)
    if before < total:
        progress(total, total)
    return results


def _rejects(results: dict[int, ShardResult]) -> list[RejectEntry]:
    return [reject for number in sorted(results) for reject in results[number].rejects]


def _manifest(job: Job, results: dict[int, ShardResult], num_rejects: int) -> Manifest:
    entries = [results[number].entry for number in sorted(results)]
    return Manifest(
        format_version=FORMAT_VERSION,
        kind=job.kind,
        preset=job.preset,
        image_size=job.image_size,
        margin=job.margin,
        own_disparity=job.own_disparity,
        views=job.views,
        num_samples=sum(entry.samples for entry in entries),
        num_rejects=num_rejects,
        class_names=job.class_names,
        class_titles=job.class_titles,
        options=job.plan,
        shards=entries,
    )


def rejects_text(rejects: list[RejectEntry]) -> bytes:
    """The bytes of `rejects.jsonl`."""
    return b"".join(compact_json(reject.model_dump(exclude_defaults=True)) + b"\n" for reject in rejects)


def sums_text(sha256_by_name: dict[str, str]) -> bytes:
    """The bytes of `SHA256SUMS`, for `sha256sum --check`."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sha256_by_name.items())).encode()


def _sums(manifest: Manifest, plan: bytes, rejects: list[RejectEntry], text: bytes) -> dict[str, str]:
    sums = {
        PLAN_NAME: sha256_bytes(plan),
        REJECTS_NAME: sha256_bytes(rejects_text(rejects)),
        MANIFEST_NAME: sha256_bytes(text),
    }
    for shard in manifest.shards:
        sums |= {f"{shard.name}.tar": shard.sha256, f"{shard.name}.index.json": shard.index_sha256}
    return sums


def _write_rejects(out: Path, rejects: list[RejectEntry]) -> None:
    write_bytes(out / REJECTS_NAME, rejects_text(rejects))


def _check_budget(out: Path, rejects: list[RejectEntry], job: Job) -> None:
    bad = [reject for reject in rejects if reject.kind == "bad"]
    total = job.num_positions if job.num_sources is None else job.num_sources
    if len(bad) <= job.max_bad * total:
        return
    _write_rejects(out, rejects)
    raise DataError(
        f"{len(bad)} of {total} files are bad, more than the allowed {job.max_bad:.1%} "
        f"({out / REJECTS_NAME}), the first: {bad[0].path}: {bad[0].reason}",
        remedy="mend or remove these files, or raise --max-bad",
    )
