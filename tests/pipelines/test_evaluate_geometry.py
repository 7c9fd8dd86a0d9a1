"""The figures of predictors whose score is known beforehand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.metrics.warp import EVALUATION_VIEWS_DEG, flat_warp
from vq3dcli.pipelines.evaluation.geometry import (
    Template,
    evaluate_geometry,
    exact_batches,
    kept_metrics,
    toy_template,
)
from vq3dcli.rendering.cameras import Camera, canonical_camera
from vq3dcli.rendering.scene import SceneView
from vq3dcli.sealed import write_sealed_json
from vq3dcli.toyscenes import ToyScenes, render_scenes, sample_scenes

SIZE = 24
COUNT = 18
SEED = 3
WALL_Z = 3.0


class TrueScene:
    """The scene itself."""

    def __init__(self, scenes: ToyScenes) -> None:
        self.scenes = scenes

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        assert samples == EVALUATION_SAMPLES
        views = render_scenes(self.scenes, camera)
        return SceneView(views.rgb, views.s, torch.zeros_like(views.s))


class PaintedWall:
    """The input, painted on a plane through the pivot: a perfect main view without geometry."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.camera = canonical_camera(len(images), height_px=SIZE, width_px=SIZE)

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        warped = flat_warp(self.images, self.camera, camera, torch.full((len(self.images),), WALL_Z))
        s = torch.full((len(self.images), SIZE, SIZE), 0.45)
        return SceneView((warped * 255).round().to(torch.uint8), s, torch.zeros_like(s))


@pytest.fixture(scope="module")
def template() -> Template:
    return toy_template(SIZE, scenes=64)


@pytest.fixture(scope="module")
def perfect(template):
    done = 0

    def predictor(images: Tensor) -> TrueScene:
        nonlocal done
        index = torch.arange(done, done + len(images))
        done += len(images)
        return TrueScene(sample_scenes(index, seed=SEED, purpose="eval"))

    return evaluate_geometry(predictor, count=COUNT, seed=SEED, size_px=SIZE, template=template)


@pytest.fixture(scope="module")
def wall(template):
    return evaluate_geometry(PaintedWall, count=COUNT, seed=SEED, size_px=SIZE, template=template)


def test_the_true_scenes_score_perfectly(perfect):
    metrics = perfect.metrics
    assert metrics["psnr"] == metrics["novel_psnr"] == 100.0
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["ssi_error"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["relief"] == pytest.approx(1.0)
    assert metrics["weight_variance"] == 0.0
    assert metrics["edge_f1"] == metrics["edge_precision"] == metrics["edge_recall"] == 1.0
    for name in ("nfs", "reprojection_error", "reprojection_share"):
        assert metrics[name] == metrics[f"exact_{name}"]
    assert metrics["reprojection_error"] < 0.5
    assert metrics["nfs"] > 5
    assert metrics["copy_psnr"] < metrics["warp_psnr"] < 40
    assert set(perfect.view_psnr) == {f"{yaw},{pitch}" for yaw, pitch in EVALUATION_VIEWS_DEG}
    assert set(perfect.view_psnr.values()) == {100.0}
    for figure in ("copy_psnr", "flat_psnr", "pivot_psnr", "warp_psnr"):
        assert sum(view[figure] for view in perfect.views.values()) / 6 == pytest.approx(metrics[figure])
    # The farther the camera, the less a picture that is not moved explains.
    assert perfect.views["20,0"]["copy_psnr"] < perfect.views["10,0"]["copy_psnr"]


def test_a_painted_wall_is_exposed(wall, perfect):
    metrics = wall.metrics
    assert metrics["psnr"] > 50
    assert metrics["spearman"] < metrics["template_spearman"]
    assert metrics["ssi_error"] > metrics["template_ssi_error"]
    assert metrics["relief"] < 0.01
    assert metrics["nfs"] == 1.0
    assert metrics["edge_f1"] == 0.0
    assert metrics["template_edge_f1"] < 0.9
    assert metrics["novel_psnr"] == pytest.approx(metrics["pivot_psnr"], abs=0.02)
    assert metrics["novel_psnr"] < metrics["warp_psnr"] - 2
    # Its reconstruction is the input, so that its own baselines are those of a perfect reconstruction.
    assert metrics["copy_psnr"] == pytest.approx(perfect.metrics["copy_psnr"], abs=0.02)


def test_the_template_is_exposed_by_its_own_figures(template):
    class Blind:
        def __init__(self, images: Tensor) -> None:
            self.count = len(images)

        def render(self, camera: Camera, *, samples: int) -> SceneView:
            rgb = (template.rgb * 255).round().to(torch.uint8).expand(self.count, -1, -1, -1)
            s = template.s.expand(self.count, -1, -1)
            return SceneView(rgb, s, torch.zeros_like(s))

    metrics = evaluate_geometry(Blind, count=COUNT, seed=SEED, size_px=SIZE, template=template).metrics
    for name in ("spearman", "ssi_error", "relief"):
        assert metrics[name] == metrics[f"template_{name}"]
    assert metrics["psnr"] == pytest.approx(metrics["template_psnr"], abs=0.02)
    assert metrics["template_spearman"] > 0.5


def test_a_scene_is_the_same_in_any_count():
    few = torch.cat([batch.novel_rgb for batch in exact_batches(3, seed=SEED, size_px=SIZE)])
    many = torch.cat([batch.novel_rgb for batch in exact_batches(COUNT, seed=SEED, size_px=SIZE)])
    assert len(many) == COUNT
    assert torch.equal(few, many[:3])


def test_the_sheet_shows_the_first_scenes_above_their_reconstructions(wall):
    exact = next(exact_batches(6, seed=SEED, size_px=SIZE)).rgb
    assert wall.sheet.shape == (3, 2 + 12 * (SIZE + 2), 2 + 8 * (SIZE + 2))
    for number, image in enumerate(exact):
        for row in (2 * number, 2 * number + 1):  # a painted wall's main view is its input, up to rounding
            top = 2 + row * (SIZE + 2)
            shown = wall.sheet[:, top : top + SIZE, 2 : 2 + SIZE]
            assert (shown.int() - image.int()).abs().max() <= 2 * (row % 2)


def test_figures_are_kept_for_what_they_are_of_and_measured_again_where_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, identity = tmp_path / "figures.json", {"protocol": "p", "count": 3}
    assert kept_metrics(path, identity) is None
    write_sealed_json(path, {**identity, "metrics": {"psnr": 12.5}})
    assert kept_metrics(path, identity) == {"psnr": 12.5}
    assert kept_metrics(path, {**identity, "count": 4}) is None
    assert not caplog.records
    whole = path.read_bytes()
    for data in (whole.replace(b"12.5", b"13.5"), whole[:-9], b"[]", b"{}", b"\xff", b"[" * 10**5):
        path.write_bytes(data)
        caplog.clear()
        assert kept_metrics(path, identity) is None
        assert "measured again" in caplog.text
