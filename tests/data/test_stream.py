"""Shares hold in every block, each folder's samples come in turns, and every place can be asked for alone."""

from __future__ import annotations

from collections import Counter

import pytest

from vq3dcli.data.stream import BLOCK, Stream
from vq3dcli.errors import UsageError


def test_without_shares_each_sample_comes_once_an_epoch():
    stream = Stream([3, 0, 4], seed=1)
    everything = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
    first, second = ([stream.at(7 * epoch + step) for step in range(7)] for epoch in range(2))
    assert sorted(first) == sorted(second) == everything
    assert first != second


@pytest.mark.parametrize(
    ("shares", "places"), [((0.5, 0.5), (500, 500)), ((1, 1, 1), (334, 333, 333)), ((2, 1), (667, 333))]
)
def test_each_folder_has_its_share_of_every_block(shares: tuple[float, ...], places: tuple[int, ...]):
    stream = Stream([5000] * len(shares), seed=0, shares=shares)
    for block in range(3):
        folders = Counter(stream.at(block * BLOCK + place)[0] for place in range(BLOCK))
        assert tuple(folders[f] for f in range(len(shares))) == places


def test_a_small_folder_goes_through_all_its_samples_again_and_again():
    stream = Stream([100_000, 7], seed=0, shares=(0.9, 0.1))
    found = [stream.at(position) for position in range(7 * BLOCK)]
    small = [sample for folder, sample in found if folder == 1]
    assert len(small) == 700
    for epoch in range(100):
        assert sorted(small[7 * epoch : 7 * epoch + 7]) == list(range(7)), "all come once before any comes again"
    large = [sample for folder, sample in found if folder == 0]
    assert len(set(large)) == len(large) == 6300


def test_a_place_does_not_depend_on_what_was_asked_before():
    places = [123_456, 5, 77_000, 5, 999, 1000]
    asked = Stream([40, 60], seed=3, shares=(0.3, 0.7))
    walked = {p: Stream([40, 60], seed=3, shares=(0.3, 0.7)).at(p) for p in set(places)}
    assert [asked.at(p) for p in places] == [walked[p] for p in places]
    assert any(Stream([40, 60], seed=4, shares=(0.3, 0.7)).at(p) != walked[p] for p in walked)


@pytest.mark.parametrize(
    ("counts", "shares", "message"),
    [
        ([5, 5], (1.0,), "1 shares for 2 folders"),
        ([5, 5], (1.0, 0.0), "below 1 of 1000"),
        ([5, 5], (1.0, -1.0), "below 1 of 1000"),
        ([5, 5], (1.0, float("nan")), "below 1 of 1000"),
        ([5, 5], (1.0, 0.0005), "below 1 of 1000"),
        ([5, 0], (1.0, 1.0), "without samples"),
    ],
)
def test_shares_that_cannot_be_are_refused(counts: list[int], shares: tuple[float, ...], message: str):
    with pytest.raises(UsageError, match=message):
        Stream(counts, seed=0, shares=shares)
