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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import EXACT
from vq3dcli.export.page import Section, code, media, paragraph, write_page
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.locks import lock_folder
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.inputs import parse_sources, read_picture
from vq3dcli.pipelines.render import Look, render
from vq3dcli.pipelines.run_report.page import run_sections
from vq3dcli.pipelines.sampling.record import SampleWish
from vq3dcli.pipelines.sampling.sample import SHEET_NAME, filmed_samples, make_samples, sharpening_of
from vq3dcli.pipelines.studies import toy_runs
from vq3dcli.pipelines.studies.demo import TOY_INPUTS, example_photo
from vq3dcli.pipelines.targets import Counting, Task
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.pipelines.train import open_loader
from vq3dcli.sealed import write_sealed_json
from vq3dcli.training.distributed import join_ranks
from vq3dcli.training.stage1 import train
from vq3dcli.training.stage2 import train_prior
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_prior, load_weights

RECIPE, PRIOR_RECIPE = "toy-cpu", "toy-cpu-prior"
# What the prior gets of the minutes that Stage 1 is trained for: it converges sooner.
SHARE_OF_MINUTES = 0.5
_SHEET_WIDTH_PX = 560

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
    """How much is done of what."""

    scenes: int = 4000  # training scenes
    evaluated: int = 24  # scenes that the figures are measured on
    frames: int = 48  # frames a video
    video_px: int = 128  # side of the videos
    video_samples: int = 32  # a ray in them; half the time of a usual video's, but slices at the ends of an orbit
    calibration_seconds: float = 12.0  # length of the calibration
    samples_a_class: int = 4  # new scenes of each class
    samples_filmed: int = 4  # how many of them get a video
    overrides: tuple[str, ...] = ()  # changes to the recipe `toy-cpu`, as `a.b=c`
    # Three million parameters: what minutes on a CPU can train.
    prior_overrides: tuple[str, ...] = ("model.width=192", "model.heads=6")  # changes to the recipe `toy-cpu-prior`


