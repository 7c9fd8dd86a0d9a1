"""From one scene to the next: photos, samples and saved scenes as stops, and frames between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from vq3dcli.errors import UsageError
from vq3dcli.files import cut_name
from vq3dcli.model.blend import mix_codes, mix_planes
from vq3dcli.model.scene import Scene
from vq3dcli.pipelines.film import Shot, check_shot, film, shot_camera
from vq3dcli.pipelines.inputs import Fit, OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.render import Made
from vq3dcli.pipelines.targets import Task, adding, check_targets, plan_joint_target, refuse_stdout
from vq3dcli.scene_file import check_codes
from vq3dcli.weights_file import LoadedWeights

Mix = Literal["codes", "planes"]
SceneAt = Callable[[int, int], Scene]
"""A frame, and of how many, to its scene."""

_MOST_BYTES = 80
_log = logging.getLogger(__name__)


def interpolate(
    texts: Sequence[str], shot: Shot, task: Task, *, mix: Mix, requantize: bool = False, loop: bool = False, fit: Fit
) -> Made:
    """Film the way between scenes, see `way_between`."""
    refuse_stdout(task.output, "interpolate")
    sources = parse_sources(texts)
    stem = cut_name("_to_".join(source.stem for source in sources), _MOST_BYTES)
    target = plan_joint_target(sources, stem, task, kind="interpolation")
    check_shot(shot, target.video_format)
    check_targets([target])
    task.on_replaced(target.replaced)
    loaded = task.load(sources, always=mix == "codes")
    opened = [open_scene(source, loaded, fit=fit, device=task.device) for source in sources]
    scene_at = way_between(opened, loaded, mix=mix, requantize=requantize, loop=loop)
    _log.info("%d frames between %d scenes, mixing %s", shot.length, len(opened), mix)
    film(
        lambda frame: partial(scene_at(frame, shot.length).render, samples=shot.samples),
        shot_camera(shot, opened[0].frustum),
        target,
        shot,
        on_frames=adding(task.on_progress, shot.length),
    )
    figures = {"mix": mix, "requantize": requantize, "loop": loop, "frames": shot.length, "fps": shot.fps}
    return Made(target.paths, len(opened), loaded, figures)


def leg(frame: int, frames: int, stops: int, *, loop: bool) -> tuple[int, float]:
    """Between which stops a frame lies: the index of the first of them, and how far it is to the next, in [0, 1].

    The first frame shows the first stop, and the last frame the last one; in a loop the frame after the last one
    would show the first stop again.
    """
    legs = stops if loop else stops - 1
    steps = frames if loop else max(1, frames - 1)
    # In whole numbers: a frame that falls on a stop falls on it exactly.
    index, rest = divmod(frame * legs, steps)
    return (index, rest / steps) if index < legs else (legs - 1, 1.0)


def way_between(
    opened: Sequence[OpenedScene], weights: LoadedWeights | None, *, mix: Mix, requantize: bool, loop: bool
) -> SceneAt:
    """Check that there is a way between single scenes of one model, and return it; in a loop it leads back.

    Raises:
        UsageError: Fewer than two scenes, scenes of different models, or codes wanted of a scene that has none.
        DataError: A scene has codes that its weights do not know.
    """
    if len(opened) < 2:
        raise UsageError("one input leads nowhere", remedy="vq3d interpolate A B")
    if requantize and mix == "planes":
        raise UsageError("--requantize is for codes, not for planes", remedy="--mix codes")
    made_by = {str(item.provenance.get("weights_sha256")) for item in opened}
    if len(made_by) > 1 or (mix == "codes" and weights is not None and made_by != {weights.sha256}):
        names = ", ".join(sorted(sha256[:12] for sha256 in made_by | ({weights.sha256} if weights else set())))
        raise UsageError(f"scenes of different weights have no way between them ({names})", remedy="--weights")
    if mix == "codes" and not all(item.scene.codes.numel() for item in opened):
        without = next(item.stem for item in opened if not item.scene.codes.numel())
        raise UsageError(f"a scene without codes ({without})", remedy="--mix planes")
    if mix == "codes" and weights is not None:
        for item in opened:
            check_codes(Path(item.stem), item.scene.codes, weights)

    def scene_at(frame: int, frames: int) -> Scene:
        index, fraction = leg(frame, frames, len(opened), loop=loop)
        first, second = opened[index].scene, opened[(index + 1) % len(opened)].scene
        if mix == "planes":
            return mix_planes(first, second, fraction)
        assert weights is not None
        return mix_codes(weights.model, first.codes, second.codes, fraction, requantize=requantize)

    return scene_at
