"""A run's folder: its lock, its resolved recipe, its metrics, its checkpoints.

```
RUN/recipe.toml  run.json  metrics.jsonl  sheets/  checkpoints/images-000012800/  weights.safetensors
```
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vq3dcli.checkpoint import Parts, newest_whole, read_checkpoint, saved_checkpoints, write_checkpoint
from vq3dcli.config.load import dump_recipe, flat, kind_of, load_recipe, read_toml
from vq3dcli.config.schema import Recipe
from vq3dcli.errors import DataError, DivergedError, RecipeError, UsageError, Vq3dError
from vq3dcli.files import check_kind, make_folder, read_error, write_bytes, write_error, write_json
from vq3dcli.locks import LOCK_NAME, lock_folder
from vq3dcli.sealed import json_value
from vq3dcli.tensor_file import first_not_finite, read_tensors
from vq3dcli.training.distributed import Ranks

_log = logging.getLogger(__name__)


# Keys that may change between two calls of the same run: they change what is written, not what is learnt.
_FREE_KEYS = {
    f"training.{name}"
    for name in (
        *("log_every_images", "sheet_every_images", "checkpoint_every_images", "keep_checkpoints", "tracker"),
        *("checkpoint_activations", "shard"),  # the same gradients
        "max_bad",
    )
}
# Keys that may change where a run could not go on, for want of memory or because it diverged, or is to be of another
# length; the run records it.
_RECORDED_KEYS = {
    *("training.images", "training.accumulate", "training.compile"),
    *("training.learning_rate", "training.final_learning_rate_factor"),
    *("training.gradient_clip", "adversarial.learning_rate", "adversarial.r1"),
}
_CHANGES, _BAD = "changes", "bad_samples"
_OWN_FILES = ("recipe.toml", "run.json", "metrics.jsonl")
CALMER = "the same command with --set of a lower training.learning_rate or training.gradient_clip"
"""What to do about a run that diverges: it goes on from its last checkpoint."""


class Checkpoint(NamedTuple):
    """A checkpoint that is whole: where it is, its tensors by part, read when asked for, and its JSON values."""

    folder: Path
    parts: Parts
    manifest: Mapping[str, Any]


class RunFolder:
    """The files of one run. Hold it open with `opened` so that no second run writes here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.sheets = path / "sheets"
        self.weights = path / "weights.safetensors"

    @contextlib.contextmanager
    def opened(self, recipe: Recipe, facts: Mapping[str, Any]) -> Iterator[None]:
        """Create and lock the folder, and record or compare the recipe and `facts`, JSON values such as data hashes.

        A run that fails before its first step leaves nothing behind; one that fails later says what is left.

        Raises:
            StoppedError: Another run holds the folder.
            UsageError: The folder holds what another command made, or a recipe of the user's.
            RecipeError: The folder belongs to a run with another recipe or other data, and something of it was saved.
            DataError: What the folder records is damaged.
        """
        check_kind(self.path, "run.json")
        is_run = (self.path / "run.json").exists() or self._kept()
        if (self.path / "recipe.toml").exists() and not is_run:
            raise UsageError(f"the run would replace a recipe that is no run's ({self.path})", remedy="another --out")
        was_there = self.path.exists()
        make_folder(self.path)
        with lock_folder(self.path):
            try:
                make_folder(self.checkpoints)
                make_folder(self.sheets)
                self._compare(recipe, facts)
                yield
            except BaseException:
                self._give_up(was_there)
                raise

    def _give_up(self, was_there: bool) -> None:
        """Remove the traces of a run that never took a step; say so where one did and nothing is saved."""
        if self._kept():
            return
        if self.metrics.exists() and self.metrics.stat().st_size:
            _log.warning("nothing is saved yet (%s): the same command starts from the first image", self.path)
            return
        with contextlib.suppress(OSError):
            for name in (*_OWN_FILES, *(() if was_there else ("report.html",)), LOCK_NAME):
                (self.path / name).unlink(missing_ok=True)
            for folder in (self.sheets, self.checkpoints, *(() if was_there else (self.path,))):
                folder.rmdir()

    def _compare(self, recipe: Recipe, facts: Mapping[str, Any]) -> None:
        recipe_path, facts_path = self.path / "recipe.toml", self.path / "run.json"
        changes: list[dict[str, Any]] = []
        bad: dict[str, str] = {}
        if self._kept() and recipe_path.exists() and facts_path.exists():
            changed, allowed = _differences(_recorded_recipe(recipe_path, type(recipe)), recipe)
            recorded = _read_facts(facts_path)
            changes, bad = recorded.pop(_CHANGES, []), recorded.pop(_BAD, {})
            changes += [{"images_seen": self.saved_images(), **change} for change in allowed]
            names = dict.fromkeys([*recorded, *facts])
            changed += [f"{k}: {recorded.get(k)} -> {facts.get(k)}" for k in names if recorded.get(k) != facts.get(k)]
            if changed:
                raise RecipeError(
                    f"the run was started otherwise ({self.path}): {'; '.join(changed)}",
                    remedy="the same command as before, or another --out",
                )
        recorded = {**facts, **({_CHANGES: changes} if changes else {}), **({_BAD: bad} if bad else {})}
        write_json(facts_path, recorded)
        write_bytes(recipe_path, dump_recipe(recipe).encode())

    def _kept(self) -> bool:
        return self.weights.exists() or bool(saved_checkpoints(self.checkpoints))

    def exported(self, images_seen: int) -> str:
        """The hash of the weights that a call before exported; empty unless they are whole, and of so many images."""
        try:
            header, _, sha256 = read_tensors(self.weights, what="weights")
            if header["card"]["images_seen"] != images_seen:
                return ""
        except (Vq3dError, KeyError, TypeError):
            return ""
        _log.info("the run was finished before: its weights stay as they are (%s)", self.weights)
        return sha256

    def changes(self) -> list[dict[str, Any]]:
        """Which keys of the recipe changed on the way: `images_seen`, `key`, `before` and `after` of each."""
        return list(_read_facts(self.path / "run.json").get(_CHANGES, []))

    def bad_samples(self) -> dict[str, str]:
        """Names of damaged samples that the run passed over, and what is wrong with them."""
        return dict(_read_facts(self.path / "run.json").get(_BAD, {}))

    def record_bad(self, bad: Mapping[str, str]) -> None:
        """Write down the damaged samples that the run passed over."""
        facts = self.path / "run.json"
        write_json(facts, {**_read_facts(facts), _BAD: bad})

    def save(
        self,
        parts: Mapping[str, Mapping[str, Tensor]],
        manifest: Mapping[str, Any],
        header: Mapping[str, Any],
        keep: int,
    ) -> None:
        """Write a checkpoint, whose average is a weights file with `header`; delete all but the newest `keep`.

        Raises `DivergedError`: a number is not finite: nothing was written, and the checkpoint before is the newest.
        """
        images_seen = manifest["images_seen"]
        for stem, tensors in parts.items():
            if name := first_not_finite(tensors):
                raise DivergedError(
                    f"{stem}/{name} is not finite at {images_seen} images: no checkpoint was written ({self.path})",
                    remedy=CALMER,
                )
        write_checkpoint(self.checkpoints / f"images-{images_seen:012d}", parts, manifest, header)
        for old in saved_checkpoints(self.checkpoints)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, ranks: Ranks) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning. None in a new run.

        The first rank reads every byte to choose it.

        Raises `DataError`: there are checkpoints, but all are damaged.
        """
        newest = newest_whole(self.checkpoints) if ranks.is_main else None
        name = ranks.gather_texts("" if newest is None else newest.name)[0]
        folder = self.checkpoints / name
        return Checkpoint(folder, *read_checkpoint(folder, check=())) if name else None

    def saved_images(self) -> int:
        """Images seen at the newest checkpoint, 0 in a new run or without a folder."""
        saved = saved_checkpoints(self.checkpoints)
        return int(saved[-1].name.removeprefix("images-")) if saved else 0

    def forget_metrics_after(self, images_seen: int) -> None:
        """Drop the lines that a run wrote after its last checkpoint, and half a line that a crash left."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                if json_value(line)["images_seen"] <= images_seen:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_bytes(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def all_metrics(self) -> list[dict[str, Any]]:
        """All lines of the metrics; empty in a new run."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return [json_value(line) for line in lines]

    def last_metrics(self) -> dict[str, Any]:
        """The newest line of the metrics; empty in a new run."""
        return dict((self.all_metrics() or [{}])[-1])

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the metrics; JSON has no word for figures that are not finite, which are left out."""
        finite = {name: value for name, value in record.items() if not isinstance(value, float) or math.isfinite(value)}
        try:
            with self.metrics.open("a") as handle:
                handle.write(json.dumps(finite, allow_nan=False) + "\n")
        except OSError as error:
            raise write_error(self.metrics, error) from error


