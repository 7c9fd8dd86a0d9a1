"""The folder of a resumable job: it belongs to a plan, and only the same plan may continue it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vq3dcli.data.shard_format import MANIFEST_NAME, PLAN_NAME
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import UsageError
from vq3dcli.files import check_kind, remove_leftovers, write_bytes, write_error
from vq3dcli.locks import LOCK_NAME, busy_error, lock_folder, open_lock, try_lock
from vq3dcli.sealed import json_value

_PART_LOCK = re.compile(r"\.part-\d+-of-\d+\.lock")
# Others have manifests, sums and tars called shard-000000, too.
_ONLY_OURS = (".index.json", ".u16", ".i32")
_WAIT_SECONDS = 60.0
_TURN_SECONDS = 0.2
# A name that goes with the locks of the parts.
_TURN_LOCK = ".part-0-of-0.lock"


def claim_folder(out: Path, plan: bytes, *, ours: re.Pattern[str], force: bool) -> None:
    """Check that `out` is new or made with the same plan; write the plan; remove what a killed run left.

    Args:
        out: An existing folder.
        plan: JSON of all that the result depends on.
        ours: Names of files that the job makes; others in the folder are left alone.
        force: Delete what was made with another plan of the same kind.

    Raises:
        UsageError: The folder was made with another plan, and `force` is not given; it is another command's; or it
            holds such names without a plan, or with one of another kind.
        OutputError, StorageError: It cannot be written.
    """
    check_kind(out, PLAN_NAME)
    try:
        remove_leftovers(out)
        found = [path.name for path in out.iterdir() if ours.fullmatch(path.name)]
        old = (out / PLAN_NAME).read_bytes() if PLAN_NAME in found else None
        if old == plan:
            return
        if found and old is None:
            raise UsageError(
                f"holds {min(found)}, which this command did not make, or its plan.json is missing ({out})",
                remedy="another folder",
            )
        if _of_another_kind(old, plan, found):
            raise UsageError(f"holds something else, or is of another version ({out})", remedy="another folder")
        if found and not force:
            raise UsageError(
                f"made with other options ({out}): {_difference(old, plan)}", remedy="--force, or another folder"
            )
        # The manifest goes first: what is left of a half-deleted folder is never taken for a finished one.
        for name in sorted(found, key=lambda name: (name != MANIFEST_NAME, name == PLAN_NAME)):
            (out / name).unlink()
    except OSError as error:
        raise write_error(out, error) from error
    write_bytes(out / PLAN_NAME, plan)


def _of_another_kind(old: bytes | None, new: bytes, found: list[str]) -> bool:
    """Whether two plans have few keys in common: a command never deletes what another one, or a user, made.

    A damaged plan is one of ours where it lies beside what only we write.
    """
    if old is None:
        return False
    try:
        before, after = json_value(old), json_value(new)
    except ValueError:
        return not any(name.endswith(_ONLY_OURS) for name in found)
    return not isinstance(before, dict) or 2 * len(before.keys() & after.keys()) < len(before.keys() | after.keys())


@contextlib.contextmanager
def claimed(out: Path, part: Part, plan: bytes, *, ours: re.Pattern[str], force: bool) -> Iterator[None]:
    """As `claim_folder`, and held while the work lasts: alone, or for one of several parts at the same time.

    Parts hold the folder's lock together, and each the lock of its part. Only one that is alone may delete.

    Raises:
        StoppedError: A process that writes all parts, or one that writes the same part, is at work.
    """
    if part == WHOLE:
        with lock_folder(out):
            claim_folder(out, plan, ours=ours, force=force)
            yield
        return
    with lock_folder(out, f".part-{part.index + 1}-of-{part.count}.lock"), open_lock(out / LOCK_NAME) as lock:
        if try_lock(lock):
            claim_folder(out, plan, ours=ours, force=force)
        _share(out, lock)
        # Another process may have claimed the folder with another plan in the moment between the two locks.
        found = (out / PLAN_NAME).read_bytes() if (out / PLAN_NAME).exists() else None
        if found != plan:
            if force:
                raise busy_error(out)
            raise UsageError(
                f"made with other options ({out}): {_difference(found, plan)}", remedy="--force, or another folder"
            )
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
    with open_lock(out / _TURN_LOCK) as lock:
        while not try_lock(lock):
            time.sleep(_TURN_SECONDS)
        yield


def _share(out: Path, lock: IO[str]) -> None:
    """Wait for the moment that others need to claim the folder, then hold it with them."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not try_lock(lock, shared=True):
        if time.monotonic() > deadline:
            raise busy_error(out)
        time.sleep(0.2)


def _difference(old: bytes | None, new: bytes) -> str:
    """The options in which two plans differ, for a message."""
    try:
        before, after = json_value(old or b""), json_value(new)
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    except (ValueError, AttributeError):
        return "its plan.json is missing or damaged"
    return ", ".join(f"{n} was {_short(before.get(n))}, is {_short(after.get(n))}" for n in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
