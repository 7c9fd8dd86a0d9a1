"""What the first rank does to show a run: metrics, health warnings, contact sheets, a tracker."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vq3dcli.config.schema import Recipe
from vq3dcli.training.health import Guard, observe, replay
from vq3dcli.training.optim import passed
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.trackers import open_tracker

_log = logging.getLogger(__name__)


class Watch:
    """Shows a run as it goes; `close` it in the end.

    Args:
        folder: The run's folder, its metrics cut to `images_seen`.
        recipe: The resolved recipe.
        guards: What the run is watched for.
        draw: Writes a contact sheet at the path that it is given.
        images_seen: Where the run starts or continues.
        refresh_page: Called after each sheet and in the end.

    Raises:
        UnavailableError: The tracker that the recipe names is not installed.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        guards: Sequence[Guard],
        draw: Callable[[Path], object],
        images_seen: int,
        refresh_page: Callable[[], object],
    ) -> None:
        self.folder, self.recipe, self.guards = folder, recipe, guards
        self.draw, self.refresh_page = draw, refresh_page
        self.health, _ = replay(folder.all_metrics(), self.guards)
        self.tracker = open_tracker(
            recipe.training.tracker, folder.path, images_seen=images_seen, config=json.loads(recipe.model_dump_json())
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to the metrics, tell the tracker, and warn of figures that left their range."""
        self.folder.log(record)
        self.tracker.log(record)
        self.health, findings = observe(self.health, record, self.guards)
        for finding in findings:
            _log.log(logging.INFO if finding.recovered else logging.WARNING, "%s", finding.line())

    def sheet(self, images_seen: int) -> None:
        """Write a contact sheet."""
        path = self._sheet_path(images_seen)
        self.draw(path)
        self.tracker.image("sheet", path, images_seen=images_seen)
        self._refresh()

    def missing_sheet(self, images_seen: int) -> None:
        """Write the sheet that was due at a checkpoint if the run was killed between the two."""
        recipe = self.recipe.training
        due = images_seen >= recipe.images or passed(images_seen, recipe.sheet_every_images, recipe.batch_size)
        if images_seen and due and not self._sheet_path(images_seen).exists():
            self.sheet(images_seen)

    def close(self, *, failed: bool = False) -> None:
        """Write out what the tracker holds back, and the page as the run left it."""
        self.tracker.close(failed=failed)
        self._refresh()

    def _sheet_path(self, images_seen: int) -> Path:
        return self.folder.sheets / f"images-{images_seen:012d}.png"

    def _refresh(self) -> None:
        """A page that cannot be written is a warning: a run of days does not end for it."""
        try:
            self.refresh_page()
        except Exception as error:  # whatever a page meets
            _log.warning("the run's page was not written: %s", " ".join(str(error).split()) or type(error).__name__)
