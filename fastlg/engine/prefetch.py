"""Input and augmentation of the next batch while the device still trains on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from fastlg.batch import Batch, Views


def prefetched(
    batches: Iterable[Batch], make_views: Callable[[Batch], Views], device: torch.device, *, is_ahead: bool
) -> Iterator[tuple[Views, Batch]]:
    """(views, batch) of each batch; with ``is_ahead`` the next one is cut and augmented on a CUDA stream of its own."""
    if not is_ahead:
        for batch in batches:
            yield make_views(batch), batch
        return
    side, iterator = torch.cuda.Stream(device), iter(batches)

    def following() -> tuple[Views, Batch] | None:
        with torch.cuda.stream(side):
            batch = next(iterator, None)
            return None if batch is None else (make_views(batch), batch)

    ready = following()
    while ready is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in (*ready[0], *ready[1]):
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory is not given away before the step has read it
        upcoming = following()
        yield ready
        ready = upcoming
