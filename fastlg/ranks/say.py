"""What is said to a person, by rank 0 alone, and never in a way that harms a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console

from fastlg.errors import first_line, printable
from fastlg.ranks.place import is_first_by_environment


def _to_nowhere(*streams: TextIO) -> None:
    """Whoever read them left (``| head``, a closed terminal); the run goes on and its files hold everything."""
    with open(os.devnull, "wb") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream.fileno())


def _is_gone(stream: TextIO) -> bool:
    """Whether it leads to a terminal that was closed: to ``isatty`` that is no terminal any more."""
    try:
        termios.tcgetattr(stream.fileno())
    except termios.error as error:
        return error.args[0] == errno.EIO
    return False


class _Lasting:
    """A stream that may outlive the terminal it leads to, whose writers get EIO from then on."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._tried(self.stream.write, text)

    def flush(self) -> None:
        self._tried(self.stream.flush)

    def _tried(self, act: Callable, *arguments: str) -> Any:
        try:
            return act(*arguments)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            _to_nowhere(*filter(_is_gone, (sys.stdout, sys.stderr)))


class _Console(Console):
    def __init__(self, **options):
        super().__init__(highlight=False, soft_wrap=True, emoji=False, **options)  # ":b:" in a path is no emoji

    def on_broken_pipe(self) -> None:
        _to_nowhere(sys.stderr if self.stderr else sys.stdout)

    @property
    def file(self) -> TextIO:
        return _Lasting(Console.file.fget(self))

    @file.setter
    def file(self, stream: TextIO) -> None:
        Console.file.fset(self, stream)


console = _Console()
beside = _Console(stderr=True)


def say(line: str, *, aside: bool = False) -> None:
    """One plain line for a person, in every kind of output; brackets are printed as they are. Rank 0 speaks for all.

    What a terminal would obey is escaped (``printable``), and so is what its encoding cannot hold. ``aside``: on
    stderr, where stdout is a command's result.
    """
    if speaks():
        own = beside if aside else console
        with _speaking:
            own.print(_encodable(printable(line), own.encoding), markup=False)
            Spoken.at = time.monotonic()


def speaks() -> bool:
    """Whether this process is the one of its run that says anything."""
    group = sys.modules.get("fastlg.ranks.group")  # not imported yet: no ranks have met, and there is no need of torch
    return is_first_by_environment() if group is None else getattr(group, "is_first", is_first_by_environment)()


_speaking = threading.RLock()  # held over a fork, so that no data worker is born into a half-written line
os.register_at_fork(before=_speaking.acquire, after_in_parent=_speaking.release, after_in_child=_speaking.release)


class Spoken:
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


def _encodable(line: str, encoding: str) -> str:
    return line.encode(encoding, "backslashreplace").decode(encoding)
