"""`vq3d train-stage1`, `train-stage2` and `train-depth`: options, data, then a plan or a run that goes on."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from vq3dcli import signals
from vq3dcli.commands.output import DeviceOption, Output, pick_device
from vq3dcli.errors import UsageError
from vq3dcli.training.launch import launch, sbatch, started_ranks

if TYPE_CHECKING:
    from vq3dcli.config.schema import Recipe
    from vq3dcli.training.run import Progress, Result
    from vq3dcli.weights_file import LoadedWeights

T = TypeVar("T", bound="Recipe")

# The keys of `training.devices.PUBLISHED`, which is not imported here: help must not import torch.
PlannedDevice = Literal["h200", "h100", "a100", "a100-40gb", "v100", "l40s", "rtx4090", "cpu"]

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a recipe (vq3d recipes ls lists them), or a file.")
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        help="Name of the disparity labels beside the shards, or none; repeat it for one for each --data, in the "
        "same order. Default: exact.",
    ),
]
DataOption = Annotated[list[Path] | None, typer.Option("--data", help="Folder of shards; repeat it to mix several.")]
SharesOption = Annotated[
    list[float] | None,
    typer.Option("--share", help="Share of the images from each --data, in the same order. Default: by their number."),
]


@dataclass(frozen=True)
class Run:
    """Where a run lies, and how its recipe is changed."""

    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; a run that it holds continues.")
    ] = None
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeat it.")
    ] = None
    init: Annotated[
        Path | None,
        typer.Option("--init", help="Start from these weights or `embedded`; short for training.init=PATH."),
    ] = None
    profile: Annotated[
        int,
        typer.Option("--profile", min=0, max=1000, help="Trace so many steps into RUN/profile.json.gz, for Perfetto."),
    ] = 0
    device: DeviceOption = "auto"

    def recipe(self, recipe: str, schema: type[T]) -> T:
        """The recipe with its overrides, of which `--init` is one; from here on the process computes as training does.

        Raises `RecipeError`.
        """
        from vq3dcli.config.load import load_recipe
        from vq3dcli.training.arithmetic import flush_denormals
        from vq3dcli.weights_file import EMBEDDED

        flush_denormals()
        start = self.init if self.init is None or str(self.init) == EMBEDDED else self.init.resolve()
        init = [f"training.init={start}"] if start else []
        return load_recipe(recipe, schema, [*(self.overrides or []), *init])


@dataclass(frozen=True)
class Scale:
    """On how many machines and GPUs a run is trained, or planned."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run takes: memory, speed, days, disk; needs no --data.")
    ] = False
    device_name: Annotated[
        PlannedDevice | None, typer.Option("--device-name", help="Plan for this GPU instead, with --dry-run.")
    ] = None
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, max=2**20, help="Plan for so many of them, with --dry-run.")
    ] = None
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, max=1024, help="Processes on this machine that train together, one a GPU.")
    ] = 1
    slurm: Annotated[
        int | None,
        typer.Option(
            "--slurm",
            min=1,
            max=2**16,
            metavar="NODES",
            help="Print a file for sbatch: so many machines, --nproc on each.",
        ),
    ] = None


def on_every_rank(command: Callable[..., None]) -> Callable[..., None]:
    """Make of a training command one that `--nproc` runs several times at once, and whose ranks end together."""

    @functools.wraps(command)
    def run(said: Output, run: Run, scale: Scale, data: Any, **options: Any) -> None:
        if scale.slurm is not None:
            _check_asked(data, run.out, dry_run=False)
            if scale.dry_run or said.json:
                raise UsageError("--slurm prints a file, without --dry-run and --json", remedy="one of them")
            assert run.out is not None, "checked above"
            return typer.echo(sbatch(sys.argv[1:], run.out, nodes=scale.slurm, nproc=scale.nproc), nl=False)
        ranks = started_ranks()
        if scale.nproc > 1 and not scale.dry_run and signals.LAUNCHER not in os.environ:
            if ranks > 1:
                raise UsageError("torchrun has started the processes", remedy="no --nproc")
            raise typer.Exit(launch(sys.argv[1:], scale.nproc))
        signals.watch(one_of_many=ranks > 1)
        said = said if _is_main_rank() else Output(said.command, said.json, True)
        options |= {"said": said, "run": run, "scale": scale, "data": data}
        if ranks == 1:
            return command(**options)
        from vq3dcli.training.fate import OtherRankError, shared_fate

        try:
            with shared_fate():
                command(**options)
        except OtherRankError as error:
            raise typer.Exit(error.exit_code) from error

    return run


