"""``--gpus N``: starts N ranks of this very command on this machine, and ends them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import torch

from fastlg.errors import UserError
from fastlg.report import say

GRACE_S = 20.0  # for the other ranks to say what they have to say and leave by themselves
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def check_count(count: int, device: str) -> None:
    """Raises UserError when the machine has fewer GPUs than ``count``; with ``engine.device`` cpu any number goes."""
    available = torch.cuda.device_count()
    if count < 1:
        raise UserError(f"--gpus is {count}; it is at least 1")
    if device != "cpu" and count > available:
        raise UserError(
            f"--gpus is {count}, but torch sees {available} GPU{'s' if available != 1 else ''}; "
            f"engine.device=cpu starts {count} processes on the CPU"
        )


def launch(count: int, arguments: list[str]) -> int:
    """Runs ``python -m fastlg ARGUMENTS`` in ``count`` ranks until all have left. Returns the exit status.

    The first rank that fails takes the others with it; a signal to this process reaches all of them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared["FASTLG_LAUNCHER"] = str(os.getpid())
    if not torch.cuda.is_available():  # N processes with a thread per core each would fight over the cores
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    ranks = []
    for rank in range(count):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "fastlg", *arguments]
        ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def forward(signum: int, frame) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return _wait(ranks)
    finally:
        _end(ranks)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Exit status of the first rank that failed; the others get ``GRACE_S`` to follow."""
    status, deadline = 0, None
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if status == 0 and process.returncode:
                status, deadline = process.returncode, time.monotonic() + GRACE_S
                if status < 0:
                    say(f"rank {rank} was ended by {signal.Signals(-status).name}")
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    status = status or next((process.returncode for process in ranks if process.returncode), 0)
    return 1 if status < 0 else status


def _end(ranks: list[subprocess.Popen]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.kill()
    for process in ranks:
        process.wait()
