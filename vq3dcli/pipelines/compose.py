"""A composition to a video: open what it names, make it real, film it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from vq3dcli.editing.photo_scene import PhotoScene
from vq3dcli.errors import UsageError
from vq3dcli.meshscenes.ray_mesh import is_mesh
from vq3dcli.pipelines.composition import SUFFIX, Composition, check_place, read_composition, write_composition
from vq3dcli.pipelines.film import Shot, check_shot, film, shot_camera
from vq3dcli.pipelines.geometry import with_relief
from vq3dcli.pipelines.inputs import OpenedScene, Source, parse_sources
from vq3dcli.pipelines.render import Detail, Look, Made, staged_photo, with_geometry
from vq3dcli.pipelines.stage import Stage, build_stage
from vq3dcli.pipelines.targets import Task, adding, check_targets, input_files, plan_joint_target, refuse_stdout
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import ViewOf
from vq3dcli.weights_file import LoadedWeights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A composition whose scene is open; `open_object` opens what an insertion names, unless it is a mesh."""

    composition: Composition
    scene: OpenedScene
    open_object: Callable[[str], OpenedScene]

    def stage(self, picture: PhotoScene | None) -> Stage:
        """See `build_stage`."""
        return build_stage(self.composition, self.scene, self.open_object, picture)

    @property
    def holes(self) -> int:
        """How many holes are closed."""
        return len(self.composition.delete) + len(self.composition.move)

    def staged(self, shot: Shot, look: Look, *, detail: Detail) -> tuple[Stage, Callable[[int], ViewOf], Camera]:
        """The stage, what is filmed in each frame, and the cameras that film it; raises what `build_stage` does."""
        picture, cameras = None, shot_camera(shot, self.scene.frustum)
        if detail == "photo" and self.scene.has_detail:
            picture, cameras, _ = staged_photo(self.scene, shot, look, in_layers=True)
        stage = self.stage(picture)
        _log.info("%d things in the scene, %d holes closed", len(stage.things), self.holes)
        for index in stage.out_of(cameras[0]):
            _log.warning("thing %d lies outside of the picture", index + 1)

        view_at: Callable[[float], ViewOf] = lambda progress: partial(stage.at(progress).render, samples=shot.samples)  # noqa: E731
        whole = None if stage.moving else view_at(0.0)
        if whole is not None and shot.still:
            seen = whole(cameras[0])  # nothing moves, nor does the camera: it is rendered once
            whole = lambda _: seen  # noqa: E731
        return stage, lambda frame: whole or view_at(frame / max(1, shot.length - 1)), cameras


def compose(added: Composition, base: Path | None, shot: Shot, look: Look, task: Task) -> Made:
    """Film a composition, and write its file beside the video.

    `added` goes on with the composition file `base`, if there is one.
    """
    refuse_stdout(task.output, "compose")
    # Stdin may be the scene, or one of the objects, but not both.
    sources = composition_sources(added)
    stem = sources[0].stem if base is None else base.name.removesuffix(SUFFIX)
    files = composition_files(added, *([] if base is None else [base]), *task.kept)
    target = plan_joint_target(sources, stem, task, kind="composed", kept=files)
    written = target.video.with_name(f"{target.video.name.removesuffix(target.video.suffix)}{SUFFIX}")
    changed = base is None or added != read_composition(base)
    if changed and written.resolve() in {path.resolve() for path in files}:
        raise UsageError(f"the composition would overwrite the input ({written})", remedy="another name with -o")
    check_shot(shot, target.video_format)
    check_targets([target])
    if changed:
        check_place(written)
    task.on_replaced([*target.replaced, *([written] if changed and written.exists() else [])])
    loaded, look = task.load(sources), with_geometry(look, sources[:1], task)
    opened = open_composition(added, sources, loaded, look, task.device)
    stage, view_at, cameras = opened.staged(shot, look, detail=look.detail_of(sources[0]))
    film(view_at, cameras, target, shot, on_frames=adding(task.on_progress, shot.length))
    outputs = list(target.paths)
    if changed:
        sha256 = None if loaded is None else loaded.sha256
        write_composition(written, added.model_copy(update={"weights_sha256": sha256}))
        outputs.append(written)
    figures = {"things": len(stage.things), "holes": opened.holes, "frames": shot.length}
    return Made(outputs, len(stage.things), loaded, figures)


def open_composition(
    composition: Composition, sources: list[Source], weights: LoadedWeights | None, look: Look, device: torch.device
) -> Opened:
    """Open the scene of a composition; `sources` are those of `composition_sources`."""
    if weights is not None and composition.weights_sha256 not in (None, weights.sha256):
        made_with = str(composition.weights_sha256)
        _log.warning("made with the weights %s, not with %s", made_with[:12], weights.sha256[:12])
    first, *others = sources
    by_text = {source.text: source for source in others}

    def opened(source: Source, look: Look) -> OpenedScene:
        scene = look.open(source, weights, device)
        return with_relief(scene, look.geometry) if look.detail_of(source) == "photo" else scene

    of_things = replace(look, photo_fov_deg=None)
    return Opened(composition, opened(first, look), lambda text: opened(by_text[text], of_things))


def composition_sources(composition: Composition) -> list[Source]:
    """What a composition is made of: its scene, then the scenes that objects are cut out of. Raises `UsageError`."""
    return parse_sources([composition.scene, *(i.object for i in composition.insert if not is_mesh(i.object))])


def composition_files(composition: Composition, *more: Path) -> list[Path]:
    """The files that a composition reads, and `more`; raises `UsageError`."""
    meshes = [Path(item.object) for item in composition.insert if is_mesh(item.object)]
    return [*input_files(composition_sources(composition)), *meshes, *more]
