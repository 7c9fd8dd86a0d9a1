"""`vq3d evaluate reconstruction`: images against what Stage 1 makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, SeedOption, pick_device, plain

if TYPE_CHECKING:
    from vq3dcli.metrics.perceptual import Lpips
    from vq3dcli.weights_file import LoadedWeights

DATA = "toyscenes, shards, a folder of images (folders in it are classes), or an .npz file."
FEATURES = "Network of the distance between the sets, or none. Default: efficientnet-lite1 if it is here."
LPIPS = "Network of LPIPS, fetched where it is not here, or none. Default: alex if it is here."


def reconstruction(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help=DATA)] = "toyscenes",
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=1, max=10**5, help="Images at most. Default: 2048, of toy scenes 256."),
    ] = None,
    seed: SeedOption = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights, a run's folder, or a checkpoint. Default: embedded.")
    ] = None,
    features: Annotated[
        Literal["efficientnet-lite1", "efficientnet-lite2", "inception", "none"] | None,
        typer.Option("--features", help=FEATURES),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option("--inception", metavar="FILE", help="Inception's weights, for rFID and rKID.")
    ] = None,
    lpips: Annotated[Literal["alex", "vgg", "none"] | None, typer.Option("--lpips", help=LPIPS)] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option("--lpips-weights", metavar="FILE", help="torchvision's file of that network.")
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="For the figures, a page and a sheet.")
    ] = None,
) -> None:
    """Measure reconstructions: PSNR, SSIM, LPIPS, the distance between the sets, codes in use, by class.

    A Frechet distance depends on the number of images: compare only equal counts, 2048 or more. In features other than
    Inception's it has a name of its own and is no rFID. docs/evaluation.md has the definitions.

    Example:
      vq3d evaluate reconstruction -o figures
      vq3d evaluate reconstruction --weights runs/toy --data photos/ --lpips alex -o figures
      vq3d evaluate reconstruction --weights runs/imagenet --data val-shards/ --inception weights-inception.pth --json
    """
    from vq3dcli.data.images import encode_png
    from vq3dcli.errors import UnavailableError, UsageError
    from vq3dcli.files import write_bytes
    from vq3dcli.metrics.features import load_feature_network
    from vq3dcli.pipelines.evaluation import reconstruction as evaluation
    from vq3dcli.pipelines.evaluation.data import open_images
    from vq3dcli.pipelines.evaluation.page import evaluation_folder, write_evaluation
    from vq3dcli.pipelines.evaluation.reconstruction_page import reconstruction_sections
    from vq3dcli.weights_file import load_weights

    if inception is not None and features not in (None, "inception"):
        raise UsageError(f"--inception is of no use with --features {features}", remedy="one of the two")
    said = Output("evaluate reconstruction", json, quiet)
    chosen = pick_device(device)
    loaded = load_weights(weights, chosen)
    network = None
    name = features or ("efficientnet-lite1" if inception is None else "inception")
    if name != "none":
        try:
            network = load_feature_network(name, weights=inception, device=chosen)
        except UnavailableError as error:
            if features is not None or inception is not None:
                raise
            said.warn(f"the distance between the sets is left out: {error}")
    judge = _lpips(said, loaded, lpips, lpips_weights)
    size = loaded.recipe.model.image_size
    images = open_images(data, count=count, seed=seed, size_px=size)
    if out is not None:
        evaluation_folder(out, "reconstruction", "reconstruction.png")
    with said.progress("measuring", len(images), unit="images") as progress:
        result = evaluation.evaluate_reconstruction(
            evaluation.model_reconstructor(loaded),
            images,
            codebook_size=loaded.recipe.model.codebook_size,
            network=network,
            lpips=judge,
            seed=seed,
            on_images=progress.advance,
        )
    if network is not None and len(images) < 2048:
        said.warn(f"a Frechet distance of {len(images)} images is biased: compare only equal counts, better 2048")
    metrics = plain({**result.figures, "conditions": {**result.conditions, "device": chosen.type}})
    outputs: list[Path] = []
    if out is not None:
        sheet = out / "reconstruction.png"
        write_bytes(sheet, encode_png(evaluation.pair_sheet(result)))
        outputs = write_evaluation(
            out,
            "reconstruction",
            title="Reconstruction",
            subtitle=f"{len(images)} {images.name} at {size} px, seed {seed}",
            record={"weights": loaded.sha256, "seed": seed, **metrics},
            conditions={"weights": loaded.sha256, **metrics["conditions"]},
            sections=reconstruction_sections(result, sheet),
        )
        outputs.append(sheet)
    said.finish(
        protocol=f"{evaluation.PROTOCOL}, {size} px",
        count=len(images),
        seed=seed,
        weights=loaded,
        metrics=metrics,
        outputs=outputs,
        table=evaluation.table(result),
    )


def _lpips(
    said: Output, weights: LoadedWeights, name: Literal["alex", "vgg", "none"] | None, file: Path | None
) -> Lpips | None:
    """LPIPS as asked for; unasked, where its weights are here and it is not the network of the model's own loss."""
    from vq3dcli.errors import UnavailableError
    from vq3dcli.metrics.perceptual import is_here, load_lpips

    if name == "none":
        return None
    trained_with = weights.recipe.loss.perceptual_network if weights.recipe.loss.any_perceptual else "none"
    device = next(weights.model.parameters()).device
    if name is not None or file is not None:
        return load_lpips(name or "alex", trunk_weights=file, trained_with=trained_with, device=device)
    unasked: Literal["alex", "vgg"] = "vgg" if trained_with == "lpips-alex" else "alex"
    try:
        if is_here(unasked):
            return load_lpips(unasked, trained_with=trained_with, device=device)
    except UnavailableError as error:
        said.warn(f"LPIPS is left out: {error}")
        return None
    said.warn(f"LPIPS is left out: its weights are not here; --lpips {unasked} fetches them, --lpips none is silent")
    return None
