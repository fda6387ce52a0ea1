"""How long a test waits for what surely comes: a guard against a hang, never a measurement.

A busy machine must not decide a test. Whoever waits for something waits for the thing itself, by ``wait_until``, and
gives up only where nothing can come any more; pytest's own limit (pyproject.toml) is longer still.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_S = 900


def wait_until(is_so: Callable[[], bool], while_alive: Callable[[], bool] | None = None) -> None:
    """Returns once it is so, or once nobody is alive any more who could bring it about."""
    deadline = time.monotonic() + HANG_S
    while not is_so() and (while_alive is None or while_alive()):
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.005)
