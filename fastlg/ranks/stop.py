"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP become a request that the loop honours between two steps."""

from __future__ import annotations

import os
import signal
import threading

from fastlg.errors import Stopped
from fastlg.ranks.group import Agreement


class StopRequest:
    """``with StopRequest() as stop``: ``stop.poll()`` tells between two steps whether a signal came to any rank.

    The same signal acts at once when it comes again. A rank whose launcher died asks to stop as if SIGTERM had come.
    """

    def __init__(self):
        self.signum: int | None = None
        self.agreement = Agreement()
        launcher = os.environ.get("FASTLG_LAUNCHER", "")
        self.launcher = int(launcher) if launcher.isdecimal() else 0

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()  # no other one may handle signals
        self.previous = {number: signal.signal(number, self._on_signal) for number in Stopped.heard() if is_main}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def poll(self) -> bool:
        """Whether to stop now. All ranks ask after every step and get the same answer, at most a step late."""
        if self.launcher and os.getppid() != self.launcher:
            self.signum = signal.SIGTERM
        return self._takes(self.agreement.ask(self.signum or 0))

    def raise_if_set(self) -> None:
        """Raises Stopped when a signal came to any rank; all ranks call it."""
        if self._takes(self.agreement.settle(self.signum or 0)):
            raise Stopped(self.signum)

    def _takes(self, agreed: int) -> bool:
        self.signum = agreed or self.signum
        return agreed != 0

    def _on_signal(self, signum: int, frame) -> None:
        self.signum = signum
        # Its own handler alone: another signal that has come meanwhile would find none, which Python reports.
        signal.signal(signum, self.previous[signum])
