"""Input and augmentation of the next batch while the device still trains on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch

from fastlg.batch import Batch, Views

STEPS_AHEAD = 2  # steps that may wait on the device; what they read cannot be used again before they are done


def prefetched(
    batches: Iterable[Batch], make_views: Callable[[Batch], Views], device: torch.device
) -> Iterator[tuple[Views, Batch]]:
    """(views, batch) of each batch; the next one is cut and augmented on a CUDA stream of its own.

    The host then runs at most STEPS_AHEAD steps ahead of the device: whatever it enqueued keeps its views and images,
    which at a batch of 1024 is half a gigabyte a step.
    """
    side, iterator = side_stream(device), iter(batches)
    side.wait_stream(torch.cuda.current_stream(device))  # which may still write what the loader reads

    def following() -> tuple[Views, Batch] | None:
        with torch.cuda.stream(side):
            batch = next(iterator, None)
            return None if batch is None else (make_views(batch), batch)

    enqueued: deque[torch.cuda.Event] = deque()
    ready = following()
    while ready is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in (*ready[0], *ready[1]):
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory is not given away before the step has read it
        if len(enqueued) == STEPS_AHEAD:
            enqueued.popleft().synchronize()
        upcoming = following()
        yield ready
        enqueued.append(torch.cuda.Event(blocking=True))
        enqueued[-1].record(torch.cuda.current_stream(device))
        ready = upcoming


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: the allocator keeps freed memory per stream, so a new stream would find none of it."""
    return torch.cuda.Stream(device)
