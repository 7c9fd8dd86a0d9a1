"""Photos to videos of novel views: read, reconstruct, film, one input after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vq3dcli.checkpoint import LoadedWeights
from vq3dcli.errors import Vq3dError
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.film import Shot, film, shot_camera
from vq3dcli.pipelines.inputs import Fit, Picture, Source, read_picture
from vq3dcli.pipelines.targets import Target


@dataclass(frozen=True)
class Failure:
    """An input that could not be read."""

    source: Source
    error: Vq3dError


@dataclass(frozen=True)
class Readable:
    """An input that could."""

    picture: Picture
    target: Target


def read_all(
    sources: Sequence[Source], targets: Sequence[Target], size_px: int, *, fit: Fit, stdin: IO[bytes] | None
) -> tuple[list[Readable], list[Failure]]:
    """Read all inputs before any is rendered, so that what is wrong with them is known at once.

    Args:
        sources: The inputs.
        targets: One a source.
        size_px: The model's image size: what is kept of an input is that small.
        fit: See `inputs.read_picture`.
        stdin: What `-` reads.

    Returns:
        What could be read, and why the others could not.
    """
    readable: list[Readable] = []
    failures: list[Failure] = []
    for source, target in zip(sources, targets, strict=True):
        try:
            readable.append(Readable(read_picture(source, size_px, fit=fit, stdin=stdin), target))
        except Vq3dError as error:
            failures.append(Failure(source, error))
    return readable, failures


def render_all(
    weights: LoadedWeights, inputs: Sequence[Readable], shot: Shot, *, on_frames: Callable[[int], object]
) -> list[Path]:
    """Film each input; one scene is held at a time.

    Args:
        weights: The model.
        inputs: From `read_all`.
        shot: How to film.
        on_frames: Called with the number of frames just rendered.

    Returns:
        Files and folders that were written.

    Raises:
        UnavailableError, OutputError, StorageError: See `export.video.video_writer`; earlier videos are complete.
    """
    recipe_camera = weights.recipe.camera
    device = next(weights.model.parameters()).device
    outputs: list[Path] = []
    for item in inputs:
        scene = reconstruct_scene(weights.model, item.picture.image[None].to(device))
        camera = shot_camera(
            shot, radius=recipe_camera.radius, fov_deg=recipe_camera.fov_deg, aspect=item.picture.aspect
        )
        film(scene, camera, item.target, fps=shot.fps, samples=shot.samples, on_frames=on_frames)
        outputs += item.target.paths
    return outputs
