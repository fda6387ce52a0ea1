"""What a run says while it goes: metrics.jsonl, TensorBoard, and bars on a terminal or plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One plain line for a person, in every kind of output; brackets are printed as they are."""
    console.print(line, markup=False)


class Log:
    """metrics.jsonl and TensorBoard of one run folder.

    A resumed run first drops the rows after the checkpoint's step, so that no step is ever logged twice.
    """

    def __init__(self, folder: Path, *, after_step: int, tensorboard: bool):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= after_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        self.writer = _tensorboard(folder / "tensorboard", after_step) if tensorboard else None

    def write(self, kind: str, step: int, **values) -> None:
        """One row: ``kind`` is train or eval; numbers go to TensorBoard as ``kind/name``."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        if self.writer is not None:
            self.writer.close()


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics.jsonl; a line cut short by a kill is left out."""
    return [json.loads(line) for line in _whole_lines(folder / "metrics.jsonl")]


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


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
        if sys.stdout.isatty():
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
