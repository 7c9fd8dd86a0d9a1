"""What `vq3d inspect` finds, whatever it looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["shards", "tokens", "weights", "run", "checkpoint"]
Progress = Callable[[int, int], None]
SHOWN = 8  # names of a long list


@dataclass
class Inspection:
    """What was found.

    Attributes:
        kind: What it is.
        facts: Figures and names, as JSON values.
        problems: What is damaged, one line each; looked for only if asked to.
        notes: What is good to know, one line each.
    """

    kind: Kind
    facts: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
