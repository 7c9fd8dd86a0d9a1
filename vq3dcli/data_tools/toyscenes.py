"""Drawn scenes as a shard folder: pictures of the canonical camera with their exact disparity; the toy scenes of them.

Plain scenes, or varied ones, whose surfaces may show photos: of shards, of a folder, or of a tar of images.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.defaults import SHARD_SIZE
from vq3dcli.data.ahead import ahead
from vq3dcli.data.images import decode_square, encode_png, resize
from vq3dcli.data.shard_format import (
    DISPARITY_EXTENSION,
    DISPARITY_LEVELS,
    MANIFEST_NAME,
    Manifest,
    ViewInfo,
    sample_key,
    view_extensions,
)
from vq3dcli.data.shard_reader import encode_levels, open_images
from vq3dcli.data.stream import evenly
from vq3dcli.data.views import novel_poses
from vq3dcli.data_tools.job import Job, Progress, shard_ranges, write_part
from vq3dcli.data_tools.shard_writer import Make, Sample, compact_json
from vq3dcli.data_tools.sources.entry import Entry
from vq3dcli.data_tools.sources.folder import folder_source
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes, sample_varied_scenes
from vq3dcli.toyscenes.photos import SIDE_PX, PhotoBank

PURPOSE = "train"
MAX_PHOTOS = 2000  # 130 MB of texels
_SCENES_AT_ONCE = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneOptions:
    """What the bytes of shards of drawn scenes depend on, beside what the scenes are made of."""

    count: int  # of scenes
    size: int  # side of the images in pixels
    seed: int = 0  # of all that is drawn
    varied: bool = False  # toy scenes of many kinds; mesh scenes of any field of view
    photos: Path | None = None  # shards, or a folder or tar of photos, for surfaces and skies
    coats: Path | None = None  # the same, for the models of varied mesh scenes
    shard_size: int = SHARD_SIZE
    views: int = 0  # exact pictures from other cameras beside each scene, see `data.views`
    clear: bool = False  # mesh scenes without haze and depth of field
    alone: bool = False  # one model in each mesh scene, whole in the picture


def prepare_toyscenes(
    out: Path, *, force: bool = False, progress: Progress = lambda done, total: None, **options: Any
) -> Manifest:
    """Write toy scenes 0 .. count - 1 of a seed, by `SceneOptions`; equal arguments give equal bytes.

    `progress` is called with (scenes done, count).
    """
    manifest = write_part(out, toy_job(out, SceneOptions(**options)), force=force, progress=progress)
    assert manifest is not None
    return manifest


def toy_job(out: Path, options: SceneOptions) -> Job:
    """The shard folder of toy scenes; varied ones are others than a seed's plain ones.

    Raises `UsageError`: photos for plain scenes; and as `read_photo_bank`.
    """
    if options.photos is not None and not options.varied:
        raise UsageError("--photos of toy scenes is for --varied only", remedy="no --photos")
    banks = banks_of(options, out)
    make = partial(_toy_samples, options, out, {name: bank.sha256 for name, bank in banks.items()})
    return drawn_job("toyscenes", CLASS_NAMES, lambda _: make, options, banks)


def drawn_job(
    preset: str,
    class_names: Sequence[str],
    maker_of: Callable[[range], Make],
    options: SceneOptions,
    banks: Mapping[str, PhotoBank],
    *,
    plan: Mapping[str, Any] | None = None,
    **job: Any,
) -> Job:
    """The shard folder of scenes 0 .. count - 1; `plan` is what toy scenes do not have."""
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
        maker_of=maker_of,
        portable=True,
        **job,
    )


def banks_of(options: SceneOptions, out: Path, planned: Mapping[str, str] | None = None) -> dict[str, PhotoBank]:
    """The banks of `photos` and `coats` that are asked for, by name.

    Raises as `read_photo_bank`, and `DataError`: they are not those that were `planned`, SHA-256 by name.
    """
    banks = {}
    for name in ("photos", "coats"):
        if (path := getattr(options, name)) is not None:
            banks[name] = read_photo_bank(path, leave_out=out) if planned is None else _kept(path, out, planned[name])
    return banks


@functools.lru_cache(maxsize=2)
def _kept(path: Path, leave_out: Path, sha256: str) -> PhotoBank:
    """A bank as it was planned, for all the shards that a process makes."""
    bank = read_photo_bank(path, leave_out=leave_out)
    if bank.sha256 != sha256:
        raise DataError(f"the photos have changed ({path})", remedy="the same command with --force")
    return bank


def read_photo_bank(path: Path, *, leave_out: Path) -> PhotoBank:
    """The centre squares of photos, at most MAX_PHOTOS of them, evenly spread over all.

    `path` is a shard folder, a folder of images, or a tar of images; files that are no images are passed over.

    Raises `InputMissingError`: there is nothing; `DataError`: there is no image; `UsageError`: the shards hold labels.
    """
    if (path / MANIFEST_NAME).is_file():
        folder = open_images(path)
        total = folder.num_samples
        chosen = evenly(total, MAX_PHOTOS)
        photos = list(ahead(lambda i: resize(folder.image(i), SIDE_PX, SIDE_PX), chosen))
    else:
        listed = folder_source(path, leave_out=leave_out, classes="none").entries
        entries = [entry for entry in listed if not entry.reject]
        total = len(entries)
        chosen = evenly(total, MAX_PHOTOS)
        seen = ahead(_decoded, _read(entries[i] for i in chosen))
        photos = [photo for photo in seen if photo is not None]
    if total > MAX_PHOTOS:
        _log.info("%d of the %d photos are used", MAX_PHOTOS, total)
    if not photos:
        raise DataError(f"no photos in it ({path})", remedy="a folder of images, or shards of vq3d prepare-data")
    if len(photos) < len(chosen):
        _log.warning("%d of %d files are no photos (%s)", len(chosen) - len(photos), len(chosen), path)
    return PhotoBank(torch.stack(photos))


def _read(entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """The files that can be read, one after the other."""
    reader = Reader()
    for entry in entries:
        with contextlib.suppress(DataError, InputMissingError):  # also a link to nowhere
            yield entry, reader.read(entry.place)


def _decoded(file: tuple[Entry, bytes]) -> Tensor | None:
    entry, data = file
    try:
        return decode_square(data, SIDE_PX, name=entry.path).image.contiguous()
    except DataError:
        return None


def _toy_samples(options: SceneOptions, out: Path, planned: Mapping[str, str], positions: range) -> Iterator[Sample]:
    """The samples of scenes number `positions`, in order, as many chunks at a time as PyTorch has threads."""
    photos = banks_of(options, out, planned).get("photos")
    starts = range(positions.start, positions.stop, _SCENES_AT_ONCE)
    # Most operations on a chunk are too small for PyTorch to split, and compressing PNGs is not torch's at all.
    chunks = (range(start, min(start + _SCENES_AT_ONCE, positions.stop)) for start in starts)
    for samples in ahead(partial(_render_chunk, options, photos), chunks, threads=torch.get_num_threads()):
        yield from samples


@torch.no_grad()
def _render_chunk(options: SceneOptions, photos: PhotoBank | None, chunk: range) -> list[Sample]:
    index, seed = torch.tensor(chunk), options.seed
    draw = partial(sample_varied_scenes, photos=photos) if options.varied else sample_scenes
    scenes = draw(index, seed=seed, purpose=PURPOSE)
    camera = canonical_camera(len(chunk), height_px=options.size, width_px=options.size)
    poses = novel_poses(seed, f"toyscenes/{PURPOSE}", index, options.views)
    cameras = [camera, *(replace(camera, cam_to_world=poses[:, v]) for v in range(options.views))]
    views = [render_scenes(scenes, each) for each in cameras]
    return [
        scene_sample(
            number,
            seed,
            (int(scenes.class_index[row]), CLASS_NAMES[int(scenes.class_index[row])]),
            [(view.rgb[row], view.s[row]) for view in views],
            poses[row],
        )
        for row, number in enumerate(chunk)
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
