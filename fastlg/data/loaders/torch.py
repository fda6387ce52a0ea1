"""The oracle: Pillow crops and resizes each image of the store in DataLoader workers. Slow, and the truth."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fastlg.batch import Batch
from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.store.store import Store
from fastlg.errors import RunError, Stopped

LOOK_S = 5.0  # between two looks at the workers
DEATH_S = 2.0  # from the end of a worker's connections to its own
PATIENCE_S = 20.0  # that a stopped worker gets to be woken
_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class TorchLoader:
    """Batches of a store, cropped and resized by Pillow.

    Args:
        store: one split, from ``open_store``.
        plan: what is delivered (data/loaders/plan.py).
        device: where the batches go; on CUDA through pinned memory without waiting.
        workers: DataLoader processes; 0 works in this one.
    """

    def __init__(self, store: Store, plan: SamplePlan, *, device: torch.device | str = "cpu", workers: int = 0):
        self.store = store
        self.plan = plan
        self.device = torch.device(device)
        self.workers = workers

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan.slices(len(self.store)))

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on; earlier ones are neither read nor decoded.

        Raises:
            RunError: a worker failed; the sample is named.
        """
        batches = _Batches(self.store, self.plan, epoch)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(start_batch, len(batches)),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            # its own generator: the default one would advance the run's random state at every epoch and resume
            generator=torch.Generator(),
        )
        for batch in _watched(iter(loader)):
            if isinstance(batch, _Failure):
                raise RunError(batch.message)
            yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))


class _Alarm:
    """In the place of torch's handler of SIGCHLD, which raises wherever the main thread happens to be when a worker
    dies, in a training step or in the line about it: this one raises only out of ``next``, where the thread may wait
    for ever for the rest of what the dead one was writing."""

    def __init__(self, workers: list):
        self.workers, self.is_waiting = workers, False
        self.is_set = bool(workers) and threading.current_thread() is threading.main_thread()
        if self.is_set:
            self.before = signal.signal(signal.SIGCHLD, self._heard)

    def next(self, batches: Iterator):
        """The next of ``batches``, None after the last. Raises RuntimeError once a worker has died."""
        self.is_waiting = self.is_set
        try:
            self._expect_all()  # who died before is not heard any more
            return next(batches, None)
        finally:
            self.is_waiting = False

    def _heard(self, signum: int, frame) -> None:
        if self.is_waiting:
            self._expect_all()

    def _expect_all(self) -> None:
        if self.is_set and any(worker.exitcode not in (None, 0) for worker in self.workers):
            raise RuntimeError("a data worker has died")

    def close(self) -> None:
        """Gives the signal back to whose it was, unless that is torch."""
        is_main = threading.current_thread() is threading.main_thread()  # else left open, and collected elsewhere
        if self.is_set and is_main and signal.getsignal(signal.SIGCHLD) == self._heard:
            is_torchs = getattr(self.before, "__module__", "").startswith("torch.utils.data")
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if self.before is None or is_torchs else self.before)


def _watched(batches: Iterator) -> Iterator:
    """``batches`` of a DataLoader. Raises RunError once a worker is dead, or stopped for PATIENCE_S (SIGSTOP)."""
    workers, stopped, is_over = getattr(batches, "_workers", []), [], threading.Event()
    if workers:
        threading.Thread(target=_end_stopped, args=(workers, stopped, is_over), daemon=True).start()
    alarm = _Alarm(workers)
    try:
        while (batch := alarm.next(batches)) is not None:
            yield batch
    except (RuntimeError, OSError, EOFError):  # of the queue, or of the socket through which a batch's memory comes
        if not _is_any_dead(workers):
            raise
        _end(workers)
        raise RunError(_lost(stopped)) from None
    finally:
        is_over.set()
        alarm.close()


def _is_any_dead(workers: list) -> bool:
    """Or about to be: the sockets of a process that ends close a little earlier than it is gone."""
    return bool(workers) and bool(wait([worker.sentinel for worker in workers], timeout=DEATH_S))


def _end(workers: list) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def _end_stopped(workers: list, stopped: list[int], is_over: threading.Event) -> None:
    """Kills workers that stay stopped: whoever waits for their memory waits for ever, whatever the time limit, and so
    does Python before it ends."""
    looks = 0  # counted, not timed: while a whole job is suspended, nobody looks
    while not is_over.wait(LOOK_S):
        found = _stopped(workers)
        looks = looks + 1 if found else 0
        if looks * LOOK_S >= PATIENCE_S:
            stopped += found
            return _kill(found)
    if _stopped(workers):
        time.sleep(PATIENCE_S)  # by then torch has given them up
        _kill(_stopped(workers))


def _stopped(workers: list) -> list[int]:
    return [worker.pid for worker in workers if _is_stopped(worker.pid)]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _lost(stopped: list[int]) -> str:
    what, why = "a data worker was killed", "out of memory? fewer data.workers need less"
    if stopped:
        what, why = f"data worker {stopped[0]} was stopped for {PATIENCE_S:.0f} s", "kill -CONT would have woken it"
    return f"{what} ({why}); the same command goes on from the last checkpoint"


def _is_stopped(pid: int) -> bool:
    """Whether ``pid`` is a child of this process and stopped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it is gone, or this system has no /proc
        return False
    state, parent = status.rpartition(")")[2].split()[:2]
    return state == "T" and int(parent) == os.getpid()


def _leave_signals_to_the_parent(worker: int) -> None:
    """A scheduler, or Ctrl-C, signals every process of a job; the parent saves and then ends its workers itself."""
    for number in Stopped.ASKS:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Failure:
    """What went wrong in a worker, sent instead of the batch: an exception would arrive as a page of traceback."""

    message: str


class _Batches(Dataset):
    """An epoch's batches by number."""

    def __init__(self, store: Store, plan: SamplePlan, epoch: int):
        self.store = store
        self.plan = plan
        self.epoch = epoch
        self.order = plan.order(len(store), epoch)
        self.slices = plan.slices(len(store))
        self.sizes = torch.from_numpy(store.sizes)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Batch | _Failure:
        draw = self.plan.draw(self.order[self.slices[index]], self.sizes, self.epoch)
        images = torch.empty(len(draw.sample_ids), self.plan.size, self.plan.size, 3, dtype=torch.uint8)
        pixels = images.numpy()
        for row, (sample_id, box) in enumerate(zip(draw.sample_ids.tolist(), draw.boxes.tolist(), strict=True)):
            try:
                pixels[row] = crop_and_resize(self.store.images(sample_id), box, self.plan.size, self.plan.resample)
            except Exception as error:
                return _Failure(f"{self.store.path} {self.store.split}, sample {sample_id}, box {box}: {error!r}")
        labels = torch.from_numpy(self.store.labels[draw.sample_ids.numpy()])
        return Batch(images, labels, draw.sample_ids, draw.fractions(self.sizes), draw.flip)


def crop_and_resize(image: np.ndarray, box: list[int], size: int, interpolation: str) -> np.ndarray:
    """Pillow's crop, then its resize with antialias, as torchvision's resized_crop does on a PIL image.

    Args:
        image: uint8 [H, W, 3]. box: y, x, height, width in pixels. size: of the result, in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    y, x, height, width = box
    crop = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    return np.asarray(crop.resize((size, size), _RESAMPLE[interpolation]))
