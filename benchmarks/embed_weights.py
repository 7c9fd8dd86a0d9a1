r"""Put a run's weights into the package, with a card that says what they are and how they measure.

Example:
    python benchmarks/embed_weights.py run/ --data "8000 toy scenes" --command "vq3d train-stage1 ..." --limits "..." \
        --photos photos/
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.model.build import build_autoencoder
from vq3dcli.pipelines.evaluation.geometry import PROTOCOL, evaluate_geometry, model_predictor, toy_template
from vq3dcli.pipelines.evaluation.image_sets import open_images
from vq3dcli.pipelines.evaluation.reconstruction import evaluate_reconstruction, model_reconstructor
from vq3dcli.weights_file import LoadedWeights, embedded_path, load_weights, save_weights

EVALUATED, SEED = 64, 0


def main() -> None:
    """Measure the run's exported (rounded) weights and write them with their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--limits", required=True)
    parser.add_argument(
        "--photos", type=Path, help="Photos that no training saw, to measure their reconstruction, too."
    )
    options = parser.parse_args()
    weights = load_weights(options.run)
    size = weights.recipe.model.image_size
    figures: dict[str, Any] = geometry(weights)
    before = geometry(unrounded(weights, options.run))
    figures["float32"] = {name: before[name] for name in ("psnr", "novel_psnr", "spearman", "ssi_error")}
    measured_by = f"vq3d evaluate geometry --count {EVALUATED} --seed {SEED} ({PROTOCOL}, {size} px)"
    measured_by += "; float32: before rounding to fp16"
    if options.photos is not None:
        photos = open_images(str(options.photos), count=None, seed=SEED, size_px=size)
        found = evaluate_reconstruction(
            model_reconstructor(weights), photos, codebook_size=weights.recipe.model.codebook_size
        )
        figures["photos"] = {name: value for name, value in found.figures.items() if not isinstance(value, dict | list)}
        measured_by += "; photos: vq3d evaluate reconstruction"
    card = {
        **weights.card,
        "data": options.data,
        "command": options.command,
        "figures": figures,
        "measured_by": measured_by,
        "limits": options.limits,
        "licence": "Apache-2.0",
    }
    print(save_weights(embedded_path("stage1"), weights.model, weights.recipe, card))


def geometry(weights: LoadedWeights) -> dict[str, float]:
    """The figures of `vq3d evaluate geometry`."""
    size = weights.recipe.model.image_size
    predictor = model_predictor(weights)
    found = evaluate_geometry(predictor, count=EVALUATED, seed=SEED, size_px=size, template=toy_template(size))
    return {name: round(value, 5) for name, value in found.metrics.items()}


def unrounded(weights: LoadedWeights, run: Path) -> LoadedWeights:
    """The same weights before they were rounded to fp16, from the run's newest checkpoint."""
    model = build_autoencoder(weights.recipe)
    newest = max((run / "checkpoints").glob("images-*"))
    model.load_state_dict(read_checkpoint(newest, check=("average",))[0]["average"])
    return replace(weights, model=model.requires_grad_(False).eval())


if __name__ == "__main__":
    main()
