"""`vq3d evaluate`: what measures a model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vq3dcli import signals
from vq3dcli.commands import options
from vq3dcli.commands.output import (
    DeviceOption,
    Output,
    SeedOption,
    pick_device,
    plain,
)
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    from vq3dcli.data_tools.part import Part
    from vq3dcli.pipelines.evaluation.page import Evaluation

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="For the figures, a page and a sheet.")
]
InceptionOption = Annotated[
    Path | None, typer.Option("--inception", metavar="FILE", help="Inception's weights, for FID, KID and IS.")
]


@app.callback()
def _group() -> None:
    """Measure a model.

    Example:
      vq3d evaluate reconstruction --data photos/ -o figures
      vq3d evaluate geometry --data toyscenes --count 64
      vq3d evaluate generation -o figures
    """


class _Voice(Output):
    """What an evaluation says."""

    @contextmanager
    def share(self, part: str, folder: Path | None) -> Iterator[Part]:
        """The share that `--part` names, of work in a `folder`; where others have work left within, it is said.

        Raises `UsageError`: there is no folder.
        """
        from vq3dcli.pipelines.evaluation.measured_set import OthersAtWorkError

        share = options.asked_part(part, self)
        if share.count > 1 and folder is None:
            raise UsageError("parts need a folder that all of them see", remedy="-o FOLDER")
        try:
            yield share
        except OthersAtWorkError:
            self.note(options.unfinished(share))
            self.finish(metrics={"part": str(share)}, outputs=[] if folder is None else [folder], table=[])

    def show(
        self, result: Evaluation, out: Path | None, *, picture: str | None = None, more: Sequence[Path] = ()
    ) -> None:
        """Write the result to `out` and print it."""
        from vq3dcli.pipelines.evaluation.page import write_evaluation

        metrics, name = plain(result.metrics), self.command.split()[-1]
        outputs = [] if out is None else write_evaluation(out, name, result, metrics, picture or f"{name}.png")
        self.finish(
            protocol=result.protocol,
            count=result.count,
            seed=result.seed,
            weights=result.weights,
            metrics=metrics,
            outputs=[*outputs, *more],
            table=result.table,
        )


RECONSTRUCTION_DATA = "toyscenes, shards, a folder of images (folders in it are classes), or an .npz file."
FEATURES = "Network of the distance between the sets, or none. Default: efficientnet-lite1 if it is here."
LPIPS = "Network of LPIPS, fetched where it is not here, or none. Default: alex if it is here."


@app.command()
def reconstruction(
    voice: _Voice,
    data: Annotated[str, typer.Option("--data", metavar="PATH", help=RECONSTRUCTION_DATA)] = "toyscenes",
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=10**5, help="Images at most. Default: 2048, of toy scenes 256."),
    ] = None,
    seed: SeedOption = 0,
    weights: options.Weights = None,
    features: Annotated[
        Literal["efficientnet-lite1", "efficientnet-lite2", "inception", "none"] | None,
        typer.Option("--features", help=FEATURES),
    ] = None,
    inception: InceptionOption = None,
    lpips: Annotated[Literal["alex", "vgg", "none"] | None, typer.Option("--lpips", help=LPIPS)] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option("--lpips-weights", metavar="FILE", help="torchvision's file of that network.")
    ] = None,
    part: options.Part = "auto",
    device: DeviceOption = "auto",
    out: OutOption = None,
) -> None:
    """Measure reconstructions: PSNR, SSIM, LPIPS, the distance between the sets, codes in use, by class.

    A Frechet distance depends on the number of images: compare only equal counts, 2048 or more. In features other than
    Inception's it has a name of its own and is no rFID. docs/evaluation.md has the definitions.

    Example:
      vq3d evaluate reconstruction -o figures
      vq3d evaluate reconstruction --weights runs/toy --data photos/ --lpips alex -o figures
      vq3d evaluate reconstruction --weights runs/imagenet --data val-shards/ --inception weights-inception.pth --json
    """
    from vq3dcli.pipelines.evaluation.reconstruction import measure_reconstruction
    from vq3dcli.weights_file import load_weights

    if inception is not None and features not in (None, "inception"):
        raise UsageError(f"--inception is of no use with --features {features}", remedy="one of the two")
    with voice.share(part, out) as share:
        result = measure_reconstruction(
            data,
            load_weights(weights, pick_device(device)),
            count=count,
            seed=seed,
            features=features,
            inception=inception,
            lpips=lpips,
            lpips_weights=lpips_weights,
            out=out,
            counting=voice.progress,
            part=share,
        )
        voice.show(result, out)


GEOMETRY_DATA = "toyscenes, stereo (scikit-image's pair), or labelled shards."
GEOMETRY_COUNT = "Scenes or images at most. Default: 64 toy scenes, 256 images of shards."
LABELS = "Name of the labels beside the shards. Default: the only ones."


@app.command()
def geometry(
    voice: _Voice,
    data: Annotated[str, typer.Option("--data", metavar="PATH", help=GEOMETRY_DATA)] = "toyscenes",
    labels: Annotated[str | None, typer.Option("--labels", metavar="NAME", help=LABELS)] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, max=10**5, help=GEOMETRY_COUNT)] = None,
    seed: SeedOption = 0,
    weights: options.Weights = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure novel views and disparity: on exact toy scenes, by a teacher's labels, or on a real stereo pair.

    PSNR in dB. copy, flat and pivot are the model's own reconstruction shown unmoved, painted on the plane at the mean
    disparity and on the plane through the pivot; warp is the true input moved by exact disparity; template_ ignores the
    input. docs/evaluation.md defines every figure.

    Example:
      vq3d evaluate geometry --data toyscenes --count 64 --seed 0 --json
      vq3d evaluate geometry --weights runs/toy -o figures
      vq3d evaluate geometry --data photo-shards/ --labels Depth-Anything-V2-Small-hf --count 200
      vq3d evaluate geometry --data stereo -o figures
    """
    from vq3dcli.pipelines.evaluation.measure_geometry import measure_geometry
    from vq3dcli.weights_file import load_weights

    if data in ("toyscenes", "stereo") and labels is not None:
        raise UsageError(f"--labels is for shards, not for {data}", remedy="one of the two")
    loaded = load_weights(weights, pick_device(device))
    result = measure_geometry(data, loaded, labels=labels, count=count, seed=seed, out=out, counting=voice.progress)
    voice.show(result, out)


