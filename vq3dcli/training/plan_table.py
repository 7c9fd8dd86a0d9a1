"""A plan for people: what `training.plan` counts as rows, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of a step. Above it a GPU has too few images at a time.
_MOST_WASTED = 0.25


def too_few_images(plan: Mapping[str, Any]) -> str:
    """What to do where each GPU has so few images that most of what more GPUs give is lost; empty elsewhere."""
    wasted = plan["speed"]["wasted_share"]
    if wasted <= _MOST_WASTED:
        return ""
    return (
        f"{wasted:.0%} of a step goes into starting operations, exchange and update; "
        "fewer GPUs, or a larger training.batch_size or smaller training.accumulate"
    )


def plan_table(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A plan of either stage in rows of three for people: what, how much, a remark."""
    memory, speed, disk = plan["memory"], plan["speed"], plan["disk"]
    rows = [("what", "figure", "remark"), ("device", plan["device"], plan["basis"])]
    if "codebook_size" in plan:
        rows.append(("codes of an image", f"{plan['tokens']} of {plan['codebook_size']}", f"by {plan['codes_source']}"))
    rows += [(f"parameters, {name}", f"{count / 1e6:.2f} M", "") for name, count in plan["parameters"].items()]
    remark = {"fits": "fits", "tight": "tight", "does not fit": "DOES NOT FIT", None: ""}[memory["state"]]
    remark += f": {memory['advice']}" if memory["advice"] else ""
    for name, size in memory.items():
        if name not in ("needed", "available", "state", "advice") and size:
            rows.append((f"memory, {name}", f"{size / 1e9:.2f} GB", remark if name == "total" else ""))
    if memory["available"]:
        together = f"{memory['needed'] / 1e9:.2f} GB by all processes" if memory["needed"] > memory["total"] else ""
        rows.append(("memory, of the device", f"{memory['available'] / 1e9:.2f} GB", together))
    labels = {
        "before_discriminators": "speed",
        "with_discriminators": "speed, with discriminators",
        "training": "speed",
    }
    for name, label in labels.items():
        if speed.get(name) is not None:
            share = f"{speed[f'{name}_multiplying_share']:.0%} of the time in matrix products"
            rows.append((label, f"{_three_digits(speed[name])} images/s", share))
    if speed["exchange_bytes"]:
        share = f"{speed['exchange_share']:.0%} of a step"
        rows.append(("exchange of a processor", f"{speed['exchange_bytes'] / 1e9:.2f} GB a step", share))
    prior = "training" in speed
    kept = "with density, code search, perceptual network and R1 in float32"
    of = f"of {disk['images']} images"
    rows += [
        ("operations", f"{_three_digits(speed['gigaflops_an_image'])} GFLOP an image", ""),
        ("precision", plan["precision"], kept if plan["precision"] == "bfloat16" and not prior else ""),
        (
            "images of a processor at a time",
            f"{plan['micro_batch']}",
            f"TOO FEW: {few}" if (few := too_few_images(plan)) else "",
        ),
        ("time", _duration(plan["days"]), f"{plan['images']} images, {plan['steps']} steps"),
        ("disk, checkpoints", f"{disk['checkpoints'] / 1e9:.2f} GB", f"{disk['checkpoint'] / 1e9:.2f} GB each"),
        ("disk, weights", f"{disk['weights'] / 1e9:.3f} GB", "fp16"),
        *[(f"disk, {name}", f"{disk[name] / 1e9:.2f} GB", of) for name in ("shards", "labels") if name in disk],
        ("disk, tokens", f"{disk['tokens'] / 1e9:.3f} GB", of if prior else f"{of}, {plan['tokens']} each"),
    ]
    return rows


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(days: float) -> str:
    """Days in the unit that suits them."""
    if days >= 2:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 2 else f"{days * 1440:.1f} minutes"
