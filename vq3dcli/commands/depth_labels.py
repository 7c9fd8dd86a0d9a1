"""`vq3d depth-labels`: disparity labels beside the shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, pick_device
from vq3dcli.errors import UsageError

MODEL = (
    "embedded; what vq3d train-depth wrote; a folder or a name of the Hugging Face Hub for transformers; an .onnx "
    "file; or exact: the disparity that rendered scenes carry themselves."
)
PREDICTS = "What the numbers of a network mean; auto asks its configuration, and takes disparity for ONNX files."
_MANY_FLAGGED = 0.1
_OF_NETWORKS = (
    *("--size", "--predicts", "--batch-size", "--input-size"),
    *("--flip", "--part", "--download", "--device"),
)


def command(
    context: typer.Context,
    output: Output,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A finished folder of vq3d prepare-data.")],
    model: Annotated[str, typer.Option("--model", help=MODEL)],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the labels, in recipes too. Default: that of the model.")
    ] = None,
    size: Annotated[
        int, typer.Option("--size", min=16, max=1024, help="Side of the labels in pixels, at most that of the images.")
    ] = 128,
    predicts: Annotated[Literal["auto", "disparity", "depth"], typer.Option("--predicts", help=PREDICTS)] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=4096, help="Images that the network gets at once.")
    ] = 16,
    input_size: Annotated[
        int | None, typer.Option("--input-size", min=32, max=4096, help="Side of the input of ONNX files of free size.")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirrored image's map; for networks of vq3d train-depth.")
    ] = False,
    part: options.Part = "auto",
    preview: Annotated[
        Path | None, typer.Option("--preview", help="Write a contact sheet of photos and labels to this PNG.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a model of the Hub that is not here.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace labels that were made otherwise.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Write disparity labels beside the shards.

    They lie in SHARDS/disparity/NAME, with the same names and keys as the images. Run it again after an interruption:
    finished shards are kept. Several machines or GPUs share the work with --part, or under torchrun.

    Example:
      vq3d depth-labels toy/ --model exact
      vq3d depth-labels shards/ --model embedded --flip --preview labels.png
      vq3d depth-labels shards/ --model models/Depth-Anything-V2-Small-hf --preview labels.png
      vq3d depth-labels shards/ --model midas.onnx --input-size 384 --name midas
      torchrun --nproc-per-node 8 -m vq3dcli depth-labels shards/ --model models/dpt-large
    """
    from vq3dcli.data.shard_reader import label_folder, open_images
    from vq3dcli.data_tools.depth.labels import EXACT, label_by_model, label_exact
    from vq3dcli.data_tools.depth.models import find_model, open_model
    from vq3dcli.pipelines.inspect import check_sheet, write_preview
    from vq3dcli.remote.cache import address

    if (url := address(shards)) is not None:
        raise UsageError(f"labels are written beside the shards ({url})", remedy="a local copy of the shards")
    if preview is not None:
        check_sheet(preview, "--preview")
        output.replacing([preview], "--preview")
    flagged: Counter[str] = Counter()
    if model == EXACT:
        if name not in (None, EXACT):
            raise UsageError("these labels are called `exact`", remedy="no --name")
        options.refuse_given(context, _OF_NETWORKS, "is for networks, not for --model exact")
        name = EXACT
        with output.progress("labelling", unit="images") as progress:
            manifest = label_exact(shards, force=force, progress=progress)
    else:
        if name is not None and (name in (EXACT, "none") or Path(name).name != name or name.startswith(".")):
            raise UsageError(f"not a name for labels: {name!r}", remedy="--name with letters, digits, dots and dashes")
        files = find_model(model, download=download)
        name = name or files.name
        open_images(shards)  # what is wrong with the shards is said before a large network is loaded
        share = options.asked_part(part, output)
        network = open_model(
            files,
            pick_device(device),
            meaning=None if predicts == "auto" else predicts,
            input_px=input_size,
            or_cpu=device == "auto",
            flip=flip,
        )
        output.note(f"{name}: {', '.join(f'{key} {value}' for key, value in network.facts.items() if key != 'sha256')}")
        with output.progress("labelling", unit="images") as progress:
            made = label_by_model(
                shards,
                network,
                name,
                size=size,
                batch_size=batch_size,
                part=share,
                force=force,
                progress=progress,
                flagged=flagged,
            )
        if made is None:
            output.note(options.unfinished(share))
            output.finish(metrics={"part": str(share), "flagged_now": dict(flagged)})
            return
        manifest = made
    outputs = [label_folder(shards, name)]
    if flagged.total() > _MANY_FLAGGED * manifest.num_samples:
        output.warn(
            f"many labels are of no use, and training will pass them over: {dict(flagged)}; --preview shows them"
        )
    if preview is not None:
        write_preview(shards, name, preview)
        outputs.append(preview)
    metrics: dict[str, object] = {
        "labels": manifest.num_samples,
        "bytes": sum(shard.size for shard in manifest.shards),
        **({"flagged_now": dict(flagged)} if flagged else {}),
    }
    output.finish(count=manifest.num_samples, metrics=metrics, outputs=outputs)
