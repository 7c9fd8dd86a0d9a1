"""Give a prior more blocks without changing what it computes, to be trained on by `--init`.

Both branches of a new block end in zeros, so that it passes on what it reads until training moves it (as identity
layers of Net2Net, Chen et al., ICLR 2016, do). New blocks are spread evenly between the old ones.

Example:
    python benchmarks/deepen_prior.py --layers 9 --out deeper.safetensors
    vq3d train-stage2 demo64-prior --data tokens/ --out prior/ --init deeper.safetensors --set model.layers=9
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vq3dcli.model.build import build_prior
from vq3dcli.prior_checkpoint import load_prior, save_prior


def main() -> None:
    """Write the deeper prior and show that its logits are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, help="default: the embedded one")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = load_prior(options.prior)
    old, layers = found.model, len(found.model.blocks)
    if options.layers <= layers:
        raise SystemExit(f"the prior has {layers} layers already")
    recipe = found.recipe.model_copy(update={"model": found.recipe.model.model_copy(update={"layers": options.layers})})
    deep = build_prior(recipe, codebook_size=old.codebook_size, length=old.length, classes=old.classes)
    weights = {name: value for name, value in old.state_dict().items() if not name.startswith("blocks.")}
    for layer, block in enumerate(old.blocks):
        place = ((layer + 1) * options.layers) // layers - 1 - (options.layers // layers - 1)
        weights |= {f"blocks.{place}.{name}": value for name, value in block.state_dict().items()}
    deep.load_state_dict(weights, strict=False)
    deep.eval()
    tokens = torch.randint(old.codebook_size, (4, old.length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        apart = (deep(tokens, torch.arange(4)) - old(tokens, torch.arange(4))).abs().max()
    assert apart < 1e-4, f"logits differ by {apart}"
    card = {"init_sha256": found.sha256, "deepened": f"{layers} to {options.layers} layers"}
    print(save_prior(options.out, deep, recipe, found.tokens, card))


if __name__ == "__main__":
    main()
