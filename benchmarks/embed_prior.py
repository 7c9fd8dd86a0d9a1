"""Put a prior's weights into the package, with the sampling it is best at and a card that says how it measures.

Example:
    vq3d evaluate generation --prior prior/ --tokens tokens/ -o figures/
    python benchmarks/embed_prior.py prior/ --figures figures/generation.json --guidance 1.5 \
        --data "20,000 toy scenes" --command "vq3d train-stage2 ..." --limits "..."
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vq3dcli.prior_checkpoint import embedded_prior_path, load_prior, save_prior


def main() -> None:
    """Write the run's exported (rounded) weights with their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--figures", type=Path, help="generation.json of vq3d evaluate generation.")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--data", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--limits", required=True)
    options = parser.parse_args()
    prior = load_prior(options.run)
    figures = {} if options.figures is None else json.loads(options.figures.read_text())
    protocol = figures.get("conditions", {}).get("protocol", {}).get("name", "nothing")
    card = {
        **prior.card,
        "data": options.data,
        "command": options.command,
        "figures": {key: _told(found) for key, found in figures.items() if key != "conditions"},
        "measured_by": f"vq3d evaluate generation ({protocol})",
        "limits": options.limits,
        "licence": "Apache-2.0",
    }
    sampling = prior.recipe.sampling.model_copy(
        update={"temperature": options.temperature, "guidance": options.guidance}
    )
    recipe = prior.recipe.model_copy(update={"sampling": sampling})
    print(save_prior(embedded_prior_path(), prior.model, recipe, prior.tokens, card))


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of a set without those by class, which generation.json keeps."""
    told = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
    if "recognised" in figures:
        told["recognised"] = figures["recognised"]["all"]
    return told


if __name__ == "__main__":
    main()