@on_every_rank
def train_stage1(
    said: Output,
    recipe: RecipeArgument,
    run: Run,
    scale: Scale,
    data: DataOption = None,
    shares: SharesOption = None,
    labels: LabelsOption = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="Shards that never train: pictures and geometry are measured with each sheet."),
    ] = None,
    perceptual_weights: Annotated[
        Path | None, typer.Option("--perceptual-weights", help="The perceptual network's file, for work offline.")
    ] = None,
) -> None:
    """Train the autoencoder whose decoder emits a NeRF; run it again to continue.

    Example:
      vq3d train-stage1 toy-cpu --data toys/ --out run/
      vq3d train-stage1 toy-cpu --data toys/ --out run/ --set training.images=64000 --set loss.depth_kind=accumulated
      vq3d train-stage1 demo64 --data toys/ --data photos/ --labels exact --labels none --share .6 --share .4 --out run/
      vq3d train-stage1 imagenet256 --dry-run --device-name h100 --gpus 8
      vq3d train-stage1 toy-cpu --data photos/ --out tuned/ --init run/weights.safetensors --labels none
      vq3d train-stage1 imagenet256 --data shards/ --out run/ --nproc 8
      vq3d train-stage1 imagenet256 --data shards/ --out run/ --nproc 8 --slurm 4 > run.sbatch
    """
    _check_asked(data, run.out, dry_run=scale.dry_run, planned=scale.device_name is not None or scale.gpus is not None)
    if (shares or labels) and not data:
        option = "--share" if shares else "--labels"
        raise UsageError(f"{option} belongs to a --data", remedy=f"one {option} for each --data, in the same order")

    from vq3dcli.config.schema import Stage1Recipe
    from vq3dcli.pipelines.train import full_speed, label_names, open_held_out, open_loader, run_facts
    from vq3dcli.training.devices import find_processor
    from vq3dcli.training.distributed import join_ranks
    from vq3dcli.training.plan import plan_run
    from vq3dcli.training.plan_table import plan_table
    from vq3dcli.training.stage1 import train

    resolved, place, out = run.recipe(recipe, Stage1Recipe), pick_device(run.device), run.out
    ranks = join_ranks(place)
    loader = open_loader(resolved, data, label_names(labels), ranks, shares) if data else None
    if scale.dry_run:
        if _is_main_rank():
            facts: dict[str, object] = {}
            if loader is not None:
                facts = {"samples": loader.num_samples, "labelled": loader.num_labelled, "labels": loader.labels}
                facts |= {"with_views": loader.num_with_views} if resolved.loss.novel else {}
            plan = plan_run(
                resolved,
                find_processor(resolved, place, scale.device_name),
                gpus=scale.gpus or max(scale.nproc, ranks.world_size),
                classes=None if loader is None else len(loader.class_names),
                samples=None if loader is None else loader.num_samples,
            )
            _say_plan(said, resolved, plan, plan_table(plan), facts)
        return
    assert loader is not None and out is not None, "checked above"
    if perceptual_weights is not None and not resolved.loss.any_perceptual:
        said.warn("--perceptual-weights does nothing: loss.perceptual is 0")
    views = f", {loader.num_with_views} with views" if resolved.loss.novel else ""
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled{views}, on {place}")
    begin = functools.partial(
        train,
        resolved,
        loader,
        out,
        device=place,
        facts=run_facts(resolved, loader, perceptual_weights, shares),
        perceptual_weights=perceptual_weights,
        held_out=None if held_out is None else open_held_out(resolved, held_out),
        full_speed=full_speed(resolved, place, ranks.world_size, classes=len(loader.class_names)),
        profile_steps=run.profile,
    )
    _train(said, resolved, out, begin, "loss {:.4f}")


