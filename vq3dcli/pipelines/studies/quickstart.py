"""The whole pipeline at toy scale, from toy scenes to videos and a report, in minutes on a CPU.

    toy scenes -> shards -> exact labels -> calibration -> Stage 1 -> videos, figures -> report.html
                                                           Stage 1 -> tokens -> prior -> new scenes -> report.html

Every part continues where an interrupted call ended, and a finished part is not done again:

```
OUT/data/  budget.json  run/  inputs/  videos/  geometry.json  geometry.png
    tokens/  prior_budget.json  prior/  samples/  report.html
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data_tools.depth.labels import EXACT, label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import StoppedError
from vq3dcli.export.page import write_page
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.locks import lock_folder
from vq3dcli.pipelines.evaluation.exact_scenes import toy_template
from vq3dcli.pipelines.evaluation.geometry import (
    PROTOCOL,
    evaluate_geometry,
    kept_metrics,
    model_predictor,
)
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.inputs import parse_sources, read_picture
from vq3dcli.pipelines.render import read_all, render_all
from vq3dcli.pipelines.studies.budget import DEFAULT_MINUTES, Budget, measure_budget, recorded_budget, with_budget
from vq3dcli.pipelines.studies.demo import TOY_INPUTS
from vq3dcli.pipelines.studies.example_photo import example_photo
from vq3dcli.pipelines.studies.prior import SHARE_OF_MINUTES, Counting, NewScenes, new_scenes, trained_prior
from vq3dcli.pipelines.studies.report import (
    STAGE2_SHEET,
    commands_section,
    geometry_section,
    samples_section,
    training_section,
    videos_section,
)
from vq3dcli.pipelines.targets import check_targets, plan_targets
from vq3dcli.sealed import write_sealed_json
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_weights

RECIPE = "toy-cpu"

_VIDEOS_TEXT = (
    "Each row began as one picture: what the model saw, an orbit around the scene that it made of it in one forward "
    "pass, and the disparity of that scene (bright is near). It was trained on toy scenes only and never saw a photo."
)
_SAMPLES_TEXT = (
    "Scenes that never existed: a prior over the codes of Stage 1 drew each from its class alone. Beside each picture "
    "its disparity."
)
_BITS_TEXT = (
    "The prior takes {bits:.2f} bits a code on scenes that it was not trained on; the entropy of a code given its "
    "class is {unigram:.2f}."
)
_NEXT_COMMANDS = (
    "vq3d render photo.jpg --orbit --disparity --weights {weights}",
    "vq3d sample --class torus -n 8 --orbit --weights {weights} --prior {prior} -o new/",
    "vq3d evaluate geometry --count 256 --weights {weights} --json",
    "vq3d prepare-data photos/ shards/ --preset folder --size 64",
)


@dataclass(frozen=True)
class Size:
    """How much is done of what.

    Attributes:
        scenes: Training scenes.
        evaluated: Scenes that the figures are measured on.
        frames: Frames a video.
        video_px: Side of the videos.
        video_samples: Samples a ray in them.
        calibration_seconds: Length of the calibration.
        samples_a_class: New scenes of each class.
        samples_filmed: How many of them get a video.
        overrides: Changes to the recipe `toy-cpu`, as `a.b=c`.
        prior_overrides: Changes to the recipe `toy-cpu-prior`.
    """

    scenes: int = 4000
    evaluated: int = 24
    frames: int = 48
    video_px: int = 128
    video_samples: int = 32  # a first look: half the time of a video's usual number, slices at the ends of an orbit
    calibration_seconds: float = 12.0
    samples_a_class: int = 4
    samples_filmed: int = 4
    overrides: tuple[str, ...] = ()
    # Three million parameters: what minutes on a CPU can train.
    prior_overrides: tuple[str, ...] = ("model.width=192", "model.heads=6")


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart made.

    Attributes:
        report: The HTML page.
        videos: Orbits and their disparity.
        weights: The trained weights.
        metrics: Figures of `evaluate_geometry`.
        budget: How long it trained.
        new_scenes: What the second half made.
    """

    report: Path
    videos: list[Path]
    weights: LoadedWeights
    metrics: Mapping[str, float]
    budget: Budget
    new_scenes: NewScenes


