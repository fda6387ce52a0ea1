"""``--gpus N``: starts N ranks of this very command on this machine, and ends them together.

Not torch.distributed.run's API: it answers a rank that failed with SIGTERM to the others, which for a run means save
and leave; and it ends in a table and status 1, whatever the ranks said (2 for a mistake, 143 for a saved run).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

import torch

from fastlg.errors import Stopped, UserError
from fastlg.ranks.say import say

GRACE_S = 10.0  # for the other ranks to say what they have to say and leave by themselves


def check_count(count: int, device: str) -> None:
    """Raises UserError when the machine has fewer GPUs than ``count``; with ``engine.device`` cpu 64 go anywhere."""
    available = torch.cuda.device_count()
    if count < 1:
        raise UserError(f"--gpus is {count}; it is at least 1")
    most = max(64, 4 * (os.cpu_count() or 1))
    if device == "cpu" and count > most:
        raise UserError(f"--gpus is {count}, but this machine has {os.cpu_count()} cores; give at most {most}")
    if device != "cpu" and count > available:
        raise UserError(
            f"--gpus is {count}, but torch sees {available} GPU{'s' if available != 1 else ''}; "
            f"engine.device=cpu starts {count} processes on the CPU"
        )


def launch(count: int, arguments: list[str]) -> int:
    """Runs ``python -m fastlg ARGUMENTS`` in ``count`` ranks until all have left. Returns the exit status.

    The first rank that fails takes the others with it; a signal to this process reaches all of them.
    """
    ranks = Ranks()
    previous = {number: signal.signal(number, ranks.forward) for number in Stopped.heard()}
    try:
        ranks.start(count, arguments)
        return ranks.wait()
    finally:
        ranks.end()
        for number, handler in previous.items():
            signal.signal(number, handler)


class Ranks:
    """The processes that this one started, rank 0 first."""

    def __init__(self):
        self.processes: list[subprocess.Popen] = []
        self.forwarded: int | None = None  # the last signal that went to all of them

    def start(self, count: int, arguments: list[str]) -> None:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        shared["FASTLG_LAUNCHER"] = str(os.getpid())
        if not torch.cuda.is_available():  # N processes with a thread per core each would fight over the cores
            shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        for rank in range(count):
            if self.forwarded is not None:
                return
            environment = {**_without_launchers(os.environ), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "fastlg", *arguments]
            # In a session of its own, so that Ctrl-C reaches it once: from here.
            self.processes.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def forward(self, signum: int, frame) -> None:
        self.forwarded = signum
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)

    def wait(self) -> int:
        """Exit status of the first rank that failed; the others get ``GRACE_S`` to follow."""
        status, deadline = 0, None
        while None in [process.poll() for process in self.processes]:
            for rank, process in enumerate(self.processes):
                if status == 0 and process.returncode:
                    status, deadline = self._status_of(rank), time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.05)
        failed = (self._status_of(rank) for rank, process in enumerate(self.processes) if process.returncode)
        return status or next(failed, 0)

    def _status_of(self, rank: int) -> int:
        """As fastlg itself leaves. A forwarded signal kills a rank that does not train yet."""
        code = self.processes[rank].returncode
        if code >= 0:
            return code
        if -code == self.forwarded:
            return Stopped(self.forwarded).status
        say(f"rank {rank} was ended by {signal.Signals(-code).name}")
        return 1

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its data workers, too
        for process in self.processes:
            process.wait()


def _without_launchers(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what torchrun said to a process above this one: its agent serves no ranks of ours."""
    return {name: value for name, value in environ.items() if not name.startswith("TORCHELASTIC_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
