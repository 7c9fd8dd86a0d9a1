"""Contact sheets while a prior trains: samples of some classes, decoded by Stage 1, each with its disparity."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.checkpoint import LoadedWeights
from vq3dcli.config.schema import SamplingSection
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.prior import Prior
from vq3dcli.model.sampling import Sharpening, sample_tokens
from vq3dcli.model.scene import scene_from_codes

_CLASSES, _SAMPLES_A_CLASS = 6, 4
_SAMPLES_A_RAY = 48


def shown_classes(classes: int) -> Tensor:
    """The classes on a sheet, int64: all if they are few, else some from first to last; -1 if there are none."""
    if not classes:
        return torch.tensor([-1])
    return torch.linspace(0, classes - 1, min(classes, _CLASSES)).round().long()


def write_sample_sheet(
    path: Path, prior: Prior, stage1: LoadedWeights, class_names: list[str], sampling: SamplingSection, seed: int
) -> None:
    """Write a PNG with a row a class: four samples, the same seeds on each sheet, their disparity beside each.

    Args:
        path: The PNG.
        prior: The averaged model, in evaluation mode.
        stage1: The weights whose codes it was trained on.
        class_names: By class index.
        sampling: The recipe's.
        seed: Of the samples.
    """
    device = next(stage1.model.parameters()).device
    chosen = shown_classes(len(class_names)).repeat_interleave(_SAMPLES_A_CLASS)
    sharpening = Sharpening(sampling.temperature, sampling.top_k, sampling.top_p, sampling.guidance)
    codes = sample_tokens(prior, chosen, seed=seed, sharpening=sharpening)
    camera = build_canonical_camera(stage1.recipe, stage1.recipe.model.image_size)
    tiles, labels = [], []
    for row, class_index in zip(codes, chosen.tolist(), strict=True):  # one scene in memory at a time
        view = scene_from_codes(stage1.model, row[None].to(device)).render(camera, samples=_SAMPLES_A_RAY)
        tiles += [view.rgb[0].cpu(), colour_map(view.s[0].cpu())]
        labels += ["" if class_index < 0 else class_names[class_index], ""]
    write_bytes(path, encode_png(grid(tiles, columns=2 * _SAMPLES_A_CLASS, labels=labels)))
