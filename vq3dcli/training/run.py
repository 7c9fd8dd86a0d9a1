"""What trainings of all kinds share: the state that steps change, resuming it, saving it, and all that is told of it.

A stage's file has the loop; see `stage1.train`. Everything that a step depends on lies in `RunState` or is a function
of (seed, purpose, sample index), so that a run continues to the bit.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vq3dcli.config.schema import Recipe, RunSection, ScheduleSection
from vq3dcli.errors import DataError, DivergedError, RecipeError, StoppedError
from vq3dcli.tensor_file import check_tensors
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.arithmetic import denormals_flushed
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.health import guards_of, observe, replay
from vq3dcli.training.optim import is_due, optimizer_tensors, restore_optimizer
from vq3dcli.training.run_folder import CALMER, Checkpoint, RunFolder
from vq3dcli.training.trackers import Tracker, open_tracker
from vq3dcli.weights_file import TokenFacts, save_weights, weights_header

_log = logging.getLogger(__name__)

# One odd batch is passed over; so many in a row are no accident of the data.
MOST_IN_A_ROW = 5
# So many samples of a rank are named where a step cannot be taken.
_NAMED = 8
# Early in a run the half-life of the average is this fraction of the images seen: it forgets the random start.
_RAMP_UP = 0.05

Model = TypeVar("Model", bound=nn.Module)


class Progress(NamedTuple):
    """What a caller may show after a step: images, their speed over the last interval, the step's loss (or NaN)."""

    images_seen: int
    total_images: int
    images_per_second: float
    loss: float


class Result(NamedTuple):
    """How a run ended: its weights, their hash (empty on ranks that do not write them), the last of its metrics."""

    weights: Path
    sha256: str
    images_seen: int
    metrics: Mapping[str, Any]


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    save: bool
    sheet: bool
    stop: bool