@on_every_rank
def train_stage2(
    said: Output,
    recipe: RecipeArgument,
    run: Run,
    scale: Scale,
    data: Annotated[Path | None, typer.Option("--data", help="Folder that vq3d tokenize made.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Stage 1 that made the tokens, for sheets of samples. Default: embedded."),
    ] = None,
) -> None:
    """Train the prior that new scenes are sampled from; run it again to continue.

    Example:
      vq3d tokenize --data toys/ --out tokens/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/
      vq3d train-stage2 toy-cpu-prior --data tokens/ --out prior/ --weights run/ --set training.images=300000
      vq3d train-stage2 imagenet256-prior --dry-run --device-name h100 --gpus 8
      vq3d train-stage2 imagenet256-prior --data tokens/ --out prior/ --nproc 8
    """
    main_rank = _is_main_rank()
    _check_asked(data, run.out, dry_run=scale.dry_run, planned=scale.device_name is not None or scale.gpus is not None)

    from vq3dcli.config.schema import Stage2Recipe
    from vq3dcli.data.token_store import TokenStore
    from vq3dcli.pipelines.train import full_speed, stage1_for_sheets
    from vq3dcli.training.devices import find_processor
    from vq3dcli.training.plan import codes_of, plan_prior
    from vq3dcli.training.plan_table import plan_table
    from vq3dcli.training.stage2 import train_prior

    resolved, place, out = run.recipe(recipe, Stage2Recipe), pick_device(run.device), run.out
    store = None if data is None else TokenStore(data, check_hashes=main_rank and not scale.dry_run)
    if scale.dry_run:
        if main_rank:
            codes = codes_of(recipe, store, weights)
            processor = find_processor(resolved, place, scale.device_name)
            plan = plan_prior(resolved, processor, codes, gpus=scale.gpus or max(scale.nproc, started_ranks()))
            _say_plan(said, resolved, plan, plan_table(plan), {})
        return
    assert store is not None and out is not None, "checked above"
    # Sheets are the first rank's business; weights that were asked for are checked on all of them.
    loaded = stage1_for_sheets(store, weights, place) if main_rank or weights is not None else None
    said.note(f"{store.num_images} images, {store.views} views of {store.length} codes, on {place}")
    full = full_speed(resolved, place, started_ranks(), classes=len(store.class_names), store=store)
    watched: dict[str, Any] = {"full_speed": full, "profile_steps": run.profile}
    begin = functools.partial(train_prior, resolved, store, out, stage1=loaded, device=place, **watched)
    _train(said, resolved, out, begin, "{:.3f} bits a code", weights=loaded)


