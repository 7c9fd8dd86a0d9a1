"""What perceptual and adversarial losses do: the same weights trained on for the same images, with and without them.

Frechet distances are in EfficientNet-Lite1's features (never the network of a loss), of reconstructions against their
inputs and of novel views against the exact ones; with few images they only compare runs of this script.

Example:
    python benchmarks/loss_ablation.py --data toys/ --init run/ --out ablation/ --images 1600
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.metrics.distribution import Moments, frechet_distance, moments
from vq3dcli.metrics.features import FeatureNetwork, load_feature_network
from vq3dcli.pipelines.evaluation.geometry import (
    ExactScenes,
    evaluate_geometry,
    exact_batches,
    model_predictor,
    toy_template,
)
from vq3dcli.training.arithmetic import flush_denormals
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

VARIANTS = {
    "neither": (),
    "main": ("adversarial.main=0.02",),
    "novel": ("adversarial.novel=0.02",),
    "main and novel": ("adversarial.main=0.02", "adversarial.novel=0.02"),
    "perceptual": ("loss.perceptual=0.1", "loss.perceptual_network=efficientnet-lite0"),
}
FIGURES = ("psnr", "novel_psnr", "copy_psnr", "spearman", "ssi_error", "relief", "weight_variance")
EVALUATED, SEED = 32, 0
_SAMPLES = 48


def budget(images: int) -> list[str]:
    """A short run that goes on from trained weights, discriminators from its first step."""
    return [
        f"training.images={images}",
        "training.learning_rate=5e-4",
        "training.warmup_images=160",
        f"training.ema_half_life_images={images / 8}",
        f"training.sheet_every_images={images}",
        f"training.checkpoint_every_images={images}",
        "training.keep_checkpoints=1",
        "adversarial.start_images=0",
        f"adversarial.ramp_images={images // 4}",
    ]


class Distances:
    """Frechet distances of rendered views from exact ones, over the first scenes of the evaluation."""

    def __init__(self, network: FeatureNetwork, scenes: int, size_px: int) -> None:
        self.network = network
        self.batches = list(exact_batches(scenes, seed=SEED, size_px=size_px))
        self.main = self._moments([batch.rgb for batch in self.batches])
        self.novel = self._moments([_one_view(batch, batch.novel_rgb) for batch in self.batches])

    @torch.inference_mode()
    def measure(self, weights: Path) -> dict[str, float]:
        """`frechet_main` and `frechet_novel` of a run."""
        predict = model_predictor(load_weights(weights))
        main, novel = [], []
        for batch in self.batches:
            scene = predict(batch.rgb)
            main.append(scene.render(batch.camera, samples=_SAMPLES).rgb)
            views = [scene.render(camera, samples=_SAMPLES).rgb for camera in batch.novel_cameras[:2]]
            novel.append(_one_view(batch, torch.stack(views, 1)))
        return {
            "frechet_main": frechet_distance(self._moments(main), self.main),
            "frechet_novel": frechet_distance(self._moments(novel), self.novel),
        }

    def _moments(self, images: list[Tensor]) -> Moments:
        return moments(map(self.network, images))


def _one_view(batch: ExactScenes, views: Tensor) -> Tensor:
    """Of each scene one of its first two novel views, in turn: `[B, V, 3, H, W]` to `[B, 3, H, W]`."""
    rows = torch.arange(len(batch.rgb))
    return views[rows, rows % 2]


def main() -> None:
    """Run every variant once and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--scenes", type=int, default=256, help="Scenes of the Frechet distances.")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(options.threads)
    base = load_recipe("toy-cpu", Stage1Recipe, options.overrides)
    size = base.model.image_size
    distances = Distances(load_feature_network("efficientnet-lite1"), options.scenes, size)
    columns = (*FIGURES, "frechet_main", "frechet_novel", "cpu_seconds")
    print(f"| losses | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name in options.only:
        folder = options.out / name.replace(" ", "-")
        init = f"training.init={options.init.resolve()}"
        given = [init, *budget(options.images), *options.overrides, *VARIANTS[name]]
        recipe = load_recipe("toy-cpu", Stage1Recipe, given)
        batch, seed = recipe.training.batch_size, recipe.training.seed
        loader = TrainingLoader([options.data], batch_size=batch, size=size, seed=seed, flip=True, crop=False)
        started = time.process_time()
        train(recipe, loader, folder)
        seconds = time.process_time() - started
        measured = evaluate_geometry(
            model_predictor(load_weights(folder)), count=EVALUATED, seed=SEED, size_px=size, template=toy_template(size)
        )
        own = {key: measured.metrics[key] for key in FIGURES}
        figures = {**own, **distances.measure(folder), "cpu_seconds": seconds}
        (folder / "figures.json").write_text(json.dumps(figures))
        print(f"| {name} | {' | '.join(f'{figures[key]:.4g}' for key in columns)} |", flush=True)


if __name__ == "__main__":
    main()
