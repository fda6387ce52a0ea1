"""SIGTERM, SIGINT and SIGUSR1 become a request that the loop honours between two steps."""

from __future__ import annotations

import signal


class Stopped(Exception):
    """The run saved and leaves because of a signal. ``status`` is the shell's: 128 + signal number."""

    def __init__(self, signum: int):
        self.status = 128 + signum
        super().__init__(signal.Signals(signum).name)


class StopRequest:
    """``with StopRequest() as stop``: ``stop.signum`` is set once a signal came; a second one acts at once.

    SIGUSR1 is what SLURM sends before it preempts a job; it leaves with SIGTERM's status, 143.
    """

    HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.signum: int | None = None

    def __enter__(self) -> StopRequest:
        self.previous = {number: signal.signal(number, self._on_signal) for number in self.HANDLED}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _on_signal(self, signum: int, frame) -> None:
        self.signum = signal.SIGTERM if signum == signal.SIGUSR1 else signum
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def raise_if_set(self) -> None:
        if self.signum is not None:
            raise Stopped(self.signum)