def quickstart(
    out: Path,
    *,
    minutes: float | None,
    seed: int,
    device: torch.device,
    counting: Counting,
    should_stop: Callable[[], bool] = lambda: False,
    size: Size | None = None,
) -> Quickstart:
    """Run or continue a quickstart in `out`.

    Args:
        out: Its folder.
        minutes: Of training Stage 1; None for what an earlier call chose, else 6. The prior gets half as many.
        seed: Of data, training and evaluation.
        device: Where to compute.
        counting: Shows progress.
        should_stop: Polled between parts and between training steps.
        size: How much of everything.

    Raises:
        StoppedError: `should_stop` became true, or another process works in `out`.
        UsageError: `out` was begun with other options.
    """
    size = size or Size()
    make_folder(out)
    with lock_folder(out):
        recipe = load_recipe(RECIPE, Stage1Recipe, [*size.overrides, f"training.seed={seed}"])
        budget = recorded_budget(out / "budget.json", minutes=minutes, seed=seed)
        data = _data(out / "data", recipe, size.scenes, seed, counting)
        _stop_between(should_stop, out)
        if budget is None:
            with counting("calibrating", "steps"):
                budget = measure_budget(
                    out / "budget.json",
                    lambda folder, *, report, should_stop: train(
                        recipe, data, folder, device=device, report=report, should_stop=should_stop
                    ),
                    minutes=minutes or DEFAULT_MINUTES,
                    batch_size=recipe.training.batch_size,
                    seed=seed,
                    seconds=size.calibration_seconds,
                    should_stop=should_stop,
                )
        run = _trained(out / "run", with_budget(recipe, budget), data, device, counting, should_stop)
        weights = load_weights(run, device)
        _stop_between(should_stop, out)
        videos = _videos(out, weights, size, counting)
        _stop_between(should_stop, out)
        metrics = _figures(out, weights, size, seed, counting)
        _stop_between(should_stop, out)
        prior, prior_budget = trained_prior(
            out,
            weights,
            out / "data",
            minutes=SHARE_OF_MINUTES * budget.minutes,
            overrides=(*size.prior_overrides, f"training.seed={seed}"),
            calibration_seconds=size.calibration_seconds,
            device=device,
            counting=counting,
            should_stop=should_stop,
        )
        _stop_between(should_stop, out)
        scenes = new_scenes(
            out,
            weights,
            prior,
            prior_budget,
            samples_a_class=size.samples_a_class,
            filmed=size.samples_filmed,
            shot=_shot(size),
            seed=seed,
            counting=counting,
        )
        report = out / "report.html"
        pictures = [out / "inputs" / f"{video.stem.removesuffix('_orbit')}_input.png" for video in videos[::2]]
        write_page(
            report,
            "vq3d quickstart",
            f"{budget.images} images of {size.scenes} toy scenes, at {budget.images_per_second:.0f} images a second "
            f"on {device.type}, seed {seed}",
            [
                videos_section(list(zip(pictures, videos[::2], videos[1::2], strict=True)), _VIDEOS_TEXT),
                samples_section(scenes.sheet, scenes.filmed, _samples_text(prior)),
                geometry_section(metrics, out / "geometry.png"),
                training_section(run, "Training of Stage 1"),
                training_section(out / "prior", "Training of the prior", STAGE2_SHEET),
                commands_section([command.format(weights=run, prior=out / "prior") for command in _NEXT_COMMANDS]),
            ],
        )
    return Quickstart(report, videos, weights, metrics, budget, scenes)


def _samples_text(prior: LoadedPrior) -> str:
    figures = prior.card["training"]
    if not {"held_out_bits", "unigram_bits"} <= figures.keys():
        return _SAMPLES_TEXT
    return f"{_SAMPLES_TEXT} " + _BITS_TEXT.format(bits=figures["held_out_bits"], unigram=figures["unigram_bits"])


