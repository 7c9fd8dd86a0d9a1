"""`vq3d tokenize`: shards to the codes that Stage 2 is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, SeedOption, pick_device

VIEWS = "Views an image: 1, as it is; 2, its mirror image too; more, random crops of images stored with a margin."


def command(
    said: Output,
    data: Annotated[list[Path], typer.Option("--data", help="A finished folder of vq3d prepare-data; several times.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tokens.")],
    weights: options.Weights = None,
    views: Annotated[int, typer.Option("--crops", min=1, max=1024, help=VIEWS)] = 2,
    part: options.Part = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace tokens that were made otherwise.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Encode shards into the tokens that Stage 2 is trained on.

    OUT holds the codes of all images, memory-mapped, and the hash of the weights: a Stage 2 fits only the Stage 1 whose
    tokens it saw. Run it again after an interruption: what was encoded is kept. Several GPUs or machines share the work
    with --part, into one folder.

    Example:
      vq3d tokenize --data toy/ --out tokens/
      vq3d tokenize --weights runs/imagenet --data shards/ --out tokens/ --crops 10
      torchrun --nproc-per-node 8 -m vq3dcli tokenize --weights runs/imagenet --data shards/ --out tokens/
    """
    from vq3dcli.data.token_store import TokenStore, code_use
    from vq3dcli.pipelines.tokenize import tokenize
    from vq3dcli.weights_file import load_weights

    share = options.asked_part(part, said)
    target = pick_device(device)
    loaded = load_weights(weights, target)
    with said.progress("encoding", unit="images") as progress:
        manifest = tokenize(
            loaded, data, out, views=views, seed=seed, device=target, part=share, force=force, on_progress=progress
        )
    if manifest is None:
        said.note(options.unfinished(share))
        said.finish(seed=seed, weights=loaded, metrics={"part": str(share)}, outputs=[out])
        return
    store = TokenStore(out, check_hashes=False)
    facts = manifest.model_dump(include={"images", "views", "length", "codebook_size"})
    facts |= {"classes": len(manifest.class_names), **code_use(store), "bytes": store.tokens.nbytes}
    said.finish(count=manifest.images, seed=seed, weights=loaded, metrics=facts, outputs=[out])
