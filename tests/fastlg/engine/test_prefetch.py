"""The next batch is made ahead, but never far: counted on a stand-in for CUDA's streams and events."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from fastlg.batch import Batch, Views
from fastlg.engine import prefetch

CUDA = torch.device("cuda")


class FakeCuda:
    """Streams and events that only count: ``pending`` steps are enqueued and nobody waited for them."""

    def __init__(self):
        self.streams, self.pending, self.most_pending = 0, 0, 0
        outer = self

        class Stream:
            def __init__(self, device=None):
                outer.streams += 1

            def wait_stream(self, other):
                pass

        class Event:
            def __init__(self, blocking=False):
                pass

            def record(self, stream):
                outer.pending += 1

            def synchronize(self):
                outer.pending -= 1

        self.Stream, self.Event = Stream, Event
        self.main = Stream()
        self.streams = 0

    def current_stream(self, device=None):
        return self.main

    @contextmanager
    def stream(self, stream):
        yield


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(prefetch.torch, "cuda", fake)
    prefetch.side_stream.cache_clear()
    yield fake
    prefetch.side_stream.cache_clear()


def batch(number: int) -> Batch:
    ids = torch.tensor([number])
    return Batch(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), ids, ids, torch.zeros(1, 4), ids > 0)


def views(one: Batch) -> Views:
    empty = torch.empty(0)
    return Views(one.images.float(), one.images.float(), one.labels, one.crop, one.flip, empty, empty)


def test_every_batch_comes_once_in_order_with_its_own_views(cuda):
    pairs = list(prefetch.prefetched(map(batch, range(7)), views, CUDA))
    assert [int(own.labels) for _, own in pairs] == list(range(7))
    assert all(torch.equal(seen.targets, own.labels) for seen, own in pairs)


def test_one_stream_serves_all_epochs(cuda):
    for _ in range(5):
        list(prefetch.prefetched(map(batch, range(3)), views, CUDA))
    assert cuda.streams == 1


def test_the_host_makes_views_at_most_two_steps_ahead_of_the_device(cuda):
    waiting = []

    def make(one: Batch) -> Views:
        waiting.append(cuda.pending)
        return views(one)

    list(prefetch.prefetched(map(batch, range(50)), make, CUDA))
    assert len(waiting) == 50 and max(waiting) < prefetch.STEPS_AHEAD
