"""What models give: Stage 1's reconstructions of a set of images, and samples of the prior.

Legend: N images, B images of a batch, L codes of an image, S side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data.stream import spread
from vq3dcli.errors import UsageError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.draw_codes import Sharpening, rows_together, sample_index, sample_tokens
from vq3dcli.model.scene import Scene, reconstruct_scene, scene_from_codes
from vq3dcli.pipelines.evaluation.image_sets import NO_CLASS, ImageSet
from vq3dcli.rendering.cameras import pivot_pose
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

_SCENES_AT_ONCE = 16


class Samples:
    """Samples of the prior, drawn a group at a time when somebody asks, and then remembered as codes.

    They are those that `vq3d sample` draws with the same seed and options: the first ones of each class, as many as
    `counts` says by class index, -1 for no class. `class_index` int64 `[N]` is that of each, class by class.
    """

    def __init__(self, prior: LoadedPrior, counts: dict[int, int], *, seed: int, sharpening: Sharpening) -> None:
        self.prior, self.counts, self.seed, self.sharpening = prior, dict(counts), seed, sharpening
        self.class_names = prior.tokens.class_names
        numbered = [(c, sample_index(c, number)) for c, count in counts.items() for number in range(count)]
        self.class_index, self._index = torch.tensor(numbered, dtype=torch.int64).unbind(1)
        self.step = rows_together(prior.model, len(numbered), guidance=sharpening.guidance)
        self._drawn: dict[int, Tensor] = {}

    def read(self, start: int, stop: int) -> Iterator[Tensor]:
        """Codes int64 `[at most a group, L]`, in order, from sample `start`, a multiple of `step`, to before `stop`."""
        for first in range(start, stop, self.step):
            if first not in self._drawn:
                rows = slice(first, first + self.step)
                classes, index = self.class_index[rows], self._index[rows]
                self._drawn[first] = sample_tokens(
                    self.prior.model, classes, seed=self.seed, index=index, sharpening=self.sharpening
                )
            yield self._drawn[first]


def sampled_set(name: str, weights: LoadedWeights, samples: Samples, *, yaw_deg: float = 0.0) -> ImageSet:
    """Samples from the camera at a yaw around the pivot, 0 for the one that took the training images."""
    own = {
        "kind": "samples",
        "prior_sha256": samples.prior.sha256,
        "seed": samples.seed,
        "sharpening": asdict(samples.sharpening),
        "count": len(samples.class_index),
        "count_by_class": {str(class_index): count for class_index, count in samples.counts.items()},
        "yaw_deg": yaw_deg,
        "threads": torch.get_num_threads(),
    }
    return _rendered_set(name, weights, samples, scene_from_codes, own, yaw_deg)


def reconstructed_set(name: str, weights: LoadedWeights, source: ImageSet) -> ImageSet:
    """Stage 1's reconstructions of a set, through the codes and from the camera that took the images."""
    own = {"kind": "reconstructions", "of": dict(source.description)}
    return _rendered_set(name, weights, source, reconstruct_scene, own, 0.0)


def _rendered_set(
    name: str,
    weights: LoadedWeights,
    source: Samples | ImageSet,
    scene_of: Callable[[Autoencoder, Tensor], Scene],
    own: dict[str, Any],
    yaw_deg: float,
) -> ImageSet:
    """Pictures of the scenes that the model makes of what a source reads; `own` is the description's own part."""
    size = weights.recipe.model.image_size
    camera = build_canonical_camera(weights.recipe, size)
    device = weights.device

    def read(start: int, stop: int) -> Iterator[Tensor]:
        for part in (part for batch in source.read(start, stop) for part in batch.split(_SCENES_AT_ONCE)):
            scene = scene_of(weights.model, part.to(device))
            yaw_rad = torch.full((len(scene),), math.radians(yaw_deg))
            pose = pivot_pose(yaw_rad, torch.zeros_like(yaw_rad), weights.recipe.camera.radius)
            yield scene.render(camera.at(pose), samples=EVALUATION_SAMPLES).rgb.cpu()

    description = {
        "stage1_sha256": weights.sha256,
        **own,
        "size_px": size,
        "samples_a_ray": EVALUATION_SAMPLES,
        "resize": "none",
        "quantisation": "8 bits a channel, no file between",
        "device": device.type,
        "versions": {"vq3d": __version__, "torch": torch.__version__},
    }
    return ImageSet(name, source.class_index, source.class_names, description, read, source.step)


def class_counts(
    chosen: Sequence[int], count: int, names: Sequence[str], like: ImageSet | None = None
) -> dict[int, int]:
    """How many samples of each class to draw.

    As even as can be over the `chosen` class indices, `[-1]` for no class, or in the proportions of the images `like`,
    whose classes are found by name.

    Raises `UsageError`: none of the images in `like` has a class that is chosen.
    """
    shares = [1.0] * len(chosen)
    if like is not None and list(chosen) != [NO_CLASS]:
        there = torch.bincount(like.class_index[like.class_index >= 0], minlength=len(like.class_names)).tolist()
        by_name = dict(zip(like.class_names, there, strict=True))
        shares = [float(by_name.get(names[i], 0)) for i in chosen]
        if not sum(shares):
            raise UsageError(
                "the data have no image of the prior's classes, which should tell how many samples each class gets",
                remedy="shards with these classes, or another --protocol",
            )
    return {i: n for i, n in zip(chosen, spread(count, shares), strict=True) if n}