DEPTH_DATA = "Folder of NAME.jpg beside NAME.disparity.png (16 bits, 0 unknown), with an index.jsonl if there is one."
MODEL = "A depth network, as vq3d depth-labels takes it; repeat it. Default: embedded, unless --weights is given."
NERF = "Stage 1 weights or a run, whose NeRF is rendered, or embedded; repeat it."


@app.command()
def depth(
    voice: _Voice,
    data: Annotated[Path, typer.Option("--data", help=DEPTH_DATA)],
    models: Annotated[list[str] | None, typer.Option("--model", help=MODEL)] = None,
    weights: Annotated[list[str] | None, typer.Option("--weights", help=NERF)] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average each network's map with the mirrored image's.")] = False,
    out: OutOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure disparity on photos whose depth is known, up to scale and shift.

    Beside each network stand two guesses that do not look at the photo: low is near, and the mean of the other maps of
    the set. docs/evaluation.md defines the figures.

    Example:
      vq3d evaluate depth --data pairs/
      vq3d evaluate depth --data pairs/ --model embedded --model teacher/ --weights embedded -o figures
    """
    from vq3dcli.pipelines.evaluation.depth_pairs import measure_depth

    result = measure_depth(
        data,
        models=models or [],
        weights=weights or [],
        flip=flip,
        device=pick_device(device),
        or_cpu=device == "auto",
        out=out,
        counting=voice.progress,
    )
    voice.show(result, out)


_OF_SAMPLING = (
    *("--count", "--class", "--prior", "--yaws"),
    *("--temperature", "--top-k", "--top-p", "--guidance"),
)
SAMPLES = "Samples that are there already: a folder of images, or a file in ADM's format (.npz)."
REAL = "Real images that no training saw: toyscenes, shards, a folder, or an .npz file. Default: toyscenes."
PROTOCOL = "offline-1, adm or fid50k_full; the last two need --inception."
CLASSIFIER = "Toy scenes that the classifier learns from; 0 for no classifier."
YAWS = "Also measure samples seen from these yaws in degrees, a comma between them."
STATISTICS = "Where what was measured is kept and found again. Default: FOLDER/statistics with -o."


@app.command()
def generation(
    context: typer.Context,
    voice: _Voice,
    sharpened: options.Sharpened,
    samples: Annotated[Path | None, typer.Option("--pictures", metavar="PATH", help=SAMPLES)] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help=REAL)] = None,
    protocol: Annotated[str, typer.Option("--protocol", metavar="NAME", help=PROTOCOL)] = "offline-1",
    count: Annotated[
        int | None,
        typer.Option("--count", min=4, max=10**5, help="Samples of all classes. Default: the protocol's."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--class", metavar="NAMES", help="Only these classes, a comma between them.")
    ] = None,
    seed: SeedOption = 0,
    weights: options.Weights = None,
    prior: options.Prior = None,
    yaws: Annotated[str | None, typer.Option("--yaws", metavar="DEGREES", help=YAWS)] = None,
    inception: InceptionOption = None,
    classifier_scenes: Annotated[int, typer.Option(min=0, max=200_000, help=CLASSIFIER)] = 24_000,
    statistics: Annotated[Path | None, typer.Option("--statistics", metavar="FOLDER", help=STATISTICS)] = None,
    part: options.Part = "auto",
    device: DeviceOption = "auto",
    out: OutOption = None,
) -> None:
    """Measure samples: distances to real images, precision and recall, and whether their class is recognised.

    Beside the samples stand what bounds them: Stage 1's reconstructions, the floor, and images of the training. In
    features other than Inception's the distances have names of their own: they are no FID and no KID.

    Example:
      vq3d evaluate generation -o figures
      vq3d evaluate generation --weights stage1/ --prior stage2/ --guidance 1.5 --count 512
      vq3d evaluate generation --pictures samples.npz --data VIRTUAL_imagenet256_labeled.npz --protocol adm
        --inception weights-inception-2015-12-05-6726825d.pth
    """
    from vq3dcli.pipelines.evaluation.measure_generation import Asked, measure_generation

    if samples is not None:
        options.refuse_given(context, _OF_SAMPLING, "says how to sample, and --pictures has the samples")
    folder = statistics if statistics is not None or out is None else out / "statistics"
    with voice.share(part, folder) as share:
        asked = Asked(
            samples=samples,
            data=data,
            protocol=protocol,
            count=count,
            classes=classes,
            seed=seed,
            weights=weights,
            prior=prior,
            sharpening=vars(sharpened),
            yaws=[] if yaws is None else options.numbers("--yaws", yaws),
            inception=inception,
            classifier_scenes=classifier_scenes,
            statistics=folder,
            part=share,
            device=pick_device(device),
        )
        voice.show(measure_generation(asked, out=out, counting=voice.progress), out, picture="samples.png")


IMAGES = "Images that each run sees; the schedule keeps its shares."
RUNS = "Folder of the data and the runs, about 200 MB. Default: OUT/runs."


@app.command()
def ablation(
    voice: _Voice,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="For the figures, the page, the figure.")],
    runs: Annotated[Path | None, typer.Option("--runs", metavar="FOLDER", help=RUNS)] = None,
    images: Annotated[int, typer.Option("--images", min=8, max=10**8, help=IMAGES)] = 5200,
    seeds: Annotated[str, typer.Option("--seeds", help="Each trains all three losses.")] = "0,1,2",
    scenes: Annotated[int, typer.Option("--scenes", min=8, max=10**6, help="Toy scenes to train on.")] = 4000,
    count: Annotated[int, typer.Option("--count", min=1, max=10**5, help="Scenes to measure on.")] = 32,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of all runs' recipe; repeat it.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train one recipe with three depth losses, equal seeds and budget, and show what the pointwise loss is for.

    Nine runs of 5200 images: about 40 minutes on two cores. Interrupted, the same command continues; with more seeds it
    adds to what is there. Each run is a normal training run with a page of its own.

    Example:
      vq3d evaluate ablation -o ablation/
      vq3d evaluate ablation --runs runs/ablation -o ablation/ --images 13600
      vq3d evaluate ablation -o try/ --images 800 --seeds 0 --scenes 500 --count 8
    """
    signals.watch()
    given = options.numbers("--seeds", seeds)
    if not all(seed.is_integer() and 0 <= seed < 2**53 for seed in given):
        raise UsageError(f"--seeds {seeds[:60]}: a seed is a whole number below 2^53", remedy="--seeds 0,1,2")
    chosen = [int(seed) for seed in given]

    from vq3dcli.pipelines.studies.ablation import Plan
    from vq3dcli.pipelines.studies.ablation_figure import measure_ablation
    from vq3dcli.training.arithmetic import flush_denormals

    flush_denormals()
    again = f"vq3d evaluate ablation -o FOLDER --images {images} --seeds {seeds} --scenes {scenes} --count {count}"
    again += "".join(f" --set {shlex.quote(text)}" for text in overrides or ())
    evaluation, more = measure_ablation(
        out,
        runs if runs is not None else out / "runs",
        Plan(images, scenes, count, tuple(overrides or ())),
        chosen,
        device=pick_device(device),
        counting=voice.progress,
        should_stop=signals.stop_requested,
        command=again,
    )
    for text in evaluation.texts:
        voice.note(text)
    voice.show(evaluation, out, more=more)
