"""Which share of a job one of several machines or processes does: every count-th shard, with no coordinator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vq3dcli.errors import UsageError


@dataclass(frozen=True)
class Part:
    """Share `index` of `count` equal ones, counted from 0; users count from 1."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Raise `UsageError` for a share that is none."""
        if not 0 <= self.index < self.count:
            raise UsageError(f"no such part ({self}): parts are 1/N to N/N", remedy="--part 1/8 for the first of eight")

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def has(self, shard: int) -> bool:
        """Whether shard number `shard` belongs to this share."""
        return shard % self.count == self.index


WHOLE = Part()


def parse_part(text: str) -> Part:
    """The share that `2/8` names: the second of eight. Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None:
        raise UsageError(f"not a part: {text!r}", remedy="--part 1/8 for the first of eight")
    return Part(int(match[1]) - 1, int(match[2]))


def part_from_environment(environment: Mapping[str, str]) -> Part:
    """The share of a process that torchrun or SLURM started; all of it for any other process.

    torchrun sets RANK and WORLD_SIZE. In SLURM an array is split by its task ids, and each of its steps (`srun`) by
    its processes. The variables of a batch script outside of `srun` say how many tasks were asked for, not how many
    run, and count for nothing.
    """
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return Part(number_in(environment, "RANK"), number_in(environment, "WORLD_SIZE"))
    part = WHOLE
    if "SLURM_ARRAY_TASK_ID" in environment:
        step = number_in(environment, "SLURM_ARRAY_TASK_STEP", 1) or 1
        first = number_in(environment, "SLURM_ARRAY_TASK_MIN", 0)
        count = (number_in(environment, "SLURM_ARRAY_TASK_MAX", first) - first) // step + 1
        # A list such as 1,5,7 has no step: then ids and not tasks are counted, and its count does not fit.
        if count != number_in(environment, "SLURM_ARRAY_TASK_COUNT", count):
            raise UsageError("the task ids of the SLURM array are no even range", remedy="--part, or --array=0-7")
        part = Part((number_in(environment, "SLURM_ARRAY_TASK_ID") - first) // step, count)
    if {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"} <= environment.keys():
        tasks = number_in(environment, "SLURM_STEP_NUM_TASKS")
        part = Part(part.index * tasks + number_in(environment, "SLURM_PROCID"), part.count * tasks)
    return part


def number_in(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The number that a variable says. Raises `UsageError` if it says none."""
    value = environment.get(name, default)
    try:
        return int(value if value is not None else "")
    except ValueError as error:
        raise UsageError(
            f"the variable {name} of the environment is no number: {value!r}", remedy=f"unset {name}"
        ) from error