def _data(folder: Path, recipe: Stage1Recipe, scenes: int, seed: int, counting: Counting) -> TrainingLoader:
    """Shards and labels, and the loader that training reads them with."""
    side_px = recipe.model.image_size
    with counting("making toy scenes", "scenes") as count:
        prepare_toyscenes(folder, count=scenes, size=side_px, seed=seed, progress=count)
    with counting("labelling", "scenes") as count:
        label_exact(folder, progress=count)
    schedule = recipe.training
    return TrainingLoader(
        [folder],
        labels=EXACT,
        batch_size=schedule.batch_size,
        size=side_px,
        seed=schedule.seed,
        flip=schedule.flip,
        crop=schedule.crop,
    )


def _trained(
    run: Path,
    recipe: Stage1Recipe,
    data: TrainingLoader,
    device: torch.device,
    counting: Counting,
    should_stop: Callable[[], bool],
) -> Path:
    """The run's folder with its weights."""
    if not (run / "weights.safetensors").exists():
        with counting("training", "images") as count:
            train(
                recipe,
                data,
                run,
                device=device,
                facts={"data": "toyscenes", "scenes": data.num_samples},
                report=lambda progress: count(progress.images_seen, progress.total_images),
                should_stop=should_stop,
            )
    return run


def _videos(out: Path, weights: LoadedWeights, size: Size, counting: Counting) -> list[Path]:
    """Orbits with disparity of a photo, where scikit-image is at hand, and of toy scenes; what they began with too."""
    texts = list(TOY_INPUTS)
    photo = example_photo(out / "inputs")
    if photo is not None:
        texts.insert(0, str(photo))
    sources = parse_sources(texts)
    targets = plan_targets(sources, f"{out / 'videos'}/", "mp4", path="orbit", disparity=True, cameras=False)
    paths = [path for target in targets for path in target.paths]
    made_from = Path(weights.path).stat().st_mtime
    if all(path.exists() and path.stat().st_mtime >= made_from for path in paths):
        return paths
    check_targets(targets)
    side_px = weights.recipe.model.image_size
    for source in sources:
        picture = read_picture(source, side_px, fit="crop")
        write_bytes(out / "inputs" / f"{source.stem}_input.png", encode_png(picture.image))
    readable, failures = read_all(sources, targets, weights)
    assert not failures, failures
    shot = _shot(size)
    total, done = size.frames * len(readable), 0
    with counting("rendering", "frames") as count:

        def on_frames(frames: int) -> None:
            nonlocal done
            done += frames
            count(done, total)

        render_all(weights, readable, shot, on_frames=on_frames)
    return paths


def _figures(out: Path, weights: LoadedWeights, size: Size, seed: int, counting: Counting) -> dict[str, float]:
    """Figures of these weights, measured once and kept in `geometry.json`."""
    path = out / "geometry.json"
    identity = {"protocol": PROTOCOL, "weights": weights.sha256, "count": size.evaluated, "seed": seed}
    known = kept_metrics(path, identity)
    if known is not None:
        return known
    side_px, done = weights.recipe.model.image_size, 0
    with counting("measuring", "scenes") as count:

        def on_progress(scenes: int) -> None:
            nonlocal done
            done += scenes
            count(done, size.evaluated)

        result = evaluate_geometry(
            model_predictor(weights),
            count=size.evaluated,
            seed=seed,
            size_px=side_px,
            template=toy_template(side_px),
            on_progress=on_progress,
        )
    assert result.sheet is not None
    write_bytes(out / "geometry.png", encode_png(result.sheet))
    write_sealed_json(path, {**identity, "metrics": result.metrics, "view_psnr": result.view_psnr})
    return result.metrics


def _shot(size: Size) -> Shot:
    return Shot("orbit", frames=size.frames, size_px=size.video_px, samples=size.video_samples)


def _stop_between(should_stop: Callable[[], bool], out: Path) -> None:
    if should_stop():
        raise StoppedError(f"stopped as asked ({out})", remedy="the same command again continues")
