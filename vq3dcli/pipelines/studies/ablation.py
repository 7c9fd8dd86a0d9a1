"""The ablation of the depth loss: a recipe with three values of one key, the same seeds, data and budget, then figures.

    toy scenes -> shards, exact labels -> a training run for each loss and seed -> figures of each -> mean and spread

Every part continues where an interrupted call ended, and a finished part is not done again:

```
RUNS/plan.json  data/  pointwise-0/  accumulated-0/  none-0/  pointwise-1/ ...
```

A run's folder is that of a normal training run, with its page, and `figures.json` beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data_tools.depth.labels import EXACT
from vq3dcli.errors import UsageError
from vq3dcli.files import make_folder
from vq3dcli.locks import lock_folder
from vq3dcli.metrics.warp import EVALUATION_VIEWS_DEG
from vq3dcli.pipelines.evaluation.geometry import PROTOCOL as GEOMETRY
from vq3dcli.pipelines.evaluation.geometry import RENDERING, toy_template
from vq3dcli.pipelines.evaluation.image_sets import toy_set
from vq3dcli.pipelines.run_report.page import write_run_report
from vq3dcli.pipelines.studies.toy_runs import make_toy_data, measure_once, stop_between, train_once, with_budget
from vq3dcli.pipelines.targets import Counting
from vq3dcli.pipelines.train import open_loader, run_facts
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.training.distributed import join_ranks
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

PROTOCOL = "ablation-depth-1"
RECIPE = "toy-cpu"
KINDS = ("accumulated", "pointwise", "none")
FIGURES = (
    *("weight_variance", "psnr", "novel_psnr", "copy_psnr", "novel_gain"),
    *("spearman", "ssi_error", "edge_f1", "relief", "reprojection_error", "reprojection_share"),
)
# Two cores of a laptop train about 24 images of the recipe a second, so that nine runs and their figures take about 40
# minutes.
DEFAULT_IMAGES = 5200
# Checkpoints come once a minute at this speed; the length of a run does not depend on it.
_IMAGES_PER_SECOND = 24.0
# What the loss on accumulated depth has more of weight variance, at least, if pointwise losses do what the project page
# of VQ3D shows; the figure is ours.
CLAIMED_FACTOR = 50.0
# Keys that the ablation sets itself, and what to say instead: overridden, runs would be other than their names.
_OWN_KEYS = {
    "loss.depth_kind": "the three losses",
    **dict.fromkeys(
        ("loss.depth_order", "loss.novel_l2", "loss.novel_l1", "loss.novel_depth", "loss.novel_perceptual"),
        "leave it out: runs differ in the three losses alone",
    ),
    "training.seed": "--seeds",
    "training.images": "--images",
}


@dataclass(frozen=True)
class Plan:
    """What all runs have in common; a folder of runs that was begun with another one is refused."""

    images: int = DEFAULT_IMAGES  # images that each run sees
    scenes: int = 4000  # training scenes
    count: int = 32  # evaluation scenes
    overrides: tuple[str, ...] = ()  # changes to the recipe, as `a.b=c`

    def recipe(self, kind: str, seed: int) -> Stage1Recipe:
        """The recipe of a run: the parts of its schedule keep their share of the images."""
        overrides = [*self.overrides, f"loss.depth_kind={kind}", f"training.seed={seed}"]
        return with_budget(load_recipe(RECIPE, Stage1Recipe, overrides), self.images, _IMAGES_PER_SECOND)

    def check(self, seeds: Sequence[int]) -> None:
        """Raise `UsageError` or `RecipeError` for seeds or overrides that cannot be trained."""
        if not seeds or len(set(seeds)) != len(seeds):
            raise UsageError("each seed is needed once", remedy="--seeds 0,1,2")
        for override in self.overrides:
            key = ".".join(part.strip() for part in override.partition("=")[0].split("."))
            if key in _OWN_KEYS:
                raise UsageError(f"--set {override}: the ablation itself sets {key}", remedy=_OWN_KEYS[key])
        self.recipe(KINDS[0], seeds[0])


@dataclass(frozen=True)
class Ablation:
    """What was measured."""

    plan: Plan  # what all runs have in common
    seeds: tuple[int, ...]  # of the runs
    runs: dict[str, dict[int, dict[str, float]]]  # figures of each run, by loss and then by seed
    template: dict[str, float]  # those of the image-blind template, the same for all runs
    weights: dict[str, dict[int, str]]  # hash of each run's weights, by loss and then by seed

    def values(self, kind: str, figure: str) -> list[float]:
        """A figure of all seeds of a loss."""
        return [self.runs[kind][seed][figure] for seed in self.seeds]

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean, standard deviation over seeds, least and greatest of each figure, by loss and then by figure."""
        return {kind: {figure: spread_of(self.values(kind, figure)) for figure in FIGURES} for kind in KINDS}

    def factors(self) -> list[float]:
        """Weight variance of the loss on accumulated depth over that of the pointwise one, seed by seed."""
        variance = {kind: self.values(kind, "weight_variance") for kind in KINDS}
        return [a / max(b, 1e-12) for a, b in zip(variance["accumulated"], variance["pointwise"], strict=True)]


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (over n - 1; 0 of a single value), least and greatest."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values)}


