"""Figures of relative disparity against SciPy, closed forms and invariances."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.metrics.geometry import relative_figures


def test_the_truth_is_perfect_up_to_an_affine_map() -> None:
    truth = 0.1 + torch.rand(500, generator=torch.Generator().manual_seed(0))
    found = relative_figures(3.0 * truth - 7.0, truth)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["ordinal"] == 1.0 and found["delta1"] == 1.0
    assert found["ssi_error"] == pytest.approx(0.0, abs=1e-6)


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(300, generator=generator)
    predicted = (truth + 0.5 * torch.rand(300, generator=generator)).mul(20).round()  # with ties
    found = relative_figures(predicted, truth + 0.1)["spearman"]
    assert found == pytest.approx(float(stats.spearmanr(predicted, truth).statistic), abs=1e-9)


def test_the_wrong_way_round_is_fitted_by_a_constant() -> None:
    truth = torch.linspace(1.0, 2.0, 101, dtype=torch.float64)
    found = relative_figures(-truth, truth)
    assert found["spearman"] == pytest.approx(-1.0) and found["ordinal"] == 0.0
    deviation = (truth - truth.mean()).abs().mean() / truth.std(correction=0)
    assert found["ssi_error"] == pytest.approx(float(deviation))
    # The constant 1.5 is within a factor of 1.25 of all from 1.2 to 1.875.
    assert found["delta1"] == pytest.approx(67 / 101, abs=0.011)


def test_a_constant_map_says_nothing() -> None:
    found = relative_figures(torch.zeros(200), torch.rand(200) + 0.5)
    assert found["spearman"] == 0.0 and found["ordinal"] == 0.0
