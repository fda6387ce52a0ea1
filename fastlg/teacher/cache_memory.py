"""Where the rows of a cache are kept while training: on the device, in pinned host memory, or on disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fastlg.batch import Batch
from fastlg.errors import UserError

SHARE = 0.5  # of the free memory that "auto" lets a cache take
PLACES = ("device", "host", "mmap")


class RowReader:
    """Hands out arrays on the device, and which of their rows a batch is.

    Args:
        arrays: [rows, ...] each, memory-mapped on the CPU.
        memory: "device" keeps them all there; "host" in pinned host memory and "mmap" on disk, from where a thread
            brings the next batch's rows over while the device computes (``follow``). "auto" takes the first that fits
            in half of what is free; on a CPU device, host memory is the device's.

    Raises:
        UserError: they do not fit where they were told to be.
    """

    def __init__(self, arrays: dict[str, Tensor], device: torch.device, memory: str = "auto"):
        self.device, self.arrays = device, arrays
        self.place = choose_place(sum(a.numel() * a.element_size() for a in arrays.values()), device, memory)
        try:
            if self.place == "device":
                self.arrays = {name: array.clone().to(device) for name, array in arrays.items()}
            elif self.place == "host":
                pin = device.type == "cuda"
                self.arrays = {name: array.pin_memory() if pin else array.clone() for name, array in arrays.items()}
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise UserError(f"the feature cache does not fit in teacher.cache_memory={self.place}: {error}") from None
        self.ahead: deque[tuple[Tensor, object]] = deque()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and self.place != "device" else None

    def take(self, sample_ids: Tensor, rows: Callable[[], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """(arrays on the device, int64 rows [N] of them); ``sample_ids`` is the tensor of a batch of ``follow``."""
        if self.place == "device":
            return self.arrays, rows()
        while self.ahead:
            known, pending = self.ahead.popleft()
            if known is sample_ids:
                fetched, event = pending.result()
                break
        else:
            fetched, event = self._fetch(rows(), None)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
            for values in fetched.values():
                values.record_stream(torch.cuda.current_stream(self.device))
        return fetched, torch.arange(len(sample_ids), device=self.device)

    def follow(self, loader, rows: Callable[[Batch], Tensor]):
        """``loader`` itself when everything is on the device; else one that is a batch ahead of its consumer."""
        return loader if self.place == "device" else ReadAhead(loader, self, rows)

    def start(self, batch: Batch, rows: Tensor, pool: ThreadPoolExecutor) -> None:
        """Begins to fetch a batch's rows in ``pool``."""
        event = torch.cuda.current_stream(self.device).record_event() if self.stream is not None else None
        self.ahead.append((batch.sample_ids, pool.submit(self._fetch, rows, event)))

    def _fetch(self, rows: Tensor, ready) -> tuple[dict[str, Tensor], object]:
        """Rows on the device and the event after which they are there. Waits for the device only in this thread."""
        if self.stream is None:
            return {name: array[rows] for name, array in self.arrays.items()}, None
        with torch.cuda.stream(self.stream):
            if ready is not None:
                self.stream.wait_event(ready)
            on_host = rows.cpu()
            fetched = {}
            for name, array in self.arrays.items():
                staged = torch.empty((len(on_host), *array.shape[1:]), dtype=array.dtype, pin_memory=True)
                torch.index_select(array, 0, on_host, out=staged)
                fetched[name] = staged.to(self.device, non_blocking=True)
            return fetched, self.stream.record_event()


class ReadAhead:
    """A loader whose next batch's rows are being fetched while the consumer works on this one."""

    def __init__(self, loader, reader: RowReader, rows: Callable[[Batch], Tensor]):
        self.loader, self.reader, self.rows = loader, reader, rows

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        self.reader.ahead.clear()
        waiting = None
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as pool:
            for batch in self.loader.epoch(epoch, start_batch):
                self.reader.start(batch, self.rows(batch), pool)
                if waiting is not None:
                    yield waiting
                waiting = batch
            if waiting is not None:
                yield waiting


def choose_place(size: int, device: torch.device, memory: str) -> str:
    """One of PLACES for ``size`` bytes; "auto" takes the first that half of the free memory can hold."""
    if memory != "auto":
        return memory
    if device.type == "cuda" and size <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    free_host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size <= SHARE * free_host:
        return "host" if device.type == "cuda" else "device"
    return "mmap"
