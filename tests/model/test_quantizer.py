"""Vector quantisation: gradients, revival, statistics."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.model.quantizer import Quantizer, perplexity


def _active(codes: int = 32, dim: int = 4) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(codes, dim)
    quantizer.active.fill_(True)
    return quantizer


def test_the_nearest_code_is_the_nearest_by_brute_force() -> None:
    """Among directions: training moves codes off the sphere, and their lengths mean nothing."""
    quantizer = _active()
    quantizer.update_statistics(torch.tensor([1.0, 0.0, -2.0, 0.5]), torch.tensor([5.0, 1.0, 4.5, 9.0]))
    with torch.no_grad():
        quantizer.codebook *= torch.rand(32, 1) * 3 + 0.1
    z = torch.randn(3, 10, 4)
    centred = (z - torch.tensor([1.0, 0.0, -2.0, 0.5])) / torch.tensor([4.0, 1.0, 0.5, 8.75]).sqrt()
    projected, codes = (x / x.norm(dim=-1, keepdim=True) for x in (centred, quantizer.codebook.detach()))
    nearest = (projected[..., None, :] - codes).square().sum(-1).argmin(-1)
    found = quantizer(z)
    assert torch.equal(found.codes, nearest)
    torch.testing.assert_close(found.projected, projected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quantizer.embed(nearest), codes[nearest])
    torch.testing.assert_close(
        found.commitment, (projected - codes[nearest]).square().sum(-1).mean(), rtol=1e-3, atol=0
    )


def test_straight_through_passes_the_gradient_to_the_encoder_alone() -> None:
    quantizer = _active()
    z = torch.randn(2, 5, 4, requires_grad=True)
    result = quantizer(z)
    torch.testing.assert_close(result.embedding, quantizer.embed(result.codes), atol=1e-6, rtol=0)
    result.embedding.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert quantizer.codebook.grad is None


def test_commitment_pulls_the_encoder_and_the_codebook_loss_pulls_the_codes() -> None:
    quantizer = _active()
    z = torch.randn(2, 5, 4, requires_grad=True)
    quantizer(z).commitment.backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert quantizer.codebook.grad is None
    other = z.detach().requires_grad_()
    quantizer(other).codebook.backward()
    assert other.grad is None
    assert quantizer.codebook.grad is not None


def test_inactive_it_projects_and_lets_everything_through() -> None:
    quantizer = Quantizer(8, 4)
    z = torch.randn(2, 5, 4)
    result = quantizer(z)
    assert torch.equal(result.embedding, quantizer.project(z))
    assert result.commitment.item() == 0.0


def test_codes_start_from_encoder_outputs() -> None:
    quantizer = Quantizer(8, 4)
    projected = quantizer.project(torch.randn(50, 4))
    quantizer.start(projected, torch.rand(8))
    assert bool(quantizer.active)
    for code in quantizer.codebook:
        assert (projected == code).all(-1).any()


def test_dead_codes_revive_from_encoder_outputs_and_live_ones_stay() -> None:
    quantizer = _active(codes=16)
    before = quantizer.codebook.detach().clone()
    counts = torch.full((16,), 300.0)
    counts[[3, 9]] = 0.0
    assert quantizer.count(counts)
    projected = quantizer.project(torch.randn(100, 4))
    revived = quantizer.revive(projected, torch.rand(16))
    assert revived.nonzero().flatten().tolist() == [3, 9]
    assert torch.equal(quantizer.codebook[~revived], before[~revived])
    for code in quantizer.codebook[revived]:
        assert (projected == code).all(-1).any()
    assert quantizer.window_counts.sum() == 0


@pytest.mark.parametrize("outputs", [5, 16, 17, 40, 1000])
def test_no_encoder_output_is_taken_for_two_codes_while_there_are_others(outputs: int) -> None:
    projected = torch.nn.functional.normalize(torch.randn(outputs, 4), dim=-1)
    most = -(-16 // outputs)
    for pick in (torch.zeros(16), torch.full((16,), 1.0 - 2.0**-24), torch.rand(16), torch.rand(16)):
        quantizer = Quantizer(16, 4)
        quantizer.start(projected, pick)
        rows = (quantizer.codebook[:, None] == projected).all(-1)
        assert (rows.sum(1) == 1).all()
        assert int(rows.sum(0).max()) <= most
        quantizer.count(torch.arange(16) * 1000.0 * (torch.arange(16) > 8))
        revived = quantizer.revive(projected.flip(0) * 1.0, pick)
        rows = (quantizer.codebook[revived][:, None] == projected).all(-1)
        assert revived.sum() == 9
        assert int(rows.sum(0).max()) <= -(-9 // outputs)


def test_every_encoder_output_may_be_taken() -> None:
    projected = torch.nn.functional.normalize(torch.randn(40, 4), dim=-1)
    taken = torch.zeros(40)
    for _ in range(60):
        quantizer = Quantizer(7, 4)
        quantizer.start(projected, torch.rand(7))
        taken += (quantizer.codebook[:, None] == projected).all(-1).sum(0)
    assert (taken > 0).all()


def test_codes_are_judged_only_after_a_full_window() -> None:
    quantizer = _active(codes=16)
    assert not quantizer.count(torch.full((16,), 199.0))
    assert quantizer.count(torch.full((16,), 1.0))


def test_the_first_statistics_are_taken_whole() -> None:
    quantizer = Quantizer(8, 3)
    z = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 10.0, -3.0])
    quantizer.update_statistics(z.mean(0), z.square().mean(0))
    torch.testing.assert_close(quantizer.variance, z.var(0, unbiased=False), rtol=1e-3, atol=1e-5)
    normalised = (z - quantizer.mean) / quantizer.variance.sqrt()
    torch.testing.assert_close(quantizer.project(z).norm(dim=-1), torch.ones(1000))
    assert normalised.std(0).sub(1).abs().max() < 0.01


def test_perplexity_of_uniform_and_of_single_use() -> None:
    torch.testing.assert_close(perplexity(torch.full((64,), 7.0)), torch.tensor(64.0))
    assert perplexity(torch.tensor([0.0, 5.0, 0.0])).item() == 1.0
