"""Scenes of models: what they promise for any seed."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vq3dcli.errors import DataError
from vq3dcli.meshscenes.builder import turned
from vq3dcli.meshscenes.library import Asset, Assets, Dice, Library
from vq3dcli.meshscenes.models import read_model
from vq3dcli.meshscenes.raster import NOTHING, visible
from vq3dcli.meshscenes.render import pose_at, render_scene, sample_scene
from vq3dcli.meshscenes.rooms import RoomDraft
from vq3dcli.meshscenes.varied import TableDraft, VariedDraft, laid
from vq3dcli.rendering.cameras import FAR, NEAR
from vq3dcli.toyscenes.photos import PhotoBank


def checks(count: int, *, alpha: bool = False) -> Image.Image:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., :3] = np.where((np.indices((16, 16)).sum(0) // 4 % 2)[..., None], (220, 60, 40), (40, 80, 200 - count))
    pixels[..., 3] = np.where(np.arange(16) < 8, 0, 255) if alpha else 255
    return Image.fromarray(pixels)


def write_box(path: Path, size: tuple[float, float, float], *, alpha: bool = False, up: float = 0.0) -> None:
    box = trimesh.creation.box(size)
    box.apply_translation([0.0, up, 0.0])
    uv = np.random.default_rng(0).random((len(box.vertices), 2))
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=checks(0, alpha=alpha), alphaMode="MASK" if alpha else None, alphaCutoff=0.4 if alpha else None
    )
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(box.export(file_type="glb"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    root = tmp_path_factory.mktemp("models")
    models = []
    for number in range(8):
        path = f"{'ab'[number % 2]}/{number}.glb"
        write_box(root / path, (1.0, 0.5 + 0.2 * (number // 4), 1.5), alpha=number == 1)
        models.append(Asset(path, number % 2, read_model(root / path, root).sha256, str(number // 4)))
    (root / "textures").mkdir()
    checks(9).convert("RGB").save(root / "textures" / "floor.png")
    data = (root / "textures" / "floor.png").read_bytes()
    grounds = (("textures/floor.png", hashlib.sha256(data).hexdigest()),)
    return Library(Assets(root, ("a", "b"), tuple(models), grounds), None)


@pytest.mark.parametrize("varied", [False, True])
def test_every_picture_is_beyond_near_and_shows_something(library: Library, varied: bool):
    kinds: Counter[str] = Counter()
    lower_is_nearer = 0
    for index in range(48):
        scene = sample_scene(library, index, seed=3, varied=varied)
        kinds[scene.layout.kind] += 1
        # Varied scenes are made for their one picture.
        for yaw, pitch in ((0.0, 0.0), (20.0, -10.0), (-20.0, 10.0))[: 1 if varied else 3]:
            view = render_scene(scene, pose_at(yaw, pitch), 32)
            assert view.rgb.shape == (32, 32, 3)
            assert view.rgb.dtype == np.uint8
            assert view.s.min() >= 0.0 and view.s.max() < 1.0
            if yaw == 0.0:
                assert 25 < view.rgb.mean() < 230 and view.rgb.std() > 5
                assert view.s.std() > 0.005
                lower_is_nearer += view.s[24:].mean() > view.s[:8].mean()
    assert set(kinds) == {"open", "wall", "room", "table", "close"}
    assert lower_is_nearer > 30


def row_order(s: np.ndarray) -> float:
    """Correlation of ranks of a disparity map with the row."""
    rank = np.argsort(np.argsort(s.ravel(), kind="stable"))
    return float(np.corrcoef(rank, np.repeat(np.arange(len(s)), s.shape[1]))[0, 1])


def test_tables_from_above_fill_the_picture_and_what_is_low_is_near(library: Library):
    orders, plain = [], 0
    for index in range(24):
        layout = TableDraft(library, Dice(3, "test", index), "table", math.radians(30.0 + index)).draw()
        seen = visible(
            layout.triangles, layout.textures, pose_at(0.0, 0.0), 32 / math.tan(0.5 * layout.fov_rad), 64, 64
        )
        assert seen.inverse_z.min() > 0.0  # no sky
        surface = layout.triangles.part[seen.triangle] == NOTHING
        assert surface.mean() > 0.3
        things = len(set(layout.triangles.part.tolist()) - {NOTHING})
        assert 1 <= things <= 4
        orders.append(row_order(seen.inverse_z))
        tints = layout.triangles.colour[layout.triangles.part == NOTHING]
        plain += bool((tints < 255).any())
    assert np.mean(orders) > 0.8
    assert 8 <= plain <= 23


def test_rooms_are_closed_and_hold_what_is_in_them(library: Library):
    closed = 0
    for index in range(24):
        draft = RoomDraft(library, Dice(4, "test", index), "room", math.radians(60.0))
        layout = draft.draw()
        # A ray meets something unless the room has no ceiling.
        seen = visible(
            layout.triangles, layout.textures, pose_at(0.0, 0.0), 32 / math.tan(0.5 * layout.fov_rad), 64, 64
        )
        closed += seen.inverse_z.min() > 0.0
        # Things stand on the floor within the walls, and not where the camera is.
        height = (draft.upper[1] - draft.eye[1]) / draft.unit
        assert 1.2 <= height <= 1.7
        assert 2.4 <= (draft.upper[1] - draft.lower[1]) / draft.unit <= 3.0
        cos, sin = math.cos(draft.roll_rad), math.sin(draft.roll_rad)
        level = layout.triangles.corners[: layout.num_casters].astype(np.float64) @ np.array(
            [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]
        )
        cos, sin = math.cos(draft.elevation_rad), math.sin(draft.elevation_rad)
        level = level @ np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        inside = turned(level, -draft.yaw_rad).reshape(-1, 3)
        assert (inside > draft.lower - 1e-4).all()
        assert (inside < draft.upper + 1e-4).all()
        assert np.abs(inside - draft.eye)[:, [0, 2]].max(1).min() > 0.3 * draft.unit
        assert len(draft.areas) > 4
    assert closed >= 16


def test_rooms_prefer_furniture_of_plausible_size(library: Library):
    named = Library(replace(library.assets, class_names=("rock", "wooden chair")), None)
    chairs, heights = 0, []
    for index in range(60):
        draft = RoomDraft(named, Dice(5, "test", index), "room", math.radians(60.0))
        layout = draft.draw()
        chairs += layout.class_index
        main = layout.triangles.corners[layout.triangles.part == 0].reshape(-1, 3)
        if layout.class_index and len(main):
            longest = named.model(1).size.max() * np.linalg.norm(main[:, None] - main[None], axis=-1).max()
            heights.append(longest / draft.unit)
    assert chairs > 42  # nine of ten where there is a class each
    assert min(heights) > 0.8
    assert max(heights) < 2.0


def test_a_model_that_is_laid_down_lies_on_its_back(library: Library):
    model = library.model(4)
    down = laid(model)
    np.testing.assert_allclose(down.size, model.size[[0, 2, 1]], atol=1e-6)
    assert down.corners[..., 1].max() == pytest.approx(0.0)
    # It is turned, not mirrored: the volume that its sides enclose keeps its sign.
    volumes = [np.linalg.det(each.corners.astype(np.float64)).sum() for each in (model, down)]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-4)


def test_a_coat_covers_a_model_and_leaves_its_shape(library: Library):
    red = torch.zeros(3, 3, 128, 128, dtype=torch.uint8)
    red[:, 0] = 200
    coated = Library(library.assets, None, PhotoBank(red))
    model = library.model(4)
    dressed = [VariedDraft(coated, Dice(0, "test", i), "open", 0.7).dressed(model) for i in range(20)]
    worn = [each for each in dressed if each is not model]
    assert 4 < len(worn) < 16
    for each in worn:
        assert np.array_equal(each.corners, model.corners)
        assert (each.textures[each.texture.max()].texels == [200, 0, 0, 255]).all()
        assert each.texture.min() == 0 and (each.colour == 255).all()
        assert each.uv.min() >= 0.0 and each.uv.max() <= 1.0 and np.ptp(each.uv) > 0.3


@pytest.mark.parametrize("varied", [False, True])
def test_a_scene_is_the_same_whatever_was_made_before(library: Library, varied: bool):
    fresh = Library(library.assets, None)
    one = render_scene(sample_scene(fresh, 11, seed=5, varied=varied), pose_at(0.0, 0.0), 24)
    for index in range(4):
        sample_scene(library, index, seed=5, varied=varied)
    two = render_scene(sample_scene(library, 11, seed=5, varied=varied), pose_at(0.0, 0.0), 24)
    assert one.rgb.tobytes() == two.rgb.tobytes()
    assert one.s.tobytes() == two.s.tobytes()
    drawn = ((6, "train"), (5, "evaluation"))
    others = [sample_scene(library, 11, seed=seed, purpose=purpose, varied=varied) for seed, purpose in drawn]
    assert all(render_scene(each, pose_at(0.0, 0.0), 24).rgb.tobytes() != one.rgb.tobytes() for each in others)


def test_a_view_from_elsewhere_is_what_exact_depth_says(library: Library):
    """Points of the main picture, carried into another camera, have the disparity that is seen there, or are hidden."""
    size, agree, total = 96, 0, 0
    for index in range(6):
        scene = sample_scene(library, index, seed=8)
        pose = pose_at(12.0, 6.0)
        main, other = (render_scene(scene, each, size).s for each in (pose_at(0.0, 0.0), pose))
        focal = 0.5 * size / np.tan(0.5 * scene.layout.fov_rad)
        y, x = np.mgrid[0:size, 0:size] + 0.5
        nearness = main * (1 / NEAR - 1 / FAR) + 1 / FAR
        z = 1.0 / nearness
        points = np.stack([(x - size / 2) / focal * z, (y - size / 2) / focal * z, z - 3.0], -1)[main > 0.002]
        there = (points - pose[:3, 3]) @ pose[:3, :3]
        column, row = (np.floor(there[:, i] / there[:, 2] * focal + size / 2).astype(int) for i in (0, 1))
        inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        s = (1 / there[inside, 2] - 1 / FAR) / (1 / NEAR - 1 / FAR)
        seen = other[row[inside], column[inside]]
        assert (seen > s - 0.08).mean() > 0.97  # nothing is seen behind what must be there
        agree += (np.abs(seen - s) < 0.01).sum()
        total += inside.sum()
    assert agree > 0.75 * total


def test_classes_are_drawn_evenly_and_shapes_before_coats(tmp_path: Path):
    names = ("few", "many")
    models = [Asset("few/0.glb", 0, "", "0"), Asset("many/odd.glb", 1, "", "odd")]
    models += [Asset(f"many/{i}.glb", 1, "", "coat") for i in range(40)]
    library, dice = Library(Assets(tmp_path, names, tuple(models), ()), None), Dice(0, "test", 0)
    drawn = Counter(library.pick(dice)[1] for _ in range(2000))
    assert abs(drawn[0] - 1000) < 100
    assert abs(drawn[1] - 500) < 80


def test_a_model_that_changed_is_named(library: Library, tmp_path: Path):
    write_box(tmp_path / "a" / "0.glb", (1.0, 1.0, 1.0))
    changed = Library(Assets(tmp_path, ("a",), (Asset("a/0.glb", 0, "0" * 64, ""),), ()), None)
    with pytest.raises(DataError, match="changed"):
        changed.model(0)


def test_models_stand_on_their_lowest_point_or_are_buried(tmp_path: Path):
    write_box(tmp_path / "box.glb", (1.0, 2.0, 1.0), up=0.7)
    model = read_model(tmp_path / "box.glb", tmp_path).model
    flat = model.corners.reshape(-1, 3)
    np.testing.assert_allclose(flat.min(0), [-0.25, -1.0, -0.25], atol=1e-6)  # y is down: the base is at 0
    np.testing.assert_allclose(flat.max(0), [0.25, 0.0, 0.25], atol=1e-6)
    # Walls without a floor, a third of them below the ground: a foundation.
    box = trimesh.creation.box((2.0, 3.0, 2.0))
    box.apply_translation([0.0, 0.5, 0.0])
    box.update_faces(box.face_normals[:, 1] > -0.5)
    box.visual.face_colors = [200, 20, 20, 255]
    (tmp_path / "walls.ply").write_bytes(box.export(file_type="ply"))
    walls = read_model(tmp_path / "walls.ply", tmp_path).model.corners[..., 1]
    assert walls.max() == pytest.approx(1.0 / 3.0)
    assert walls.min() == pytest.approx(-2.0 / 3.0)
