"""Put a prior's weights into the package, with the sampling it is best at and a card that says how it measures.

Example:
    vq3d evaluate generation --prior prior/ -o figures/
    python benchmarks/embed_prior.py prior/ --figures figures/generation.json --guidance 1.5 \
        --data "20,000 toy scenes" --command "vq3d train-stage2 ..." --limits "..."
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from vq3dcli.weights_file import LoadedWeights, TokenFacts, embedded_path, load_prior, load_weights, save_weights


def main() -> None:
    """Write the run's exported (rounded) weights with their card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--figures", type=Path, help="generation.json of vq3d evaluate generation.")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument(
        "--tokens-of", type=Path, help="Stage 1 that made its tokens, where the embedded one differs in its card alone."
    )
    parser.add_argument("--recognised", help="Classes that a viewer recognises, a comma between them; default: all.")
    parser.add_argument("--licence", default="Apache-2.0", help="CC-BY-SA-3.0 where its tokens show meshes that are.")
    parser.add_argument("--credits", help="Whose work it saw, where the licence asks for it.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--limits", required=True)
    options = parser.parse_args()
    prior = load_prior(options.run)
    figures = {} if options.figures is None else json.loads(options.figures.read_text())
    card = {
        **prior.card,
        "data": options.data,
        "command": options.command,
        "figures": {
            key: _told(found) for key, found in figures.items() if key != "conditions" and isinstance(found, dict)
        },
        "measured_by": f"vq3d evaluate generation ({figures.get('protocol', 'nothing')})",
        "limits": options.limits,
        "licence": options.licence,
    }
    if options.credits:
        card["credits"] = options.credits
    if options.recognised:
        card["recognised"] = options.recognised.split(",")
    sampling = prior.recipe.sampling.model_copy(
        update={"temperature": options.temperature, "guidance": options.guidance}
    )
    recipe = prior.recipe.model_copy(update={"sampling": sampling})
    tokens = prior.tokens
    if options.tokens_of is not None:
        tokens = embedded_tokens(tokens, load_weights(options.tokens_of))
    print(save_weights(embedded_path("stage2"), prior.model, recipe, card, tokens))


def embedded_tokens(tokens: TokenFacts, made_by: LoadedWeights) -> TokenFacts:
    """Facts about tokens, whose Stage 1 is the embedded one from now on: the same weights under another card."""
    embedded = load_weights()
    before, after = made_by.model.state_dict(), embedded.model.state_dict()
    if tokens.stage1_sha256 != made_by.sha256 or made_by.recipe != embedded.recipe or before.keys() != after.keys():
        raise SystemExit(f"{made_by.path} did not make these tokens, or is another model than the embedded one")
    if not all(torch.equal(before[name], after[name]) for name in before):
        raise SystemExit(f"{made_by.path} and the embedded weights differ in more than their cards")
    return tokens.model_copy(update={"stage1_sha256": embedded.sha256})


def _told(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of a set without those by class, which generation.json keeps."""
    told = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
    if "recognised" in figures:
        told["recognised"] = figures["recognised"]["all"]
    return told


if __name__ == "__main__":
    main()
