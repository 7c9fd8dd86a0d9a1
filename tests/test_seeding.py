"""Random numbers depend on (seed, purpose, index, position) and on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vq3dcli import seeding

MASK = (1 << 64) - 1


def _split_mix(z: int) -> int:
    """SplitMix64's finaliser on Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_known_values() -> None:
    """Fixed for good: a change here changes every data set and every run."""
    numbers = seeding.uniform(7, "train", torch.tensor([0, 1, 123456789012]), 3)
    assert numbers.tolist() == [
        [0.9493741989135742, 0.34825003147125244, 0.7498618960380554],
        [0.9727373719215393, 0.7912752032279968, 0.27767354249954224],
        [0.14635628461837769, 0.2538794279098511, 0.06295520067214966],
    ]


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(-(2**63), 2**63 - 1))
def test_is_split_mix_of_the_counters(seed: int, index: int) -> None:
    gamma = 0x9E3779B97F4A7C15
    row = _split_mix((index * gamma + seeding.key(seed, "p")) & MASK)
    expected = [(_split_mix((row + (j + 1) * gamma) & MASK) >> 40) / 2**24 for j in range(4)]
    assert seeding.uniform(seed, "p", torch.tensor([index]), 4).tolist() == [expected]


def test_a_number_is_the_same_in_any_batch_shape_and_order() -> None:
    index = torch.randperm(1000, generator=seeding.generator(0, "order"))
    whole = seeding.uniform(3, "crop", index, 5)
    single = torch.stack([seeding.uniform(3, "crop", i, 5) for i in index[:50]])
    assert torch.equal(whole[:50], single)
    assert torch.equal(seeding.uniform(3, "crop", index.view(10, 100), 5).view(1000, 5), whole)
    assert torch.equal(seeding.uniform(3, "crop", index, 2), whole[:, :2])


@pytest.mark.parametrize("purpose", ["train", "eval"])
def test_numbers_are_uniform_and_independent(purpose: str) -> None:
    numbers = seeding.uniform(0, purpose, torch.arange(1 << 17), 2)
    assert numbers.dtype == torch.float32
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers[:, 0], bins=64, min=0, max=1)
    chi_square = float(((counts - 2048) ** 2 / 2048).sum())
    assert chi_square < 63 + 4 * (2 * 63) ** 0.5  # four standard deviations
    # Correlations of 131072 pairs have a standard deviation of 0.0028.
    assert abs(float(torch.corrcoef(numbers.T)[0, 1])) < 0.012
    assert abs(float(torch.corrcoef(torch.stack([numbers[1:, 0], numbers[:-1, 0]]))[0, 1])) < 0.012


def test_seeds_and_purposes_share_nothing() -> None:
    index = torch.arange(4096)
    streams = [seeding.uniform(s, p, index, 1) for s in (0, 1) for p in ("train", "eval")]
    for i, first in enumerate(streams):
        for second in streams[i + 1 :]:
            assert int((first == second).sum()) < 4


def test_generators_follow_their_counters() -> None:
    def draw(*counters: int) -> list[int]:
        return torch.randint(1 << 40, (4,), generator=seeding.generator(0, "shuffle", *counters)).tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(1, 23) != draw(12, 3)
