"""Is the adversarial game still being played? Recent figures to warnings that name the likely cause."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# "Long" is this many logged lines in a row: one lopsided batch is normal.
PATIENCE_LINES = 5
# A discriminator that is right this often has found something that the generator does not mend.
_WINNING_ACCURACY = 0.98
# Within these, it tells nothing: accuracy of a coin, logits without an opinion.
_COIN_MARGIN = 0.02
_NO_OPINION_SCORE = 0.02
# Logits of a healthy game are single digits; e^-30 is no gradient in float32.
_EXPLODED_SCORE = 30.0
# Penalties vary by a few times from step to step; 10 is a slope of 3 logits a unit of image distance.
_EXPLODED_R1_RATIO = 30.0
_EXPLODED_R1 = 10.0


def adversarial_warnings(recent: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each thing that is wrong with a discriminator; empty while all is well.

    Args:
        recent: The last logged lines of metrics, oldest first; 10 or 20 of them are enough. Lines from before the
            discriminators started lack their figures and are passed over.
    """
    lines = []
    for name in ("main", "novel"):
        prefix = f"adversarial_{name}_"
        history = [
            {key.removeprefix(prefix): float(value) for key, value in record.items() if key.startswith(prefix)}
            for record in recent
            if f"{prefix}accuracy" in record
        ]
        if history:
            lines += [f"the discriminator of {name} views {problem}" for problem in _problems(history)]
    return lines


def _problems(history: Sequence[Mapping[str, float]]) -> list[str]:
    newest = history[-1]
    broken = [figure for figure, value in newest.items() if not math.isfinite(value)]
    if broken:
        return [f"has figures that are not finite ({', '.join(broken)}): lower adversarial.learning_rate"]
    problems = []
    lasting = history[-PATIENCE_LINES:]
    if len(lasting) == PATIENCE_LINES:
        if all(figures["accuracy"] > _WINNING_ACCURACY for figures in lasting):
            problems.append(
                f"is right in {newest['accuracy']:.0%} of the cases: it sees a difference that the generator cannot "
                "mend, or knows the photos by heart; raise adversarial.r1, lower adversarial.learning_rate or use "
                "adversarial.augmentation"
            )
        if all(_has_no_opinion(figures) for figures in lasting):
            problems.append(
                "cannot tell real from fake and scores both near 0, so it teaches nothing: lower adversarial.r1 or "
                "raise adversarial.learning_rate"
            )
    largest = max(abs(newest["real_score"]), abs(newest["fake_score"]))
    if largest > _EXPLODED_SCORE:
        problems.append(f"has scores of {largest:.0f}, without a gradient: raise adversarial.r1")
    before = [figures["r1"] for figures in history[:-1]]
    penalty = newest["r1"]
    if before and penalty > _EXPLODED_R1 and penalty > _EXPLODED_R1_RATIO * statistics.median(before):
        problems.append(
            f"has an R1 penalty of {penalty:.3g}, usually {statistics.median(before):.3g}: it is about to diverge; "
            "lower adversarial.learning_rate or adversarial.r1_every_steps"
        )
    return problems


def _has_no_opinion(figures: Mapping[str, float]) -> bool:
    return abs(figures["accuracy"] - 0.5) < _COIN_MARGIN and (
        max(abs(figures["real_score"]), abs(figures["fake_score"])) < _NO_OPINION_SCORE
    )
