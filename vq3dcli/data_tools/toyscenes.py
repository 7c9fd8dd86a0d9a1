"""Toy scenes as a shard folder: pictures of the canonical camera with their exact disparity.

Plain scenes, or varied ones, whose surfaces may show photos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.defaults import SHARD_SIZE
from vq3dcli.data.ahead import ahead
from vq3dcli.data.images import encode_png
from vq3dcli.data.shard_format import (
    DISPARITY_EXTENSION,
    DISPARITY_LEVELS,
    Manifest,
    ViewInfo,
    sample_key,
    view_extensions,
)
from vq3dcli.data.shard_reader import encode_levels
from vq3dcli.data.views import novel_poses
from vq3dcli.data_tools.job import Job, shard_ranges, write_part
from vq3dcli.data_tools.shard_writer import Make, Sample, compact_json
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import CLASS_NAMES, ToyScenes, render_scenes, sample_scenes, sample_varied_scenes
from vq3dcli.toyscenes.photos import PhotoBank

PURPOSE = "train"
_SCENES_AT_ONCE = 128
Draw = Callable[..., ToyScenes]


def prepare_toyscenes(
    out: Path,
    *,
    count: int,
    size: int,
    seed: int,
    varied: bool = False,
    photos: PhotoBank | None = None,
    views: int = 0,
    shard_size: int = SHARD_SIZE,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write toy scenes 0 .. count - 1 of a seed; equal arguments give equal bytes.

    Varied ones are drawn from the wide distribution of `toyscenes/varied.py`, other scenes than a seed's plain ones,
    and may show photos; `views` are exact pictures from other cameras, see `data.views`. `progress` is called with
    (scenes done, count).
    """
    draw = partial(sample_varied_scenes, photos=photos) if varied else sample_scenes
    make = partial(toy_samples, size=size, seed=seed, draw=draw, views=views)
    options = SceneOptions(count, size, seed, varied, shard_size=shard_size, views=views)
    job = drawn_job("toyscenes", CLASS_NAMES, make, options, {} if photos is None else {"photos": photos})
    manifest = write_part(out, job, force=force, progress=progress)
    assert manifest is not None
    return manifest


@dataclass(frozen=True)
class SceneOptions:
    """What the bytes of shards of drawn scenes depend on, beside what the scenes are made of."""

    count: int  # of scenes
    size: int  # side of the images in pixels
    seed: int = 0  # of all that is drawn
    varied: bool = False  # toy scenes of many kinds; mesh scenes of any field of view
    photos: Path | None = None  # shards, or a folder or tar of photos, for surfaces and skies of mesh scenes
    coats: Path | None = None  # the same, for the models of varied mesh scenes
    shard_size: int = SHARD_SIZE
    views: int = 0  # exact pictures from other cameras beside each scene, see `data.views`
    clear: bool = False  # mesh scenes without haze and depth of field
    alone: bool = False  # one model in each mesh scene, whole in the picture


def drawn_job(
    preset: str,
    class_names: Sequence[str],
    make: Make,
    options: SceneOptions,
    banks: Mapping[str, PhotoBank],
    *,
    plan: Mapping[str, Any] | None = None,
    **job: Any,
) -> Job:
    """The shard folder of scenes 0 .. count - 1; `plan` and `job` are what toy scenes do not have."""
    facts = {"preset": preset, "purpose": PURPOSE, **(plan or {})}
    facts |= {name: getattr(options, name) for name in ("count", "size", "seed", "shard_size")}
    facts |= {name: value for name in ("varied", "views", "clear", "alone") if (value := getattr(options, name))}
    for name, bank in banks.items():
        facts |= {name: len(bank), f"{name}_sha256": bank.sha256}
    return Job(
        kind="images",
        preset=preset,
        image_size=options.size,
        margin=1.0,
        own_disparity=True,
        views=options.views,
        class_names=list(class_names),
        shards=shard_ranges(options.count, options.shard_size),
        plan=facts,
        make=make,
        **job,
    )


def toy_samples(
    positions: range, *, size: int, seed: int, draw: Draw = sample_scenes, views: int = 0
) -> Iterator[Sample]:
    """The samples of scenes number `positions`, in order, as many chunks at a time as PyTorch has threads."""
    starts = range(positions.start, positions.stop, _SCENES_AT_ONCE)
    # Most operations on a chunk are too small for PyTorch to split, and compressing PNGs is not torch's at all.
    chunks = (range(start, min(start + _SCENES_AT_ONCE, positions.stop)) for start in starts)
    render = partial(_render_chunk, size=size, seed=seed, draw=draw, num_views=views)
    for samples in ahead(render, chunks, threads=torch.get_num_threads()):
        yield from samples


@torch.no_grad()
def _render_chunk(chunk: range, size: int, seed: int, draw: Draw, num_views: int) -> list[Sample]:
    scenes = draw(torch.tensor(chunk), seed=seed, purpose=PURPOSE)
    camera = canonical_camera(len(chunk), height_px=size, width_px=size)
    poses = novel_poses(seed, f"toyscenes/{PURPOSE}", torch.tensor(chunk), num_views)
    cameras = [camera, *(replace(camera, cam_to_world=poses[:, v]) for v in range(num_views))]
    views = [render_scenes(scenes, each) for each in cameras]
    return [
        scene_sample(
            index,
            seed,
            (int(scenes.class_index[row]), CLASS_NAMES[int(scenes.class_index[row])]),
            [(view.rgb[row], view.s[row]) for view in views],
            poses[row],
        )
        for row, index in enumerate(chunk)
    ]


def scene_sample(
    index: int,
    seed: int,
    named_class: tuple[int, str],
    pictures: Sequence[tuple[Tensor, Tensor]],
    poses: Tensor,
    **facts: Any,
) -> Sample:
    """Scene number `index` of a seed as it is stored.

    `pictures` are uint8 `[3, S, S]` and s `[S, S]` of the canonical camera, then of the views at `poses`,
    `cam_to_world` `[V, 4, 4]`.
    """
    views = [ViewInfo(cam_to_world=pose.tolist()).model_dump() for pose in poses]
    info = {"seed": seed, "purpose": PURPOSE, "index": index, "class": named_class[1], **facts}
    info |= {"kind": "metric", "lo": 0.0, "hi": 1.0, **({"views": views} if views else {})}
    members = {"png": b"", "cls": str(named_class[0]).encode(), "json": compact_json(info)}
    names = [("png", DISPARITY_EXTENSION), *map(view_extensions, range(len(poses)))]
    for (picture, disparity), (image, s) in zip(names, pictures, strict=True):
        levels = (s.to(torch.float64) * DISPARITY_LEVELS).round().to(torch.int32)
        members |= {picture: encode_png(image), disparity: encode_levels(levels)}
    return Sample(sample_key(index), named_class[0], members)
