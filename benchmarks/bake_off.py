"""The bake-off of representations: short runs of equal budget in images, a table of figures.

Example:
    python benchmarks/bake_off.py --data toys/ --out bake-off/ --seeds 0 1
    python benchmarks/bake_off.py --data toys/ --out bake-off/ --only frustum contracted
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.pipelines.evaluation.geometry import evaluate_geometry, model_predictor, toy_template
from vq3dcli.training.arithmetic import flush_denormals
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

BUDGET = (
    "training.images=1600",
    "training.warmup_images=160",
    "training.quantize_from_images=640",
    "training.ema_half_life_images=200",
    "training.sheet_every_images=1600",
    "training.checkpoint_every_images=1600",
    "training.keep_checkpoints=1",
)
VARIANTS = {
    "frustum": (),
    "contracted": ("model.space=contracted",),
    "contracted-1.5": ("model.space=contracted", "model.plane_scale=1.5"),
    "linear-head": ("model.plane_head=linear",),
    "convolution-head": ("model.plane_head=convolution",),
    "no-auxiliary": ("model.auxiliary_head=false",),
    "patch-4": ("model.patch=4",),
}
FIGURES = ("psnr", "novel_psnr", "copy_psnr", "pivot_psnr", "spearman", "ssi_error", "relief", "weight_variance")
EVALUATED = 16


def run(name: str, seed: int, data: Path, out: Path) -> dict[str, float] | None:
    """Train and measure one variant once; a finished one is read from its file.

    None for a run that ended before it quantised: its figures would be those of untrained codes.
    """
    folder = out / f"{name}-{seed}"
    file = folder / "figures.json"
    if file.exists():
        read: dict[str, float] | None = json.loads(file.read_text())
        return read
    recipe = load_recipe("toy-cpu", Stage1Recipe, [*BUDGET, *VARIANTS[name], f"training.seed={seed}"])
    schedule = recipe.training
    loader = TrainingLoader(
        [data], batch_size=schedule.batch_size, size=recipe.model.image_size, seed=seed, flip=True, crop=False
    )
    started = time.process_time()
    result = train(recipe, loader, folder)
    seconds = time.process_time() - started
    if not result.metrics["quantizing"]:
        file.write_text("null")
        return None
    size = recipe.model.image_size
    measured = evaluate_geometry(
        model_predictor(load_weights(folder)),
        count=EVALUATED,
        seed=0,
        size_px=size,
        template=toy_template(size),
        on_progress=lambda scenes: None,
    )
    own = {"perplexity": float(result.metrics["perplexity"]), "cpu_seconds": seconds}
    figures = {**{key: measured.metrics[key] for key in FIGURES}, **own}
    file.write_text(json.dumps(figures))
    return figures


def main() -> None:
    """Run what is asked for and print a table in Markdown, mean over the seeds that quantised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(options.threads)
    columns = (*FIGURES, "perplexity", "cpu_seconds")
    print(f"| variant | runs that quantised | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name in options.only:
        runs = [run(name, seed, options.data, options.out) for seed in options.seeds]
        rows = [row for row in runs if row is not None]
        mean = [f"{sum(row[key] for row in rows) / len(rows):.4g}" if rows else "" for key in columns]
        print(f"| {name} | {len(rows)} of {len(runs)} | {' | '.join(mean)} |", flush=True)


if __name__ == "__main__":
    main()
