"""What is around the steps of trainings of all kinds: folder, checkpoints, records, sheets, alarms, a tracker.

A stage's file has the loop; see `stage1.train`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import torch

from vq3dcli.config.schema import Recipe, ScheduleSection
from vq3dcli.data.ahead import ahead, pinned
from vq3dcli.errors import DivergedError, RecipeError, StoppedError, Vq3dError
from vq3dcli.files import atomic_path
from vq3dcli.training.arithmetic import denormals_flushed
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.health import guards_of, replay
from vq3dcli.training.optim import is_due
from vq3dcli.training.run_folder import Checkpoint, RunFolder
from vq3dcli.training.state import RunState
from vq3dcli.training.trackers import Tracker, open_tracker
from vq3dcli.weights_file import TokenFacts, save_weights, weights_header

_log = logging.getLogger(__name__)

Item = TypeVar("Item")

# Figures of the machine: the same run gives the same file on any of its kind.
MACHINE_FIGURES = ("images_per_second", "data_wait", "peak_memory_gb", "mfu")
# Steps before a profile, in which libraries settle.
_SETTLING = 3
# One odd batch is passed over; so many in a row are no accident of the data.
MOST_IN_A_ROW = 5


class Progress(NamedTuple):
    """What a caller may show after a step: images, their speed over the last interval, the step's loss (or NaN)."""

    images_seen: int
    total_images: int
    images_per_second: float
    loss: float


class RunOptions(TypedDict, total=False):
    """Who hears of a run, and when it stops before its end."""

    report: Callable[[Progress], None]  # called after each step
    # called on the first rank after each sheet, and when the run ends, however it ends
    refresh_page: Callable[[], object]
    should_stop: Callable[[], bool]  # polled after each step; when true, the run is saved and `StoppedError` raised
    stop_after_images: int | None  # stop as if asked to after this many images
    # of an images seen, how many images a second all processors together could take at their peak
    full_speed: Callable[[int], float] | None
    profile_steps: int  # write a trace of so many steps of the first rank, `profile.json.gz`, after the first few


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


def require_whole_batches(schedule: ScheduleSection, ranks: Ranks) -> None:
    """Raise `RecipeError` unless the batch divides among ranks and micro-batches."""
    micro_batches = schedule.accumulate * ranks.world_size
    if schedule.batch_size % micro_batches:
        raise RecipeError(
            f"training.batch_size ({schedule.batch_size}) does not divide into {ranks.world_size} ranks x "
            f"{schedule.accumulate} micro-batches",
            remedy=f"--set training.batch_size={max(schedule.batch_size // micro_batches, 1) * micro_batches}, or "
            "another number of ranks",
        )


