"""Drawing codes: against brute force on small distributions, in any batch, with and without guidance."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.errors import DataError, UsageError
from vq3dcli.model.build import build_prior
from vq3dcli.model.draw_codes import (
    CACHE_BYTES_ON_CPU,
    ROWS_ON_CPU,
    Sharpening,
    distribution,
    draw,
    rows_together,
    sample_index,
    sample_tokens,
)
from vq3dcli.model.prior import Prior
from vq3dcli.model.vit import as_on_gpus
from vq3dcli.seeding import uniform

MakePrior = Callable[..., Prior]

CLASSES = torch.tensor([0, 1, 2, -1, 0, 2, 1, 0, 2, 2, 1, -1, 0, 0, 1, 2, 1, 0, 2])


def brute_force(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by the definitions, code by code."""
    weights = {code: torch.tensor(value / temperature).double().exp().item() for code, value in enumerate(logits)}
    ranked = sorted(weights, key=lambda code: -weights[code])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(weights[code] for code in ranked)
    kept: list[int] = []
    for code in ranked:
        kept.append(code)
        if sum(weights[c] for c in kept) / total >= top_p:
            break
    total = sum(weights[code] for code in kept)
    return [weights[code] / total if code in kept else 0.0 for code in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 6, 9])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.93, 1.0])
def test_the_distribution_is_that_of_the_definitions(temperature: float, top_k: int, top_p: float):
    logits = torch.randn(8, 6, generator=torch.Generator().manual_seed(3)) * 2
    found = distribution(logits, Sharpening(temperature, top_k, top_p))
    found = found / found.sum(-1, keepdim=True)
    for row, probability in zip(logits, found, strict=True):
        assert probability.tolist() == pytest.approx(brute_force(row.tolist(), temperature, top_k, top_p), abs=1e-6)


def test_temperature_zero_takes_the_most_probable_code():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distribution(logits, Sharpening(temperature=0.0)).argmax(-1), logits.argmax(-1))
    assert torch.equal(distribution(logits, Sharpening(top_k=1)) > 0, distribution(logits, Sharpening(0.0)) > 0)


def test_draws_have_the_probabilities_and_never_take_what_has_none():
    probability = torch.tensor([0.0, 0.3, 0.0, 0.05, 1.25, 0.4, 0.0]).double()
    count = 4096
    even = (torch.arange(count) + 0.5) / count
    drawn = draw(probability.expand(count, -1), even)
    shares = torch.bincount(drawn, minlength=7).double() / count
    assert (shares - probability / probability.sum()).abs().max() < 2 / count
    assert (drawn.diff() >= 0).all()
    ends = torch.tensor([0.0, 1.0 - 2.0**-24])
    assert draw(probability.expand(2, -1), ends).tolist() == [1, 5]


def test_samples_follow_the_joint_distribution_of_the_prior(make_prior: MakePrior):
    prior = make_prior(codes=3, length=4)
    everything = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.no_grad():
        logits = prior(everything, torch.full((81,), 1)).double().log_softmax(-1)
    probability = logits.gather(-1, everything[..., None]).sum((1, 2)).exp()
    assert float(probability.sum()) == pytest.approx(1.0)
    count = 6000
    drawn = sample_tokens(prior, torch.full((count,), 1), seed=0, rows=1000)
    number = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    shares = torch.bincount(number, minlength=81).double() / count
    # Pearson's statistic has mean 80 and a standard deviation of 13.
    assert float(((shares - probability).square() / probability).sum() * count) < 80 + 4 * 13


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_has_the_same_codes_in_any_batch(make_prior: MakePrior, guidance: float):
    prior = make_prior()
    sharpening = Sharpening(guidance=guidance, top_p=0.95)
    whole = sample_tokens(prior, CLASSES, seed=4, sharpening=sharpening)
    assert whole.shape == (19, 16)
    assert len(CLASSES) > ROWS_ON_CPU
    for chosen in ([0], [18], [7, 8, 9], [17, 3, 0, 5, 1], list(range(17))):
        index = torch.tensor(chosen)
        some = sample_tokens(prior, CLASSES[index], seed=4, index=index, sharpening=sharpening)
        assert torch.equal(some, whole[index])
    assert not torch.equal(sample_tokens(prior, CLASSES, seed=5, sharpening=sharpening), whole)


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_the_codes_are_those_of_feeding_everything_again(make_prior: MakePrior, guidance: float):
    prior = make_prior()
    uniforms = uniform(9, "sample", torch.arange(len(CLASSES)), 16)
    tokens = torch.zeros(len(CLASSES), 16, dtype=torch.int64)
    sharpening = Sharpening(temperature=0.8, top_k=20, guidance=guidance)
    with torch.no_grad():
        for place in range(16):
            given = prior(tokens, CLASSES)[:, place].double()
            without = prior(tokens, torch.full_like(CLASSES, -1))[:, place].double()
            logits = without + guidance * (given - without)
            tokens[:, place] = draw(distribution(logits, sharpening), uniforms[:, place])
    assert torch.equal(sample_tokens(prior, CLASSES, seed=9, sharpening=sharpening), tokens)


