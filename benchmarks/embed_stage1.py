"""Put Stage 1 weights into the package, with a card that says what they saw and how they measure.

Example:
    vq3d evaluate geometry --weights run/ --json > toys.json
    vq3d evaluate reconstruction --weights run/ --data photos/ --json > photos.json
    vq3d evaluate depth --weights run/ --data pairs/ --json > pairs.json
    python benchmarks/embed_stage1.py run/ --toys toys.json --photos photos.json --pairs pairs.json \
        --data "8,000 toy scenes ..." --command "vq3d train-stage1 ..." --licence CC-BY-SA-3.0 \
        --credits "..." --limits "..."
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vq3dcli.weights_file import embedded_path, load_weights, save_weights


def main() -> None:
    """Write the run's averaged, rounded weights with their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="A run, a checkpoint or a weights file.")
    for name in ("toys", "photos", "pairs"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="What the command above printed.")
    for name in ("data", "command", "licence", "credits", "limits"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    loaded = load_weights(options.run)

    def figures_of(path: Path) -> dict[str, Any]:
        said = json.loads(path.read_text())
        measured = said["weights"]["sha256"] if said["weights"] else said["metrics"]["conditions"]["sha256"].values()
        if loaded.sha256 not in (measured if not isinstance(measured, str) else [measured]):
            raise SystemExit(f"{path} has no figures of {loaded.path} ({loaded.sha256[:12]})")
        return {
            name: value for name, value in said["metrics"].items() if name not in ("conditions", "views", "classes")
        }

    pairs = {group: maps for group, maps in figures_of(options.pairs).items() if isinstance(maps, dict)}
    card = {
        **{name: value for name, value in loaded.card.items() if name not in ("figures", "prior")},
        "figures": {
            **{name: value for name, value in figures_of(options.toys).items() if isinstance(value, float)},
            "photos": {name: figures_of(options.photos)[name] for name in ("images", "psnr", "ssim")},
            "pairs": {group: next(v for name, v in maps.items() if "Stage 1" in name) for group, maps in pairs.items()},
        },
        "data": options.data,
        "command": options.command,
        "limits": options.limits,
        "licence": options.licence,
        "credits": options.credits,
    }
    print(save_weights(embedded_path("stage1"), loaded.model, loaded.recipe, card))


if __name__ == "__main__":
    main()
