"""Guards speak once when a figure has left its range for good, and stay silent over healthy runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.training.health import Finding, Guard, guards_of, replay

COLUMNS = ("images_seen", "l2", "depth", "commitment", "chroma_ratio", "weight_variance", "relief", "perplexity")
# Every few records of a run of toy-cpu that went well, as logged.
HEALTHY = (
    (320, 0.153, 0.0588, 0.0, 0.996, 0.0256, 0.419, 6.15, 0.39, False),
    (960, 0.072, 0.0344, -0.0, 0.519, 0.0202, 0.613, 11.5, 0.258, False),
    (1600, 0.0571, 0.0335, -0.0, 0.635, 0.0176, 0.627, 15.4, 0.549, False),
    (1920, 0.0479, 0.027, -0.0, 0.638, 0.0133, 0.744, 16.9, 0.461, False),
    (2560, 0.0379, 0.0273, -0.0, 0.656, 0.0134, 0.762, 16.9, 0.383, False),
    (3200, 0.0386, 0.0243, -0.0, 0.667, 0.0124, 0.715, 17.2, 0.738, True),
    (3520, 0.0379, 0.0221, 0.0775, 0.67, 0.0103, 0.853, 104.0, 0.461, True),
    (3840, 0.0304, 0.0157, 0.0512, 0.849, 0.00725, 0.827, 120.0, 0.269, True),
    (4160, 0.0302, 0.0175, 0.00775, 0.92, 0.0067, 0.784, 132.0, 0.533, True),
    (5120, 0.0277, 0.0139, 0.0432, 0.911, 0.00591, 0.979, 142.0, 0.255, True),
    (8000, 0.0252, 0.0105, 0.0313, 0.878, 0.00338, 0.944, 159.0, 0.271, True),
    (12160, 0.0217, 0.00782, 0.0222, 0.896, 0.00199, 0.908, 172.0, 0.281, True),
    (16000, 0.0223, 0.00842, 0.0228, 0.882, 0.00198, 1.03, 163.0, 0.0752, True),
)
# Disparity that stayed a wall while colour was learnt, as logged.
FLAT_RELIEF = (0.284, 0.0798, 0.0727, 0.0851, 0.0697, 0.0709, 0.0657, 0.0768, 0.0651)


def recipe(*overrides: str) -> Stage1Recipe:
    return load_recipe("toy-cpu", Stage1Recipe, overrides)


def records() -> list[dict[str, Any]]:
    return [
        dict(zip((*COLUMNS, "gradient_norm", "quantizing"), row, strict=True))
        | {f"adversarial_{name}_{figure}": value for name in ("main", "novel") for figure, value in GAME.items()}
        for row in HEALTHY
    ]


GAME = {"accuracy": 0.8, "real_score": 0.9, "fake_score": -1.1, "r1": 0.04}
ADVERSARIAL = (
    "adversarial.main=0.1",
    "adversarial.novel=0.1",
    "adversarial.start_images=0",
    "adversarial.ramp_images=0",
)


def names(findings: list[Finding]) -> list[str]:
    return [finding.guard.name for finding in findings]


def tail(count: int = 8, **changes: Any) -> list[dict[str, Any]]:
    """A healthy run that goes on, changed from there."""
    last = records()[-1]
    return records() + [{**last, "images_seen": 16000 + 320 * (i + 1), **changes} for i in range(count)]


def test_a_healthy_run_is_silent() -> None:
    health, findings = replay(records() + tail()[-8:], guards_of(recipe(*ADVERSARIAL)))
    assert not findings
    assert not health.alarms


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("codebook collapse", {"perplexity": 3.6}),
        ("grey collapse", {"commitment": 0.0008}),
        ("grey pictures", {"chroma_ratio": 0.2}),
        ("flat geometry", {"relief": 0.07}),
        ("relief out of range", {"relief": 0.4}),
        ("relief out of range", {"relief": 1.9}),
        ("floaters", {"weight_variance": 0.035}),
        ("gradient explosion", {"gradient_norm": 40.0}),
        ("no quantisation", {"quantizing": False}),
        ("main discriminator too strong", {"adversarial_main_accuracy": 0.99}),
        (
            "novel discriminator too weak",
            {
                "adversarial_novel_accuracy": 0.5,
                "adversarial_novel_real_score": 0.01,
                "adversarial_novel_fake_score": 0.0,
            },
        ),
        ("main discriminator scores exploding", {"adversarial_main_fake_score": -80.0}),
        ("novel discriminator penalty exploding", {"adversarial_novel_r1": 400.0}),
    ],
)
def test_each_trouble_is_named_once_and_alone(name: str, changes: dict[str, Any]) -> None:
    health, findings = replay(tail(**changes), guards_of(recipe(*ADVERSARIAL)))
    assert names(findings) == [name]
    assert health.alarms == (name,)
    line = findings[0].line()
    assert line.startswith(f"{name}: ")
    assert "; likely " in line and "; try: " in line and "\n" not in line


def test_flat_geometry_is_seen_in_a_run_that_had_it() -> None:
    run = [
        {"images_seen": 320 * (i + 1), "relief": relief, "chroma_ratio": 0.55, "quantizing": False}
        for i, relief in enumerate(FLAT_RELIEF)
    ]
    _, findings = replay(run, guards_of(recipe("training.quantize_from_images=4000")))
    assert names(findings) == ["flat geometry"]
    assert findings[0].images_seen == 2240  # the fourth record from 1000 images on


def test_guards_of_losses_that_are_off_are_left_out() -> None:
    guarded = {guard.name for guard in guards_of(recipe())}
    assert "flat geometry" in guarded
    assert not any("discriminator" in name for name in guarded)
    for off in ("loss.depth_kind=none", "loss.depth=0"):
        assert not {"flat geometry", "relief out of range"} & {guard.name for guard in guards_of(recipe(off))}
    ordered = guards_of(recipe("loss.depth=0", "loss.depth_order=1"))
    assert "flat geometry" in {guard.name for guard in ordered}
    novel = guards_of(recipe("loss.novel_depth=1"))
    assert "no novel views" in {guard.name for guard in novel} - guarded
    none = [{"images_seen": 100 * (i + 1), "novel_views": 0.0 if i % 21 else 0.5} for i in range(90)]
    assert names(replay(none, novel)[1]) == ["no novel views"]
    few = [{**record, "novel_views": 0.0 if i % 20 else 0.125} for i, record in enumerate(none)]
    assert not replay(few, novel)[1]
    assert {guard.name for guard in guards_of(recipe(*ADVERSARIAL))} > guarded


def test_a_lasting_jump_stays_out_of_range() -> None:
    """The past follows healthy values only, or what is wrong would soon pass for normal."""
    guard = Guard("jump", "x", cause="c", remedy="r", high=8.0, records=3, relative=True)
    values = [1.0] * 20 + [10.0] * 200
    _, findings = replay([{"images_seen": i, "x": x} for i, x in enumerate(values)], [guard])
    assert [(finding.images_seen, finding.recovered) for finding in findings] == [(22, False)]


GUARD = Guard("low", "x", cause="c", remedy="r", low=1.0, records=3, from_images=100)


def runs(values: list[float | None], start: int = 100) -> list[tuple[int, bool]]:
    series = [{"images_seen": start + i, "x": x} for i, x in enumerate(values)]
    return [(finding.images_seen, finding.recovered) for finding in replay(series, [GUARD])[1]]


def test_it_speaks_after_so_many_records_and_again_only_after_a_recovery() -> None:
    assert runs([0, 0, 5, 0, 0]) == []
    assert runs([0] * 9) == [(102, False)]
    assert runs([0, 0, 0, 5, 5, 0, 0, 0]) == [(102, False)]  # two good records are no recovery
    assert runs([0, 0, 0, 5, 5, 5, 0, 0, 0]) == [(102, False), (105, True), (108, False)]


def test_it_waits_for_the_warm_up() -> None:
    assert runs([0] * 10, start=93) == [(102, False)]


def test_records_without_the_figure_do_not_count() -> None:
    assert runs([0, None, 0, None, 0]) == [(104, False)]


def test_what_is_not_a_number_is_out_of_range() -> None:
    assert runs([math.nan] * 3) == [(102, False)]


def test_a_relative_guard_compares_with_its_own_past() -> None:
    guard = Guard("jump", "x", cause="c", remedy="r", high=5.0, records=2, relative=True)
    level = [{"images_seen": i, "x": 40.0} for i in range(30)]
    jump = [{"images_seen": 30 + i, "x": 400.0} for i in range(3)]
    assert not replay(level, [guard])[1]
    [finding] = replay(level + jump, [guard])[1]
    assert finding.images_seen == 31
    assert finding.value == pytest.approx(10.0, rel=1e-6)
    assert "times its running mean" in finding.line()


def test_going_on_equals_replaying() -> None:
    """A resumed run replays its metrics and says nothing twice."""
    guards, run = guards_of(recipe()), tail(perplexity=3.0)
    health, before = replay(run[:18], guards)
    after = []
    for record in run[18:]:
        found = health.observe(record)
        after += found
    assert (health, before + after) == replay(run, guards)
    assert names(before + after) == ["codebook collapse"]


VALUES = st.none() | st.booleans() | st.text(max_size=3) | st.floats() | st.integers() | st.just(10**400)


@given(st.lists(st.dictionaries(st.sampled_from([*records()[0], "other"]), VALUES, max_size=8), max_size=12))
def test_no_record_breaks_it(series: list[dict[str, Any]]) -> None:
    _, findings = replay(series, guards_of(recipe(*ADVERSARIAL)))
    assert all(finding.line() for finding in findings)


def test_a_prior_that_knows_its_images_alone_is_named() -> None:
    guards = guards_of(load_recipe("toy-cpu-prior", Stage2Recipe))
    rows = [{"images_seen": 10**6 + i, "bits": 4.0, "held_out_bits": bits} for i, bits in enumerate((4.9, 5.1, 5.1))]
    assert names(replay(rows, guards)[1]) == ["overfitting"]
    assert not replay([{**row, "held_out_bits": 4.9} for row in rows], guards)[1]


def test_a_depth_network_that_looks_at_nothing_is_named() -> None:
    guards = guards_of(load_recipe("depth-lite0", DepthRecipe))
    blind = [{"images_seen": 10**6 + i, "loss": 1.5} for i in range(5)]
    assert names(replay(blind, guards)[1]) == ["blind network"]
    assert not replay([{**row, "loss": 1.3} for row in blind], guards)[1]