@dataclass
class RunState(Generic[Model]):
    """All that a step depends on, and a checkpoint holds.

    Attributes:
        model: What is trained.
        average: Its moving average, which is exported.
        optimizer: Of the model.
        adversary: The discriminators, with their optimizers; Stage 1 alone has them.
        images_seen: Images seen so far.
        chroma: Running mean of the reconstructions' share of their targets' colourfulness, in Stage 1.
        skipped_steps: Steps that were passed over because something was not finite.
        skipped_in_a_row: Since the last step that was taken.
        init_sha256: Hash of the weights that the run started from; empty for a random start.
        init_ancestors: Hashes of those that they started from, the nearest first.
        init_codes_of: Hashes of the weights whose codes mean the same in those that the run started from.
    """

    model: Model
    average: Model
    optimizer: Optimizer
    adversary: Adversary | None = None
    images_seen: int = 0
    chroma: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    init_sha256: str = ""
    init_ancestors: tuple[str, ...] = ()
    init_codes_of: tuple[str, ...] = ()

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors of a checkpoint."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "weights": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        if self.adversary is not None and self.adversary.discriminators:
            parts["adversarial"] = self.adversary.tensors()
        return parts

    def manifest(self, recipe: Recipe) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        stage1 = {
            "chroma": self.chroma,
            "init_ancestors": list(self.init_ancestors),
            "init_codes_of": list(self.init_codes_of),
        }
        return {
            "images_seen": self.images_seen,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "init_sha256": self.init_sha256,
            **(stage1 if self.adversary is not None else {}),
            "recipe": recipe.model_dump(mode="json"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue at a checkpoint, in place. Raises `DataError` where it is of another model, or misses something."""
        folder, parts, manifest = checkpoint
        misfit = f"the checkpoint does not fit this model ({folder})"
        for name, module in (("weights", self.model), ("average", self.average)):
            tensors = parts.get(name, {})
            check_tensors(misfit, module.state_dict(), tensors)
            module.load_state_dict(tensors)
        try:
            restore_optimizer(self.optimizer, self.model, parts["optimizer"])
            self.images_seen, self.init_sha256 = int(manifest["images_seen"]), str(manifest["init_sha256"])
            self.skipped_steps = int(manifest["skipped_steps"])
            self.skipped_in_a_row = int(manifest["skipped_in_a_row"])
            if self.adversary is not None:
                if self.adversary.discriminators:
                    self.adversary.restore(parts["adversarial"])
                self.chroma = float(manifest["chroma"])
                self.init_ancestors = tuple(map(str, manifest["init_ancestors"]))
                self.init_codes_of = tuple(map(str, manifest["init_codes_of"]))
        except (KeyError, ValueError, TypeError) as error:
            remedy = "the version of vq3d that wrote it, or another --out"
            raise DataError(f"{misfit}: {error}", remedy=remedy) from error

    @torch.no_grad()
    def update_average(self, schedule: RunSection) -> None:
        """Move the average towards the model, its half-life in images (Karras et al., CVPR 2024); buffers are copied.

        Buffers are statistics already.
        """
        half_life = min(schedule.ema_half_life_images, self.images_seen * _RAMP_UP)
        keep = 0.5 ** (schedule.batch_size / max(half_life, 1e-8))
        old, new = ([p.detach() for p in module.parameters()] for module in (self.average, self.model))
        torch._foreach_lerp_(old, new, 1.0 - keep)
        for before, after in zip(self.average.buffers(), self.model.buffers(), strict=True):
            before.copy_(after)


def average_of(model: Model) -> Model:
    """A copy of a model that holds its moving average; never trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def require_finite(loss: Tensor, gradient_norm: Tensor, samples: Sequence[str], images_seen: int, ranks: Ranks) -> None:
    """Refuse a non-finite update; every rank sees the same flag, so that all of them do.

    Args:
        loss: Of this rank.
        gradient_norm: Of all ranks' mean gradient.
        samples: Names of this rank's samples, for the message.
        images_seen: Before the step.
        ranks: This process among those of the run.

    Raises:
        DivergedError: A loss or the gradient is not finite.
    """
    finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
    if float(ranks.sum((~finite).float())) > 0:
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        damaged = ranks.gather_texts("" if bool(finite) else ", ".join(samples[:_NAMED]) + more)
        names = "; ".join(text for text in damaged if text)
        raise DivergedError(
            f"the loss is {float(loss)} and the gradient norm {float(gradient_norm)} "
            f"at {images_seen} images (samples {names}); this step was not applied",
            remedy=CALMER,
        )


def require_whole_batches(schedule: ScheduleSection, ranks: Ranks) -> None:
    """Raise `RecipeError` unless the batch divides among ranks and micro-batches."""
    micro_batches = schedule.accumulate * ranks.world_size
    if schedule.batch_size % micro_batches:
        raise RecipeError(
            f"training.batch_size ({schedule.batch_size}) does not divide into {ranks.world_size} ranks x "
            f"{schedule.accumulate} micro-batches",
            remedy=f"--set training.batch_size={max(schedule.batch_size // micro_batches, 1) * micro_batches}",
        )


class Run:
    """What is around the steps of a run: its folder, its checkpoints, and all who hear of it.

    Only the first rank writes; what all ranks must call is said so.

    Args:
        recipe: The resolved recipe.
        out: The run's folder.
        device: Where to train.
        ranks: This process among those of the run.
        report: Called after each step.
        refresh_page: Called on the first rank after each sheet, and when the run ends, however it ends.
        should_stop: Polled after each step.
        stop_after_images: Stop as if asked to after this many images.
        tokens: What a prior's codes are.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        device: torch.device,
        ranks: Ranks,
        report: Callable[[Progress], None] = lambda progress: None,
        refresh_page: Callable[[], object] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        stop_after_images: int | None = None,
        tokens: TokenFacts | None = None,
    ) -> None:
        self.recipe, self.folder, self.device, self.ranks = recipe, RunFolder(out), device, ranks
        self.report, self.refresh_page, self.should_stop = report, refresh_page, should_stop
        self.stop_after_images, self.tokens = stop_after_images, tokens
        self.state: RunState[Any]
        self.draw: Callable[[Path], object] | None = None
        self.tracker: Tracker | None = None
        self.rate = 0.0

    @contextlib.contextmanager
    def opened(self, facts: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder, with denormals flushed, and tell those who hear of the run how it ended; on all ranks.

        Raises:
            StoppedError, UsageError, RecipeError, DataError: As `RunFolder.opened`.
        """
        lock = self.folder.opened(self.recipe, facts) if self.ranks.is_main else contextlib.nullcontext()
        with lock, denormals_flushed():
            self.ranks.barrier()
            try:
                yield
            except BaseException:
                self._close(failed=True)
                raise
            self._close(failed=False)

    def start(self, state: RunState[Any], checkpoint: Checkpoint | None, draw: Callable[[Path], object] | None) -> None:
        """Begin at a state, or at the checkpoint that it continues; `draw` writes a contact sheet.

        Raises:
            DataError: The checkpoint is of another model.
            UnavailableError: The tracker is not installed.
        """
        self.state, self.draw = state, draw
        if checkpoint is not None:
            state.restore(checkpoint)
        self._interval = time.perf_counter(), state.images_seen
        if not self.ranks.is_main:
            return
        threads = torch.get_num_threads()
        if checkpoint is not None and self.device.type == "cpu" and checkpoint.manifest.get("threads") != threads:
            _log.warning(
                "the run used %s threads and now has %d: it continues, but not to the same bits",
                checkpoint.manifest.get("threads"),
                threads,
            )
        schedule, seen = self.recipe.training, state.images_seen
        self.folder.forget_metrics_after(seen)
        self.guards = guards_of(self.recipe)
        self.health, _ = replay(self.folder.all_metrics(), self.guards)
        self.tracker = open_tracker(
            schedule.tracker, self.folder.path, images_seen=seen, config=json.loads(self.recipe.model_dump_json())
        )
        due = seen >= schedule.images or is_due(schedule.sheet_every_images, seen, schedule.batch_size)
        if seen and due and not self._sheet_path().exists():  # the run was killed between a checkpoint and its sheet
            self.sheet()
        if 0 < seen < schedule.images:
            _log.info("continuing at %d images", seen)

    @contextlib.contextmanager
    def skipping(self) -> Iterator[None]:
        """A step that raises `DivergedError` is passed over and counted, the same on all ranks; too many raise it."""
        state = self.state
        try:
            yield
            state.skipped_in_a_row = 0
        except DivergedError as error:
            state.images_seen += self.recipe.training.batch_size
            state.skipped_steps, state.skipped_in_a_row = state.skipped_steps + 1, state.skipped_in_a_row + 1
            if state.skipped_in_a_row >= MOST_IN_A_ROW:
                raise DivergedError(
                    f"{MOST_IN_A_ROW} steps in a row could not be taken: {error.message}", remedy=error.remedy
                ) from error
            if self.ranks.is_main:
                _log.warning("step %d of this run that is skipped: %s", state.skipped_steps, error.message)

    def after_step(self, loss: float) -> Due:
        """Report the step that was taken, and say what is due; on all ranks."""
        schedule, seen = self.recipe.training, self.state.images_seen
        start, before = self._interval
        self.rate = (seen - before) / max(time.perf_counter() - start, 1e-9)
        self.report(Progress(seen, schedule.images, self.rate, loss))
        done = seen >= schedule.images
        late = self.stop_after_images is not None and seen >= self.stop_after_images and not done
        # A signal may reach the ranks at different steps: all of them stop as soon as one is asked to.
        stop = self.ranks.any(self.should_stop() or late, self.device)

        def passes(every: int) -> bool:
            return done or is_due(every, seen, schedule.batch_size)

        return Due(
            log=passes(schedule.log_every_images),
            save=stop or passes(schedule.checkpoint_every_images),
            sheet=passes(schedule.sheet_every_images),
            stop=stop,
        )

    def log(self, figures: Mapping[str, Any]) -> None:
        """Write a record, tell the tracker, and warn of figures that left their range."""
        skipped = {"skipped_steps": self.state.skipped_steps} if self.state.skipped_steps else {}
        speed = {"images_per_second": round(self.rate, 2)}
        record = {"images_seen": self.state.images_seen, **figures, **skipped, **speed}
        self._interval = time.perf_counter(), self.state.images_seen
        if self.tracker is None:
            return
        self.folder.log(record)
        self.tracker.log(record)
        self.health, findings = observe(self.health, record, self.guards)
        for finding in findings:
            _log.log(logging.INFO if finding.recovered else logging.WARNING, "%s", finding.line())

    def save(self) -> None:
        """Write a checkpoint. Raises `DivergedError` for numbers that are not finite, `OutputError`, `StorageError`."""
        if self.ranks.is_main:
            header = weights_header(self.recipe, self._card(), self.tokens)
            manifest = self.state.manifest(self.recipe)
            self.folder.save(self.state.parts(), manifest, header, keep=self.recipe.training.keep_checkpoints)

    def sheet(self) -> None:
        """Draw a contact sheet, where there is anything to draw."""
        if self.tracker is not None and self.draw is not None:
            self.draw(self._sheet_path())
            self.tracker.image(self._sheet_path(), self.state.images_seen)
            self._refresh()

    def stop(self) -> None:
        """End before the last image, once saved; on all ranks. Raises `StoppedError`."""
        self.ranks.barrier()
        raise StoppedError(
            f"stopped at {self.state.images_seen} of {self.recipe.training.images} images, saved ({self.folder.path})",
            remedy="the same command again continues",
        )

    def finish(self) -> Result:
        """Export the averaged weights, unless a call before did; on all ranks."""
        sha256 = self.folder.exported(self.state.images_seen) if self.ranks.is_main else ""
        if self.ranks.is_main and not sha256:
            sha256 = save_weights(self.folder.weights, self.state.average, self.recipe, self._card(), self.tokens)
        self.ranks.barrier()
        return Result(self.folder.weights, sha256, self.state.images_seen, self.folder.last_metrics())

    def _card(self) -> dict[str, Any]:
        """What weights of this moment say of how they came to be."""
        state, recipe = self.state, self.recipe
        last = self.folder.last_metrics()
        last.pop("images_per_second", None)  # the same run gives the same file on any machine of its kind
        card: dict[str, Any] = {"images_seen": state.images_seen, "training": last}
        if changes := self.folder.changes():
            card["changes"] = changes
        if state.init_sha256:
            card["init_sha256"] = state.init_sha256
            if recipe.kind == "stage1":
                card["init_ancestors"] = list(state.init_ancestors)
                if recipe.training.freeze_codes:
                    card["codes_of"] = list(state.init_codes_of)
        return card

    def _sheet_path(self) -> Path:
        return self.folder.sheets / f"images-{self.state.images_seen:012d}.png"

    def _close(self, *, failed: bool) -> None:
        if self.tracker is not None:
            self.tracker.close(failed=failed)
            self._refresh()

    def _refresh(self) -> None:
        """A page that cannot be written is a warning: a run of days does not end for it."""
        try:
            self.refresh_page()
        except Exception as error:  # whatever a page meets
            _log.warning("the run's page was not written: %s", " ".join(str(error).split()) or type(error).__name__)
