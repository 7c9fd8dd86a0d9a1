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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image

from vq3dcli.errors import UnavailableError
from vq3dcli.files import make_folder, read_error, write_bytes, write_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)

TrackerKind = Literal["none", "tensorboard", "wandb"]

_WANDB_PROJECT = "vq3d"
# A terminal that nobody looks at must not keep a run waiting for a key.
_WANDB_LOGIN_S = 60


class Tracker(Protocol):
    """What a trainer tells."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Figures by name, one of them `images_seen`; what is neither number nor truth value is passed over."""
        ...

    def image(self, name: str, path: Path, *, images_seen: int) -> None:
        """A picture that has been written, under a name that stays the same over the run."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Write out what is pending, of a run that ended well or failed; nothing may follow."""
        ...


def open_tracker(
    kind: TrackerKind, run: Path, *, images_seen: int = 0, config: Mapping[str, Any] | None = None
) -> Tracker:
    """A tracker of the run in a folder, new or continued; on many GPUs for the first rank alone.

    TensorBoard writes to `RUN/tensorboard`, Weights & Biases to `RUN/wandb`, under the folder's name and, when the
    run continues, the same id. The latter obeys its environment variables: `WANDB_MODE=offline` sends nothing,
    `WANDB_MODE=disabled` does nothing, `WANDB_PROJECT` names another project than `vq3d`.

    Args:
        kind: Which one; `none` gives one that does nothing.
        run: The run's folder.
        images_seen: Where a run continues: TensorBoard forgets what was told after that.
        config: The recipe, JSON values.

    Raises:
        UnavailableError: The package is not installed, or Weights & Biases does not let us in.
        OutputError, StorageError: The folder cannot be created or written.
    """
    if kind == "tensorboard":
        return _Forgiving(kind, _TensorBoard(run, images_seen, config or {}))
    if kind == "wandb":
        return _Forgiving(kind, _Wandb(run, config or {}))
    return _Silent()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a tracker can draw: numbers that are finite, truth values as 0 and 1, without `images_seen`."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "images_seen" and isinstance(value, int | float) and math.isfinite(value)
    }


class _Silent:
    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def image(self, name: str, path: Path, *, images_seen: int) -> None:
        pass

    def close(self, *, failed: bool = False) -> None:
        pass


class _Forgiving:
    """Passes on until the first error, which becomes a warning: a run of days does not end for a curve of it."""

    def __init__(self, kind: str, tracker: Tracker) -> None:
        self._kind, self._tracker, self._broken = kind, tracker, False

    def log(self, record: Mapping[str, Any]) -> None:
        self._try(lambda: self._tracker.log(record))

    def image(self, name: str, path: Path, *, images_seen: int) -> None:
        self._try(lambda: self._tracker.image(name, path, images_seen=images_seen))

    def close(self, *, failed: bool = False) -> None:
        self._try(lambda: self._tracker.close(failed=failed))

    def _try(self, call: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:  # whatever a third party raises
            self._broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.warning("%s stopped: %s; the run goes on, and metrics.jsonl has everything", self._kind, reason)


class _TensorBoard:
    def __init__(self, run: Path, images_seen: int, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard", "TensorBoard") from error
        folder = run / "tensorboard"
        make_folder(folder)
        purge_step = images_seen + 1 if images_seen else None
        try:
            self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)
        except OSError as error:
            raise write_error(folder, error) from error
        if config and not images_seen:
            lines = json.dumps(dict(config), indent=2).splitlines()
            self._writer.add_text("recipe", "\n".join(f"    {line}" for line in lines))  # four spaces: code, not prose

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, int(record["images_seen"]))

    def image(self, name: str, path: Path, *, images_seen: int) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, images_seen, dataformats="HWC")
        self._writer.flush()

    def close(self, *, failed: bool = False) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb", "Weights & Biases") from error
        make_folder(run)
        # The library never prints: no banner, and stdout is not taken over.
        settings = wandb.Settings(silent=True, console="off", save_code=False, login_timeout=_WANDB_LOGIN_S)
        offline = os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")
        try:
            self._run: Any = wandb.init(
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
        self._image = wandb.Image
        # Not wandb's own step, which may only rise: a run that continues repeats what came after its checkpoint.
        self._run.define_metric("images_seen")
        self._run.define_metric("*", step_metric="images_seen")

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log({"images_seen": int(record["images_seen"]), **scalars(record)})

    def image(self, name: str, path: Path, *, images_seen: int) -> None:
        self._run.log({"images_seen": images_seen, name: self._image(str(path))})

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


def _wandb_id(path: Path) -> str:
    """The id that a run has kept since its first start. Raises `StorageError`."""
    if not path.exists():
        write_bytes(path, f"{secrets.token_hex(8)}\n".encode())
    try:
        return path.read_text().strip()
    except OSError as error:
        raise read_error(path, error) from error


def _not_installed(extra: str, name: str) -> UnavailableError:
    return UnavailableError(f"{name} is not installed", remedy=f'pip install "vq3d[{extra}]", or training.tracker=none')
