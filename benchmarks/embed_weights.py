r"""Put a run's weights into the package, with a card that says what they are and how they measure.

Example:
    python benchmarks/embed_weights.py run/ --data "8000 toy scenes" --command "vq3d train-stage1 ..." --limits "..." \
        --photos photos/
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vq3dcli.checkpoint import embedded_weights_path, load_weights, save_weights
from vq3dcli.pipelines.evaluation.data import open_images
from vq3dcli.pipelines.evaluation.exact_scenes import toy_template
from vq3dcli.pipelines.evaluation.geometry import PROTOCOL, evaluate_geometry, model_predictor
from vq3dcli.pipelines.evaluation.reconstruction import evaluate_reconstruction, model_reconstructor

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
    measured = evaluate_geometry(
        model_predictor(weights),
        count=EVALUATED,
        seed=SEED,
        size_px=size,
        template=toy_template(size),
        on_progress=lambda scenes: None,
    )
    figures: dict[str, Any] = {name: round(value, 5) for name, value in measured.metrics.items()}
    measured_by = f"vq3d evaluate geometry --count {EVALUATED} --seed {SEED} ({PROTOCOL}, {size} px)"
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
    print(save_weights(embedded_weights_path(), weights.model, weights.recipe, card))


if __name__ == "__main__":
    main()
