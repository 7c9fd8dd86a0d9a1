"""Resumable jobs: who may write a folder, which part of it, and a shard folder made shard by shard.

A source is a list of positions, and a shard holds what became of a fixed range of them. Each shard is then a function
of the plan alone, whoever makes it and when: any number of processes, on any number of machines, may share the work.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    ShardEntry,
)
from vq3dcli.data.shard_index import open_index
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.shard_writer import (
    Make,
    Sample,
    ShardTask,
    compact_json,
    complete_shard,
    json_bytes,
    known_shard,
)
from vq3dcli.data_tools.workers import run_tasks
from vq3dcli.errors import DataError, UsageError
from vq3dcli.files import check_kind, make_folder, remove_leftovers, sha256_bytes, write_bytes, write_error
from vq3dcli.locks import LOCK_NAME, busy_error, lock_folder, open_lock, try_lock
from vq3dcli.sealed import json_value

Progress = Callable[[int, int], None]
Results = dict[int, tuple[ShardEntry, list[RejectEntry]]]

_OURS = re.compile(r"shard-\d{6,}\.(tar|index\.json)|(plan|manifest)\.json|rejects\.jsonl|SHA256SUMS|index\.columns")
# Each is two files of a folder, and some hundred bytes of the manifest.
_MOST_SHARDS = 10**5
_PART_LOCK = re.compile(r"\.part-\d+-of-\d+\.lock")
TURN_LOCK = ".part-0-of-0.lock"  # a name that goes with the locks of the parts
_POLL_SECONDS = 0.2
_SHARE_SECONDS = 60.0
# Others have manifests, sums and tars called shard-000000, too.
_ONLY_OURS = (".index.json", ".u16", ".i32")


@dataclass(frozen=True)
class Job:
    """A shard folder to be made; `Manifest` describes the fields that it has, too."""

    kind: Literal["images", "disparity"]
    preset: str
    image_size: int
    margin: float
    own_disparity: bool
    class_names: list[str]
    shards: list[range]  # source positions of each shard, from 0 on without gaps
    plan: dict[str, Any]  # JSON values that the bytes depend on; a run into the same folder must have the same
    # what makes the samples and rejects of one shard's positions, in order
    maker_of: Callable[[range], Make]
    class_titles: list[str] = field(default_factory=list)
    portable: bool = False  # whether that is small enough to be sent to another process
    max_bad: float = 0.0  # fraction of the positions that may be rejected as bad
    views: int = 0
    num_sources: int | None = None  # what that is a fraction of, where the positions are not the source's files
    known_rejects: Sequence[RejectEntry] = ()  # rejects that are known before any shard is made, which gives them too

    @property
    def num_positions(self) -> int:
        """Length of the source."""
        return self.shards[-1].stop if self.shards else 0

    def make(self, positions: range) -> Iterable[Sample | RejectEntry]:
        """Samples and rejects of some positions, in order."""
        return self.maker_of(positions)(positions)


def shard_ranges(num_positions: int, shard_size: int) -> list[range]:
    """Source positions of each shard, `shard_size` in all but the last. Raises `UsageError` for too many shards."""
    if num_positions > shard_size * _MOST_SHARDS:
        raise UsageError(
            f"{-(-num_positions // shard_size):,} shards of {shard_size} samples, more than {_MOST_SHARDS:,}",
            remedy=f"--shard-size {-(-num_positions // _MOST_SHARDS)} or more",
        )
    starts = range(0, num_positions, shard_size)
    return [range(start, min(start + shard_size, num_positions)) for start in starts]


def write_part(
    out: Path,
    job: Job,
    part: Part = WHOLE,
    *,
    force: bool = False,
    progress: Progress = lambda done, total: None,
    workers: int = 1,
) -> Manifest | None:
    """Make one part of the shard folder `out`, or finish what an earlier call began; None while others have work left.

    Shards that are complete are kept, after their hash was checked. The manifest is written last, by the part that ends
    last, and before it the hashes of all files. `progress` is called with (positions done, positions of this part).

    Raises `UsageError`: `out` holds something else, or another plan without `force`, which deletes that; `DataError`:
    more than `max_bad` rejects, which are in `rejects.jsonl`; `StoppedError`: another process is writing there, or a
    worker was killed.
    """
    make_folder(out)
    plan = json_bytes({"format_version": FORMAT_VERSION, **job.plan})
    with claimed(out, part, plan, ours=_OURS, force=force):
        _check_budget(out, job.known_rejects, job)
        results = _make_shards(out, job, part, sha256_bytes(plan), progress, workers)
        for number in range(len(job.shards)):
            result = results.get(number) or known_shard(out, number, sha256_bytes(plan))
            if result is None:
                return None
            results[number] = result
        rejects = _rejects(results)
        _check_budget(out, rejects, job)
        write_bytes(out / REJECTS_NAME, rejects_text(rejects))
        entries = [results[number][0] for number in sorted(results)]
        same = ("kind", "preset", "image_size", "margin", "own_disparity", "views", "class_names", "class_titles")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            num_samples=sum(entry.samples for entry in entries),
            num_rejects=len(rejects),
            options=job.plan,
            shards=entries,
            **{name: getattr(job, name) for name in same},
        )
        text = json_bytes(manifest.model_dump(mode="json", exclude_defaults=True))
        sums = {
            PLAN_NAME: sha256_bytes(plan),
            REJECTS_NAME: sha256_bytes(rejects_text(rejects)),
            MANIFEST_NAME: sha256_bytes(text),
            **{f"{shard.name}.tar": shard.sha256 for shard in manifest.shards},
            **{f"{shard.name}.index.json": shard.index_sha256 for shard in manifest.shards},
        }
        # As `sha256sum --check` reads them.
        write_bytes(out / SUMS_NAME, "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())).encode())
        write_bytes(out / MANIFEST_NAME, text)
        open_index(out, manifest, sha256_bytes(text))  # which is kept there: else all who read at once would make it
        return manifest


def _make_shards(out: Path, job: Job, part: Part, plan_sha256: str, progress: Progress, workers: int) -> Results:
    """The shards of a part by number. What was there before counts as done at once, and not for the speed."""
    numbers = [number for number in range(len(job.shards)) if part.has(number)]
    total = sum(len(job.shards[number]) for number in numbers)
    there = [number for number in numbers if known_shard(out, number, plan_sha256) is not None]
    done = before = sum(len(job.shards[number]) for number in there)
    progress(done, total)

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)  # a shard that proves to be damaged is made a second time
        progress(done, total)

    processes = max(1, min(workers, len(numbers))) if job.portable else 1
    tasks = (ShardTask(out, n, job.shards[n], plan_sha256, job.maker_of(job.shards[n])) for n in numbers)
    results: Results = {}
    for number, entry, rejects in run_tasks(complete_shard, tasks, workers=processes, advance=advance):
        results[number] = entry, rejects
        _check_budget(out, _rejects(results), job)
    if before < total:
        progress(total, total)
    return results


def _rejects(results: Results) -> list[RejectEntry]:
    return [reject for number in sorted(results) for reject in results[number][1]]


def rejects_text(rejects: Sequence[RejectEntry]) -> bytes:
    """The bytes of `rejects.jsonl`."""
    return b"".join(compact_json(reject.model_dump(exclude_defaults=True)) + b"\n" for reject in rejects)


def _check_budget(out: Path, rejects: Sequence[RejectEntry], job: Job) -> None:
    bad = [reject for reject in rejects if reject.kind == "bad"]
    total = job.num_positions if job.num_sources is None else job.num_sources
    if len(bad) <= job.max_bad * total:
        return
    write_bytes(out / REJECTS_NAME, rejects_text(rejects))
    raise DataError(
        f"{len(bad)} of {total} files are bad, more than the allowed {job.max_bad:.1%} "
        f"({out / REJECTS_NAME}), the first: {bad[0].path}: {bad[0].reason}",
        remedy="mend or remove these files, or raise --max-bad",
    )


@contextlib.contextmanager
def claimed(out: Path, part: Part, plan: bytes, *, ours: re.Pattern[str], force: bool) -> Iterator[None]:
    """Hold the existing folder `out` for a job with this plan, alone or as one of several parts at the same time.

    Parts hold the folder's lock together, and each the lock of its part. Only one that is alone may delete: what a
    killed run left, and with `force` what was made with another plan of the same kind. `plan` is written to the folder;
    files whose names are not `ours` are left alone.

    Raises `UsageError`: the folder was made with another plan, and `force` is not given; it is another command's; or it
    holds such names without a plan, or with one of another kind. Raises `StoppedError`: a process that writes all
    parts, or one that writes the same part, is at work.
    """
    if part == WHOLE:
        with lock_folder(out):
            _claim(out, plan, ours, force)
            yield
        return
    with lock_folder(out, f".part-{part.index + 1}-of-{part.count}.lock"), open_lock(out / LOCK_NAME) as lock:
        if try_lock(lock):
            _claim(out, plan, ours, force)
        deadline = time.monotonic() + _SHARE_SECONDS
        while not try_lock(lock, shared=True):  # another part is claiming the folder
            if time.monotonic() > deadline:
                raise busy_error(out)
            time.sleep(_POLL_SECONDS)
        # Another process may have claimed the folder with another plan in the moment between the two locks.
        old = (out / PLAN_NAME).read_bytes() if (out / PLAN_NAME).exists() else None
        if old != plan:
            raise busy_error(out) if force else _other_plan(out, old, plan)
        yield
        if try_lock(lock):  # the last one tidies up
            remove_leftovers(out)
            for path in out.iterdir():
                if _PART_LOCK.fullmatch(path.name):
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def own_turn(out: Path, part: Part) -> Iterator[None]:
    """Wait until no other part is in such a block: what needs all parts is then done by one of them."""
    if part == WHOLE:
        yield
        return
    with open_lock(out / TURN_LOCK) as lock:
        while not try_lock(lock):
            time.sleep(_POLL_SECONDS)
        yield


def _claim(out: Path, plan: bytes, ours: re.Pattern[str], force: bool) -> None:
    """Check that the folder is new or made with the same plan, and write the plan; see `claimed`."""
    check_kind(out, PLAN_NAME)
    try:
        remove_leftovers(out)
        there = [path.name for path in out.iterdir() if ours.fullmatch(path.name)]
        old = (out / PLAN_NAME).read_bytes() if PLAN_NAME in there else None
        if old == plan:
            return
        if there and old is None:
            raise UsageError(
                f"holds {min(there)}, which this command did not make, or its plan.json is missing ({out})",
                remedy="another folder",
            )
        if old is not None and _of_another_kind(old, plan, there):
            raise UsageError(f"holds something else, or is of another version ({out})", remedy="another folder")
        if there and not force:
            raise _other_plan(out, old, plan)
        # The manifest goes first: what is left of a half-deleted folder is never taken for a finished one.
        for name in sorted(there, key=lambda name: (name != MANIFEST_NAME, name == PLAN_NAME)):
            (out / name).unlink()
    except OSError as error:
        raise write_error(out, error) from error
    write_bytes(out / PLAN_NAME, plan)


def _of_another_kind(old: bytes, new: bytes, there: list[str]) -> bool:
    """Whether two plans have few keys in common: a command never deletes what another one, or a user, made.

    A damaged plan is one of ours where it lies beside what only we write.
    """
    try:
        before, after = json_value(old), json_value(new)
    except ValueError:
        return not any(name.endswith(_ONLY_OURS) for name in there)
    return not isinstance(before, dict) or 2 * len(before.keys() & after.keys()) < len(before.keys() | after.keys())


def _other_plan(out: Path, old: bytes | None, new: bytes) -> UsageError:
    try:
        before, after = json_value(old or b""), json_value(new)
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        texts = {n: [json.dumps(plan.get(n)) for plan in (before, after)] for n in names}
        short = {n: [t if len(t) <= 40 else f"{t[:37]}..." for t in both] for n, both in texts.items()}
        difference = ", ".join(f"{name} was {was}, is {now}" for name, (was, now) in short.items())
    except (ValueError, AttributeError):
        difference = "its plan.json is missing or damaged"
    return UsageError(f"made with other options ({out}): {difference}", remedy="--force, or another folder")
