"""Precision and recall against brute force and against sets whose overlap is known."""

import numpy as np
import pytest
import torch

from vq3dcli.errors import UsageError
from vq3dcli.metrics import manifold
from vq3dcli.metrics.manifold import precision_recall


def samples(count, features, seed, scale=1.0, offset=0.0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * scale + offset


def reference(real, fake, k):
    """Pair by pair, by scipy's distances."""
    cdist = pytest.importorskip("scipy.spatial.distance", reason="scipy is not installed").cdist

    def covered(points, balls):
        radii = np.sort(cdist(balls, balls), axis=1)[:, k]  # column 0 is each one itself
        return float((cdist(points, balls) <= radii).any(1).mean())

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_agrees_with_brute_force(k, monkeypatch):
    monkeypatch.setattr(manifold, "_ROWS", 17)  # several blocks, the last one smaller
    real, fake = samples(60, 4, 0), samples(45, 4, 1, scale=0.8, offset=0.5)
    found = precision_recall(real, fake, neighbours=k)
    assert found.neighbours == k
    assert found[:2] == pytest.approx(reference(real.numpy(), fake.numpy(), k), abs=1e-12)
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


def test_too_few_images_are_a_named_error():
    with pytest.raises(UsageError, match="more than 3 images, not 3"):
        precision_recall(samples(3, 2, 0), samples(9, 2, 1))
