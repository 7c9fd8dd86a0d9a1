"""Views beside samples: what is stored, what batches hold, and that they are of the same scene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import webdataset
from pydantic import ValidationError

from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_format import ViewInfo
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.views import View, mirrored, novel_poses, read_views
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError
from vq3dcli.rendering.cameras import Camera, canonical_camera, project, rays_at_pixels, z_depth_from_s
from vq3dcli.toyscenes import render_scenes, sample_scenes

SIZE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    prepare_toyscenes(path, count=7, size=SIZE, seed=2, views=3, shard_size=4)
    label_exact(path)
    return path


def loader(*folders: Path, views: int = 0, flip: bool = False, **options: object) -> TrainingLoader:
    return TrainingLoader(folders, batch_size=8, size=SIZE, seed=5, flip=flip, crop=False, views=views, **options)  # type: ignore[arg-type]


def camera(pose: torch.Tensor) -> Camera:
    base = canonical_camera(1, height_px=SIZE, width_px=SIZE)
    return Camera(pose[None], base.intrinsics, SIZE, SIZE)


def test_views_are_renderings_of_their_scene_from_the_cameras_that_are_stored(folder: Path):
    shards = ShardFolder(folder)
    assert shards.manifest.views == 3
    for i in (0, 5):
        scene = sample_scenes(torch.tensor([i]), seed=2)
        for view in read_views(shards, i, [0, 1, 2], SIZE):
            expected = render_scenes(scene, camera(view.cam_to_world))
            assert torch.equal(view.image, expected.rgb[0])
            assert (view.s - expected.s[0]).abs().max() < 1e-5
            eye, ahead = view.cam_to_world[:3, 3], view.cam_to_world[:3, 2]
            torch.testing.assert_close(eye + 3.0 * ahead, torch.zeros(3), atol=1e-5, rtol=0)  # looks at the pivot
            assert abs(float(eye[0])) < 3.0 * 0.343 and abs(float(eye[1])) < 3.0 * 0.174


def test_the_main_pictures_do_not_depend_on_the_views(folder: Path, tmp_path: Path):
    prepare_toyscenes(tmp_path / "none", count=7, size=SIZE, seed=2, shard_size=4)
    prepare_toyscenes(tmp_path / "one", count=5, size=SIZE, seed=2, views=1)
    with_views, without, one = (ShardFolder(path) for path in (folder, tmp_path / "none", tmp_path / "one"))
    assert "views" not in json.loads((tmp_path / "none" / "manifest.json").read_text())
    for i in range(5):
        main = ("png", "cls", "disparity.npy")
        assert with_views.read(i, main) == without.read(i, main)
        assert one.read(i, ["view0.png"]).keys() == {"view0.png"}
    poses = novel_poses(2, "toyscenes/train", torch.arange(5), 3)
    assert torch.equal(poses[3:4], novel_poses(2, "toyscenes/train", torch.tensor([3]), 3))
    assert len({tuple(pose.flatten().tolist()) for pose in poses.reshape(-1, 4, 4)}) == 15


def test_webdataset_groups_the_views_with_their_sample(folder: Path):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(samples) == 7
    assert {"png", "json", "view0.png", "view2.png", "view1.disparity.npy"} <= set(samples[6])
    assert len(json.loads(samples[6]["json"])["views"]) == 3


def test_what_is_missing_or_damaged_is_said(tmp_path: Path, rewrite_index: Callable[..., None]):
    prepare_toyscenes(tmp_path, count=3, size=SIZE, seed=2, views=1)
    assert verify_folder(tmp_path).problems == []
    rewrite_index(tmp_path, lambda index: index["samples"][1]["members"].pop("view0.png"))
    with pytest.raises(DataError, match="without the 1 views"):
        ShardFolder(tmp_path).entry(0)
    assert any("views" in problem.reason for problem in verify_folder(tmp_path).problems)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 0, 0]] * 3,
        [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]],
        [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ],
)
def test_cameras_that_are_none_are_refused(rows: list[list[float]]):
    with pytest.raises(ValidationError):
        ViewInfo(cam_to_world=rows)


def test_batches_hold_views_only_where_asked_and_where_there_are_some(folder: Path, tmp_path: Path):
    prepare_toyscenes(tmp_path, count=9, size=SIZE, seed=3)
    label_exact(tmp_path)
    assert loader(folder).batch_at(0).views is None
    mixed = loader(folder, tmp_path, views=2)
    assert mixed.num_with_views == 7
    seen = 0
    for start in range(0, 32, 8):
        batch = mixed.batch_at(start)
        assert batch.views is not None
        expected = [row for row, key in enumerate(batch.keys) if key.startswith(f"{folder},") for _ in range(2)]
        assert batch.views.row.tolist() == expected
        assert batch.views.image.shape == (len(expected), 3, SIZE, SIZE)
        assert batch.views.s.shape == (len(expected), SIZE, SIZE)
        assert batch.views.cam_to_world.shape == (len(expected), 4, 4)
        seen += len(expected)
    assert 0 < seen < 64
    none = loader(tmp_path, views=2).batch_at(0).views
    assert none is not None and none.image.shape == (0, 3, SIZE, SIZE) and len(none.row) == 0
    # Every rank sees its rows of the same global batch.
    whole, half = loader(folder, views=1).batch_at(8), loader(folder, views=1, rank=1, world_size=2).batch_at(8)
    assert whole.views is not None and half.views is not None
    assert torch.equal(whole.views.image[4:], half.views.image)


def test_other_views_at_other_positions(folder: Path):
    stream = loader(folder, views=1)
    seen = {}
    for start in range(0, 112, 8):
        batch = stream.batch_at(start)
        assert batch.views is not None
        for row, key in enumerate(batch.keys):
            seen.setdefault(key, set()).add(tuple(batch.views.cam_to_world[row].flatten().tolist()))
    assert all(len(poses) == 3 for poses in seen.values())


def agreement(main_s: torch.Tensor, view: View) -> float:
    """Share of the main picture's points that the view sees where they are, of those in its frame."""
    base = canonical_camera(1, height_px=SIZE, width_px=SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    rays = rays_at_pixels(base, torch.stack([x, y], -1).reshape(-1, 2))
    points = rays.origin + z_depth_from_s(main_s.flatten())[None, :, None] * rays.direction
    pixels, z_depth = project(camera(view.cam_to_world), points)
    column, row = pixels[0].floor().long().unbind(-1)
    inside = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE) & (main_s.flatten() > 0.01)
    seen = z_depth_from_s(view.s[row[inside], column[inside]])
    return float(((seen / z_depth[0, inside] - 1.0).abs() < 0.05).float().mean())


def test_mirrored_batches_mirror_the_views_cameras(folder: Path):
    """Warping by exact depth agrees for flipped samples too, and would not with the camera as it was."""
    stream = loader(folder, views=1, flip=True)
    right, wrong = [], []
    plain = ShardFolder(folder)
    for start in range(0, 24, 8):
        batch = stream.batch_at(start)
        assert batch.views is not None
        for row, key in enumerate(batch.keys):
            view = View(batch.views.image[row], batch.views.s[row], batch.views.cam_to_world[row])
            right.append(agreement(batch.s[row], view))
            stored = plain.keys.index(key.split("key ")[1])
            poses = [each.cam_to_world for each in read_views(plain, stored, [0, 1, 2], SIZE)]
            flipped = not any(torch.equal(pose, view.cam_to_world) for pose in poses)
            if flipped:
                wrong.append(agreement(batch.s[row], mirrored(view)._replace(image=view.image, s=view.s)))
    assert 4 < len(wrong) < 20
    assert sum(right) / len(right) > 0.8
    assert sum(wrong) / len(wrong) < sum(right) / len(right) - 0.1
    view = mirrored(mirrored(view))
    assert torch.equal(view.cam_to_world, batch.views.cam_to_world[-1])
