"""Shards of mesh scenes: bytes, rejects, interruptions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.views import read_views
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.meshassets import Survey, survey_assets
from vq3dcli.data_tools.meshscenes import scene_job
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.data_tools.prepare import prepare
from vq3dcli.data_tools.toyscenes import SceneOptions
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.losses.depth import LABEL_METRIC
from vq3dcli.meshscenes.library import Library
from vq3dcli.meshscenes.raster import NOTHING, visible
from vq3dcli.meshscenes.render import pose_at, render_scene, sample_scene

OPTIONS = SceneOptions(count=7, size=16, seed=4, shard_size=3)


def prepare_meshscenes(models: Path, out: Path, options: SceneOptions, *, max_bad=0.0, part=WHOLE, workers=1):
    job = scene_job(models, out, options, max_bad=max_bad)
    return prepare(out, job, part, workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_sphere(path: Path, *, size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    ball = trimesh.creation.icosphere(2)
    ball.apply_scale(size)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (8, 8, 3)).astype(np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    ball.visual = trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2], material=material)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ball.export(file_type="glb"))


OBJ = "mtllib {mtl}\nusemtl m\nv 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_sphere(root / "ball" / "round.glb")
    write_sphere(root / "egg" / "long.glb", size=(1.0, 2.0, 1.0))
    (root / "egg" / "triangle.obj").write_text(OBJ.format(mtl="triangle.mtl"))
    (root / "egg" / "triangle.mtl").write_text("newmtl m\nmap_Kd skin.png\n")
    Image.new("RGB", (4, 4), (200, 10, 10)).save(root / "egg" / "skin.png")
    (root / "textures").mkdir()
    Image.new("RGB", (40, 30), (10, 200, 10)).save(root / "textures" / "grass.jpg")
    return root


def add_bad(root: Path) -> dict[str, str]:
    """Files that are no models, with what is said about them."""
    folder = root / "bad"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(root.parent / "secret.png")
    (folder / "text.glb").write_text("no model")
    (folder / "cut.glb").write_bytes((root / "ball" / "round.glb").read_bytes()[:900])
    (folder / "missing.obj").write_text(OBJ.format(mtl="missing.mtl"))
    (folder / "outside.obj").write_text(OBJ.format(mtl="outside.mtl"))
    (folder / "outside.mtl").write_text("newmtl m\nmap_Kd ../../secret.png\n")
    (folder / "absolute.obj").write_text(OBJ.format(mtl="absolute.mtl"))
    (folder / "absolute.mtl").write_text(f"newmtl m\nmap_Kd {root.parent / 'secret.png'}\n")
    (folder / "skinless.obj").write_text(OBJ.format(mtl="skinless.mtl"))
    (folder / "skinless.mtl").write_text("newmtl m\nmap_Kd gone.png\n")
    trimesh.creation.box().export(folder / "grey.ply")
    data = (root / "ball" / "round.glb").read_bytes()
    top = np.array([0.0, 0.0, 1.0], np.float32).tobytes()
    assert top in data
    (folder / "nan.glb").write_bytes(data.replace(top, np.full(3, np.nan, np.float32).tobytes()))
    (folder / "points.ply").write_bytes(trimesh.PointCloud([[0, 0, 0], [1, 1, 1]]).export(file_type="ply"))
    (folder / "flat.obj").write_text("v 1 1 1 1 0 0\nv 1 1 1 1 0 0\nv 1 1 1 1 0 0\nf 1 2 3\n")
    ball = trimesh.creation.icosphere(3)
    ball.visual.vertex_colors = [9, 99, 9, 255]
    ball.export(folder / "huge.ply")
    (folder / "scene.dae").write_text("<COLLADA><asset/></COLLADA>")
    claims = {"componentType": 5126, "type": "VEC3", "count": 10**8}
    (folder / "claims.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "accessors": [claims]}))
    (folder / "link.glb").symlink_to(root.parent / "elsewhere.glb")
    write_sphere(root.parent / "elsewhere.glb")
    return {
        "bad/text.glb": "cannot be read",
        "bad/cut.glb": "cannot be read",
        "bad/claims.gltf": "it claims 100000000 values",
        "bad/missing.obj": "a file that is missing, or outside of the folder: missing.mtl",
        "bad/outside.obj": "outside of the folder: ../../secret.png",
        "bad/absolute.obj": "outside of the folder",
        "bad/skinless.obj": "a file that is missing, or outside of the folder: gone.png",
        "bad/grey.ply": "no texture and no colour",
        "bad/nan.glb": "no numbers",
        "bad/points.ply": "no triangles",
        "bad/flat.obj": "without extent",
        "bad/link.glb": "outside of the folder",
        "bad/huge.ply": "too many triangles: 1280, at most 400",
        "bad/scene.dae": "cannot be read",
    }


def survey(root: Path) -> Survey:
    return survey_assets(root, leave_out=root.parent / "out", workers=1)


def test_what_is_found(models: Path):
    found = survey(models)
    assert found.assets.class_names == ("ball", "egg")
    assert [asset.path for asset in found.assets.models] == ["ball/round.glb", "egg/long.glb", "egg/triangle.obj"]
    assert len({asset.shape for asset in found.assets.models}) == 3
    assert [path for path, _ in found.assets.grounds] == ["textures/grass.jpg"]
    # A model's own textures are no grounds, wherever they lie, and are part of its hash.
    before = {asset.path: asset.sha256 for asset in found.assets.models}
    Image.new("RGB", (4, 4), (201, 10, 10)).save(models / "egg" / "skin.png")
    after = {asset.path: asset.sha256 for asset in survey(models).assets.models}
    assert [path for path in before if before[path] != after[path]] == ["egg/triangle.obj"]


def test_a_flat_folder_is_one_class(models: Path):
    found = survey(models / "egg")
    assert found.assets.class_names == ("egg",)
    with pytest.raises(InputMissingError, match="no models"):
        survey_assets(models / "textures", leave_out=models)


def test_bad_models_are_rejects_with_a_reason(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vq3dcli.meshscenes.models.MAX_TRIANGLES", 400)
    reasons = add_bad(models)
    found = survey(models)
    said = {reject.path: reject.reason for reject in found.rejects}
    assert set(said) == set(reasons)
    for path, reason in reasons.items():
        assert reason in said[path], path
    assert "bad" not in found.assets.class_names
    out = tmp_path / "out"
    with pytest.raises(DataError, match="14 of 18 files are bad"):
        prepare_meshscenes(models, out, OPTIONS)
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == set(reasons)
    manifest = prepare_meshscenes(models, out, OPTIONS, max_bad=0.9)
    assert manifest is not None
    assert (manifest.num_samples, manifest.num_rejects) == (7, 14)
    assert verify_folder(out).problems == []


def test_equal_bytes_by_any_number_of_processes_parts_and_interruptions(models: Path, tmp_path: Path):
    found = survey(models)
    whole = tmp_path / "whole"
    prepare_meshscenes(models, whole, OPTIONS)
    expected = contents(whole)
    prepare_meshscenes(models, tmp_path / "two", OPTIONS, workers=2)
    assert contents(tmp_path / "two") == expected
    for index in (1, 0):
        prepare_meshscenes(models, tmp_path / "parts", OPTIONS, part=Part(index, 2))
    assert contents(tmp_path / "parts") == expected
    for name in ("manifest.json", "shard-000001.tar", "SHA256SUMS"):
        (whole / name).unlink()
    times = {path: path.stat().st_mtime_ns for path in whole.glob("*.tar")}
    prepare_meshscenes(models, whole, OPTIONS)
    assert contents(whole) == expected
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    manifest = ShardFolder(whole).manifest
    assert manifest.options["assets"] == {asset.path: asset.sha256 for asset in found.assets.models}
    # Scenes do not depend on how many there are, nor on the shards.
    more = SceneOptions(count=9, size=16, seed=4, shard_size=5)
    prepare_meshscenes(models, tmp_path / "more", more)
    one, other = ShardFolder(whole), ShardFolder(tmp_path / "more")
    assert [one.read(i) for i in range(7)] == [other.read(i) for i in range(7)]


def test_other_models_are_another_data_set(models: Path, tmp_path: Path):
    prepare_meshscenes(models, tmp_path / "out", OPTIONS)
    write_sphere(models / "egg" / "another.glb", size=(1.0, 3.0, 1.0))
    with pytest.raises(UsageError, match="assets"):
        prepare_meshscenes(models, tmp_path / "out", OPTIONS)


def test_views_are_of_the_same_scene(models: Path, tmp_path: Path):
    found = survey(models)
    options = replace(OPTIONS, views=2)
    prepare_meshscenes(models, tmp_path / "out", options)
    prepare_meshscenes(models, tmp_path / "two", options, workers=2)
    prepare_meshscenes(models, tmp_path / "none", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    assert verify_folder(tmp_path / "out").problems == []
    shards, library = ShardFolder(tmp_path / "out"), Library(found.assets, None)
    main = ("png", "cls", "disparity.npy")
    assert [shards.read(i, main) for i in range(7)] == [ShardFolder(tmp_path / "none").read(i, main) for i in range(7)]
    for view in read_views(shards, 4, [0, 1], 16):
        expected = render_scene(sample_scene(library, 4, seed=4), view.cam_to_world.double().numpy(), 16)
        assert (view.image.permute(1, 2, 0).numpy() == expected.rgb).all()
        assert np.abs(view.s.numpy() - expected.s).max() < 1e-5


def test_options_that_do_not_go_together(tmp_path: Path):
    """Before any model is read: here there is none."""
    for options, said in (
        (replace(OPTIONS, views=2, varied=True), "views are of the canonical camera"),
        (replace(OPTIONS, coats=tmp_path), "coats are for the models of varied scenes"),
        (replace(OPTIONS, alone=True, varied=True), "--alone is not for --varied"),
    ):
        with pytest.raises(UsageError, match=said):
            scene_job(tmp_path / "none", tmp_path, options, max_bad=0.0)


def test_training_reads_them_with_exact_labels(models: Path, tmp_path: Path):
    options = SceneOptions(count=4, size=16, seed=4, varied=True)
    prepare_meshscenes(models, tmp_path / "out", options)
    label_exact(tmp_path / "out")
    loader = TrainingLoader([tmp_path / "out"], batch_size=4, size=16, seed=0, flip=False, crop=False)
    batch = loader.batch_at(0)
    assert batch.label_kind.tolist() == [LABEL_METRIC] * 4
    assert loader.num_labelled == 4
    info = json.loads(ShardFolder(tmp_path / "out").read(0)["json"])
    assert info["kind"] == "metric"
    assert 26.0 <= info["fov_deg"] <= 72.0


def test_clear_scenes_are_the_same_without_haze_and_blur(models: Path):
    library = Library(survey(models).assets, None)
    pairs = [[sample_scene(library, i, seed=2, clear=clear) for clear in (False, True)] for i in range(6)]
    assert any(math.isfinite(hazy.layout.light.haze_m) or hazy.layout.blur_px > 0 for hazy, _ in pairs)
    for hazy, clear in pairs:
        assert clear.layout.blur_px == 0 and math.isinf(clear.layout.light.haze_m)
        seen, same = (render_scene(scene, pose_at(0.0, 0.0), 16) for scene in (hazy, clear))
        assert np.array_equal(seen.s, same.s)


def test_a_model_that_is_alone_is_whole_and_in_clear_air_on_even_ground(models: Path):
    library = Library(survey(models).assets, None)
    for i in range(8):
        layout = sample_scene(library, i, seed=2, alone=True).layout
        assert set(layout.triangles.part.tolist()) == {0, NOTHING}
        assert layout.blur_px == 0 and math.isinf(layout.light.haze_m)
        focal = 0.5 * 64 / math.tan(0.5 * layout.fov_rad)
        seen = visible(layout.triangles, layout.textures, pose_at(0.0, 0.0), focal, 64, 64)
        main = (seen.triangle >= 0) & (layout.triangles.part[seen.triangle] == 0)
        rim = np.concatenate([main[0], main[-1], main[:, 0], main[:, -1]])
        assert main.mean() > 0.03 and not rim.any()
