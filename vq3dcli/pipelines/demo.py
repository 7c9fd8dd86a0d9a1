"""What the embedded weights do, shown: an orbit, its disparity and a contact sheet of a photo and of toy scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vq3dcli.checkpoint import LoadedWeights
from vq3dcli.files import make_folder
from vq3dcli.pipelines.example_photo import example_photo
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.inputs import parse_sources
from vq3dcli.pipelines.render import read_all, render_all
from vq3dcli.pipelines.targets import check_targets, plan_targets

TOY_INPUTS = ("toyscene:mushroom", "toyscene:arch")
_VIDEO = Shot("orbit", frames=48)
_SHEET = Shot("orbit", frames=8)


def demo(weights: LoadedWeights, out: Path, *, on_frames: Callable[[int], object]) -> list[Path]:
    """Render the example photo, where scikit-image brings it, and toy scenes.

    Args:
        weights: The model.
        out: Folder of the results.
        on_frames: Called with the number of frames just rendered.

    Returns:
        Videos and contact sheets, in the order of the inputs.
    """
    make_folder(out)
    photo = example_photo(out)
    texts = ([str(photo)] if photo else []) + list(TOY_INPUTS)
    sources = parse_sources(texts)
    outputs = []
    for shot, suffix, disparity in ((_VIDEO, "mp4", True), (_SHEET, "png", False)):
        targets = plan_targets(sources, f"{out}/{{name}}_orbit.{suffix}", None, path="orbit", disparity=disparity)
        check_targets(targets)
        readable, failures = read_all(sources, targets, weights.recipe.model.image_size, fit="crop", stdin=None)
        if failures:
            raise failures[0].error
        outputs += render_all(weights, readable, shot, on_frames=on_frames)
    return outputs


def total_frames() -> int:
    """Frames that `demo` renders with a photo at hand, for a progress bar."""
    return (_VIDEO.frames + _SHEET.frames) * (1 + len(TOY_INPUTS))
