"""Trackers beside `metrics.jsonl`: TensorBoard and Weights & Biases, each an extra that is imported only when used.

A tracker never decides whether a run goes on: it fails when it is opened, with what to install, or after that with a
warning, once, and then stays silent. Steps are images seen, names are those of the metrics.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vq3dcli.errors import UnavailableError
from vq3dcli.files import make_folder, read_bytes, write_bytes, write_error

_log = logging.getLogger(__name__)

TrackerKind = Literal["none", "tensorboard", "wandb"]

_WANDB_PROJECT = "vq3d"
# A terminal that nobody looks at must not keep a run waiting for a key.
_WANDB_LOGIN_S = 60


@dataclass
class Tracker:
    """Who is told of a run; the first failure is a warning, and the last word."""

    kind: str  # its name, for the warning
    write_figures: Callable[[int, dict[str, float]], object] | None = None  # takes images seen and figures by name
    write_sheet: Callable[[int, Path], object] | None = None  # takes images seen and the path of a written picture
    end: Callable[[bool], object] | None = None  # writes out what is pending; takes whether the run failed
    silent: bool = False

    def log(self, record: Mapping[str, Any]) -> None:
        """Figures by name, one of them `images_seen`; what is neither number nor truth value is passed over."""
        self._tell(self.write_figures, int(record["images_seen"]), scalars(record))

    def image(self, path: Path, images_seen: int) -> None:
        """A contact sheet."""
        self._tell(self.write_sheet, images_seen, path)

    def close(self, *, failed: bool = False) -> None:
        """The run has ended, well or not; nothing may follow."""
        self._tell(self.end, failed)

    def _tell(self, call: Callable[..., object] | None, *what: object) -> None:
        if call is None or self.silent:
            return
        try:
            call(*what)
        except Exception as error:  # whatever a third party raises
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.warning("%s stopped: %s; the run goes on, and metrics.jsonl has everything", self.kind, reason)
            self.silent = True


def open_tracker(
    kind: TrackerKind, run: Path, *, images_seen: int = 0, config: Mapping[str, Any] | None = None
) -> Tracker:
    """A tracker of the run in a folder, new or continued at `images_seen`; on many GPUs for the first rank alone.

    TensorBoard writes to `RUN/tensorboard`, and forgets what was told after `images_seen`. Weights & Biases writes to
    `RUN/wandb`, under the folder's name and, when the run continues, the same id. It obeys its environment variables:
    `WANDB_MODE=offline` sends nothing, `WANDB_MODE=disabled` does nothing, `WANDB_PROJECT` names another project than
    `vq3d`.

    Raises `UnavailableError`: the package is not installed, or Weights & Biases does not let us in; `OutputError`,
    `StorageError`: the folder cannot be created or written.
    """
    if kind == "tensorboard":
        return _tensorboard(run, images_seen, config or {})
    return _wandb(run, config or {}) if kind == "wandb" else Tracker(kind)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a tracker can draw: numbers that are finite, truth values as 0 and 1, without `images_seen`."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "images_seen" and isinstance(value, int | float) and math.isfinite(value)
    }


def _tensorboard(run: Path, images_seen: int, config: Mapping[str, Any]) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _not_installed("tensorboard", "TensorBoard") from error
    folder = run / "tensorboard"
    make_folder(folder)
    try:
        writer: Any = SummaryWriter(str(folder), purge_step=images_seen + 1 if images_seen else None, flush_secs=30)
    except OSError as error:
        raise write_error(folder, error) from error
    if config and not images_seen:
        lines = json.dumps(dict(config), indent=2).splitlines()
        writer.add_text("recipe", "\n".join(f"    {line}" for line in lines))  # four spaces: code, not prose

    def write_figures(images_seen: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, images_seen)

    def write_sheet(images_seen: int, path: Path) -> None:
        with Image.open(path) as picture:
            writer.add_image("sheet", np.asarray(picture.convert("RGB")), images_seen, dataformats="HWC")
        writer.flush()

    return Tracker("tensorboard", write_figures, write_sheet, lambda failed: writer.close())


def _wandb(run: Path, config: Mapping[str, Any]) -> Tracker:
    try:
        import wandb
    except ImportError as error:
        raise _not_installed("wandb", "Weights & Biases") from error
    make_folder(run)
    # The library never prints: no banner, and stdout is not taken over.
    settings = wandb.Settings(silent=True, console="off", save_code=False, login_timeout=_WANDB_LOGIN_S)
    offline = os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")
    try:
        opened: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _WANDB_PROJECT),
            name=run.resolve().name,
            id=_wandb_id(run / "wandb-id"),
            dir=str(run),
            config=dict(config),
            resume=None if offline else "allow",
            settings=settings,
        )
    except (wandb.Error, OSError) as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"Weights & Biases did not start: {reason}",
            remedy="wandb login, or WANDB_MODE=offline and wandb sync later, or training.tracker=none",
        ) from error
    # Not wandb's own step, which may only rise: a run that continues repeats what came after its checkpoint.
    opened.define_metric("images_seen")
    opened.define_metric("*", step_metric="images_seen")
    return Tracker(
        "wandb",
        lambda images_seen, figures: opened.log({"images_seen": images_seen, **figures}),
        lambda images_seen, path: opened.log({"images_seen": images_seen, "sheet": wandb.Image(str(path))}),
        lambda failed: opened.finish(exit_code=int(failed)),
    )


def _wandb_id(path: Path) -> str:
    """The id that a run has kept since its first start. Raises `StorageError`."""
    if not path.exists():
        write_bytes(path, f"{secrets.token_hex(8)}\n".encode())
    return read_bytes(path).decode().strip()


def _not_installed(extra: str, name: str) -> UnavailableError:
    return UnavailableError(f"{name} is not installed", remedy=f'pip install "vq3d[{extra}]", or training.tracker=none')
