"""What a run says while it goes: metrics.jsonl, TensorBoard, and bars on a terminal or plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlg import ranks
from fastlg.errors import first_line, printable, writing
from fastlg.files import write_whole

SILENCE_S = 10.0  # off a terminal, the longest that a training run says nothing


class _Console(Console):
    def __init__(self, **options):
        super().__init__(highlight=False, soft_wrap=True, emoji=False, **options)  # ":b:" in a path is no emoji

    def on_broken_pipe(self) -> None:
        """Whoever read the output left (``| head``); the run goes on and its files hold everything."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = _Console()


def say(line: str) -> None:
    """One plain line for a person, in every kind of output; brackets are printed as they are. Rank 0 speaks for all.

    What a terminal would obey is escaped (``printable``), and so is what its encoding cannot hold.
    """
    if ranks.is_first():
        with _speaking:
            console.print(_encodable(printable(line)), markup=False)
            _Spoken.at = time.monotonic()


_speaking = threading.RLock()  # held over a fork, so that no data worker is born into a half-written line
os.register_at_fork(before=_speaking.acquire, after_in_parent=_speaking.release, after_in_child=_speaking.release)


class _Spoken:
    at = 0.0  # when the last line was said, on the monotonic clock


@contextlib.contextmanager
def dispensable(what: str, otherwise: str = "") -> Iterator[None]:
    """Around a picture, log or report that a run can do without: whatever it raises is one warning line.

    ``what`` failed; ``otherwise`` says what is there instead, or how to mend it.
    """
    try:
        yield
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        say(f"warning  {what} failed: {reason} ({type(error).__name__}){otherwise and '; ' + otherwise}")


def _encodable(line: str) -> str:
    encoding = console.encoding
    return line.encode(encoding, "backslashreplace").decode(encoding)


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
        self.writer = None
        if tensorboard:
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


def read_metrics(folder: Path) -> list[dict]:
    """All rows of a run's metrics.jsonl; a line cut short by a kill, or otherwise damaged, is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and type(row.get("step")) is int]


def _tensorboard(folder: Path, after_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("TensorBoard is not installed; metrics.jsonl is written all the same (pip install 'fastlg[plots]')")
        return None
    threading.excepthook = _without_tensorboard
    return SummaryWriter(folder, purge_step=after_step + 1)


def _without_tensorboard(args: threading.ExceptHookArgs, before=threading.excepthook) -> None:
    """What its writer's thread raises is raised again where it is asked to write, and said there in one line."""
    if not type(args.thread).__module__.startswith("tensorboard"):
        before(args)


class Pulse(threading.Thread):
    """Off a terminal, says what ``about()`` returns whenever nothing else was said for SILENCE_S; a context manager."""

    def __init__(self, about: Callable[[], str]):
        super().__init__(name="fastlg-pulse", daemon=True)
        self.about = about
        self.is_over = threading.Event()
        self.is_needed = ranks.is_first() and not sys.stdout.isatty()

    def __enter__(self) -> Pulse:
        if self.is_needed:
            self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.is_over.set()
        if self.is_needed:
            self.join()

    def run(self) -> None:
        while not self.is_over.wait(max(0.0, _Spoken.at + SILENCE_S - time.monotonic())):
            if time.monotonic() - _Spoken.at >= SILENCE_S:
                say(self.about())


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
