import math

import pytest
import scipy.stats
import torch

from vq3dcli.metrics.geometry import (
    average_ranks,
    edge_scores,
    mean_weight_variance,
    non_flatness_score,
    relief,
    spearman,
    ssi_error,
)


@pytest.fixture
def s_true() -> torch.Tensor:
    return torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_ranks_agree_with_scipy_with_many_ties():
    values = torch.randint(0, 9, (5, 200), generator=torch.Generator().manual_seed(1)).double()
    expected = torch.stack([torch.from_numpy(scipy.stats.rankdata(row.numpy())) for row in values])
    assert torch.equal(average_ranks(values), expected)


def test_spearman_agrees_with_scipy(s_true):
    rendered = (s_true + 0.5 * torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(2))).mul(20).round()
    expected = [
        scipy.stats.spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
        for a, b in zip(rendered, s_true, strict=True)
    ]
    assert spearman(rendered, s_true).tolist() == pytest.approx(expected, abs=1e-12)


def test_spearman_ignores_monotonic_changes_and_sees_the_sign(s_true):
    assert spearman(s_true**3, s_true).tolist() == pytest.approx([1.0] * 4)
    assert spearman(1 - s_true, s_true).tolist() == pytest.approx([-1.0] * 4)


def test_a_perfect_rendering_scores_perfectly(s_true):
    assert spearman(s_true, s_true).tolist() == pytest.approx([1.0] * 4)
    assert ssi_error(s_true, s_true).tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    assert relief(s_true, s_true).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(("scale", "shift"), [(0.3, 0.1), (2.0, -0.5), (-1.0, 1.0)])
def test_ssi_error_ignores_affine_changes(s_true, scale, shift):
    noisy = s_true + 0.2 * torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(ssi_error(scale * noisy + shift, s_true), ssi_error(noisy, s_true), atol=1e-5)
    assert ssi_error(scale * s_true + shift, s_true).max() < 1e-6


def test_ssi_error_agrees_with_least_squares(s_true):
    rendered = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(4))
    for index in range(4):
        x, y = rendered[index].flatten().double(), s_true[index].flatten().double()
        design = torch.stack([x, torch.ones_like(x)], -1)
        fitted = design @ torch.linalg.lstsq(design, y[:, None]).solution
        expected = (fitted[:, 0] - y).abs().mean() / y.std(correction=0)
        assert ssi_error(rendered, s_true)[index].item() == pytest.approx(expected.item())


def test_relief_is_not_aligned(s_true):
    assert relief(0.25 * s_true + 0.3, s_true).tolist() == pytest.approx([0.25] * 4, rel=1e-5)


def test_a_flat_wall_is_exposed(s_true):
    wall = torch.full_like(s_true, 0.4)
    assert spearman(wall, s_true).tolist() == [0.0] * 4
    assert relief(wall, s_true).max() < 1e-6
    # What remains is the mean absolute deviation over the standard deviation: sqrt(3) / 2 for uniform values.
    assert ssi_error(wall, s_true).mean().item() == pytest.approx(3**0.5 / 2, abs=0.03)


def test_scenes_without_relief_stay_finite(s_true):
    flat = torch.zeros_like(s_true)
    for metric in (spearman, ssi_error, relief):
        assert torch.isfinite(metric(s_true, flat)).all()
        assert torch.isfinite(metric(flat, flat)).all()


def test_weight_variance_is_a_mean_over_rays():
    assert mean_weight_variance(torch.tensor([[[0.0, 0.2], [0.4, 0.0]]])).item() == pytest.approx(0.15)


def test_non_flatness_of_a_wall_is_one_wherever_it_stands():
    walls = torch.tensor([0.0, 0.3, 0.5, 1.0])[:, None, None].expand(4, 8, 8)
    assert non_flatness_score(walls).tolist() == pytest.approx([1.0] * 4)


def test_non_flatness_of_a_ramp_is_the_number_of_bins():
    ramp = ((torch.arange(256) + 0.5) / 256).reshape(1, 16, 16)
    assert non_flatness_score(ramp).item() == pytest.approx(64.0)
    # A ramp over a quarter of the range fills a quarter of the bins.
    assert non_flatness_score(ramp / 4).item() == pytest.approx(16.0)
    assert non_flatness_score(ramp.flip(-1)).item() == pytest.approx(64.0)  # any order of the pixels


def test_non_flatness_of_two_walls_has_its_closed_form():
    """exp of the entropy of (p, 1 - p)."""
    p = 0.25
    image = torch.where(torch.arange(64) < 64 * p, 0.1, 0.9).reshape(1, 8, 8)
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert non_flatness_score(image).item() == pytest.approx(expected)


def test_non_flatness_agrees_with_a_histogram():
    random = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    for image, found in zip(random, non_flatness_score(random), strict=True):
        share = torch.histc(image.clamp(0, 1), 64, 0, 1) / image.numel()
        entropy = -(share[share > 0] * share[share > 0].log()).sum()
        assert found.item() == pytest.approx(entropy.exp().item(), rel=1e-5)


# --- edges -----------------------------------------------------------------------------------------------------------


def block(left: int, value: float = 0.5) -> torch.Tensor:
    """A square of 4 x 4 pixels on nothing, `[1, 16, 16]`."""
    s = torch.zeros(1, 16, 16)
    s[:, 4:8, left : left + 4] = value
    return s


def test_edges_of_the_truth_and_of_a_wall():
    assert [float(x) for x in edge_scores(block(4), block(4))] == [1.0, 1.0, 1.0]
    assert [float(x) for x in edge_scores(torch.full((1, 16, 16), 0.3), block(4))] == [0.0, 0.0, 0.0]
    assert all(torch.isnan(x).all() for x in edge_scores(block(4), torch.zeros(1, 16, 16)))


def test_edges_may_lie_a_pixel_apart_and_no_more():
    assert float(edge_scores(block(5), block(4)).f1) == 1.0
    moved = edge_scores(block(7), block(4))
    assert 0.0 < float(moved.f1) < 0.8
    assert float(moved.precision) == float(moved.recall)  # the same shape moved: what one misses, the other does


def test_a_smeared_edge_has_no_jump():
    ramp = torch.linspace(0, 0.5, 16).expand(1, 16, 16)  # steps of 0.033
    step = (torch.arange(16) >= 8).float().mul(0.5).expand(1, 16, 16)
    assert float(edge_scores(ramp, step).recall) == 0.0
    spurious = step.clone()
    spurious[:, :, 2:4] = 0.2
    scores = edge_scores(spurious, step)
    assert float(scores.recall) == 1.0
    assert float(scores.precision) == pytest.approx(2 / 6)  # columns 1, 2, 3, 4 are wrong, 7 and 8 right
