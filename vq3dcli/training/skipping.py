"""Steps that are not taken because something in them is not finite: counted, told, and too many in a row end a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vq3dcli.errors import DivergedError

_log = logging.getLogger(__name__)

# One odd batch is passed over; so many in a row are no accident of the data.
MOST_IN_A_ROW = 5


@dataclass
class Skipped:
    """How many steps a run passed over.

    Attributes:
        total: Since it began.
        in_a_row: Since the last step that was taken.
    """

    total: int = 0
    in_a_row: int = 0

    def add(self, error: DivergedError, *, told: bool) -> None:
        """Count a step that raised `error`, the same on every rank.

        Args:
            error: What was not finite.
            told: Whether this rank warns.

        Raises:
            DivergedError: There are too many in a row.
        """
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise DivergedError(
                f"{self.in_a_row} steps in a row could not be taken: {error.message}", remedy=error.remedy
            ) from error
        if told:
            _log.warning("step %d of this run that is skipped: %s", self.total, error.message)

    def as_manifest(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped_steps": self.total, "skipped_in_a_row": self.in_a_row}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Skipped:
        """Inverse of `as_manifest`. Raises `KeyError` or `ValueError`."""
        return cls(int(manifest["skipped_steps"]), int(manifest["skipped_in_a_row"]))

    def figures(self) -> dict[str, int]:
        """For a record: nothing until a step is skipped."""
        return {"skipped_steps": self.total} if self.total else {}
