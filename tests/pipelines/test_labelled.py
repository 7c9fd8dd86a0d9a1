"""Disparity against labels, by predictors whose score is known: the label itself, a wall, the mean of all labels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vq3dcli.data_tools.depth.labels import EXACT, label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import InputMissingError, UnavailableError
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_RELATIVE
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.evaluation.labelled import LabelledImages, aligned_labels, measure_labels, open_labelled
from vq3dcli.pipelines.evaluation.stereo_pair import evaluate_stereo, load_stereo_pair, right_from_left
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.scene import SceneView

SIDE = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("toys") / "shards"
    prepare_toyscenes(path, count=6, size=SIDE, seed=0)
    label_exact(path)
    return path


@pytest.fixture(scope="module")
def labelled(shards) -> LabelledImages:
    return open_labelled(shards, None, count=None, seed=0, size_px=SIDE)


class Fixed:
    """The input and a given disparity, from wherever it is looked at."""

    def __init__(self, images: Tensor, s: Tensor) -> None:
        self.images, self.s = images, s

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        return SceneView(self.images, self.s, torch.zeros_like(self.s))


def in_order(maps: Tensor):
    """A predictor that renders `maps` `[N, S, S]`, one an image."""
    rows = iter(maps)
    return lambda images: Fixed(images, torch.stack([next(rows) for _ in images]))


def test_the_label_itself_scores_perfectly(labelled, tiny_recipe):
    metrics = measure_labels(in_order(labelled.s), tiny_recipe(), labelled)[0]
    assert metrics["psnr"] == 100.0
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["ssi_error"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["relief"] == metrics["edge_f1"] == pytest.approx(1.0)
    assert metrics["template_spearman"] < 1.0
    assert labelled.description["labels"] == EXACT
    assert (labelled.description["metric"], labelled.description["relative"]) == (6, 0)


def test_a_wall_is_exposed_though_its_photo_is_perfect(labelled, tiny_recipe):
    metrics = measure_labels(in_order(torch.full_like(labelled.s, 0.4)), tiny_recipe(), labelled)[0]
    assert metrics["psnr"] == 100.0
    assert metrics["spearman"] == metrics["relief"] == metrics["edge_f1"] == 0.0
    assert metrics["ssi_error"] > metrics["template_ssi_error"]
    assert metrics["nfs"] == pytest.approx(1.0)


def test_the_template_is_the_mean_of_the_others(labelled, tiny_recipe):
    n = len(labelled.s)
    others = torch.stack([labelled.s[torch.arange(n) != i].double().mean(0) for i in range(n)]).float()
    metrics = measure_labels(in_order(others), tiny_recipe(), labelled)[0]
    for name in ("spearman", "ssi_error", "relief", "edge_f1", "nfs"):
        assert metrics[name] == pytest.approx(metrics[f"template_{name}"], rel=1e-4)


def test_views_in_the_data_are_measured_beside_the_copied_main_view(tmp_path, tiny_recipe):
    """A predictor that shows the exact views, and one that shows the main view everywhere."""
    prepare_toyscenes(tmp_path / "shards", count=5, size=SIDE, seed=0, views=2)
    label_exact(tmp_path / "shards")
    seen = open_labelled(tmp_path / "shards", EXACT, count=3, seed=0, size_px=SIDE)
    assert [len(views.image) for views in seen.views] == [3, 3]

    class Exact:
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def render(self, camera: Camera, *, samples: int) -> SceneView:
            rgb = self.images.clone()
            for views in seen.views:
                for i, pose in enumerate(camera.cam_to_world):
                    rgb[i] = views.image[i] if torch.equal(pose, views.cam_to_world[i]) else rgb[i]
            return SceneView(rgb, seen.s, torch.zeros_like(seen.s))

    exact = measure_labels(Exact, tiny_recipe(), seen)[0]
    copied = measure_labels(in_order(seen.s), tiny_recipe(), seen)[0]
    assert exact["novel_psnr"] == 100.0
    assert exact["copy_psnr"] == copied["copy_psnr"] == copied["novel_psnr"] < 40.0
    assert "novel_psnr" not in measure_labels(in_order(seen.s), tiny_recipe(), replace(seen, views=[]))[0]


def test_relative_labels_are_measured_up_to_scale_and_shift(labelled, tiny_recipe):
    kind = torch.full((len(labelled.s),), LABEL_RELATIVE, dtype=torch.int8)
    other = LabelledImages(labelled.images, labelled.s * 7 + 3, kind, {})
    metrics = measure_labels(in_order(labelled.s), tiny_recipe(), other)[0]
    assert metrics["spearman"] > 0.98  # the label is cut at its 2 % quantiles
    assert metrics["ssi_error"] < 0.1
    found = aligned_labels(other, mean=0.3, std=0.1)
    assert found.mean((-2, -1)).tolist() == pytest.approx([0.3] * 6, abs=0.02)
    kind = torch.full((len(labelled.s),), LABEL_METRIC, dtype=torch.int8)
    assert torch.equal(aligned_labels(LabelledImages(labelled.images, labelled.s, kind, {}), mean=0, std=1), labelled.s)


def test_what_is_missing_is_one_line(shards, tmp_path):
    with pytest.raises(InputMissingError, match="no shards"):
        open_labelled(tmp_path, None, count=None, seed=0, size_px=SIDE)
    with pytest.raises(InputMissingError, match="midas"):
        open_labelled(shards, "midas", count=None, seed=0, size_px=SIDE)
    assert len(open_labelled(shards, EXACT, count=2, seed=0, size_px=SIDE).images) == 2


def test_a_stereo_pair_that_is_not_here_is_one_line(monkeypatch):
    monkeypatch.setattr("vq3dcli.pipelines.evaluation.stereo_pair._FILES", ("none.png",) * 3)
    with pytest.raises(UnavailableError, match="stereo pair of scikit-image is not here"):
        load_stereo_pair()


# --- the stereo pair -------------------------------------------------------------------------------------------------


def test_the_measured_disparity_leads_from_left_to_right():
    pytest.importorskip("skimage")
    pair = load_stereo_pair()
    assert pair.left.shape == pair.right.shape == (3, 500, 741)
    assert pair.disparity_px.isnan().any()
    warped = right_from_left(pair)
    assert float(psnr(warped[None], pair.right[None])) > float(psnr(pair.left[None], pair.right[None])) + 3


def test_a_perfect_disparity_and_a_wall_on_the_stereo_pair(tiny_recipe):
    pytest.importorskip("skimage")
    pair, size = load_stereo_pair(), 50
    recipe = tiny_recipe()
    rows = ((torch.arange(size) + 0.5) * 10).long()
    true = pair.disparity_px[..., 120:620][rows][:, rows]

    class Truth(Fixed):
        """Knows the depth in front; from the right it shows the photo that was taken there."""

        def render(self, camera: Camera, *, samples: int) -> SceneView:
            self.cameras = [*getattr(self, "cameras", []), camera]
            return super().render(camera, samples=samples)

    s = (true.nan_to_num(nan=20.0) / 200)[None]
    truth = Truth(torch.zeros(1, 3, size, size, dtype=torch.uint8), s)
    metrics = evaluate_stereo(lambda images: truth, recipe, pair, size_px=size)[0]
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["ssi_error"] == pytest.approx(0.0, abs=1e-5)
    # The right camera sees a point as far to the left as was measured, wherever it is.
    front, right = truth.cameras
    z = torch.tensor([1.5, 3.0, 20.0])
    points = torch.stack([torch.tensor([0.1, -0.2, 1.0]), torch.zeros(3), z - recipe.camera.radius], -1)[None]
    from vq3dcli.rendering.cameras import DepthRange, project, s_from_z_depth

    moved = project(front, points)[0][0, :, 0] - project(right, points)[0][0, :, 0]
    expected = s_from_z_depth(z, DepthRange(recipe.camera.near, recipe.camera.far)) * 200 * size / 500
    assert moved.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    wall = Fixed(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.full((1, size, size), 0.4))
    flat = evaluate_stereo(lambda images: wall, recipe, pair, size_px=size)[0]
    assert flat["spearman"] == 0.0
    assert flat["ssi_error"] > 0.5
    assert flat["input_copy_psnr"] < flat["warp_psnr"]