def run_ablation(
    folder: Path,
    plan: Plan,
    seeds: Sequence[int],
    *,
    device: torch.device,
    counting: Counting,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ablation:
    """Train and measure every loss with every seed, or continue; another call may add seeds.

    Raises:
        StoppedError: `should_stop` became true, or another process works in `folder`, that of the runs.
        UsageError, RecipeError: As `Plan.check`, or the folder was begun with another plan.
    """
    plan.check(seeds)
    recipe = plan.recipe(KINDS[0], 0)
    size = recipe.model.image_size
    make_folder(folder)
    with lock_folder(folder):
        # The recipe as well: another version may have changed it.
        wanted, path = {"scenes": plan.scenes, "recipe": recipe.model_dump(mode="json")}, folder / "plan.json"
        if not path.exists():
            write_sealed_json(path, wanted)
        if read_sealed_json(path, what="record", remedy="another --runs") != wanted:
            reason = f"begun with other options, or by a version with other recipes ({path})"
            raise UsageError(reason, remedy="the same ones, or another --runs")
        make_toy_data(folder / "data", scenes=plan.scenes, size_px=size, seed=0, counting=counting)
        template = toy_template(size)
        runs: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
        weights: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
        for seed in seeds:
            for kind in KINDS:
                stop_between(should_stop, folder)
                run = folder / f"{kind}-{seed}"
                recipe = plan.recipe(kind, seed)
                loader = open_loader(recipe, [folder / "data"], EXACT, join_ranks(device))
                begin = partial(
                    train,
                    recipe,
                    loader,
                    run,
                    device=device,
                    facts=run_facts(recipe, loader),
                    refresh_page=partial(write_run_report, run),
                    should_stop=should_stop,
                )
                train_once(run, f"training {run.name}", counting, begin)
                loaded = load_weights(run, device)
                figures = measure_once(
                    run / "figures.json",
                    loaded,
                    count=plan.count,
                    seed=0,
                    identity={"figures": len(FIGURES)},
                    description=f"measuring {run.name}",
                    counting=counting,
                    template=template,
                )
                runs[kind][seed] = {**figures, "novel_gain": figures["novel_psnr"] - figures["copy_psnr"]}
                weights[kind][seed] = loaded.sha256
    first = runs[KINDS[0]][seeds[0]]
    blind = {name: value for name, value in first.items() if name.startswith("template_")}
    return Ablation(plan, tuple(seeds), runs, blind, weights)


def verdict(result: Ablation) -> list[str]:
    """What was found, in sentences that hold whatever was found."""
    summary, factors = result.summary(), result.factors()
    variance = {kind: summary[kind]["weight_variance"]["mean"] for kind in KINDS}
    factor = variance["accumulated"] / max(variance["pointwise"], 1e-12)
    gains = {kind: summary[kind]["novel_gain"]["mean"] for kind in KINDS}
    if min(factors) >= CLAIMED_FACTOR:
        held = "at least"
    else:
        held = "short of" if max(factors) < CLAIMED_FACTOR else "in some runs short of"
    several = len(result.seeds) > 1
    first, second = result.values("accumulated", "novel_gain"), result.values("pointwise", "novel_gain")
    apart = min(second) > max(first) or min(first) > max(second)
    seed_by_seed = f" ({min(factors):.3g} to {max(factors):.3g} seed by seed)" if several else ""
    overlap = f"; the seeds of the first two {'do not overlap' if apart else 'overlap'}" if several else ""
    return [
        f"The spread of weights along a ray is {variance['accumulated']:.2g} with the loss on accumulated depth and "
        f"{variance['pointwise']:.2g} with the pointwise loss: {factor:.3g} times as large{seed_by_seed}, {held} the "
        f"factor of {CLAIMED_FACTOR:.0f} that was looked for. Without a depth loss it is {variance['none']:.2g}.",
        f"Novel views are {gains['pointwise']:+.2f} dB from the unmoved reconstruction with the pointwise loss, "
        f"{gains['accumulated']:+.2f} dB with the loss on accumulated depth and {gains['none']:+.2f} dB without "
        f"one{overlap}.",
    ]


def record(result: Ablation, versions: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """All figures as JSON values, and the `conditions` that they depend on."""
    plan = result.plan
    size_px = plan.recipe(KINDS[0], result.seeds[0]).model.image_size
    conditions = {
        "protocol": PROTOCOL,
        "figures": GEOMETRY,
        "rendering": RENDERING,
        "scenes": dict(toy_set("evaluation scenes", plan.count, seed=0, purpose="eval", size_px=size_px).description),
        "recipe": RECIPE,
        "loss.depth_kind": list(KINDS),
        "overrides": list(plan.overrides),
        "images_a_run": plan.images,
        "training_scenes": plan.scenes,
        "seeds": list(result.seeds),
        "views_deg": ", ".join(f"({yaw:g}, {pitch:g})" for yaw, pitch in EVALUATION_VIEWS_DEG),
        "weights_sha256": result.weights,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "versions": dict(versions),
    }
    return {
        "seeds": list(result.seeds),
        "factors": result.factors(),
        "summary": result.summary(),
        "runs": result.runs,
        "template": result.template,
        "verdict": verdict(result),
        "conditions": conditions,
    }
