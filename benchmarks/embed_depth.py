"""Put a depth network into the package, with a card that says what it saw and how it measures.

Example:
    vq3d evaluate depth --data pairs/ --model teacher/ --json > depth.json
    python benchmarks/embed_depth.py teacher/ --figures depth.json --data "16,000 mesh scenes" \
        --command "vq3d train-depth ..." --licence CC-BY-SA-3.0 --credits "..." --limits "..."
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vq3dcli.weights_file import embedded_path, load_depth, save_weights


def main() -> None:
    """Write the run's averaged, rounded weights with their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="A run, a checkpoint or a weights file.")
    parser.add_argument("--figures", type=Path, required=True, help="What vq3d evaluate depth --json printed of it.")
    for name in ("data", "command", "licence", "credits", "limits"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    loaded = load_depth(options.run)
    found = json.loads(options.figures.read_text())["metrics"]
    hashes = found.pop("conditions")["sha256"]
    name = next((each for each, sha256 in hashes.items() if sha256 == loaded.sha256), "")
    if not name:
        raise SystemExit(f"{options.figures} has no figures of {loaded.path}")
    card = {
        **loaded.card,
        "data": options.data,
        "command": options.command,
        "figures": {group: maps[name] for group, maps in found.items()},
        "measured_by": "vq3d evaluate depth (depth-pairs-1)",
        "limits": options.limits,
        "licence": options.licence,
        "credits": options.credits,
    }
    print(save_weights(embedded_path("depth"), loaded.model, loaded.recipe, card))


if __name__ == "__main__":
    main()