def _recorded_recipe(path: Path, schema: type[Recipe]) -> Recipe:
    """The recipe that a run was started with. Raises `RecipeError`."""
    kind = read_toml(path).get("kind")
    if kind != kind_of(schema) and isinstance(kind, str):
        raise RecipeError(f"a run of train-{kind} ({path.parent})", remedy="another --out")
    try:
        return load_recipe(str(path), schema)
    except RecipeError as error:
        raise RecipeError(
            f"the run was started by another version of vq3d, or its recipe was edited ({path})",
            remedy="that version, or another --out",
        ) from error


def _read_facts(path: Path) -> dict[str, Any]:
    """What `run.json` records. Raises `DataError`."""
    try:
        facts = json_value(path.read_bytes())
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(
            f"damaged file ({path}): not a JSON object", remedy="delete it, then the same command as before continues"
        )
    return facts


def _differences(old: Recipe, new: Recipe) -> tuple[list[str], list[dict[str, Any]]]:
    """Keys whose values differ and may not, as `a.b: old -> new`, and those that may, to be recorded."""
    before, after = flat(old.model_dump()), flat(new.model_dump())
    lines, recorded = [], []
    for key, value in after.items():
        if before[key] == value or key in _FREE_KEYS:
            continue
        if key in _RECORDED_KEYS:
            _log.warning("%s: %s -> %s: the run continues, but not to the same bits", key, before[key], value)
            recorded.append({"key": key, "before": before[key], "after": value})
        else:
            lines.append(f"{key}: {before[key]} -> {value}")
    return lines, recorded