class Run:
    """What is around the steps of a run: its folder, its checkpoints, and all who hear of it.

    Only the first rank writes; what all ranks must call is said so.

    Args:
        tokens: What a prior's codes are.
        **options: Who hears of the run, and when it stops.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        device: torch.device,
        ranks: Ranks,
        tokens: TokenFacts | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        self.recipe, self.folder, self.device, self.ranks = recipe, RunFolder(out), device, ranks
        self.report: Callable[[Progress], None] = options.get("report", lambda progress: None)
        self.refresh_page = options.get("refresh_page", lambda: None)
        self.should_stop = options.get("should_stop", lambda: False)
        self.stop_after_images, self.tokens = options.get("stop_after_images"), tokens
        self.full_speed, self.profile_steps = options.get("full_speed"), options.get("profile_steps", 0)
        self.state: RunState[Any]
        self.draw: Callable[[Path, Any], object] | None = None
        self.tracker: Tracker | None = None
        self.profiler: Any = None
        self.rate = self.waited = 0.0

    @contextlib.contextmanager
    def opened(self, facts: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder, with denormals flushed, and close the tracker in the end; errors as `RunFolder.opened`."""
        lock = self.folder.opened(self.recipe, facts) if self.ranks.is_main else contextlib.nullcontext()
        with lock, denormals_flushed():
            self.ranks.barrier()
            try:
                yield
            except BaseException:
                self._close(failed=True)
                raise
            self._close(failed=False)

    def start(
        self,
        state: RunState[Any],
        checkpoint: Checkpoint | None,
        draw: Callable[[Path, Any], object] | None,
        bad: dict[str, str] | None = None,
    ) -> None:
        """Begin at a state, or at the checkpoint that it continues; on all ranks.

        Args:
            state: All that a step depends on.
            checkpoint: What to restore it from.
            draw: Writes a contact sheet to a path, of the average.
            bad: Damaged samples as `TrainingLoader.bad`: those that the run knows come to it, its own are recorded.

        Raises:
            DataError: The checkpoint is of another model.
            UnavailableError: The tracker is not installed.
        """
        self.state, self.draw, self.bad = state, draw, {} if bad is None else bad
        if checkpoint is not None:
            state.restore(checkpoint)
            self.bad |= self.folder.bad_samples()
            if any(change["images_seen"] >= state.images_seen for change in self.folder.changes()):
                state.skipped_in_a_row = 0  # with another learning rate or clip the row begins anew
        self._interval, self.saved_images = (time.perf_counter(), state.images_seen), state.images_seen
        schedule, seen = self.recipe.training, state.images_seen
        if self.ranks.is_main:
            self._start_records(checkpoint)
        due = seen >= schedule.images or is_due(schedule.sheet_every_images, seen, schedule.batch_size)
        missing = bool(seen) and due and self.tracker is not None and not self._sheet_path().exists()
        if self.ranks.any(missing, self.device):  # the run was killed between a checkpoint and its sheet
            self.sheet()

    def _start_records(self, checkpoint: Checkpoint | None) -> None:
        threads = torch.get_num_threads()
        if checkpoint is not None and self.device.type == "cpu" and checkpoint.manifest.get("threads") != threads:
            _log.warning(
                "the run used %s threads and now has %d: it continues, but not to the same bits",
                checkpoint.manifest.get("threads"),
                threads,
            )
        schedule, seen = self.recipe.training, self.state.images_seen
        self.folder.forget_metrics_after(seen)
        self.health, _ = replay(self.folder.all_metrics(), guards_of(self.recipe))
        self.tracker = open_tracker(
            schedule.tracker, self.folder.path, images_seen=seen, config=json.loads(self.recipe.model_dump_json())
        )
        if 0 < seen < schedule.images:
            _log.info("continuing at %d images", seen)
        if self.profile_steps:
            steps = torch.profiler.schedule(wait=_SETTLING - 1, warmup=1, active=self.profile_steps, repeat=1)
            self.profiler = torch.profiler.profile(schedule=steps, on_trace_ready=self._write_profile)
            self.profiler.start()

    def waited_for(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The batches, for a GPU in pinned memory; how long the run waits for them is counted; on all ranks.

        Where one rank can get no more, what was done so far is saved before it raises that error.
        """
        if self.device.type == "cuda":
            batches = ahead(pinned, batches, threads=1, most=2)
        while True:
            start, failed = time.perf_counter(), None
            try:
                batch = next(batches)
            except Vq3dError as error:
                failed = error
            self.waited += time.perf_counter() - start
            if self.ranks.any(failed is not None, self.device):
                if self.state.images_seen > self.saved_images:
                    self.save()
                if failed is None:
                    self.ranks.barrier()  # which the one that failed never reaches: `training.fate` ends us
                assert failed is not None
                raise failed
            yield batch

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
        if self.profiler is not None:
            self.profiler.step()
        done, last = seen >= schedule.images, self.stop_after_images
        asked = self.should_stop() or (last is not None and seen >= last and not done)
        # A signal may reach the ranks at different steps: all of them stop as soon as one is asked to.
        stop = self.ranks.any(asked, self.device)

        def passes(every: int) -> bool:
            return done or is_due(every, seen, schedule.batch_size)

        return Due(
            log=passes(schedule.log_every_images),
            save=stop or passes(schedule.checkpoint_every_images),
            sheet=passes(schedule.sheet_every_images),
            stop=stop,
        )

    def log(self, figures: Mapping[str, Any]) -> None:
        """Write a record, tell the tracker, and warn of figures that left their range; on all ranks."""
        self._share_bad()
        counts = {"skipped_steps": self.state.skipped_steps, "bad_samples": len(self.bad)}
        passed_over = {name: count for name, count in counts.items() if count}
        record = {"images_seen": self.state.images_seen, **figures, **passed_over, **self._machine_figures()}
        self._interval, self.waited = (time.perf_counter(), self.state.images_seen), 0.0
        if self.tracker is None:
            return
        self.folder.log(record)
        self.tracker.log(record)
        for finding in self.health.observe(record):
            _log.log(logging.INFO if finding.recovered else logging.WARNING, "%s", finding.line())

    def _machine_figures(self) -> dict[str, float]:
        """Speed, and of the rank that waits longest, or has most, the share of time without a batch, and memory."""
        wait = self.waited / max(time.perf_counter() - self._interval[0], 1e-9)
        ours = torch.tensor([[wait, peak_bytes(self.device) / 1e9]], device=self.device)
        wait, memory = self.ranks.gather(ours).amax(0).tolist()
        figures = {"images_per_second": round(self.rate, 2), "data_wait": round(wait, 4)}
        figures["peak_memory_gb"] = round(memory, 3)
        if self.full_speed is not None:
            figures["mfu"] = round(self.rate / self.full_speed(self.state.images_seen), 4)
        return figures

    def _share_bad(self) -> None:
        """Let all ranks know the damaged samples that one of them met; the first records and names new ones."""
        if not self.ranks.any(bool(self.bad), self.device):
            return
        for text in self.ranks.gather_texts(json.dumps(dict(self.bad))):
            for name, reason in json.loads(text).items():
                self.bad.setdefault(name, reason)
        if self.ranks.is_main:
            known = self.folder.bad_samples()
            new = {name: reason for name, reason in self.bad.items() if name not in known}
            for reason in new.values():
                _log.warning("a bad sample is passed over, the next of its folder stands in for it: %s", reason)
            if new:
                self.folder.record_bad(known | new)

    def carry_out(self, due: Due) -> None:
        """Save, draw, and end before the last image, where these are due; on all ranks.

        Raises `StoppedError` for an end, and as `save`.
        """
        if due.save:
            self.save()
        if due.sheet:
            self.sheet()
        if due.stop:
            self.ranks.barrier()
            seen, last = self.state.images_seen, self.recipe.training.images
            raise StoppedError(
                f"stopped at {seen} of {last} images, saved ({self.folder.path})",
                remedy="the same command again continues",
            )

    def save(self) -> None:
        """Write a checkpoint; on all ranks.

        Raises `DivergedError` for numbers that are not finite, `OutputError`, `StorageError`.
        """
        parts = self.state.parts(keep=self.ranks.is_main)
        if self.ranks.is_main:
            header = weights_header(self.recipe, self._card(), self.tokens)
            manifest = self.state.manifest(self.recipe)
            self.folder.save(parts, manifest, header, self.recipe.training.keep_checkpoints)
        self.saved_images = self.state.images_seen

    def sheet(self) -> None:
        """Draw a contact sheet, where there is anything to draw; on all ranks."""
        average = self.state.whole_average(self.device, keep=self.ranks.is_main)
        if self.tracker is not None and self.draw is not None:
            self.draw(self._sheet_path(), average)
            self.tracker.image(self._sheet_path(), self.state.images_seen)
            self._refresh()

    def finish(self) -> Result:
        """Export the averaged weights, unless a call before did; on all ranks."""
        average = self.state.whole_average(torch.device("cpu"), keep=self.ranks.is_main)
        sha256 = self.folder.exported(self.state.images_seen) if self.ranks.is_main else ""
        if self.ranks.is_main and not sha256:
            sha256 = save_weights(self.folder.weights, average, self.recipe, self._card(), self.tokens)
        self.ranks.barrier()
        return Result(self.folder.weights, sha256, self.state.images_seen, self.folder.last_metrics())

    def _card(self) -> dict[str, Any]:
        """What weights of this moment say of how they came to be."""
        state, recipe = self.state, self.recipe
        last = self.folder.last_metrics()
        learnt = {name: value for name, value in last.items() if name not in MACHINE_FIGURES}
        card: dict[str, Any] = {"images_seen": state.images_seen, "training": learnt}
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

    def _write_profile(self, profiler: Any) -> None:
        path = self.folder.path / "profile.json.gz"
        with atomic_path(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        _log.info("a profile of some steps, for https://ui.perfetto.dev (%s)", path)

    def _close(self, *, failed: bool) -> None:
        if self.profiler is not None:
            self.profiler.stop()
        if self.tracker is not None:
            self.tracker.close(failed=failed)
            self._refresh()

    def _refresh(self) -> None:
        """A page that cannot be written is a warning: a run of days does not end for it."""
        try:
            self.refresh_page()
        except Exception as error:  # whatever a page meets
            _log.warning("the run's page was not written: %s", " ".join(str(error).split()) or type(error).__name__)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors took of a GPU, or this process of the memory, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
