"""`vq3d evaluate depth`: depth networks and Stage 1 on photos whose depth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device, plain
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    from vq3dcli.data_tools.depth.network import DepthModel
    from vq3dcli.pipelines.evaluation.depth_pairs import Predict

DATA = "Folder of NAME.jpg beside NAME.disparity.png (16 bits, 0 unknown), with an index.jsonl if there is one."
MODEL = "A depth network, as vq3d depth-labels takes it; repeat it. Default: embedded, unless --weights is given."


def depth(
    data: Annotated[Path, typer.Option("--data", help=DATA)],
    models: Annotated[list[str] | None, typer.Option("--model", help=MODEL)] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="Stage 1 weights or a run, whose NeRF is rendered, or embedded; repeat it."),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average each network's map with the mirrored image's.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the figures and a page.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure disparity on photos whose depth is known, up to scale and shift.

    Beside each network stand two guesses that do not look at the photo: low is near, and the mean of the other maps of
    the set. docs/evaluation.md defines the figures.

    Example:
      vq3d evaluate depth --data pairs/
      vq3d evaluate depth --data pairs/ --model embedded --model teacher/ --weights embedded -o figures
    """
    from vq3dcli.data_tools.depth.models import find_model, open_model
    from vq3dcli.export.page import Section
    from vq3dcli.pipelines.evaluation.depth_pairs import PROTOCOL, measure_pairs, open_pairs, rendered, table
    from vq3dcli.pipelines.evaluation.page import evaluation_folder, text_tables, write_evaluation
    from vq3dcli.weights_file import load_weights

    said = Output("evaluate depth", json, quiet)
    chosen = pick_device(device)
    pairs = open_pairs(data)
    predictors: dict[str, Predict] = {}
    hashes = {}

    def add(name: str, predict: Predict, sha256: object) -> None:
        if name in predictors:
            raise UsageError(f"two networks of the same name ({name})", remedy="each once, in folders of other names")
        predictors[name], hashes[name] = predict, sha256

    for each in models or ([] if weights else ["embedded"]):
        files = find_model(each)
        network = open_model(files, chosen, or_cpu=device == "auto", flip=flip)
        add(files.name, _predictor(network), network.facts["sha256"])
    for each in weights or []:
        loaded = load_weights(None if each == "embedded" else Path(each), chosen)
        add(f"Stage 1 {Path(each).name}", rendered(loaded), loaded.sha256)
    if out is not None:
        evaluation_folder(out, "depth")
    with said.progress("measuring", total=len(pairs) * len(predictors), unit="maps") as progress:
        found = measure_pairs(pairs, predictors, progress=progress.advance)
    conditions = {"protocol": PROTOCOL, "data": str(data), "pairs": len(pairs), "flip": flip, "sha256": hashes}
    metrics = plain({**found, "conditions": conditions})
    outputs: list[Path] = []
    if out is not None:
        outputs = write_evaluation(
            out,
            "depth",
            title="Depth of photos",
            subtitle=f"{PROTOCOL}, {len(pairs)} pairs",
            record={"protocol": PROTOCOL, "count": len(pairs), **metrics},
            conditions=conditions,
            sections=[Section("Figures", [*text_tables(table(found))])],
        )
    said.finish(protocol=PROTOCOL, count=len(pairs), metrics=metrics, outputs=outputs, table=table(found))


def _predictor(network: DepthModel) -> Predict:
    from vq3dcli.data_tools.depth.network import to_disparity

    return lambda images: to_disparity(network.predict(images), network.meaning)
