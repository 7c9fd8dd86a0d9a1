"""What the first rank does to show a run: metrics, health warnings, contact sheets, a tracker."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.training.guards import stage1_guards
from vq3dcli.training.health import observe, replay
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.sheets import write_sheet
from vq3dcli.training.trackers import open_tracker

_log = logging.getLogger(__name__)

_SHEET_IMAGES = 6


class Watch:
    """Shows a run as it goes; `close` it in the end.

    Args:
        folder: The run's folder, its metrics cut to `images_seen`.
        recipe: The resolved recipe.
        first: The batch whose first images the sheets show.
        images_seen: Where the run starts or continues.
        on_sheet: Called after each sheet.

    Raises:
        UnavailableError: The tracker that the recipe names is not installed.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Stage1Recipe,
        first: Batch,
        images_seen: int,
        on_sheet: Callable[[], object],
    ) -> None:
        self.folder, self.recipe, self.on_sheet = folder, recipe, on_sheet
        n = _SHEET_IMAGES
        self.batch = replace(first, image=first.image[:n], s=first.s[:n], label_kind=first.label_kind[:n])
        self.guards = stage1_guards(recipe)
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

    def sheet(self, average: Autoencoder, images_seen: int, device: torch.device) -> None:
        """Write a contact sheet of the averaged model."""
        path = self.folder.sheets / f"images-{images_seen:012d}.png"
        batch = self.batch
        write_sheet(path, average, self.recipe, batch.image.to(device), batch.s, batch.label_kind)
        self.tracker.image("sheet", path, images_seen=images_seen)
        self.on_sheet()

    def close(self) -> None:
        """Write out what the tracker holds back."""
        self.tracker.close()
