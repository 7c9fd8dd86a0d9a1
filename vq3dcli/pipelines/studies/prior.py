"""The second half of a quickstart: Stage 1's codes of its own scenes, a prior over them, and new scenes.

    data/ -> tokens/ -> prior_budget.json -> prior/ -> samples/

As in `quickstart`, each part continues where an interrupted call ended, and a finished part is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.token_store import TokenStore
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.sampling.record import SampleWish
from vq3dcli.pipelines.sampling.sample import SHEET_NAME, draw_samples, sharpening_of, write_samples
from vq3dcli.pipelines.studies.budget import Budget, measure_budget, recorded_budget, with_budget
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.training.run import Progress
from vq3dcli.training.stage2 import train_prior
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_prior

RECIPE = "toy-cpu-prior"
# What the prior gets of the minutes that Stage 1 is trained for: it converges sooner.
SHARE_OF_MINUTES = 0.5

Count = Callable[[int, int], None]
Counting = Callable[[str, str], AbstractContextManager[Count]]
"""Opens progress for (description, unit); what it yields is called with (done, total)."""


@dataclass(frozen=True)
class NewScenes:
    """What a quickstart's second half made.

    Attributes:
        prior: The trained prior.
        budget: How long it trained.
        sheet: Samples of each class beside their disparity.
        filmed: Picture, video and disparity video of some samples.
    """

    prior: LoadedPrior
    budget: Budget
    sheet: Path
    filmed: list[tuple[Path, Path, Path]]


def trained_prior(
    out: Path,
    weights: LoadedWeights,
    data: Path,
    *,
    minutes: float,
    overrides: tuple[str, ...],
    calibration_seconds: float,
    device: torch.device,
    counting: Counting,
    should_stop: Callable[[], bool],
) -> tuple[LoadedPrior, Budget]:
    """Encode the scenes of `data` and train a prior over their codes.

    Args:
        out: The quickstart's folder.
        weights: Its Stage 1.
        data: Its shards.
        minutes: Of training, if none are recorded yet.
        overrides: Changes to the recipe `toy-cpu-prior`, as `a.b=c`.
        calibration_seconds: Length of the calibration.
        device: Where to compute.
        counting: Shows progress.
        should_stop: Polled between training steps.

    Raises:
        StoppedError: `should_stop` became true.
    """
    recipe = load_recipe(RECIPE, Stage2Recipe, overrides)
    with counting("encoding", "scenes") as count:
        tokenize(weights, [data], out / "tokens", device=device, on_progress=count)
    store = TokenStore(out / "tokens")
    path = out / "prior_budget.json"
    budget = recorded_budget(path, minutes=None, seed=recipe.training.seed)
    if budget is None:
        with counting("calibrating", "steps"):
            budget = measure_budget(
                path,
                lambda folder, *, report, should_stop: train_prior(
                    recipe, store, folder, device=device, report=report, should_stop=should_stop
                ),
                minutes=minutes,
                batch_size=recipe.training.batch_size,
                seed=recipe.training.seed,
                seconds=calibration_seconds,
                should_stop=should_stop,
            )
    run = out / "prior"
    if not (run / "weights.safetensors").exists():
        with counting("training the prior", "images") as count:

            def report(progress: Progress) -> None:
                count(progress.images_seen, progress.total_images)

            train_prior(
                with_budget(recipe, budget),
                store,
                run,
                stage1=weights,
                device=device,
                report=report,
                should_stop=should_stop,
            )
    return load_prior(run, device), budget


def new_scenes(
    out: Path,
    weights: LoadedWeights,
    prior: LoadedPrior,
    budget: Budget,
    *,
    samples_a_class: int,
    filmed: int,
    shot: Shot,
    seed: int,
    counting: Counting,
) -> NewScenes:
    """Sample scenes of each class in `out/samples`, and film some.

    Args:
        out: The quickstart's folder.
        weights: Its Stage 1.
        prior: Over its codes.
        budget: How long the prior trained.
        samples_a_class: How many to draw.
        filmed: How many to film, from the first class to the last.
        shot: How.
        seed: Of the samples.
        counting: Shows progress.
    """
    folder = out / "samples"
    classes = range(len(prior.tokens.class_names))
    total = len(classes) * samples_a_class
    done = 0

    def adding(count: Count, whole: int) -> Callable[[int], None]:
        def add(new: int) -> None:
            nonlocal done
            done += new
            count(done, whole)

        return add

    wish = SampleWish(classes, samples_a_class, seed, sharpening_of(prior), shot, disparity=True)
    with counting("sampling", "codes") as count:
        drawn = draw_samples(prior, wish, on_token=adding(count, total * prior.tokens.length))
    step = max(len(classes) // max(filmed, 1), 1)
    names = [sample.name for sample in drawn[:: step * samples_a_class]][:filmed]
    rows = [
        tuple(folder / f"{name}{suffix}" for suffix in (".png", "_orbit.mp4", "_orbit_disparity.mp4")) for name in names
    ]
    made_from = max(Path(path).stat().st_mtime for path in (weights.path, prior.path))
    sheet = folder / SHEET_NAME  # written last
    if not (sheet.exists() and sheet.stat().st_mtime >= made_from):
        done = 0
        with counting("rendering samples", "frames") as count:
            write_samples(
                folder,
                weights,
                prior,
                replace(wish, filmed=names),
                drawn,
                on_frames=adding(count, total + len(names) * shot.frames),
            )
    return NewScenes(prior, budget, sheet, [(a, b, c) for a, b, c in rows])
