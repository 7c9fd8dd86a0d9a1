import pytest
import scipy.stats
import torch

from vq3dcli.metrics.geometry import average_ranks, mean_weight_variance, relief, spearman, ssi_error


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
