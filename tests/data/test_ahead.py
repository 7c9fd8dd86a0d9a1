"""One prefetcher: results come in order, a bounded number ahead, and its threads end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch

from vq3dcli.data.ahead import ahead, pinned
from vq3dcli.data.loader import Batch
from vq3dcli.data.views import Views


def test_results_come_in_order_whoever_is_first():
    def slow(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0.0)
        return i * i

    assert list(ahead(slow, range(40), threads=5)) == [i * i for i in range(40)]
    assert list(ahead(slow, [])) == []


def test_only_so_many_are_begun_before_they_are_taken():
    begun: list[int] = []
    stream = ahead(begun.append, itertools.count(), threads=2, most=3)
    assert not begun
    for taken in range(1, 6):
        next(stream)
        time.sleep(0.05)
        assert len(begun) == taken + 3
    stream.close()


def test_what_was_not_begun_is_not_made_at_the_end():
    begun: list[int] = []

    def slow(i: int) -> None:
        begun.append(i)
        time.sleep(0.1)

    stream = ahead(slow, range(100), threads=1, most=10)
    next(stream)
    stream.close()
    assert len(begun) <= 3


def test_waiting_is_shared_among_the_threads():
    began = time.monotonic()
    assert len(list(ahead(lambda _: time.sleep(0.1), range(16), threads=8))) == 16
    assert time.monotonic() - began < 1.2


def test_an_error_comes_in_its_turn_and_the_threads_end():
    before = threading.active_count()
    stream = ahead(lambda i: 1 // (3 - i), itertools.count())
    assert [next(stream) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert threading.active_count() == before


def test_all_tensors_of_a_batch_are_pinned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)  # without a GPU nothing can be pinned
    numbers = [torch.full((2,), i) for i in range(9)]
    found = pinned(Batch(*numbers[:5], ["a", "b"], Views(*numbers[5:])))
    assert found.keys == ["a", "b"]
    assert found.views is not None
    tensors = [found.image, found.s, found.label_kind, found.class_index, found.index]
    tensors += [found.views.image, found.views.s, found.views.cam_to_world, found.views.row]
    assert [int(tensor[0]) for tensor in tensors] == [*range(100, 109)]