def test_guidance_of_one_is_none_at_no_cost(make_prior: MakePrior):
    prior = make_prior()
    rows: list[int] = []
    prior.norm.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    plain = sample_tokens(prior, CLASSES[:4], seed=0, rows=4)
    assert set(rows) == {4}
    assert torch.equal(sample_tokens(prior, CLASSES[:4], seed=0, rows=4, sharpening=Sharpening(guidance=1.0)), plain)
    assert set(rows) == {4}
    sample_tokens(prior, CLASSES[:4], seed=0, rows=4, sharpening=Sharpening(guidance=1.5))
    assert set(rows) == {4, 8}
    # Without a class both halves are the same, and any guidance is none.
    none = torch.full((4,), -1)
    guided = sample_tokens(prior, none, seed=0, rows=4, sharpening=Sharpening(guidance=4.0))
    assert torch.equal(guided, sample_tokens(prior, none, seed=0, rows=4))


def test_every_code_is_reported(make_prior: MakePrior):
    told: list[int] = []
    sample_tokens(make_prior(), CLASSES, seed=0, on_token=told.append)
    assert len(told) == 2 * 16
    assert sum(told) == len(CLASSES) * 16


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-30])
def test_any_temperature_above_zero_gives_a_distribution(make_prior: MakePrior, temperature: float):
    torch.set_flush_denormal(True)  # as the commands do
    logits = torch.tensor([[3.0, -900.0, 4.0, 3.9999998], [-5e4, -4e4, -6e4, -6e4]])
    for sharpening in (Sharpening(temperature), Sharpening(temperature, top_k=2), Sharpening(temperature, top_p=0.5)):
        assert distribution(logits, sharpening).tolist() == [[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    prior = make_prior()
    likeliest = sample_tokens(prior, CLASSES[:3], seed=0, sharpening=Sharpening(0.0))
    assert torch.equal(sample_tokens(prior, CLASSES[:3], seed=0, sharpening=Sharpening(temperature)), likeliest)


def test_the_strongest_guidance_is_that_of_float64(make_prior: MakePrior):
    prior = make_prior()
    with torch.no_grad():
        prior.head.weight *= 1e36  # type: ignore[union-attr]
    codes = sample_tokens(prior, CLASSES[:3], seed=0, rows=3, sharpening=Sharpening(guidance=100.0))
    assert int(codes.max()) < 32  # in float32 the guided logits would be infinite
    with torch.no_grad():
        prior.head.weight *= float("nan")  # type: ignore[union-attr]
    with pytest.raises(DataError, match="not finite"):
        sample_tokens(prior, CLASSES[:3], seed=0)


def test_a_draw_is_a_code_whatever_the_probabilities_are():
    broken = torch.tensor([[float("nan")] * 4, [0.0] * 4]).double()
    assert draw(broken, torch.tensor([0.5, 0.5])).tolist() == [3, 3]


def test_rows_of_a_group_fit_the_memory_there_is(make_prior: MakePrior):
    prior = make_prior()
    assert rows_together(prior, 1) == rows_together(prior, 10_000, guidance=2.0) == ROWS_ON_CPU
    large = Prior(codebook_size=4, length=256 * 256, classes=1, width=64, layers=17, heads=2)
    row_bytes = 2 * 17 * 256 * 256 * 64 * 4
    for guidance, row in ((1.0, row_bytes), (1.75, 2 * row_bytes)):
        rows = rows_together(large, 1, guidance=guidance)
        assert rows == rows_together(large, 10_000, guidance=guidance) < ROWS_ON_CPU
        assert rows * row <= CACHE_BYTES_ON_CPU < (rows + 1) * row
    assert rows_together(large.to(torch.bfloat16), 1) == CACHE_BYTES_ON_CPU // (row_bytes // 2)
    shape = load_recipe("imagenet256-prior", Stage2Recipe)  # guided: 1.2 GB a row
    with torch.device("meta"):
        imagenet = build_prior(shape, codebook_size=8192, length=1024, classes=1000)
    assert rows_together(imagenet, 1, guidance=1.75) == 3
    with torch.device("meta"):
        huge = Prior(codebook_size=4, length=2**20, classes=1, width=1024, layers=1, heads=2)
    assert rows_together(huge, 1) == 1


def test_a_cache_takes_the_bytes_that_rows_are_counted_by(make_prior: MakePrior):
    prior = make_prior().to(torch.bfloat16)
    cache = prior.make_cache(3)
    assert 3 * prior.cache_bytes() == sum(
        t.nbytes for t in vars(cache).values() if isinstance(t, torch.Tensor) and t.ndim > 1
    )


def test_bfloat16_draws_from_nearly_the_same_distribution(make_prior: MakePrior):
    prior, count = make_prior(codes=3, length=1), 2000
    index = torch.arange(count)
    classes = torch.zeros(count, dtype=torch.int64)
    whole = sample_tokens(prior, classes, seed=0, index=index, rows=1000)
    half = sample_tokens(prior.to(torch.bfloat16), classes, seed=0, index=index, rows=1000)
    assert float((whole == half).float().mean()) > 0.97


def test_samples_of_all_classes_have_numbers_of_their_own():
    numbers = {sample_index(c, j) for c in (-1, 0, 1, 999) for j in (0, 1, 999_999)}
    assert len(numbers) == 12
    assert min(numbers) == 0


def test_uniform_numbers_are_made_a_group_at_a_time(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def counted(seed: int, purpose: str, index: torch.Tensor, count: int) -> torch.Tensor:
        asked.append(len(index))
        return uniform(seed, purpose, index, count)

    monkeypatch.setattr("vq3dcli.model.draw_codes.uniform", counted)
    sample_tokens(make_prior(), CLASSES, seed=0, rows=4)
    assert asked == [4] * 5


def test_no_samples_are_no_error(make_prior: MakePrior):
    assert sample_tokens(make_prior(), torch.empty(0, dtype=torch.int64), seed=0).shape == (0, 16)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"guidance": 1e300},
        {"guidance": float("nan")},
        {"guidance": -1.0},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]):
    with pytest.raises(UsageError, match="out of range"):
        Sharpening(**values)  # type: ignore[arg-type]


def test_on_a_gpu_slots_that_read_as_many_take_one_graph(make_prior: MakePrior, monkeypatch: pytest.MonkeyPatch):
    prior, graphs = make_prior(), []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("vq3dcli.model.vit._SLOTS_TOGETHER", 8)
    # A GPU's capture, too, takes down operations on buffers and nothing that the host decides.
    monkeypatch.setattr(
        "vq3dcli.model.draw_codes.captured", lambda work: torch.compile(work, backend=keep, fullgraph=True)
    )
    sharpening = Sharpening(guidance=1.75, top_k=20, top_p=0.9)
    expected = sample_tokens(prior, CLASSES, seed=0, rows=8, sharpening=sharpening)
    with as_on_gpus(True):
        assert torch.equal(sample_tokens(prior, CLASSES, seed=0, rows=8, sharpening=sharpening), expected)
    assert len(graphs) == 16 // 8
