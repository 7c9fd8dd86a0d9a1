"""The Inception score in closed form and against torch-fidelity's."""

import warnings

import numpy as np
import pytest
import torch

from vq3dcli.errors import UsageError
from vq3dcli.metrics.inception_score import inception_score


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
            from torch_fidelity.metric_isc import isc_features_to_metric
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"torch-fidelity cannot be imported: {error}")
    logits = torch.randn(103, 20, generator=torch.Generator().manual_seed(0)) * 3
    theirs = isc_features_to_metric(logits, splits=1, shuffle=False)
    assert inception_score(logits, splits=1).mean == pytest.approx(theirs["inception_score_mean"], rel=1e-9)


def test_too_few_images_are_a_named_error():
    with pytest.raises(UsageError, match="needs 10 images, not 9"):
        inception_score(torch.zeros(9, 3))
