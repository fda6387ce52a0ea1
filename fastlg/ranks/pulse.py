"""A sign of life: off a terminal a line at least every 10 s, whatever a command is at. Needs no torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from fastlg.ranks.say import Spoken, say, speaks

SILENCE_S = 10.0  # off a terminal, the longest that a command says nothing


class Pulse:
    """Off a terminal, says what ``about()`` returns whenever nothing else was said for SILENCE_S; a context manager.

    They nest: the innermost one speaks, from the one thread that the outermost started and to the stream that it
    chose. Nothing is said of "".
    """

    _inside: list[Pulse] = []

    def __init__(self, about: Callable[[], str], *, aside: bool = False):
        """``aside``: on stderr, beside a stdout that is read by a program."""
        self.about, self.aside = about, aside
        self.is_over = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Pulse:
        self._inside.append(self)
        stream = sys.stderr if self.aside else sys.stdout
        if len(self._inside) == 1 and speaks() and not stream.isatty():
            self.thread = threading.Thread(target=self._run, name="fastlg-pulse", daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._inside.remove(self)
        self.is_over.set()
        if self.thread is not None:
            self.thread.join()

    def _run(self) -> None:
        Spoken.at = max(Spoken.at, time.monotonic())
        while not self.is_over.wait(max(0.0, Spoken.at + SILENCE_S - time.monotonic())):
            inside = self._inside[-1:]
            if inside and time.monotonic() - Spoken.at >= SILENCE_S:
                if line := inside[0].about():
                    say(line, aside=self.aside)
                else:
                    Spoken.at = time.monotonic()
