"""What the embedded weights do, shown: orbits and disparity of a photo, of toy scenes, and of scenes that are new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from vq3dcli.config.defaults import VIDEO_SIZE_PX
from vq3dcli.data.images import encode_png
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.model.draw_codes import NO_CLASS
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.inputs import parse_sources
from vq3dcli.pipelines.render import Look, read_all, render_all
from vq3dcli.pipelines.sampling.record import SampleWish, some_classes
from vq3dcli.pipelines.sampling.sample import SHEET_NAME, draw_samples, sharpening_of, write_samples
from vq3dcli.pipelines.targets import check_targets, plan_targets
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

TOY_INPUTS = ("toyscene:mushroom", "toyscene:arch")
_VIDEO = Shot("orbit", frames=48)
_SHEET = Shot("orbit", frames=8, size_px=VIDEO_SIZE_PX)
_SAMPLES_A_CLASS, _FILMED_SAMPLES = 2, 2
_CLASSES = 16


def demo(
    weights: LoadedWeights, prior: LoadedPrior | None, out: Path, *, on_frames: Callable[[int], object]
) -> list[Path]:
    """Render the example photo, where scikit-image brings it, toy scenes, and samples of the prior.

    Args:
        prior: Over its codes; None to do without samples.

    Returns:
        Videos and contact sheets, in the order of the inputs, then those of samples.

    Raises `DataError`: the prior's codes are those of another Stage 1.
    """
    if prior is not None:
        prior.check_stage1(weights)
    make_folder(out)
    photo = example_photo(out)
    texts = ([str(photo)] if photo else []) + list(TOY_INPUTS)
    sources = parse_sources(texts)
    outputs = []
    for shot, suffix, disparity in ((_VIDEO, "mp4", True), (_SHEET, "png", False)):
        targets = plan_targets(
            sources, f"{out}/{{name}}_orbit.{suffix}", None, path="orbit", disparity=disparity, cameras=False
        )
        check_targets(targets)
        look = Look(write_cameras=False)
        readable, failures = read_all(sources, targets, weights, look)
        if failures:
            raise failures[0]
        outputs += render_all(weights, readable, shot, look, on_frames=on_frames)
    if prior is not None:
        outputs += _samples(weights, prior, out / "samples", on_frames=on_frames)
    return outputs


def total_frames(prior: LoadedPrior | None) -> int:
    """Frames that `demo` renders with a photo at hand, for a progress bar."""
    frames = (_VIDEO.frames + _SHEET.frames) * (1 + len(TOY_INPUTS))
    if prior is not None:
        frames += len(_classes(prior)) * _SAMPLES_A_CLASS + _FILMED_SAMPLES * _VIDEO.frames
    return frames


def _classes(prior: LoadedPrior) -> list[int]:
    return some_classes(prior.recognised, _CLASSES) or [NO_CLASS]


def _samples(
    weights: LoadedWeights, prior: LoadedPrior, out: Path, *, on_frames: Callable[[int], object]
) -> list[Path]:
    wish = SampleWish(_classes(prior), _SAMPLES_A_CLASS, 0, sharpening_of(prior), _VIDEO, disparity=True)
    drawn = draw_samples(prior, wish)
    filmed = [sample.name for sample in drawn[:: max(len(drawn) // _FILMED_SAMPLES, 1)]][:_FILMED_SAMPLES]
    files = write_samples(out, weights, prior, replace(wish, filmed=filmed), drawn, on_frames=on_frames)
    return [path for path in files if path.name == SHEET_NAME or path.suffix == ".mp4"]


def example_photo(folder: Path) -> Path | None:
    """Write scikit-image's photo of a cat (CC0, Stefan van der Walt's Chelsea) to `folder`.

    Returns:
        The PNG, or None without scikit-image.
    """
    path = folder / "cat.png"
    if path.exists():
        return path
    if find_spec("skimage") is None:
        return None
    make_folder(folder)
    pixels = import_module("skimage.data").chelsea()
    write_bytes(path, encode_png(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()))
    return path
