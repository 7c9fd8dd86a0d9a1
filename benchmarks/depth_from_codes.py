r"""How fast a decoder learns disparity from codes, without a renderer: optimizers compared.

The decoder of weights and a linear head on its tokens learn s from the codes of toy scenes by an L1 loss. What they
reach bounds what a NeRF of the same codes can learn from as many images. Scenes with a wall, whose distance has to be
read from where it meets the ground, stand beside those with a sky.

Example:
    vq3d prepare-data toyscenes toys/ --count 8000 --size 64 && vq3d depth-labels toys/ --model exact
    python benchmarks/depth_from_codes.py --data toys/ --optimizers adamw muon
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.metrics.geometry import spearman, ssi_error
from vq3dcli.model.scene import to_model_range
from vq3dcli.model.vit import unpatchify
from vq3dcli.pipelines.evaluation.geometry import exact_batches
from vq3dcli.toyscenes import sample_scenes
from vq3dcli.training.arithmetic import flush_denormals, resolve_precision
from vq3dcli.training.optim import build_optimizer, is_due, learning_rate_at, set_learning_rate
from vq3dcli.weights_file import load_weights

BATCH = 8
MEAN_S = 0.28
EVALUATED = 64
KINDS: tuple[Literal["adamw", "muon"], ...] = ("adamw", "muon")


class FromCodes(nn.Module):
    """The decoder of some weights, trained, and a linear head; their codes stay as they are.

    Args:
        weights: A weights file; None for the embedded one.
    """

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        model = load_weights(weights).model.eval()
        self.patch = model.patch
        self.from_code, self.decoder = model.from_code, model.decoder
        self.head = nn.Linear(model.from_code.out_features, model.patch**2)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, MEAN_S)
        self.requires_grad_(True).train()
        self._frozen = (model,)  # in a tuple, which is no submodule: only its decoder is trained

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 `[B, 3, H, W]` to s `[B, H, W]`."""
        (model,) = self._frozen
        with torch.no_grad():
            embedded = model.quantizer.embed(model.codes(to_model_range(images)))
        return unpatchify(self.head(self.decoder(self.from_code(embedded))), self.patch, 1)[:, 0].float()


def main() -> None:
    """Train with each optimizer and print a line of figures now and then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, help="default: the embedded ones")
    parser.add_argument("--optimizers", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="of both")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--every", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(options.threads)
    dtype = resolve_precision("auto", torch.device("cpu"))
    peak = options.learning_rate
    shape = {"learning_rate": peak, "warmup_images": 50 * BATCH, "images": options.images}
    schedule = load_recipe("demo64", Stage1Recipe).training.model_copy(
        update={**shape, "final_learning_rate_factor": 0.02, "weight_decay": 1e-4}
    )
    for kind in options.optimizers:
        torch.manual_seed(0)
        model = FromCodes(options.weights)
        optimizer = build_optimizer(model, schedule.model_copy(update={"optimizer": kind}))
        loader = TrainingLoader(options.data, batch_size=BATCH, size=64, seed=0, flip=True, crop=False)
        batches, seconds = loader.batches(0), 0.0
        for seen in range(0, options.images, BATCH):
            started = time.process_time()
            set_learning_rate(optimizer, learning_rate_at(schedule, seen))
            batch = next(batches)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                s = model(batch.image)
            optimizer.zero_grad()
            (s - batch.s).abs().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds += time.process_time() - started
            if is_due(options.every, seen + BATCH, BATCH):
                print(json.dumps({"optimizer": kind, "images": seen + BATCH, "cpu_s": seconds, **figures(model)}))


@torch.no_grad()
def figures(model: FromCodes) -> dict[str, float]:
    """Of evaluation scenes; `wall_top` correlates the mean s of their uppermost rows with the true one."""
    exact = list(exact_batches(EVALUATED, seed=0, size_px=64))
    s, true = torch.cat([model(batch.rgb) for batch in exact]), torch.cat([batch.s for batch in exact])
    wall = sample_scenes(torch.arange(EVALUATED), seed=0, purpose="eval").has_wall
    ranks, top = spearman(s, true), torch.stack([s[wall, :6].mean((1, 2)), true[wall, :6].mean((1, 2))])
    return {
        "spearman": float(ranks.mean()),
        "spearman_wall": float(ranks[wall].mean()),
        "spearman_sky": float(ranks[~wall].mean()),
        "ssi_error": float(ssi_error(s, true).mean()),
        "wall_top": float(torch.corrcoef(top)[0, 1]),
    }


if __name__ == "__main__":
    main()
