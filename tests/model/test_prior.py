"""The prior: what a logit may depend on, and the cache that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vq3dcli.model.prior import Prior, axial_rotation
from vq3dcli.model.vit import as_on_gpus, rotate

MakePrior = Callable[..., Prior]

CODES, LENGTH, CLASSES = 32, 16, 3  # of the fixture `make_prior`


def some_tokens(count: int, seed: int = 1) -> Tensor:
    return torch.randint(CODES, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied_head", [False, True])
def test_a_logit_sees_the_class_and_the_codes_before_it_alone(make_prior: MakePrior, tied_head: bool):
    prior = make_prior(tied_head=tied_head)
    tokens, classes = some_tokens(1), torch.tensor([1])
    with torch.no_grad():
        before = prior(tokens, classes)
        assert before.shape == (1, LENGTH, CODES)
        for place in range(LENGTH):
            changed = tokens.clone()
            changed[0, place] = (changed[0, place] + 1) % CODES
            moved = (prior(changed, classes) - before).abs().amax(-1)[0]
            assert moved[: place + 1].max() == 0.0
            assert (moved[place + 1 :] > 1e-4).all()
        assert ((prior(tokens, torch.tensor([2])) - before).abs().amax(-1) > 1e-4).all()


def test_gradients_agree_that_it_is_causal(make_prior: MakePrior):
    prior = make_prior()
    embedded: list[Tensor] = []
    prior.code_embedding.register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad_()) or out)
    logits = prior(some_tokens(2), torch.tensor([0, 1]))
    for place in (0, 1, LENGTH - 1):
        (gradient,) = torch.autograd.grad(logits[:, place].square().sum(), embedded[0], retain_graph=True)
        reached = gradient.abs().amax((0, 2)) > 0
        assert reached.tolist() == [source < place for source in range(LENGTH - 1)]


@pytest.mark.parametrize(("tied_head", "on_gpu"), [(False, False), (True, False), (False, True)])
def test_cached_logits_are_those_without_a_cache(
    make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch, tied_head: bool, on_gpu: bool
):
    monkeypatch.setattr("vq3dcli.model.vit._SLOTS_TOGETHER", 6)  # more than there are, in the end
    prior = make_prior(tied_head=tied_head)
    tokens, classes = some_tokens(4), torch.tensor([0, 1, 2, -1])
    with torch.no_grad(), as_on_gpus(on_gpu):
        expected = prior(tokens, classes)
        cache = prior.make_cache(4)
        for _ in range(2):  # a used cache needs no clearing
            for slot in range(LENGTH):
                read = prior.given(classes)
                if slot:
                    read = read + prior.code_embedding(tokens[:, slot - 1])
                cache.move_to(slot)
                assert torch.allclose(prior.next_logits(read, cache), expected[:, slot], atol=1e-4, rtol=0)


def test_below_zero_is_no_class(make_prior: MakePrior):
    prior = make_prior()
    tokens = some_tokens(2)
    with torch.no_grad():
        assert torch.equal(prior(tokens, torch.tensor([-1, 0])), prior(tokens, torch.tensor([CLASSES, 0])))


def test_a_fresh_prior_is_nearly_uniform_and_all_of_it_learns():
    prior = Prior(codebook_size=CODES, length=LENGTH, classes=CLASSES, width=32, layers=2, heads=2)
    tokens, classes = some_tokens(4), torch.tensor([0, 1, 2, 3])
    logits = prior(tokens, classes)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(CODES), abs=0.1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3)
    for _ in range(2):  # the branches start at zero: what is before their last layers learns from the second step on
        optimizer.zero_grad()
        logits = prior(tokens, classes)
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_recomputed_activations_give_the_same_gradients(make_prior: MakePrior):
    gradients = []
    for recompute in (False, True):
        prior = make_prior()
        prior.checkpoint_activations = recompute
        prior(some_tokens(2), torch.tensor([0, 1])).square().mean().backward()
        gradients.append([parameter.grad for parameter in prior.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert torch.allclose(plain, recomputed, atol=1e-6)


def test_a_tied_head_has_no_tensor_of_its_own(make_prior: MakePrior):
    tied, untied = make_prior(tied_head=True).state_dict(), make_prior().state_dict()
    assert set(untied) - set(tied) == {"head.weight"}
    assert len({value.data_ptr() for value in tied.values()}) == len(tied)


def test_dropout_acts_in_training_only(make_prior: MakePrior):
    prior = make_prior(dropout=0.5)
    tokens, classes = some_tokens(1), torch.tensor([0])
    assert torch.equal(prior(tokens, classes), prior(tokens, classes))
    prior.train()
    assert not torch.equal(prior(tokens, classes), prior(tokens, classes))


def test_attention_sees_differences_of_rows_and_columns():
    side, width = 4, 16
    rotation = axial_rotation(side, width)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, width, generator=generator)
    places = side * side

    def products(vector: Tensor) -> Tensor:
        return rotate(vector.expand(1, 1, places, width), rotation)[0, 0]

    scores = products(query) @ products(key).T
    grid = scores.reshape(side, side, side, side)
    # The same step, here one row down and one column back, has the same score wherever it starts.
    steps = torch.stack([grid[r, c, r + 1, c - 1] for r in range(side - 1) for c in range(1, side)])
    assert torch.allclose(steps, steps[:1], atol=1e-5)
    assert not torch.allclose(grid[0, 1, 1, 0], grid[0, 0, 1, 1], atol=1e-3)
    assert torch.allclose(products(query).norm(dim=-1), query.norm(), atol=1e-5)
    # Rows turn the first half of the pairs, columns the second, and slower from pair to pair: weights mean it so.
    one_down, one_right = rotation[:, side], rotation[:, 1]
    angles = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    for turned, still, place in ((slice(0, 4), slice(4, 8), one_down), (slice(4, 8), slice(0, 4), one_right)):
        torch.testing.assert_close(place[:, turned], torch.stack([angles.cos(), angles.sin()]))
        assert (place[0, still] == 1).all() and (place[1, still] == 0).all()