def train_depth(
    said: Output,
    recipe: RecipeArgument,
    run: Run,
    data: DataOption = None,
    shares: SharesOption = None,
    labels: LabelsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps here, and say how long the run takes; needs no --data.")
    ] = False,
) -> None:
    """Train a depth network on shards with disparity, a teacher for photos; run it again to continue.

    It starts from an encoder that knows ImageNet, and runs in one process. vq3d depth-labels --model takes what it
    writes.

    Example:
      vq3d train-depth depth-lite0 --data meshscenes/ --data toys/ --share .7 --share .3 --out teacher/
      vq3d train-depth depth-lite0 --dry-run --set model.input_px=128
      vq3d depth-labels photos/ --model teacher/weights.safetensors
    """
    signals.watch()
    _check_asked(data, run.out, dry_run=dry_run)
    if started_ranks() > 1:
        raise UsageError("a depth network is trained in one process", remedy="without torchrun")

    from vq3dcli.config.schema import DepthRecipe
    from vq3dcli.pipelines.train import label_names, open_loader, run_facts
    from vq3dcli.training import depth
    from vq3dcli.training.distributed import Ranks

    resolved, place, out = run.recipe(recipe, DepthRecipe), pick_device(run.device), run.out
    if dry_run:
        said.finish(seed=resolved.training.seed, metrics=depth.plan_depth(resolved, place))
        return
    assert data and out is not None, "checked above"
    if "none" in (labels or ()):
        raise UsageError("a depth network learns from labels alone", remedy="no --labels none")
    loader = open_loader(resolved, data, label_names(labels), Ranks(), shares)
    said.note(f"{loader.num_samples} samples, {loader.num_labelled} labelled, on {place}")
    given: dict[str, Any] = {"facts": run_facts(resolved, loader, shares=shares), "profile_steps": run.profile}
    begin = functools.partial(depth.train_depth, resolved, loader, out, device=place, **given)
    _train(said, resolved, out, begin, "loss {:.4f}")


def _is_main_rank() -> bool:
    """Whether this process is the first of those of a run, which speaks for all."""
    return started_ranks() == 1 or os.environ["RANK"] == "0"


def _check_asked(data: object, out: Path | None, *, dry_run: bool, planned: bool = False) -> None:
    """Raise `UsageError` for training without all of `--data` and `--out`, or with the options of a plan."""
    if dry_run:
        return
    if not data or out is None:
        raise UsageError("--data and --out are needed", remedy="--dry-run to see what the run takes without them")
    if planned:
        raise UsageError("--device-name and --gpus are for plans only", remedy="--dry-run, or --nproc")


def _train(
    said: Output,
    recipe: Recipe,
    out: Path,
    train: Callable[..., Result],
    status: str,
    weights: LoadedWeights | None = None,
) -> None:
    """Train, with a bar that goes on where the run in `out` stands, and name what it left.

    Args:
        said: The voice of the command.
        recipe: What is trained.
        out: The run's folder.
        train: A function of `training`, but for its callbacks.
        status: A format of the loss, beside the bar.
        weights: That the result names.
    """
    from vq3dcli.pipelines.run_report.page import write_run_report
    from vq3dcli.training.run_folder import RunFolder

    with said.progress("training", "images") as progress:
        progress(RunFolder(out).saved_images(), recipe.training.images)

        def report(step: Progress) -> None:
            progress(step.images_seen, step.total_images, status.format(step.loss))

        result = train(report=report, refresh_page=lambda: write_run_report(out), should_stop=signals.stop_requested)
    if _is_main_rank():
        said.finish(
            count=result.images_seen,
            seed=recipe.training.seed,
            weights=weights,
            metrics=result.metrics,
            outputs=[result.weights, out / "metrics.jsonl", out / "sheets", out / "report.html"],
        )


def _say_plan(
    said: Output, recipe: Recipe, plan: Mapping[str, Any], table: Sequence[Sequence[object]], facts: Mapping[str, Any]
) -> None:
    """Print a plan, with warnings of what is wrong with it; `facts` of the data stand beside its figures."""
    from vq3dcli.training.plan_table import too_few_images

    memory = plan["memory"]
    if memory["state"] == "does not fit":
        said.warn(f"{plan['device']} has too little memory: {memory['advice']}")
    elif memory["state"] == "tight":
        share = memory["needed"] / memory["available"]
        said.warn(f"the plan takes {share:.0%} of the memory of {plan['device']}: {memory['advice']}")
    if few := too_few_images(plan):
        said.warn(f"{plan['micro_batch']} images of a GPU at a time are too few: {few}")
    said.finish(seed=recipe.training.seed, metrics={**plan, **facts}, table=table)
