"""The bake-off of sizes: Stage 1 from nothing, each variant for as many CPU seconds, all measured at 128 pixels.

Toy scenes are those of `vq3d evaluate geometry`. Folders to train on come with a share and the name of their labels,
and hold images of 128 pixels or more; SCENES are mesh scenes with views that none was trained on, PHOTOS shards.

Example:
    python benchmarks/sizes.py --train toys 0.4 exact --train meshes 0.35 exact --train photos 0.25 teacher \
        --scenes held-out/ --photos held-out-photos/ --cpu-seconds 3600 --out sizes/
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.metrics.distribution import frechet_distance, moments
from vq3dcli.metrics.features import load_feature_network
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.pipelines.evaluation.geometry import (
    evaluate_geometry,
    look,
    model_predictor,
    photo_predictor,
    toy_template,
)
from vq3dcli.pipelines.evaluation.image_sets import shard_set
from vq3dcli.pipelines.evaluation.labelled import measure_labels, open_labelled
from vq3dcli.pipelines.studies.toy_runs import measured_rate, with_budget
from vq3dcli.pipelines.train import open_loader
from vq3dcli.training.arithmetic import flush_denormals
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import LoadedWeights, load_weights

MEASURED_PX = 128
_SCENES, _PHOTOS, _CALIBRATION_SECONDS = 48, 256, 40.0
_NOVEL = ("loss.novel_l2=1", "loss.novel_l1=0.1", "loss.novel_depth=2", "loss.depth_order=0")
_LARGER = ("model.image_size=128", "model.patch=8", "model.codebook_size=4096")
_PERCEPTUAL = ("loss.perceptual=0.1", "loss.perceptual_network=efficientnet-lite0")
VARIANTS = {
    "64 px": (),
    "128 px": _LARGER,
    "128 px, convolution head": (*_LARGER, "model.plane_head=convolution"),
    "64 px, decoder 256 x 6": ("model.decoder_width=256", "model.decoder_heads=4", "model.decoder_layers=6"),
    "64 px, perceptual": _PERCEPTUAL,
    "64 px, novel discriminator": ("adversarial.novel=0.02",),
}


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Train and measure one variant; a finished one is read from its file."""
    folder = Path(options.out) / name.replace(" ", "-").replace(",", "")
    file = folder / "figures.json"
    if file.exists():
        read: dict[str, float] = json.loads(file.read_text())
        return read
    recipe = load_recipe("demo64", Stage1Recipe, [*_NOVEL, *VARIANTS[name]])
    rate = _images_a_second(recipe, options, folder)
    recipe = with_budget(recipe, int(options.cpu_seconds * rate) // 8 * 8, rate)
    started = time.process_time()
    result = train(recipe, _loader(recipe, options), folder)
    own = {"images": recipe.training.images, "cpu_seconds": time.process_time() - started}
    figures = {**own, "perplexity": float(result.metrics["perplexity"]), **measure(load_weights(folder), options)}
    file.write_text(json.dumps(figures))
    return figures


def _loader(recipe: Stage1Recipe, options: argparse.Namespace) -> TrainingLoader:
    folders, shares, labels = zip(*options.train, strict=True)
    return open_loader(recipe, [Path(f) for f in folders], list(labels), Ranks(), [float(share) for share in shares])


def _images_a_second(recipe: Stage1Recipe, options: argparse.Namespace, folder: Path) -> float:
    """Of CPU time, of all parts of a step at once: a discriminator from the first image, codes as soon as can be."""
    whole: dict[str, Any] = {
        "training": recipe.training.model_copy(update={"quantize_from_images": 0}),
        "adversarial": recipe.adversarial.model_copy(update={"start_images": 0, "ramp_images": 0}),
    }
    begin = partial(train, recipe.model_copy(update=whole), _loader(recipe, options))
    scratch = folder.with_name(folder.name + "-calibration")
    how: dict[str, Any] = {"seconds": _CALIBRATION_SECONDS, "clock": time.process_time}
    return measured_rate(begin, scratch, recipe.training.batch_size, **how)


@torch.inference_mode()
def measure(weights: LoadedWeights, options: argparse.Namespace) -> dict[str, float]:
    """Figures of toy scenes, mesh scenes and photos, whatever size the weights see."""
    template = toy_template(MEASURED_PX)
    toys = evaluate_geometry(model_predictor(weights), count=_SCENES, seed=0, size_px=MEASURED_PX, template=template)
    scenes = open_labelled(Path(options.scenes), "exact", count=None, seed=0, size_px=MEASURED_PX)
    meshes, _ = measure_labels(photo_predictor(weights), weights.recipe, scenes)
    figures = {f"{kind} {key}": of[key] for kind, of in (("toy", toys.metrics), ("mesh", meshes)) for key in _FIGURES}
    photos, rows = ShardFolder(Path(options.photos)), torch.arange(_PHOTOS)
    network = load_feature_network("efficientnet-lite1", weights=None, device=weights.device)
    errors, real, own = [], [], []
    for images in shard_set("photos", photos, rows, size_px=MEASURED_PX).batches():
        for part in images.split(16):
            camera = build_canonical_camera(weights.recipe, MEASURED_PX, len(part))
            shown = look(photo_predictor(weights)(part), camera).rgb
            errors.append(psnr(shown, part))
            real.append(network(part))
            own.append(network(shown))
    distance = frechet_distance(moments(real), moments(own))
    return {**figures, "photo psnr": float(torch.cat(errors).mean()), "photo Frechet distance": distance}


_FIGURES = ("psnr", "novel_psnr", "copy_psnr", "spearman", "ssi_error", "weight_variance")


def main() -> None:
    """Run what is asked for and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=3, action="append", required=True, metavar=("FOLDER", "SHARE", "LABELS"))
    parser.add_argument("--scenes", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--cpu-seconds", type=float, default=3600.0)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(1)
    for number, name in enumerate(options.only):
        figures = run(name, options)
        if number == 0:
            print(f"| variant | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}")
        print(f"| {name} | {' | '.join(f'{value:.4g}' for value in figures.values())} |", flush=True)


if __name__ == "__main__":
    main()