@dataclass(frozen=True)
class Quickstart:
    """What a quickstart made."""

    report: Path  # the HTML page
    videos: list[Path]  # orbits and their disparity
    weights: LoadedWeights
    metrics: Mapping[str, float]  # figures of `evaluate_geometry`
    budget: toy_runs.Budget  # how long Stage 1 trained
    prior: LoadedPrior
    sheet: Path  # samples of each class beside their disparity
    filmed: list[tuple[Path, Path, Path]]  # picture, video and disparity video of some samples


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

    Stage 1 is trained for so many minutes, None for what an earlier call chose, else 6; the prior for half as many.

    Raises:
        StoppedError: `should_stop` became true, or another process works in `out`.
        UsageError: `out` was begun with other options.
    """
    make_folder(out)
    with lock_folder(out):
        return _Call(out, size or Size(), seed, device, counting, should_stop).run(minutes)


@dataclass(frozen=True)
class _Call:
    out: Path
    size: Size
    seed: int
    device: torch.device
    counting: Counting
    should_stop: Callable[[], bool]

    def run(self, minutes: float | None) -> Quickstart:
        out = self.out
        budget, weights = self._stage1(minutes)
        toy_runs.stop_between(self.should_stop, out)
        videos = self._videos(weights)
        toy_runs.stop_between(self.should_stop, out)
        metrics = toy_runs.measure_once(
            out / "geometry.json",
            weights,
            count=self.size.evaluated,
            seed=self.seed,
            identity={"seed": self.seed},
            description="measuring",
            counting=self.counting,
            sheet=out / "geometry.png",
        )
        toy_runs.stop_between(self.should_stop, out)
        prior = self._stage2(weights, SHARE_OF_MINUTES * budget.minutes)
        toy_runs.stop_between(self.should_stop, out)
        sheet, filmed = self._new_scenes(weights, prior)
        made = Quickstart(out / "report.html", videos, weights, metrics, budget, prior, sheet, filmed)
        self._write_report(made)
        return made

    @property
    def _shot(self) -> Shot:
        return Shot("orbit", frames=self.size.frames, size_px=self.size.video_px, samples=self.size.video_samples)

    def _stage1(self, minutes: float | None) -> tuple[toy_runs.Budget, LoadedWeights]:
        recipe = load_recipe(RECIPE, Stage1Recipe, [*self.size.overrides, f"training.seed={self.seed}"])
        toy_runs.recorded_budget(self.out / "budget.json", minutes=minutes, seed=self.seed)  # before the data are made
        side_px, data = recipe.model.image_size, self.out / "data"
        toy_runs.make_toy_data(data, scenes=self.size.scenes, size_px=side_px, seed=self.seed, counting=self.counting)
        loader = open_loader(recipe, [data], EXACT, join_ranks(self.device))
        toy_runs.stop_between(self.should_stop, self.out)
        facts = {"data": "toyscenes", "scenes": loader.num_samples}

        def train_it(recipe: Stage1Recipe, folder: Path, **watching: Any) -> None:
            train(recipe, loader, folder, device=self.device, facts=facts, **watching)

        budget = self._trained("run", "budget.json", "training", recipe, train_it, minutes)
        return budget, load_weights(self.out / "run", self.device)

    def _stage2(self, weights: LoadedWeights, minutes: float) -> LoadedPrior:
        recipe = load_recipe(PRIOR_RECIPE, Stage2Recipe, [*self.size.prior_overrides, f"training.seed={self.seed}"])
        with self.counting("encoding", "scenes") as count:
            tokenize(weights, [self.out / "data"], self.out / "tokens", device=self.device, on_progress=count)
        store = TokenStore(self.out / "tokens")

        def train_it(recipe: Stage2Recipe, folder: Path, **watching: Any) -> None:
            # A calibration draws no sheets.
            stage1 = weights if folder == self.out / "prior" else None
            train_prior(recipe, store, folder, stage1=stage1, device=self.device, **watching)

        record = "prior_budget.json"
        recorded = toy_runs.recorded_budget(self.out / record, minutes=None, seed=self.seed)
        minutes = minutes if recorded is None else recorded.minutes
        self._trained("prior", record, "training the prior", recipe, train_it, minutes)
        return load_prior(self.out / "prior", self.device)

    def _trained(
        self,
        folder: str,
        record: str,
        description: str,
        recipe: toy_runs.AnyRecipe,
        train_it: Callable[..., object],
        minutes: float | None,
    ) -> toy_runs.Budget:
        """Calibrate, unless that is recorded, and train, unless that is done."""
        budget = toy_runs.recorded_budget(self.out / record, minutes=minutes, seed=self.seed)
        batch = recipe.training.batch_size
        if budget is None:
            with self.counting("calibrating", "steps"):
                rate = toy_runs.measured_rate(
                    partial(train_it, recipe),
                    self.out / "calibration",
                    batch,
                    seconds=self.size.calibration_seconds,
                    should_stop=self.should_stop,
                )
            wanted = minutes or toy_runs.DEFAULT_MINUTES
            budget = toy_runs.budget_of(wanted, rate, batch_size=batch, seed=self.seed)
            write_sealed_json(self.out / record, asdict(budget))
        run, final = self.out / folder, toy_runs.with_budget(recipe, budget.images, budget.images_per_second)
        begin = partial(train_it, final, run, should_stop=self.should_stop)
        toy_runs.train_once(run, description, self.counting, begin)
        return budget

    def _videos(self, weights: LoadedWeights) -> list[Path]:
        """Orbits with disparity of a photo, where scikit-image is at hand, and of toy scenes; their inputs too."""
        inputs, videos = self.out / "inputs", self.out / "videos"
        photo = example_photo(inputs)
        texts = [*([str(photo)] if photo else []), *TOY_INPUTS]
        sources = parse_sources(texts)
        paths = [videos / f"{source.stem}_orbit{end}.mp4" for source in sources for end in ("", "_disparity")]
        if _newer(paths, weights.path):
            return paths
        for source in sources:
            picture = read_picture(source, weights.recipe.model.image_size, fit="crop")
            write_bytes(inputs / f"{source.stem}_input.png", encode_png(picture.image))
        with self.counting("rendering", "frames") as count:
            task = Task(self.device, f"{videos}/", "mp4", True, None, weights, count)
            return render(texts, self._shot, Look("none", write_cameras=False), task).outputs

    def _new_scenes(self, weights: LoadedWeights, prior: LoadedPrior) -> tuple[Path, list[tuple[Path, Path, Path]]]:
        """Samples of each class, some of them filmed, from the first class to the last."""
        folder, size = self.out / "samples", self.size
        classes = range(len(prior.tokens.class_names))
        shot, filmed = self._shot, size.samples_filmed
        wish = SampleWish(classes, size.samples_a_class, self.seed, sharpening_of(prior), shot, filmed, disparity=True)
        sheet = folder / SHEET_NAME  # written last
        if not _newer([sheet], weights.path, prior.path):
            make_samples(folder, weights, prior, wish, self.counting)
        a, b, c = (".png", "_orbit.mp4", "_orbit_disparity.mp4")
        return sheet, [
            (folder / f"{n}{a}", folder / f"{n}{b}", folder / f"{n}{c}") for n in filmed_samples(prior, wish)
        ]

    def _write_report(self, made: Quickstart) -> None:
        """The page: what was made, what was measured, how it was trained, how to go on."""
        out, budget = self.out, made.budget
        pictures = [out / "inputs" / f"{video.stem.removesuffix('_orbit')}_input.png" for video in made.videos[::2]]
        rows = list(zip(pictures, made.videos[::2], made.videos[1::2], strict=True))
        figures = made.prior.card["training"]
        text = _SAMPLES_TEXT
        if "held_out_bits" in figures:
            text += " " + _BITS_TEXT.format(bits=figures["held_out_bits"], unigram=figures["unigram_bits"])
        sheet = media(made.sheet, made.sheet.stem, width_px=_SHEET_WIDTH_PX)
        commands = [command.format(weights=out / "run", prior=out / "prior") for command in _NEXT_COMMANDS]
        runs = []
        for name, folder in (("Stage 1", "run"), ("Prior", "prior")):
            sections = run_sections(out / folder)[2]
            runs += [Section(f"{name}: {section.title}", section.blocks) for section in sections]
        write_page(
            made.report,
            "vq3d quickstart",
            f"{budget.images} images of {self.size.scenes} toy scenes, at {budget.images_per_second:.0f} images a "
            f"second on {self.device.type}, seed {self.seed}",
            [
                Section("From one picture to novel views", [paragraph(_VIDEOS_TEXT), *toy_runs.video_rows(rows)]),
                Section("New scenes", [paragraph(text), sheet, *toy_runs.video_rows(made.filmed)]),
                toy_runs.geometry_section(made.metrics, out / "geometry.png"),
                *runs,
                Section("Go on", [code("\n".join(commands))]),
            ],
        )


def _newer(paths: Sequence[Path], *sources: str | Path) -> bool:
    """Whether all of them were made after what they are made from."""
    made = max(Path(source).stat().st_mtime for source in sources)
    return all(path.exists() and path.stat().st_mtime >= made for path in paths)
