"""Scenes of textured models as a shard folder: pictures of the canonical camera with their exact disparity."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from vq3dcli.data.shard_format import RejectEntry
from vq3dcli.data.views import novel_poses
from vq3dcli.data_tools.job import Job, Progress
from vq3dcli.data_tools.meshassets import survey_assets
from vq3dcli.data_tools.shard_writer import Sample
from vq3dcli.data_tools.toyscenes import PURPOSE, SceneOptions, banks_of, drawn_job, scene_sample
from vq3dcli.errors import UsageError
from vq3dcli.meshscenes.library import Assets, Library
from vq3dcli.meshscenes.render import pose_at, render_scene, sample_scene


def scene_job(
    models: Path,
    out: Path,
    options: SceneOptions,
    *,
    max_bad: float,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Job:
    """The shard folder of scenes 0 .. count - 1 of a folder of models; equal ones, photos and options give equal bytes.

    `max_bad` is the fraction of the models and pictures that may be of no use; `workers` read them, and `progress` is
    called with (models done, models). Raises `UsageError` for options that do not go together, such as views of varied
    scenes, whose cameras Stage 1 does not know; and as `survey_assets`.
    """
    if options.alone and options.varied:
        raise UsageError("--alone is not for --varied scenes", remedy="one of the two")
    if options.coats is not None and not options.varied:
        raise UsageError("coats are for the models of varied scenes", remedy="--varied, or no --coats")
    if options.varied and options.views:
        raise UsageError(
            "views are of the canonical camera, which varied mesh scenes have not", remedy="no --views, or no --varied"
        )
    survey = survey_assets(models, leave_out=out, workers=workers, progress=progress)
    banks = banks_of(options, out)
    planned = tuple((name, bank.sha256) for name, bank in banks.items())
    samples = functools.partial(_samples, survey.assets, options, out, planned)
    return drawn_job(
        "meshscenes",
        survey.assets.class_names,
        # The rejects of the whole folder stand in the first shard.
        lambda positions: functools.partial(samples, () if positions.start else tuple(survey.rejects)),
        options,
        banks,
        plan={
            "assets": {asset.path: asset.sha256 for asset in survey.assets.models},
            "grounds": dict(survey.assets.grounds),
        },
        max_bad=max_bad,
        num_sources=len(survey.assets.models) + len(survey.assets.grounds) + len(survey.rejects),
        known_rejects=survey.rejects,
    )


def _samples(
    assets: Assets,
    options: SceneOptions,
    out: Path,
    planned: tuple[tuple[str, str], ...],
    rejects: tuple[RejectEntry, ...],
    positions: range,
) -> Iterator[Sample | RejectEntry]:
    """Rejects, then samples of the positions, in order; of the photos that were planned, as `banks_of`."""
    yield from rejects
    library = _library(assets, options, out, planned)
    for index in positions:
        yield mesh_sample(library, index, options)


def mesh_sample(library: Library, index: int, options: SceneOptions) -> Sample:
    """Scene number `index` as it is stored."""
    how = {"varied": options.varied, "clear": options.clear, "alone": options.alone}
    scene = sample_scene(library, index, seed=options.seed, purpose=PURPOSE, **how)
    layout = scene.layout
    poses = novel_poses(options.seed, f"meshscenes/{PURPOSE}", torch.tensor([index]), options.views)[0]
    cameras = [pose_at(0.0, 0.0), *(pose.double().numpy() for pose in poses)]
    views = [render_scene(scene, pose, options.size) for pose in cameras]
    return scene_sample(
        index,
        options.seed,
        (layout.class_index, library.assets.class_names[layout.class_index]),
        [(torch.from_numpy(view.rgb).permute(2, 0, 1), torch.from_numpy(view.s)) for view in views],
        poses,
        scene=layout.kind,
        fov_deg=round(math.degrees(layout.fov_rad), 6),
    )


@functools.lru_cache(maxsize=1)
def _library(assets: Assets, options: SceneOptions, out: Path, planned: tuple[tuple[str, str], ...]) -> Library:
    """What a process makes all its shards of."""
    banks = banks_of(options, out, dict(planned))
    return Library(assets, banks.get("photos"), banks.get("coats"))
