"""Where the rows of a cache are kept while training: on the device, in pinned host memory, or on disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fastlg import ranks
from fastlg.batch import Batch
from fastlg.errors import UserError
from fastlg.teacher.cache.shard import ShardedRows, agreed_minimum

SHARE = 0.5  # of the free memory that "auto" lets a cache take


class RowReader:
    """Hands out arrays on the device, and which of their rows a batch is.

    Args:
        arrays: [rows, ...] each, memory-mapped on the CPU.
        memory: "device" keeps them all there, "shard" each rank's share of them; "host" in pinned host memory and
            "mmap" on disk, from where a thread brings the next batch's rows over while the device computes
            (``follow``). "auto" takes the first that fits in half of what is free; a CPU's own memory is the host's.
        batch_size: the most samples a batch ever has; used by "shard".

    Raises:
        UserError: they do not fit where they were told to be.
    """

    def __init__(self, arrays: dict[str, Tensor], device: torch.device, memory: str = "auto", batch_size: int = 0):
        self.device, self.arrays = device, arrays
        self.place = choose_place(sum(a.numel() * a.element_size() for a in arrays.values()), device, memory)
        try:
            if self.place == "device":
                self.arrays = {name: array.clone().to(device) for name, array in arrays.items()}
            elif self.place == "shard":
                self.shard = ShardedRows(arrays, device, batch_size)
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
        if self.place == "shard":
            return self.shard.fetch(rows()), torch.arange(len(sample_ids), device=self.device)
        while self.ahead:
            known, pending = self.ahead.popleft()
            if known is sample_ids:
                fetched, event = pending.result()
                break
        else:
            wanted = rows()
            ready = torch.cuda.current_stream(self.device).record_event() if self.stream is not None else None
            fetched, event = self._fetch(wanted, ready)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
            for values in fetched.values():
                values.record_stream(torch.cuda.current_stream(self.device))
        return fetched, torch.arange(len(sample_ids), device=self.device)

    def follow(self, loader, rows: Callable[[Batch], Tensor]):
        """``loader`` itself when everything is on the device; else one that is a batch ahead of its consumer."""
        return loader if self.place in ("device", "shard") else ReadAhead(loader, self, rows)

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
    """device, shard, host or mmap for ``size`` bytes, the same on all ranks; "auto" takes the first of them that half
    of what is free holds.

    Raises UserError for a shard of one process.
    """
    world = ranks.world_size()
    if memory == "shard" and world == 1:
        raise UserError("teacher.cache_memory is shard, but one process has nobody to share with; use auto")
    if memory != "auto":
        return memory
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type != "cuda":
        return "device" if size <= SHARE * agreed_minimum(host, device) else "mmap"
    free = agreed_minimum(torch.cuda.mem_get_info(device)[0], device)
    if size <= SHARE * free:
        return "device"
    if world > 1 and size <= SHARE * free * world:
        return "shard"
    return "host" if size * world <= SHARE * agreed_minimum(host, device) else "mmap"
