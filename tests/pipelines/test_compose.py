"""Compositions: the file, what the options say, and videos of them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vq3dcli.cli import run
from vq3dcli.editing.cutout import Cutout, FirstView
from vq3dcli.editing.photo_scene import PhotoLayer, PhotoScene, build_photo_scene
from vq3dcli.editing.placement import Placement, empty_field
from vq3dcli.errors import DataError, UsageError
from vq3dcli.pipelines.composition import (
    Composition,
    Cut,
    composition_from_options,
    read_composition,
    with_shadows,
    write_composition,
)
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.stage import build_stage
from vq3dcli.rendering.cameras import Camera, canonical_camera, project
from vq3dcli.rendering.space import Frustum
from vq3dcli.weights_file import LoadedWeights, load_weights

EVERYTHING = {
    "scene": "toyscene:sphere",
    "delete": [{"box": [0.1, 0.1, 0.3, 0.4]}],
    "move": [{"box": [0.5, 0.2, 0.9, 0.9], "z_range": [2.0, 4.0], "at": [[0.2, 0.8]], "scale": 0.5}],
    "insert": [
        {"object": "toyscene:snowman:3", "at": [[0.2, 0.8], [0.8, 0.8]], "z_depth": 3.5, "spin_deg": 90.0},
        {"object": "chair.glb", "rotate_deg": [30.0, 0.0, 5.0], "up": "z", "shadow": 0.0},
    ],
}


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_composition_file_and_back(tmp_path: Path) -> None:
    made = Composition.model_validate(EVERYTHING)
    here = made.model_copy(
        update={"insert": [made.insert[0], made.insert[1].model_copy(update={"object": f"{tmp_path}/chair.glb"})]}
    )
    (tmp_path / "sub").mkdir()
    write_composition(tmp_path / "sub" / "a.toml", here)
    text = (tmp_path / "sub" / "a.toml").read_text()
    assert "../chair.glb" in text
    assert str(tmp_path) not in text
    back = read_composition(tmp_path / "sub" / "a.toml")
    assert Path(back.insert[1].object).resolve() == tmp_path / "chair.glb"
    assert back.model_copy(update={"insert": []}) == here.model_copy(update={"insert": []})
    assert back.insert[0] == here.insert[0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("scene = ", "not a TOML file"),
        ("delete = []", "scene: missing"),
        ('scene = "a.jpg"\ncolour = 3', "colour: unknown key"),
        ('scene = "a.jpg"\nformat_version = 2', "format_version"),
        ('scene = "a.jpg"\n[[delete]]\nbox = [0.5, 0.1, 0.2, 0.9]', "left < right"),
        ('scene = "a.jpg"\n[[insert]]\nobject = "b.glb"\nscale = -1\nshadow = 2', "scale.*shadow"),
        ('scene = "a.jpg"\n[[insert]]\nobject = "b.glb"\nscale = nan', "finite number"),
        (f"scene = {'[' * 5000}{']' * 5000}", "not a TOML file"),
        (f"{'a.' * 5000}a = 1", "too many dots"),
        (f"{'a.' * 50}a = 1", "levels deep"),
        ("#" * (5 << 20), "bytes"),
    ],
)
def test_what_is_no_composition(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(DataError, match=match):
        read_composition(tmp_path / "a.toml")


def test_a_composition_of_ours_that_was_damaged_is_found_and_one_edited_by_hand_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    whole = Composition(scene="toyscene:box", delete=[Cut(box=(0.25, 0.25, 0.5, 0.5))])
    write_composition(path, whole)
    text = path.read_bytes()
    for place in range(0, len(text), 3):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        with contextlib.suppress(DataError):  # but for what are comments, which say nothing
            assert read_composition(path) == whole, place
    edited = text.replace(b"0.25", b"0.125")
    path.write_bytes(edited)
    with pytest.raises(DataError, match="damaged composition") as caught:
        read_composition(path)
    assert "delete its second line" in str(caught.value)
    lines = edited.split(b"\n")
    path.write_bytes(b"\n".join([lines[0], *lines[2:]]))
    assert read_composition(path).delete[0].box == (0.125, 0.125, 0.5, 0.5)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(UsageError, match=r"insert\.scale"):
        composition_from_options("a.jpg", [{"object": "b.glb", "scale": 0.0}], [], [])
    with pytest.raises(UsageError, match="--shadow"):
        with_shadows(Composition(scene="a.jpg"), math.nan)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tiny_weights: Path) -> LoadedWeights:
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def open_toy(weights: LoadedWeights) -> Callable[[str], OpenedScene]:
    return lambda text: open_scene(parse_sources([text])[0], weights, fit="crop")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> str:
    import trimesh

    path = tmp_path_factory.mktemp("mesh") / "cube.glb"
    mesh = trimesh.creation.box((1.0, 1.0, 1.0))
    mesh.visual.face_colors = [250, 0, 0, 255]
    mesh.export(path)
    return str(path)


def stage_of(open_toy: Callable[[str], OpenedScene], *, picture: Any = None, **edits: Any) -> Any:
    composition = Composition.model_validate({"scene": "toyscene:sphere", **edits})
    return build_stage(composition, open_toy(composition.scene), open_toy, picture=picture)


def test_a_composition_of_nothing_is_the_scene_to_the_bit(open_toy: Callable[[str], OpenedScene]) -> None:
    camera = canonical_camera(2, height_px=16, width_px=16)
    plain = open_toy("toyscene:sphere").scene.render(camera, samples=12)
    composed = stage_of(open_toy).at(0.0).render(camera, samples=12)
    assert all(torch.equal(a, b) for a, b in zip(plain, composed, strict=True))


def test_a_mesh_stands_where_its_foot_was_put(open_toy: Callable[[str], OpenedScene], cube: str) -> None:
    """A cube of 0.5 m whose foot is 2.2 m away, at (0.3, 0.8) of the picture, in an empty scene."""
    insert = {"object": cube, "at": [[0.3, 0.8]], "z_depth": 2.2, "scale": 0.5}
    stage = stage_of(open_toy, insert=[insert])
    camera = canonical_camera(1, height_px=64, width_px=64)
    view = replace(stage, scene=empty_field).at(0.0).render(camera, samples=8)
    foot = torch.tensor(stage.things[0].stops[0])
    pixels, z_depth = project(camera, foot[None, None])
    torch.testing.assert_close(pixels[0, 0], torch.tensor([0.3 * 64, 0.8 * 64]))
    assert float(z_depth) == pytest.approx(2.2)
    # The upper edge of its front, from one end to the other.
    edge = foot + torch.tensor([[-0.25, -0.5, -0.25], [0.25, -0.5, -0.25]])
    (left, top), (right, _) = project(camera, edge[None])[0][0].tolist()
    row = round(top) + 8
    red = (view.rgb[0, 0] > 120) & (view.rgb[0, 1] < 60)
    columns = red[row].nonzero()[:, 0]
    assert abs(int(columns.min()) - left) < 1.6
    assert abs(int(columns.max()) + 1 - right) < 1.6


def test_things_move_and_spin_during_the_video(open_toy: Callable[[str], OpenedScene], cube: str) -> None:
    insert = {"object": cube, "at": [[0.2, 0.8], [0.8, 0.8], [0.8, 0.5]], "z_depth": 3.0, "spin_deg": 90.0}
    stage = stage_of(open_toy, insert=[insert])
    assert stage.moving
    thing = stage.things[0]
    for progress, stop in ((0.0, 0), (0.5, 1), (1.0, 2)):
        assert thing.placement(progress).at == pytest.approx(thing.stops[stop])
    assert thing.placement(1.0).yaw_rad == pytest.approx(math.pi / 2)
    assert not stage_of(open_toy, insert=[{"object": cube}]).moving


def test_cut_outs_keep_facing_the_camera_and_the_order_does_not_matter(
    open_toy: Callable[[str], OpenedScene], cube: str
) -> None:
    cut = {"object": "toyscene:box:1", "box": [0.3, 0.3, 0.7, 0.8], "z_range": [1.35, 60.0]}
    inserts = [{**cut, "at": [[0.8, 0.7]], "z_depth": 2.5}, {"object": cube, "at": [[0.2, 0.8]], "z_depth": 3.0}]
    first, second = (stage_of(open_toy, insert=order) for order in (inserts, inserts[::-1]))
    camera = canonical_camera(1, height_px=16, width_px=16)
    a, b = first.at(0.0).render(camera, samples=24), second.at(0.0).render(camera, samples=24)
    assert (a.rgb.int() - b.rgb.int()).abs().max() <= 1
    thing = first.things[0]
    foot, stop = thing.base.anchor, thing.stops[0]
    turned = math.atan2(foot[0], foot[2] + 3.0) - math.atan2(stop[0], stop[2] + 3.0)
    assert thing.base.yaw_rad == pytest.approx(turned)
    # What faced the camera faces it again, to a degree or two, whatever the way between.
    facing = Placement(yaw_rad=thing.base.yaw_rad, pitch_rad=thing.base.pitch_rad)
    camera_at = torch.tensor([0.0, 0.0, -3.0])
    before, after = (functional.normalize(camera_at - torch.tensor(at), dim=0) for at in (foot, stop))
    assert float(facing.to_scene(before) @ after) > math.cos(math.radians(2.0))


def test_photo_detail_stays_where_nothing_else_is(open_toy: Callable[[str], OpenedScene], cube: str) -> None:
    """Nothing in the scene: the picture to the bit. A cube: the picture, but for the cube and its shadow."""

    camera = canonical_camera(1, height_px=24, width_px=24)
    layer = PhotoLayer(torch.linspace(0.0, 1.0, 24).expand(3, 24, 24), torch.full((24, 24), 0.3))
    picture = PhotoScene(layer, layer, camera, Frustum())
    alone = stage_of(open_toy, picture=picture).at(0.0).render(camera, samples=16)
    for a, b in zip(alone, picture.render(camera), strict=True):
        assert torch.equal(a, b)
    insert = {"object": cube, "at": [[0.3, 0.8]], "z_depth": 1.8, "scale": 0.4}
    shown = stage_of(open_toy, picture=picture, insert=[insert]).at(0.0).render(camera, samples=16)
    same = (shown.rgb == alone.rgb).all(1)[0]
    assert same[:, 16:].all()
    assert same[:6].all()
    assert 20 < (~same).sum() < 200
    cut = {"object": "toyscene:box:1", "box": [0.3, 0.3, 0.7, 0.8], "z_range": [1.35, 60.0], "at": [[0.5, 0.9]]}
    view = stage_of(open_toy, picture=picture, insert=[cut]).at(0.0).render(camera, samples=16)
    changed = (view.rgb != alone.rgb).any(1)[0]
    assert changed[12:20, 8:15].all()


@pytest.mark.parametrize(("at", "height_px"), [((0.5, 0.75), 24.0), ((0.5, 0.9), 27.6), ((0.5, 0.6), 20.4)])
def test_a_thing_from_another_photo_has_its_own_share_of_the_picture(
    open_toy: Callable[[str], OpenedScene], at: tuple[float, float], height_px: float
) -> None:
    """On ground as high in the picture as its own was, 0.4 of the height; larger nearer, smaller farther."""
    side = 60
    ground = 0.1 + torch.linspace(0.0, 0.4, side)[:, None].expand(side, side)
    layer = PhotoLayer(torch.full((3, side, side), 0.5), ground.contiguous())
    picture = PhotoScene(layer, layer, canonical_camera(1, height_px=side, width_px=side), Frustum())
    scene, thing = (
        replace(open_toy("toyscene:sphere"), photo=torch.full((3, side, side), 128, dtype=torch.uint8)) for _ in "ab"
    )
    assert thing.photo is not None
    thing.photo[:, 21:45, 20:40] = torch.tensor([250, 20, 20], dtype=torch.uint8)[:, None, None]
    card = ground.clone()
    card[21:45, 20:40] = 0.45
    opened = {"scene.jpg": replace(scene, relief=ground), "thing.jpg": replace(thing, relief=card)}
    insert = {"object": "thing.jpg", "box": [0.25, 0.25, 0.75, 0.85], "at": [at], "shadow": 0.0}
    composition = Composition.model_validate({"scene": "scene.jpg", "insert": [insert]})
    stage = build_stage(composition, opened["scene.jpg"], opened.__getitem__, picture=picture)
    seen = stage.at(0.0).render(picture.camera, samples=4).rgb[0]
    rows = ((seen[0] > 180) & (seen[1] < 80)).any(1).nonzero()[:, 0]
    assert float(rows.max() - rows.min() + 1) == pytest.approx(height_px, abs=2.0)
    assert float(rows.max() + 1) == pytest.approx(at[1] * side, abs=2.0)


def test_what_is_deleted_goes_from_the_photo_too(
    open_toy: Callable[[str], OpenedScene], weights: LoadedWeights, tmp_path: Path
) -> None:
    """A white square before a black wall: nothing white is left, from beside neither."""
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[10:30, 20:40] = 255
    Image.fromarray(photo).save(tmp_path / "photo.png")
    opened = open_scene(parse_sources([str(tmp_path / "photo.png")])[0], weights, fit="squash")
    assert opened.photo is not None
    pose = canonical_camera(2, height_px=40, width_px=60).cam_to_world.clone()
    pose[1, 0, 3] = 0.3
    camera = Camera(pose, opened.frustum.camera(40, 60).intrinsics.expand(2, 3, 3), 40, 60)
    s = 0.3 + 0.2 * (opened.photo[0] > 128)
    picture = build_photo_scene(opened.frustum, opened.photo, s.float(), camera)
    assert picture.front.s[picture.window].shape == (40, 60)
    hole = torch.zeros(24, 24)
    hole[5:19, 7:17] = 1.0
    behind = FirstView(torch.full((3, 24, 24), 0.1), torch.full((24, 24), 0.3))
    nowhere = (0.0, 0.0, 0.0)
    cutout = Cutout(hole, hole, hole, behind, opened.frustum, nowhere, 1.0, (0.4, 0.6), nowhere, (1.0, 1.0, 1.0))
    before, after = (scene.render(camera) for scene in (picture, picture.without([cutout])))
    assert (before.rgb > 128).float().mean() > 0.1
    assert after.rgb.max() < 60
    assert (after.s[0] - 0.3).abs().max() < 0.01


def test_what_lies_outside_of_the_picture_is_known(open_toy: Callable[[str], OpenedScene], cube: str) -> None:
    camera = canonical_camera(1, height_px=16, width_px=16)
    places = ([[0.5, 0.8]], [[1.9, 0.8]], [[1.9, 0.8], [0.5, 0.8]], [[0.5, -0.5]], [[0.5, 1.1]])
    inserts = [{"object": cube, "at": at, "z_depth": 3.0, "scale": 0.5} for at in places]
    assert stage_of(open_toy, insert=inserts).out_of(camera) == [1, 3]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def compose(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        small = ["--frames", "2", "--size", "16", "--samples", "8", "--weights", str(tiny_weights), "--device", "cpu"]
        return run(["compose", *arguments, *small])

    return call


def test_one_file_makes_the_same_video_again(
    compose: Callable[..., int], cube: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "out").mkdir()
    edits = ["--insert", cube, "--at", "0.2,0.8:0.8,0.8", "--distance", "2.5", "--scale", "0.4"]
    edits += ["--insert", "toyscene:box:1", "--at", "0.5,0.9", "--distance", "-", "--scale", "1.2"]
    edits += ["--box", "-", "--box", "0.2,0.2,0.8,0.8,1.35,60", "--delete", "0.1,0.1,0.4,0.4,1.35,60"]
    assert compose("photo.png", *edits, "--json", "-o", "out/a.gif") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 2
    assert result["outputs"] == ["out/a.gif", "out/a.toml"]
    assert compose("out/a.toml", "--json", "-o", "b.gif") == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == ["b.gif"]
    assert (tmp_path / "b.gif").read_bytes() == (tmp_path / "out" / "a.gif").read_bytes()
    again = ["--insert", cube, "--at", "0.5,0.5"]
    assert compose("out/a.toml", *again, "-o", "out/a.gif") == 2
    assert compose("out/a.toml", *again, "-o", "c.gif") == 0
    assert len(read_composition(tmp_path / "c.toml").insert) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--insert", "a.glb", "--at", "0.1,0.2", "--at", "0.3,0.4"], 2, "2 values of --at for 1 of --insert"),
        (["--insert", "a.glb", "--at", "0.1"], 2, "--at needs 2 numbers"),
        (["--insert", "a.glb", "--scale", "x"], 2, "--scale needs 1 numbers"),
        (["--insert", "a.glb", "--scale", "-3"], 2, "insert.scale"),
        (["--move", "0.1,0.1,0.5,0.5"], 2, "--move needs a box and a place"),
        (["--delete", "0.5,0.1,0.2,0.9"], 2, "left < right"),
        (["--insert", "missing.glb"], 66, "missing.glb"),
        (["--insert", "missing.jpg"], 66, "missing.jpg"),
        (["--insert", "a.toml"], 2, "a composition"),
        (["--insert", "a.glb", "--distance", "0.5"], 2, "nothing is seen"),
        (["--camera", "still", "--amplitude", "5"], 2, "no amplitude"),
        (["-o", "-"], 2, "stdout"),
    ],
)
def test_mistakes_end_in_one_line(
    compose: Callable[..., int],
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compose("toyscene:sphere", *arguments) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not list(tmp_path.iterdir())
