"""Contact sheets while a prior trains: samples of some classes, decoded by Stage 1, each with its disparity.

Tile j of class C shows the scene of sample j of `vq3d sample --class C --seed S`, where S is the seed of the recipe and
the prior is the one that a weights file of this moment would hold.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.schema import SamplingSection
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import write_bytes
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.draw_codes import Sharpening, rows_together, sample_index, sample_tokens
from vq3dcli.model.prior import Prior
from vq3dcli.model.scene import scene_from_codes
from vq3dcli.weights_file import LoadedWeights, prior_as_loaded

_CLASSES, _SAMPLES_A_CLASS = 6, 4
_SAMPLES_A_RAY = 48
# On a GPU, which training has filled: fewer rows than `vq3d sample` takes, of less of its memory.
_ROWS, _MEMORY_SHARE = 8, 0.25


def shown_classes(classes: int) -> Tensor:
    """The classes on a sheet, int64: all if they are few, else some from first to last; -1 if there are none."""
    if not classes:
        return torch.tensor([-1])
    return torch.linspace(0, classes - 1, min(classes, _CLASSES)).round().long()


def sheet_codes(prior: Prior, classes: int, sampling: SamplingSection, seed: int) -> tuple[Tensor, Tensor]:
    """The samples of a sheet, class by class.

    Args:
        prior: The averaged model.
        classes: How many it knows.
        sampling: The recipe's.
        seed: Of the samples.

    Returns:
        Class indices int64 `[N]` and codes int64 `[N, L]`, on the CPU.
    """
    chosen = shown_classes(classes).repeat_interleave(_SAMPLES_A_CLASS)
    index = torch.tensor([sample_index(c, place % _SAMPLES_A_CLASS) for place, c in enumerate(chosen.tolist())])
    sharpening = Sharpening(sampling.temperature, sampling.top_k, sampling.top_p, sampling.guidance)
    drawn_from = prior_as_loaded(prior)
    rows = rows_together(drawn_from, _ROWS, guidance=sharpening.guidance, memory_share=_MEMORY_SHARE)
    return chosen, sample_tokens(drawn_from, chosen, seed=seed, index=index, sharpening=sharpening, rows=rows)


def write_sample_sheet(
    path: Path, prior: Prior, stage1: LoadedWeights, class_names: list[str], sampling: SamplingSection, seed: int
) -> None:
    """Write a PNG with a row a class: four samples, the same on each sheet but for the prior, each with its disparity.

    Args:
        path: The PNG.
        prior: The averaged model.
        stage1: The weights whose codes it was trained on.
        class_names: By class index.
        sampling: The recipe's.
        seed: Of the samples.
    """
    device = next(stage1.model.parameters()).device
    chosen, codes = sheet_codes(prior, len(class_names), sampling, seed)
    camera = build_canonical_camera(stage1.recipe, stage1.recipe.model.image_size)
    tiles, labels = [], []
    for row, class_index in zip(codes, chosen.tolist(), strict=True):  # one scene in memory at a time
        view = scene_from_codes(stage1.model, row[None].to(device)).render(camera, samples=_SAMPLES_A_RAY)
        tiles += [view.rgb[0].cpu(), colour_map(view.s[0].cpu())]
        labels += ["" if class_index < 0 else class_names[class_index], ""]
    write_bytes(path, encode_png(grid(tiles, columns=2 * _SAMPLES_A_CLASS, labels=labels)))
