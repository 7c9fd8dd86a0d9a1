"""The folder of a resumable job: it belongs to a plan, and only the same plan may continue it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vq3dcli.data.schema import MANIFEST_NAME, PLAN_NAME
from vq3dcli.errors import UsageError
from vq3dcli.files import write_bytes, write_error


def claim_folder(out: Path, plan: bytes, *, ours: re.Pattern[str], leftover: re.Pattern[str], force: bool) -> None:
    """Check that `out` is new or made with the same plan; write the plan; remove what a killed run left.

    Args:
        out: An existing folder.
        plan: JSON of all that the result depends on.
        ours: Names of files that the job makes; others in the folder are left alone.
        leftover: Names of temporary files that a killed job leaves.
        force: Delete what was made with another plan of the same kind.

    Raises:
        UsageError: The folder was made with another plan, and `force` is not given, or the plan is of another kind.
        OutputError, StorageError: It cannot be written.
    """
    try:
        names = [path.name for path in out.iterdir()]
        for name in names:
            if leftover.fullmatch(name):
                (out / name).unlink()
        found = [name for name in names if ours.fullmatch(name)]
        old = (out / PLAN_NAME).read_bytes() if PLAN_NAME in found else None
        if old == plan:
            return
        if _of_another_kind(old, plan):
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


def _of_another_kind(old: bytes | None, new: bytes) -> bool:
    """Whether two plans have other keys: a command never deletes what another one made. A damaged plan has no kind."""
    try:
        before, after = json.loads(old or b""), json.loads(new)
    except ValueError:
        return False
    return isinstance(before, dict) and before.keys() != after.keys()


def _difference(old: bytes | None, new: bytes) -> str:
    """The options in which two plans differ, for a message."""
    try:
        before, after = json.loads(old or b""), json.loads(new)
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    except (ValueError, AttributeError):
        return "its plan.json is missing or damaged"
    return ", ".join(f"{n} was {_short(before.get(n))}, is {_short(after.get(n))}" for n in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
