"""What a run says while it goes: metrics.jsonl, TensorBoard, and bars on a terminal or plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlg import ranks
from fastlg.batch import StepOutput
from fastlg.errors import writing
from fastlg.files.atomic import write_whole
from fastlg.ranks.pulse import Pulse
from fastlg.ranks.say import console, dispensable, say
from fastlg.run.metrics import Accuracy, Means, Meter

INSTEAD = "metrics.jsonl holds the same numbers"


class Log:
    """metrics.jsonl and TensorBoard of one run folder.

    A resumed run first drops the rows after the checkpoint's step, so that no step is ever logged twice.
    """

    def __init__(self, folder: Path, *, after_step: int, tensorboard: bool):
        path = folder / "metrics.jsonl"
        kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] <= after_step]
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(kept))
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self.writer, self.unhooked = None, threading.excepthook
        if tensorboard:
            threading.excepthook = _but_tensorboards(self.unhooked)
            with dispensable("TensorBoard", INSTEAD):
                self.writer = _tensorboard(folder / "tensorboard", after_step)

    def write(self, kind: str, step: int, **values) -> None:
        """One row: ``kind`` is train or eval; numbers go to TensorBoard as ``kind/name``."""
        with writing(self.file.name):
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()
        if self.writer is None:
            return
        writer, self.writer = self.writer, None  # it fails once, and then no more is asked of it
        with dispensable("TensorBoard", INSTEAD):
            for name, value in values.items():
                writer.add_scalar(f"{kind}/{name}", value, step)
            self.writer = writer

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said already
            self.file.close()
        if self.writer is not None:
            with dispensable("TensorBoard", INSTEAD):
                self.writer.close()
        threading.excepthook = self.unhooked


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics.jsonl; a line cut short by a kill, or otherwise damaged, is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and type(row.get("step")) is int]


def _but_tensorboards(hook: Callable) -> Callable:
    """What its writing thread raises comes back with the next call; a traceback of its own is one too many."""

    def own(failed) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard"):
            hook(failed)

    return own


def _tensorboard(folder: Path, after_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("TensorBoard is not installed; metrics.jsonl is written all the same (pip install 'fastlg[plots]')")
        return None
    return SummaryWriter(folder, purge_step=after_step + 1)


class Bar:
    """Steps of one epoch: a rich bar on a terminal; elsewhere a plain line whenever ``show`` is called, and a sign of
    life in long silences."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title, self.total, self.done = title, total, done
        self.progress = None
        self.pulse = Pulse(lambda: f"{self.title}  step {self.done} of {self.total}")
        if sys.stdout.isatty() and ranks.is_first():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.progress = Progress(*columns, console=console, transient=True)
            self.task = self.progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        if self.progress is not None:
            self.progress.start()
        self.pulse.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.pulse.__exit__()
        if self.progress is not None:
            self.progress.stop()

    def advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress.advance(self.task)

    def show(self, note: str) -> None:
        if self.progress is not None:
            self.progress.update(self.task, note=note)
        else:
            say(f"{self.title}  {note}")


class Record:
    """What a run measures and tells while it trains: sums on the device, the rate, metrics.jsonl, the bar.

    All ranks call every method; rank 0 alone writes and speaks.
    """

    def __init__(self, device: torch.device, measured_by: str = ""):
        """``measured_by``: what says the classes that the tests count, where that is not the network's own head."""
        self.by = f" by {measured_by}" if measured_by else ""
        self.meter = Meter(device)
        self.log: Log | None = None
        self.clock, self.seen = 0.0, 0  # of the images since the last report
        self.values: dict[str, float] = {}  # of the last report
        self.epoch_values: dict[str, float] = {}  # means over the epoch up to it

    def open(self, folder: Path, *, after_step: int, tensorboard: bool) -> None:
        """Begins to write in ``folder``; see Log."""
        if ranks.is_first():
            self.log = Log(folder, after_step=after_step, tensorboard=tensorboard)

    @contextlib.contextmanager
    def epoch(self, epoch: int, epochs: int, steps: int, done: int) -> Iterator[None]:
        """Around one epoch (0-based) of ``steps``, of which ``done`` are done: shows the bar, starts the clock."""
        self.clock, self.seen = time.perf_counter(), 0
        with Bar(f"epoch {epoch + 1}/{epochs}", steps, done) as self.bar:
            yield

    def count(self, out: StepOutput, step: int, images: int) -> None:
        """One update on ``images`` over all ranks. Never syncs."""
        self.meter.update(out, step)
        self.seen += images
        self.bar.advance()

    def report(self, epoch: int, step: int, *, lr: float, told: tuple[str, ...] = ()) -> tuple[float, int]:
        """Tells what came since the last report; returns the seconds and images of it. One sync.

        ``told``: the parts of the loss that are told beside it (see Parts.told_losses); none where it has one alone.
        """
        since, so_far = self.meter.read()
        now = time.perf_counter()
        seconds, images = now - self.clock, self.seen
        self.clock, self.seen = now, 0
        values = self.values = {**_told(since, told), "lr": lr, "images_per_s": images / seconds}
        self.epoch_values = {**_told(so_far, told), "lr": lr}
        if self.log is not None:
            self.log.write("train", step, epoch=epoch, **values)
        parts = ", ".join(f"{name} {getattr(since, f'loss_{name}'):.3f}" for name in told)
        parts = f" ({parts})" if parts else ""
        self.bar.show(f"loss {since.loss:.3f}{parts}  top-1 {since.top1:.1f} %  {images / seconds:,.0f} images/s")
        return seconds, images

    def tested(
        self,
        epoch: int,
        epochs: int,
        step: int,
        found: Accuracy,
        best: float,
        split: str = "test",
        latest: float | None = None,
    ) -> None:
        """The test split after ``epoch`` epochs, or the ``validation`` one; ``latest``: top-1 of the weights
        themselves, where ``found`` is of their running mean."""
        beside = {} if latest is None else {"top1_latest_weights": latest}
        if self.log is not None:
            self.log.write("eval", step, epoch=epoch, **found._asdict(), **beside)
        scores = f"top-1{self.by} {found.top1:.2f} %  top-5 {found.top5:.2f} %  best {best:.2f} %"
        line = f"epoch {epoch}/{epochs}  {split} {scores}"
        say(line if latest is None else f"{line}  (of the weights, not their mean: top-1 {latest:.2f} %)")

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _told(means: Means, told: tuple[str, ...]) -> dict[str, float]:
    """Losses and top-1 of a row; the losses that most runs do not have only where they are ``told``."""
    values = means._asdict()
    names = ("loss", "loss_cls", "loss_guidance", *(["loss_drloc"] if "drloc" in told else []), "top1")
    return {name: values[name] for name in names}
