"""`vq3d evaluate generation`: figures of samples against real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands.options import (
    GuidanceOption,
    PriorOption,
    Stage1Option,
    TemperatureOption,
    TopKOption,
    TopPOption,
    asked_sharpening,
)
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, SeedOption, pick_device, plain

SAMPLES = "Samples that are there already: a folder of images, or a file in ADM's format (.npz)."
DATA = "Real images that no training saw: toyscenes, shards, a folder, or an .npz file. Default: toyscenes."
PROTOCOL = "offline-1, adm or fid50k_full; the last two need --inception."
CLASSIFIER = "Toy scenes that the classifier learns from; 0 for no classifier."
TRAINING = "Shards of the training, to compare with; with toyscenes they are drawn."
YAWS = "Also measure samples seen from these yaws in degrees, a comma between them."
STATISTICS = "Where what was measured is kept and found again. Default: FOLDER/statistics with -o."


def generation(
    samples: Annotated[Path | None, typer.Option("--samples", metavar="PATH", help=SAMPLES)] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help=DATA)] = None,
    protocol: Annotated[str, typer.Option("--protocol", metavar="NAME", help=PROTOCOL)] = "offline-1",
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=4, max=10**5, help="Samples of all classes. Default: the protocol's."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--class", metavar="NAMES", help="Only these classes, a comma between them.")
    ] = None,
    seed: SeedOption = 0,
    weights: Stage1Option = None,
    prior: PriorOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    guidance: GuidanceOption = None,
    yaws: Annotated[str | None, typer.Option("--yaws", metavar="DEGREES", help=YAWS)] = None,
    training: Annotated[Path | None, typer.Option("--training", metavar="SHARDS", help=TRAINING)] = None,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="STORE", help="Also bits per code of the store's held-out images."),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option("--inception", metavar="FILE", help="Inception's weights, for FID, KID and IS.")
    ] = None,
    classifier_scenes: Annotated[int, typer.Option(min=0, max=200_000, help=CLASSIFIER)] = 24_000,
    statistics: Annotated[Path | None, typer.Option("--statistics", metavar="FOLDER", help=STATISTICS)] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="For the figures, a page and a sheet.")
    ] = None,
) -> None:
    """Measure samples: distances to real images, precision and recall, and whether their class is recognised.

    Beside the samples stand what bounds them: Stage 1's reconstructions, the floor, and images of the training. In
    features other than Inception's the distances have names of their own: they are no FID and no KID.

    Example:
      vq3d evaluate generation -o figures
      vq3d evaluate generation --weights stage1/ --prior stage2/ --tokens tokens/ --guidance 1.5 -n 512
      vq3d evaluate generation --samples samples.npz --data VIRTUAL_imagenet256_labeled.npz --protocol adm
        --inception weights-inception-2015-12-05-6726825d.pth
    """
    from vq3dcli.data.images import encode_png
    from vq3dcli.files import write_bytes
    from vq3dcli.pipelines.evaluation import generation as evaluation
    from vq3dcli.pipelines.evaluation.generation_page import generation_sections
    from vq3dcli.pipelines.evaluation.generation_plan import Asked, plan_generation
    from vq3dcli.pipelines.evaluation.page import evaluation_folder, write_evaluation

    said = Output("evaluate generation", json, quiet)

    @contextmanager
    def shown(what: str, total: int) -> Iterator[Callable[[int], object]]:
        with said.progress(what, total, unit="images") as progress:
            yield progress.advance

    asked = Asked(
        samples=samples,
        data=data,
        protocol=protocol,
        count=count,
        classes=classes,
        seed=seed,
        weights=weights,
        prior=prior,
        sharpening=asked_sharpening(temperature, top_k, top_p, guidance),
        yaws=yaws,
        training=training,
        tokens=tokens,
        inception=inception,
        classifier_scenes=classifier_scenes,
        statistics=statistics if statistics is not None or out is None else out / "statistics",
        device=pick_device(device),
    )
    if out is not None:
        evaluation_folder(out, "generation", "samples.png")
    plan = plan_generation(asked)
    for warning in plan.warnings:
        said.warn(warning)
    result = plan.measure(shown)
    metrics = plain({**result.figures, "tokens": plan.tokens, "conditions": result.conditions})
    rows = evaluation.table(result, plan.network)
    if plan.tokens is not None:
        rows += [[], ["bits per code, held out", plan.tokens["bits"]]]
        rows += [["class-conditional unigram", plan.tokens["unigram_bits"]], ["share", plan.tokens["share"]]]
    outputs: list[Path] = []
    if out is not None:
        sheet = out / "samples.png"
        write_bytes(sheet, encode_png(evaluation.sample_sheet(result.sets["samples"])))
        count_shown = result.figures["samples"]["images"]
        outputs = write_evaluation(
            out,
            "generation",
            title="Generation",
            subtitle=f"{plan.protocol.name}: {count_shown} samples, seed {seed}",
            record=metrics,
            conditions=metrics["conditions"],
            sections=generation_sections(result, plan.network, rows, sheet),
        )
        outputs.append(sheet)
    said.finish(
        protocol=plan.protocol.name,
        count=result.figures["samples"]["images"],
        seed=seed,
        weights=plan.weights,
        metrics=metrics,
        outputs=outputs,
        table=rows,
    )
