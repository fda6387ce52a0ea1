"""What a run says while it goes: metrics.jsonl, TensorBoard, and bars on a terminal or plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlg import ranks
from fastlg.durable import write_atomically
from fastlg.errors import printable, writing


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the output left (``| head``); the run goes on and its files hold everything."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console(highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One plain line for a person, in every kind of output; brackets are printed as they are. Rank 0 speaks for all.

    What a terminal would obey is escaped (``printable``), and so is what its encoding cannot hold.
    """
    if ranks.is_first():
        console.print(_encodable(printable(line)), markup=False)


def _encodable(line: str) -> str:
    encoding = console.encoding
    return line.encode(encoding, "backslashreplace").decode(encoding)


class Log:
    """metrics.jsonl and TensorBoard of one run folder.

    A resumed run first drops the rows after the checkpoint's step, so that no step is ever logged twice.
    """

    def __init__(self, folder: Path, *, after_step: int, tensorboard: bool):
        path = folder / "metrics.jsonl"
        kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] <= after_step]
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(kept))
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self.writer = _tensorboard(folder / "tensorboard", after_step) if tensorboard else None

    def write(self, kind: str, step: int, **values) -> None:
        """One row: ``kind`` is train or eval; numbers go to TensorBoard as ``kind/name``."""
        with writing(self.file.name):
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said already
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics.jsonl; a line cut short by a kill, or otherwise damaged, is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _tensorboard(folder: Path, after_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("TensorBoard is not installed; metrics.jsonl is written all the same (pip install 'fastlg[plots]')")
        return None
    return SummaryWriter(folder, purge_step=after_step + 1)


class Bar:
    """Steps of one epoch: a rich bar on a terminal; elsewhere a plain line whenever ``show`` is called."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title = title
        self.progress = None
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
        return self

    def __exit__(self, *exception) -> None:
        if self.progress is not None:
            self.progress.stop()

    def advance(self) -> None:
        if self.progress is not None:
            self.progress.advance(self.task)

    def show(self, note: str) -> None:
        if self.progress is not None:
            self.progress.update(self.task, note=note)
        else:
            say(f"{self.title}  {note}")
