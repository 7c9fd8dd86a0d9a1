"""Distances between sets of features against closed forms and brute force."""

import math
import warnings

import numpy as np
import pytest
import torch

from vq3dcli.errors import DataError, UsageError
from vq3dcli.metrics import distribution
from vq3dcli.metrics.distribution import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
)

linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")


def samples(count, features, seed, scale=1.0, offset=0.0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * scale + offset


def gaussian(mean, covariance):
    return Moments(1000, torch.tensor(mean).double(), torch.tensor(covariance).double())


def reference_frechet(a, b):
    """As the formula is written, with the matrix root of the product."""
    a, b = a.double().numpy(), b.double().numpy()
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(c @ d).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c + d - 2 * root))


def test_moments_are_those_of_numpy_however_the_batches_fall():
    # A mean a million times the spread: sums of squares would have lost all digits of float32 and half of float64.
    values = samples(101, 7, 0).double() + 1e6
    for sizes in ([101], [1] * 101, [50, 1, 50], [3, 98]):
        found = moments(values.split(sizes))
        assert found.samples == 101
        assert np.allclose(found.mean.numpy(), values.numpy().mean(0), rtol=1e-14)
        assert np.allclose(found.covariance.numpy(), np.cov(values.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_frechet_distance_of_gaussians_along_the_axes():
    """Commuting covariances: |m1 - m2|^2 + sum (std1 - std2)^2."""
    first = gaussian([1.0, 2.0, 0.0], np.diag([4.0, 9.0, 1.0]))
    second = gaussian([0.0, 0.0, 0.0], np.diag([1.0, 16.0, 1.0]))
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_frechet_distance_of_singular_gaussians():
    """Two lines at an angle: the root's trace is |cos| times the product of their standard deviations."""
    angle = 0.4
    u, v = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    first, second = gaussian([0.0, 0.0], 4.0 * np.outer(u, u)), gaussian([0.0, 0.0], 9.0 * np.outer(v, v))
    assert frechet_distance(first, second) == pytest.approx(4 + 9 - 2 * 2 * 3 * math.cos(angle), abs=1e-9)
    # At right angles nothing is shared.
    third = gaussian([0.0, 0.0], np.diag([0.0, 9.0]))
    assert frechet_distance(first, third) == pytest.approx(4 + 9)
    assert frechet_distance(first, gaussian([0.0, 0.0], np.zeros((2, 2)))) == pytest.approx(4)


def test_frechet_distance_agrees_with_the_matrix_root():
    mixing = samples(12, 12, 5)
    a, b = samples(300, 12, 1), samples(200, 12, 2, scale=1.7, offset=0.3) @ mixing
    assert frechet_distance(moments([a]), moments([b])) == pytest.approx(reference_frechet(a, b), rel=1e-8)


@pytest.mark.parametrize(("count", "features"), [(20, 64), (5, 200), (2, 30)])
def test_frechet_distance_without_full_rank(count, features):
    """Fewer images than features, against the small matrix: tr (C1 C2)^(1/2) is the nuclear norm of X Y^T / (N - 1)."""
    a, b = samples(count, features, 1).double(), samples(count, features, 2, scale=2.0, offset=1.0).double()
    x, y = a - a.mean(0), b - b.mean(0)
    root_trace = np.linalg.svd((x @ y.T).numpy(), compute_uv=False).sum() / (count - 1)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (x.square().sum() + y.square().sum()) / (count - 1)
    found = frechet_distance(moments([a]), moments([b]))
    assert found == pytest.approx(expected.item() - 2 * root_trace, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    for count, features in ((500, 16), (10, 300)):
        own = moments([samples(count, features, 3, scale=5.0)])
        assert frechet_distance(own, own) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_of_a_constant_set():
    """A collapsed generator: no covariance at all."""
    constant = moments([torch.full((10, 4), 2.0)])
    spread = moments([samples(1000, 4, 0)])
    expected = (spread.mean - 2).square().sum() + spread.covariance.trace()
    assert frechet_distance(constant, spread) == pytest.approx(expected.item())
    assert frechet_distance(constant, constant) == 0.0


def reference_kernel(x, y):
    """The unbiased estimator, pair by pair."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1.0) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_kernel_distance_agrees_with_brute_force():
    a, b = samples(9, 5, 1).double(), samples(9, 5, 2, offset=0.5).double()
    found = kernel_distance(a, b)
    assert found.mean == pytest.approx(reference_kernel(a, b), rel=1e-12)
    assert (found.std, found.subsets, found.subset_size) == (0.0, 1, 9)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    """In one dimension E (x y + 1)^3 = E[x^3] E[y^3] + 3 E[x^2] E[y^2] + 3 E[x] E[y] + 1.

    Moments 0, 1, 0 of the standard normal give 4; 1, 2, 4 of the one shifted by 1 give 32, and 7 across: 4 + 32 - 14.
    """
    first, same, shifted = samples(4000, 1, 1), samples(4000, 1, 2), samples(4000, 1, 3, offset=1.0)
    assert kernel_distance(first, same, subset_size=500).mean == pytest.approx(0.0, abs=0.15)
    assert kernel_distance(first, shifted, subset_size=500).mean == pytest.approx(22.0, rel=0.06)


def test_kernel_distance_of_equal_distributions_may_be_negative():
    values = [kernel_distance(samples(20, 8, 2 * i), samples(20, 8, 2 * i + 1)).mean for i in range(20)]
    assert min(values) < 0 < max(values)


def test_subsets_of_both_sides_are_drawn_apart():
    """Of a set and itself only the share of pairs that are one image, 1 / N, is more alike than others."""
    a = samples(400, 8, 5).double()
    kernel = (a @ a.T / 8 + 1.0).pow(3)
    alike = kernel.diagonal().mean() - (kernel.sum() - kernel.diagonal().sum()) / (400 * 399)
    found = kernel_distance(a, a, subsets=300, subset_size=20)
    assert found.mean == pytest.approx(-2.0 / 400 * float(alike), abs=0.3 * 2.0 / 20 * float(alike))


def test_subsets_depend_on_the_seed_alone():
    a, b = samples(60, 8, 1), samples(50, 8, 2)
    first = kernel_distance(a, b, subsets=10, subset_size=20, seed=3)
    torch.rand(5)
    assert kernel_distance(a, b, subsets=10, subset_size=20, seed=3) == first
    assert kernel_distance(a, b, subsets=10, subset_size=20, seed=4) != first
    assert first.std > 0 and first.subset_size == 20
    # No more than the smaller set.
    assert kernel_distance(a, b, subsets=3).subset_size == 50


def test_what_cannot_be_measured_is_a_named_error():
    one, broken = torch.ones(1, 3), torch.tensor([[0.0, float("nan")], [1.0, 2.0]])
    with pytest.raises(UsageError, match="at least 2 images"):
        moments([one])
    with pytest.raises(UsageError, match="at least 2 images"):
        moments([])
    with pytest.raises(UsageError, match="at least 2 images"):
        kernel_distance(one, torch.ones(5, 3))
    with pytest.raises(DataError, match="not finite"):
        moments([broken])
    with pytest.raises(DataError, match="not finite"):
        kernel_distance(broken, broken)


def reference_manifold(real, fake, k):
    """Pair by pair, by scipy's distances."""
    cdist = pytest.importorskip("scipy.spatial.distance", reason="scipy is not installed").cdist

    def covered(points, balls):
        radii = np.sort(cdist(balls, balls), axis=1)[:, k]  # column 0 is each one itself
        return float((cdist(points, balls) <= radii).any(1).mean())

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_agrees_with_brute_force(k, monkeypatch):
    monkeypatch.setattr(distribution, "_ROWS", 17)  # several blocks, the last one smaller
    real, fake = samples(60, 4, 0), samples(45, 4, 1, scale=0.8, offset=0.5)
    found = precision_recall(real, fake, neighbours=k)
    assert found.neighbours == k
    assert found[:2] == pytest.approx(reference_manifold(real.numpy(), fake.numpy(), k), abs=1e-12)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_closed_form_on_a_line():
    """Points 0, 1, 2, 10 with k = 1 reach 1, 1, 1 and 8: samples at 2.5, 3.1, 18 and 19 lie in, in, in and out."""
    real, fake = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[2.5], [3.1], [18.0], [19.0]])
    found = precision_recall(real, fake, neighbours=1)
    assert found.precision == 0.75
    # The samples' own balls reach 0.6, 0.6, 1 and 1: 2 alone is in one.
    assert found.recall == 0.25


def test_alike_apart_and_collapsed():
    real, same = samples(200, 6, 0), samples(200, 6, 1)
    assert min(precision_recall(real, same)[:2]) > 0.6
    assert precision_recall(real, real)[:2] == (1.0, 1.0)
    assert precision_recall(real, samples(200, 6, 1, offset=50.0))[:2] == (0.0, 0.0)
    # One place in the middle of the real images: faithful, and covers nothing.
    collapsed = precision_recall(real, samples(200, 6, 1, scale=1e-3))
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.05


def test_large_features_lose_no_digits():
    real, fake = samples(40, 8, 0), samples(40, 8, 1, scale=0.8)
    assert precision_recall(real.double() + 1e5, fake.double() + 1e5) == precision_recall(real, fake)


def test_too_few_images_for_neighbours_are_a_named_error():
    with pytest.raises(UsageError, match="more than 3 images, not 3"):
        precision_recall(samples(3, 2, 0), samples(9, 2, 1))


def test_certain_and_even_classes_score_their_number():
    logits = torch.eye(5).repeat(40, 1) * 1e4
    found = inception_score(logits, splits=1)
    assert found.mean == pytest.approx(5.0)
    assert (found.std, found.splits) == (0.0, 1)


def test_images_that_tell_nothing_score_one():
    assert inception_score(torch.zeros(100, 7)).mean == pytest.approx(1.0)
    assert inception_score((torch.eye(7)[:1] * 1e4).repeat(100, 1)).mean == pytest.approx(1.0)


def test_two_certainties_in_closed_form():
    """p = (a, 1 - a) and its mirror image: log 2 less the entropy of p."""
    a = 0.9
    logits = torch.tensor([[a, 1 - a], [1 - a, a]]).double().log().repeat(50, 1)
    entropy = -(a * np.log(a) + (1 - a) * np.log(1 - a))
    assert inception_score(logits, splits=1).mean == pytest.approx(np.exp(np.log(2) - entropy))


def test_parts_are_random():
    """Sorted by class, parts in order would hold one class each and score 1."""
    logits = torch.eye(10).repeat_interleave(100, 0) * 1e4
    found = inception_score(logits)
    assert found.mean > 9
    assert inception_score(logits, seed=1) != found
    assert inception_score(logits) == found


def test_agrees_with_torch_fidelity():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch_fidelity.metric_fid import fid_statistics_to_metric
            from torch_fidelity.metric_isc import isc_features_to_metric
            from torch_fidelity.metric_kid import kid_features_to_metric
            from torch_fidelity.metric_prc import prc_features_to_metric
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"torch-fidelity cannot be imported: {error}")
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(103, 20, generator=numbers) * 3
    theirs = isc_features_to_metric(logits, splits=1, shuffle=False)
    assert inception_score(logits, splits=1).mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)

    real, samples = (
        torch.randn(150, 12, generator=numbers).double(),
        torch.randn(150, 12, generator=numbers).double() + 0.3,
    )
    ours = [moments([features]) for features in (real, samples)]
    told = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in ours]
    theirs = fid_statistics_to_metric(*told, verbose=False)
    assert frechet_distance(*ours) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    theirs = kid_features_to_metric(real, samples, kid_subsets=1, kid_subset_size=150, verbose=False)
    assert kernel_distance(real, samples).mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    theirs = prc_features_to_metric(samples, real, verbose=False)
    found = precision_recall(real, samples)
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)


def test_too_few_images_for_parts_are_a_named_error():
    with pytest.raises(UsageError, match="needs 10 images, not 9"):
        inception_score(torch.zeros(9, 3))
