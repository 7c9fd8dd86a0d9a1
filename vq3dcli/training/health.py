"""Health guards: figures of the metrics that leave their range, what that likely means and what helps.

Pure functions over records, the mappings that `training/stage1.py` logs. A trainer folds `observe` over them as they
come; a page, or a run that resumes, folds them again with `replay` and reaches the same state.

A guard speaks once, when its figure has been out of range in so many consecutive records, and again only after the
figure has been back for as many. Records that lack the figure, or in which it says nothing yet, do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Record = Mapping[str, Any]

# The share of each new record in a guard's own past, see `Guard.relative`.
_PAST_MOMENTUM = 0.05


@dataclass(frozen=True)
class Guard:
    """A figure, its range, and what to say when it leaves it.

    Attributes:
        name: What is wrong, in a few words; unique among the guards of a run.
        figure: Its key in the records; what a message calls it where `measure` is given.
        measure: The figure of a record, None where the record says nothing; by default the number under its key.
        low: Least healthy value.
        high: Greatest healthy value.
        records: Consecutive records out of range before it speaks, and in range before it has recovered.
        cause: The likely cause.
        remedy: What to try.
        from_images: Not judged before so many images.
        relative: The range is of the ratio to the figure's own past, a geometric running mean.
    """

    name: str
    figure: str
    cause: str
    remedy: str
    low: float = -math.inf
    high: float = math.inf
    records: int = 3
    from_images: int = 0
    relative: bool = False
    measure: Callable[[Record], float | None] | None = None

    def value(self, record: Record) -> float | None:
        """The figure of a record, None where it says nothing."""
        return number(record, self.figure) if self.measure is None else self.measure(record)


@dataclass(frozen=True)
class Finding:
    """A guard's figure left its range, or came back.

    Attributes:
        guard: The guard.
        images_seen: When.
        value: The figure then; of a relative guard its ratio to the past.
        recovered: False when it left, True when it came back.
    """

    guard: Guard
    images_seen: int
    value: float
    recovered: bool = False

    def line(self) -> str:
        """One line for a log: what, since when, the likely cause and the remedy."""
        guard = self.guard
        what = f"{guard.figure} {self.value:.3g}" + (" times its running mean" if guard.relative else "")
        if self.recovered:
            return f"{guard.name}: over at {self.images_seen} images ({what})"
        side, bound = ("below", guard.low) if self.value < guard.low else ("above", guard.high)
        return (
            f"{guard.name}: {what}, {side} {bound:.3g}, in {guard.records} records up to {self.images_seen} images; "
            f"likely {guard.cause}; try: {guard.remedy}"
        )


@dataclass(frozen=True)
class _Memory:
    """What is known of one guard: consecutive records in the other state, whether it has spoken, its past."""

    streak: int = 0
    alarmed: bool = False
    log_past: float | None = None


@dataclass(frozen=True)
class Health:
    """The state between two records; a new run starts with `Health()`.

    Attributes:
        memories: By the guard's name.
    """

    memories: Mapping[str, _Memory] = field(default_factory=dict)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the guards that have spoken and not recovered, sorted."""
        return tuple(sorted(name for name, memory in self.memories.items() if memory.alarmed))


def observe(health: Health, record: Record, guards: Sequence[Guard]) -> tuple[Health, list[Finding]]:
    """The state after one more record, and what there is to say at it; one without `images_seen` changes nothing."""
    images_seen = number(record, "images_seen")
    if images_seen is None or not math.isfinite(images_seen):
        return health, []
    memories, findings = dict(health.memories), []
    for guard in guards:
        value = guard.value(record)
        if value is None:
            continue
        memory = memories.get(guard.name, _Memory())
        if guard.relative:
            value, memory = _against_past(value, memory, guard.low, guard.high)
        if images_seen >= guard.from_images:
            memory, spoke = _judged(memory, guard.low <= value <= guard.high, guard.records)
            if spoke:
                findings.append(Finding(guard, int(images_seen), value, recovered=not memory.alarmed))
        memories[guard.name] = memory
    return Health(memories), findings


def replay(records: Iterable[Record], guards: Sequence[Guard]) -> tuple[Health, list[Finding]]:
    """`observe` over all records of a run."""
    health, findings = Health(), []
    for record in records:
        health, found = observe(health, record, guards)
        findings += found
    return health, findings


def number(record: Record, name: str) -> float | None:
    """A figure of a record as a float; None where there is none. Truth counts as 0 and 1."""
    value = record.get(name)
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits in a damaged file
        return None


def _judged(memory: _Memory, healthy: bool, records: int) -> tuple[_Memory, bool]:
    """The memory after one more verdict, and whether the guard changes its mind."""
    if healthy != memory.alarmed:  # as before
        return replace(memory, streak=0), False
    if memory.streak + 1 < records:
        return replace(memory, streak=memory.streak + 1), False
    return replace(memory, streak=0, alarmed=not memory.alarmed), True


def _against_past(value: float, memory: _Memory, low: float, high: float) -> tuple[float, _Memory]:
    """The figure over the running mean of those in range, and the memory with it.

    One that is not finite and positive leaves no trace.
    """
    if not (math.isfinite(value) and value > 0):
        return (1.0 if value == 0 else math.inf), memory
    log_value = math.log(value)
    past = log_value if memory.log_past is None else memory.log_past
    ratio = math.exp(min(log_value - past, 700.0))  # exp overflows at 710
    # A past that followed what is out of range would soon call it normal.
    moved = past + _PAST_MOMENTUM * (log_value - past) if low <= ratio <= high else past
    return ratio, replace(memory, log_past=moved)
