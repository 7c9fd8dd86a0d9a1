"""Scenes of textured models as a shard folder: pictures of the canonical camera with their exact disparity."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.defaults import MAX_BAD, SHARD_SIZE
from vq3dcli.data.images import encode_png
from vq3dcli.data.shard_format import DISPARITY_EXTENSION, DISPARITY_LEVELS, Manifest, sample_key
from vq3dcli.data.shard_reader import encode_levels
from vq3dcli.data.views import novel_poses, view_facts, view_members
from vq3dcli.data_tools.job import Job, shard_ranges
from vq3dcli.data_tools.meshassets import Survey
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.prepare import prepare_part
from vq3dcli.data_tools.shard_writer import Reject, Sample, compact_json
from vq3dcli.data_tools.toyphotos import read_photo_bank
from vq3dcli.errors import DataError, UsageError
from vq3dcli.meshscenes.library import Assets, Library
from vq3dcli.meshscenes.render import MeshView, pose_at, render_scene, sample_scene
from vq3dcli.toyscenes.photos import PhotoBank

PURPOSE = "train"


@dataclass(frozen=True)
class SceneOptions:
    """What the bytes of the shards depend on, beside the models.

    Attributes:
        count: Number of scenes.
        size: Side of the images in pixels.
        seed: Of all that is drawn.
        varied: Cameras of any field of view.
        photos: Shards, or a folder or tar of photos, for surfaces and skies.
        coats: The same, for the models of varied scenes.
        shard_size: Scenes a shard.
        views: Exact pictures from other cameras beside each scene, see `data.views`; not of varied ones, whose
            cameras Stage 1 does not know.
    """

    count: int
    size: int
    seed: int = 0
    varied: bool = False
    photos: Path | None = None
    coats: Path | None = None
    shard_size: int = SHARD_SIZE
    views: int = 0

    def __post_init__(self) -> None:
        """Raise `UsageError` for views of varied scenes, and for coats of others."""
        if self.coats is not None and not self.varied:
            raise UsageError("coats are for the models of varied scenes", remedy="--varied, or no --coats")
        if self.varied and self.views:
            raise UsageError(
                "views are of the canonical camera, which varied mesh scenes have not",
                remedy="no --views, or no --varied",
            )


@dataclass(frozen=True)
class SceneMaker:
    """Makes the samples of some positions; it is sent to worker processes.

    Attributes:
        assets: The models.
        options: Of the scenes.
        leave_out: The output, which may lie in the folder of the photos.
        photos_sha256: Of the photos and of the coats, as they were when the job was planned; None without.
        rejects: Of the whole folder of models; they stand in the first shard.
    """

    assets: Assets
    options: SceneOptions
    leave_out: Path
    photos_sha256: tuple[str | None, str | None]
    rejects: tuple[Reject, ...]

    def part(self, positions: range) -> SceneMaker:
        """The same for the positions of one shard."""
        return self if positions.start == 0 else replace(self, rejects=())

    def __call__(self, positions: range) -> Iterator[Sample | Reject]:
        """Samples of the positions in a range, in order; position 0 has the rejects of the folder."""
        library = _library(self.assets, (self.options.photos, self.options.coats), self.leave_out, self.photos_sha256)
        for index in positions:
            if index == 0:
                yield from self.rejects
            yield scene_sample(library, index, self.options)


def prepare_meshscenes(
    survey: Survey,
    out: Path,
    options: SceneOptions,
    *,
    max_bad: float = MAX_BAD,
    part: Part = WHOLE,
    workers: int | None = 1,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest | None:
    """Write scenes 0 .. count - 1 of a seed; equal models, photos and options give equal bytes.

    Args:
        survey: Of the models.
        out: The shard folder.
        options: Of the scenes.
        max_bad: Fraction of the models and pictures that may be of no use.
        part: The share of the shards that this process makes.
        workers: Processes; None for one a core, fewer for little work.
        force: Replace a shard folder that was made with other options.
        progress: Called with (scenes done, scenes of this part).

    Returns:
        None while other parts have work left.

    Raises:
        DataError: More than `max_bad` of the models are of no use, or photos that are none.
        StorageError: The shards will not fit on the disk.
    """
    job = scene_job(survey, out, options, max_bad=max_bad)
    return prepare_part(out, job, part, workers=workers, force=force, progress=progress)


def scene_job(survey: Survey, out: Path, options: SceneOptions, *, max_bad: float) -> Job:
    """The shard folder that `prepare_meshscenes` makes."""
    banks = {name: _bank(path, out) for name, path in (("photos", options.photos), ("coats", options.coats)) if path}
    sha256 = {name: bank.sha256 for name, bank in banks.items()}
    maker = SceneMaker(survey.assets, options, out, (sha256.get("photos"), sha256.get("coats")), tuple(survey.rejects))
    plan: dict[str, Any] = {
        "preset": "meshscenes",
        "count": options.count,
        "size": options.size,
        "seed": options.seed,
        "purpose": PURPOSE,
        "shard_size": options.shard_size,
        "assets": {asset.path: asset.sha256 for asset in survey.assets.models},
        "grounds": dict(survey.assets.grounds),
        **({"varied": True} if options.varied else {}),
        **({"views": options.views} if options.views else {}),
        **{name: len(bank) for name, bank in banks.items()},
        **{f"{name}_sha256": each for name, each in sha256.items()},
    }
    return Job(
        kind="images",
        preset="meshscenes",
        image_size=options.size,
        margin=1.0,
        own_disparity=True,
        views=options.views,
        class_names=list(survey.assets.class_names),
        shards=shard_ranges(options.count, options.shard_size),
        plan=plan,
        make=maker,
        portable=maker.part,
        max_bad=max_bad,
        num_sources=survey.num_files,
        known_rejects=survey.rejects,
    )


def scene_sample(library: Library, index: int, options: SceneOptions) -> Sample:
    """Scene number `index` as it is stored."""
    scene = sample_scene(library, index, seed=options.seed, purpose=PURPOSE, varied=options.varied)
    view = render_scene(scene, pose_at(0.0, 0.0), options.size)
    poses = novel_poses(options.seed, f"meshscenes/{PURPOSE}", torch.tensor([index]), options.views)[0]
    levels = (torch.from_numpy(view.s) * DISPARITY_LEVELS).round().to(torch.int32)
    info = {
        "seed": options.seed,
        "purpose": PURPOSE,
        "index": index,
        "class": library.assets.class_names[scene.class_index],
        "scene": scene.kind,
        "fov_deg": round(math.degrees(scene.fov_rad), 6),
        "kind": "metric",
        "lo": 0.0,
        "hi": 1.0,
        **view_facts(poses),
    }
    members = {
        "png": encode_png(_image(view)),
        "cls": str(scene.class_index).encode(),
        "json": compact_json(info),
        DISPARITY_EXTENSION: encode_levels(levels),
    }
    for number, pose in enumerate(poses):
        other = render_scene(scene, pose.double().numpy(), options.size)
        members |= view_members(number, _image(other), torch.from_numpy(other.s))
    return Sample(sample_key(index), scene.class_index, members)


def _image(view: MeshView) -> Tensor:
    return torch.from_numpy(view.rgb).permute(2, 0, 1)


@functools.lru_cache(maxsize=2)
def _bank(photos: Path, leave_out: Path) -> PhotoBank:
    return read_photo_bank(photos, leave_out=leave_out)


@functools.lru_cache(maxsize=1)
def _library(
    assets: Assets, places: tuple[Path | None, Path | None], leave_out: Path, sha256: tuple[str | None, str | None]
) -> Library:
    """What a process makes all its shards of, with the photos and coats of two places, if they are as they were."""
    banks = [None if photos is None else _bank(photos, leave_out) for photos in places]
    for photos, bank, expected in zip(places, banks, sha256, strict=True):
        if bank is not None and bank.sha256 != expected:
            raise DataError(f"the photos have changed ({photos})", remedy="the same command with --force")
    return Library(assets, *banks)
