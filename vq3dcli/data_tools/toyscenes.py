"""Toy scenes as a shard folder: pictures of the canonical camera with their exact disparity.

Plain scenes, or varied ones, whose surfaces may show photos.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from vq3dcli.config.defaults import SHARD_SIZE
from vq3dcli.data.images import encode_png
from vq3dcli.data.shard_format import DISPARITY_EXTENSION, DISPARITY_LEVELS, Manifest, sample_key
from vq3dcli.data.shard_reader import encode_levels
from vq3dcli.data.views import novel_poses, view_facts, view_members
from vq3dcli.data_tools.job import Job, shard_ranges, write_folder
from vq3dcli.data_tools.shard_writer import Sample, compact_json
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

    Args:
        size: Side of the images in pixels.
        varied: Draw from the wide distribution of `toyscenes/varied.py`: other scenes than a seed's plain ones.
        photos: What varied scenes show on their surfaces; other photos are another data set.
        views: Exact pictures from other cameras beside each scene, see `data.views`.
        force: Replace a shard folder that was made with other options.
        progress: Called with (scenes done, count).
    """
    plan = {
        "preset": "toyscenes",
        "count": count,
        "size": size,
        "seed": seed,
        "purpose": PURPOSE,
        "shard_size": shard_size,
        **({"varied": True} if varied else {}),
        **({"views": views} if views else {}),
        **({"photos": len(photos), "photos_sha256": photos.sha256} if photos is not None else {}),
    }
    draw = partial(sample_varied_scenes, photos=photos) if varied else sample_scenes
    job = Job(
        kind="images",
        preset="toyscenes",
        image_size=size,
        margin=1.0,
        own_disparity=True,
        views=views,
        class_names=list(CLASS_NAMES),
        shards=shard_ranges(count, shard_size),
        plan=plan,
        make=lambda positions: toy_samples(positions, size=size, seed=seed, draw=draw, views=views),
    )
    return write_folder(out, job, force=force, progress=progress)


def toy_samples(
    positions: range, *, size: int, seed: int, draw: Draw = sample_scenes, views: int = 0
) -> Iterator[Sample]:
    """The samples of scenes number `positions`, in order, as many chunks at a time as PyTorch has threads.

    Args:
        positions: Numbers of the scenes.
        size: Side of the images in pixels.
        seed: Of the scenes.
        draw: From numbers, seed and purpose to scenes.
        views: A scene.
    """
    chunks = [
        range(start, min(start + _SCENES_AT_ONCE, positions.stop))
        for start in range(positions.start, positions.stop, _SCENES_AT_ONCE)
    ]
    # Most operations on a chunk are too small for PyTorch to split, and compressing PNGs is not torch's at all.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[list[Sample]]] = deque()
        for chunk in chunks:
            pending.append(pool.submit(_render_chunk, chunk, size, seed, draw, views))
            if len(pending) > threads:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


@torch.no_grad()
def _render_chunk(chunk: range, size: int, seed: int, draw: Draw, num_views: int) -> list[Sample]:
    scenes = draw(torch.tensor(chunk), seed=seed, purpose=PURPOSE)
    camera = canonical_camera(len(chunk), height_px=size, width_px=size)
    main = render_scenes(scenes, camera)
    poses = novel_poses(seed, f"toyscenes/{PURPOSE}", torch.tensor(chunk), num_views)
    others = [render_scenes(scenes, replace(camera, cam_to_world=poses[:, v])) for v in range(num_views)]
    levels = (main.s.to(torch.float64) * DISPARITY_LEVELS).round().to(torch.int32)
    samples = []
    for row, index in enumerate(chunk):
        class_index = int(scenes.class_index[row])
        info = {
            "seed": seed,
            "purpose": PURPOSE,
            "index": index,
            "class": CLASS_NAMES[class_index],
            "kind": "metric",
            "lo": 0.0,
            "hi": 1.0,
            **view_facts(poses[row]),
        }
        members = {
            "png": encode_png(main.rgb[row]),
            "cls": str(class_index).encode(),
            "json": compact_json(info),
            DISPARITY_EXTENSION: encode_levels(levels[row]),
        }
        for number, view in enumerate(others):
            members |= view_members(number, view.rgb[row], view.s[row])
        samples.append(Sample(sample_key(index), class_index, members))
    return samples
