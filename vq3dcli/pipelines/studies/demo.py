"""What the embedded weights do, shown: orbits and disparity of a photo, of toy scenes, and of scenes that are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from vq3dcli.pipelines.render import Look, render
from vq3dcli.pipelines.sampling.record import SampleWish, some_classes
from vq3dcli.pipelines.sampling.sample import RECORD_NAME, SHEET_NAME, make_samples, sharpening_of
from vq3dcli.pipelines.targets import Counting, Task
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

TOY_INPUTS = ("toyscene:mushroom", "toyscene:arch")
_VIDEO = Shot("orbit", frames=48)
_SHEET = Shot("orbit", frames=8, size_px=VIDEO_SIZE_PX)
_FILMED_SAMPLES = 2
_CLASSES = 16


def demo(
    weights: LoadedWeights,
    prior: LoadedPrior | None,
    out: Path,
    *,
    counting: Counting,
    on_replaced: Callable[[Sequence[Path]], object] = lambda paths: None,
) -> list[Path]:
    """Render the example photo, where scikit-image brings it, toy scenes, and samples of the prior.

    Args:
        prior: Over its codes; None to do without samples.
        on_replaced: Called with the files that will be written, before the work starts.

    Returns:
        Videos and contact sheets, in the order of the inputs, then those of samples.

    Raises `DataError`: the prior's codes are those of another Stage 1.
    """
    if prior is not None:
        prior.check_stage1(weights)
    make_folder(out)
    photo = example_photo(out)
    texts = ([str(photo)] if photo else []) + list(TOY_INPUTS)
    stems = [source.stem for source in parse_sources(texts)]
    written = [out / f"{stem}_orbit{end}" for stem in stems for end in (".mp4", "_disparity.mp4", ".png")]
    on_replaced([*written, *([] if prior is None else [out / "samples" / RECORD_NAME])])
    outputs = []
    for shot, suffix, disparity in ((_VIDEO, "mp4", True), (_SHEET, "png", False)):
        with counting(f"rendering {suffix}", "frames") as count:
            place = f"{out}/{{name}}_orbit.{suffix}"
            task = Task(weights.device, place, None, disparity, None, weights, count, lambda paths: None)
            outputs += render(texts, shot, Look(write_cameras=False), task).outputs
    if prior is not None:
        filmed = _FILMED_SAMPLES
        wish = SampleWish(sampled_classes(prior), 2, 0, sharpening_of(prior), _VIDEO, filmed, disparity=True)
        files = make_samples(out / "samples", weights, prior, wish, counting) or []
        outputs += [path for path in files if path.name == SHEET_NAME or path.suffix == ".mp4"]
    return outputs


def sampled_classes(prior: LoadedPrior) -> list[int]:
    """The classes that are drawn: some of those that a viewer recognises."""
    return some_classes(prior.recognised, _CLASSES) or [NO_CLASS]


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
