r"""Steps of a recipe as it is trained, measured, beside what `--dry-run` plans: seconds, peak memory, images a second.

Discriminators have started and codes are on: the dearest step of a run. On a GPU also the model FLOP utilisation.

Example:
    python benchmarks/one_step.py toy-cpu --steps 8
    python benchmarks/one_step.py imagenet256 --set training.batch_size=1 --set adversarial.minibatch_group=1 \
        --set loss.perceptual_network=efficientnet-lite0
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time

import torch

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.views import Views, novel_poses
from vq3dcli.losses.depth import LABEL_METRIC
from vq3dcli.losses.perceptual import build_perceptual
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.training.arithmetic import flush_denormals
from vq3dcli.training.devices import PUBLISHED, find_processor, key_of
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.plan import plan_run
from vq3dcli.training.stage1 import build_state, take_step

CLASSES = 16


def toy_batch(count: int, size_px: int, *, novel: bool = False) -> Batch:
    """Toy scenes as a batch; for the time that they take, the same pictures stand for those of other cameras."""
    scenes = sample_scenes(torch.arange(count), seed=0)
    views = render_scenes(scenes, canonical_camera(count, height_px=size_px, width_px=size_px))
    kinds = torch.full((count,), LABEL_METRIC, dtype=torch.int8)
    index = torch.arange(count)
    others = Views(views.rgb, views.s, novel_poses(0, "", index, 1)[:, 0], index) if novel else None
    return Batch(views.rgb, views.s, kinds, index % CLASSES, index, [str(i) for i in range(count)], others)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was used: of a GPU what tensors held, of a CPU the process's resident pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=1, help="Steps that are measured, after one that is not.")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    keep_freed_memory()
    flush_denormals()
    device = torch.device(options.device)
    recipe = load_recipe(options.recipe, Stage1Recipe, options.overrides)
    processor = find_processor(recipe, device)
    plan = plan_run(recipe, processor, classes=CLASSES)
    batch = toy_batch(recipe.training.batch_size, recipe.model.image_size, novel=recipe.loss.novel)
    perceptual = None
    if recipe.loss.any_perceptual:
        perceptual = build_perceptual(recipe.loss.perceptual_network).to(device)
    state = build_state(recipe, classes=CLASSES, device=device, ranks=Ranks())
    if recipe.training.checkpoint_activations:
        state.model.checkpoint_activations()
    if recipe.training.compile:
        state.model.compile_parts()
    state.images_seen = max(recipe.training.quantize_from_images * 4, recipe.adversarial.start_images) + 1
    objective = Stage1Objective(state.model, recipe, state.adversary, perceptual)

    def step() -> float:
        taken = take_step(recipe, state, objective, batch, device=device, ranks=Ranks())
        return float(taken.objective.loss)  # waits for the device

    step()
    started = time.perf_counter()
    losses = [step() for _ in range(options.steps)]
    seconds = (time.perf_counter() - started) / options.steps
    assert all(math.isfinite(loss) for loss in losses), losses
    rate = recipe.training.batch_size / seconds
    speed, memory = plan["speed"], plan["memory"]
    planned_rate = speed["with_discriminators"] or speed["before_discriminators"]
    measured: dict[str, float | str] = {
        "device": plan["device"],
        "threads": torch.get_num_threads(),
        "seconds_a_step": seconds,
        "images_per_second": rate,
        "images_per_second_planned": planned_rate,
        "speed_ratio": rate / planned_rate,
        "peak_gb": peak_bytes(device) / 1e9,
        "peak_gb_planned": memory["needed"] / 1e9,
        "memory_ratio": peak_bytes(device) / memory["needed"],
    }
    key = key_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if key is not None:
        peak = PUBLISHED[key].tflops_bfloat16 if processor.dtype == torch.bfloat16 else None
        measured["model_flop_utilisation"] = (
            rate * speed["gigaflops_an_image"] / 1e3 / (peak or PUBLISHED[key].tflops_float32)
        )
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
