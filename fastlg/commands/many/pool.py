"""Runs as processes of their own, several at once: one that fails takes nothing with it, and leaves its reason."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastlg.commands.many.rows import Single
from fastlg.errors import RunError, Stopped, UserError, brief, printable
from fastlg.ranks.say import say
from fastlg.run.folder import told_score
from fastlg.run.report import Pulse

OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")
POLL_S = 0.05


def slots_for(jobs: int, device: str) -> list[dict[str, str]]:
    """What the environment of each of ``jobs`` runs at once gets: a GPU, or a share of the cores. Raises UserError."""
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it is at least 1")
    if jobs == 1:
        return [{}]
    cores = os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))}
    if device == "cpu" or not torch.cuda.is_available():
        if jobs > (most := max(8, 2 * cores)):
            raise UserError(f"--jobs is {jobs}, but this machine has {cores} cores; give at most {most}")
        return [share] * jobs
    names = gpus()
    if jobs > len(names):
        seen = f"torch sees {len(names)} GPU{'s' * (len(names) != 1)}"
        raise UserError(f"--jobs is {jobs}, but {seen}, one per run; give fewer{_of_parts(names)}")
    return [{"CUDA_VISIBLE_DEVICES": name, **share} for name in names[:jobs]]


def gpus() -> list[str]:
    """A name of each GPU that may be seen, as CUDA_VISIBLE_DEVICES takes it.

    A process sees one part of a GPU that is cut into several (MIG), however many are named: all that are named count.
    """
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if len(given) > 1 and all(name.startswith("MIG-") for name in given if name):
        return list(dict.fromkeys(name for name in given if name))
    count = torch.cuda.device_count()  # CUDA stops at the first name that it does not know
    return given[:count] if any(given) else [str(index) for index in range(count)]


def _of_parts(names: Sequence[str]) -> str:
    return ", or name all parts of the GPU in CUDA_VISIBLE_DEVICES" if names[0].startswith("MIG-") else ""


class _Going(NamedTuple):
    process: subprocess.Popen
    single: Single
    slot: dict[str, str]
    listener: threading.Thread
    last: list[str]  # its last lines


class Pool:
    """``run`` starts each run as soon as a slot is free, and returns when all have ended.

    logs: folder for what each run says. A run alone is heard here, too.
    """

    def __init__(self, slots: Sequence[dict[str, str]], logs: Path):
        self.free, self.logs = list(slots), logs
        self.is_heard = len(slots) == 1
        self.going: list[_Going] = []
        self.signum: int | None = None

    def run(self, singles: Sequence[Single], on_end: Callable[[], None]) -> None:
        """``on_end`` is called after each. Raises Stopped when a signal came: the runs have saved and left."""
        waiting = deque(singles)
        previous = {number: signal.signal(number, self._on_signal) for number in Stopped.heard()}
        try:
            with Pulse(lambda: f"at work  {len(self.going)} running, {len(waiting)} waiting"):
                while self.going or (waiting and self.signum is None):
                    while waiting and self.free and self.signum is None:
                        self._begin(waiting.popleft(), on_end)
                    self._collect(on_end)
                    time.sleep(POLL_S if self.going else 0)
        finally:
            for own in self.going:
                os.killpg(own.process.pid, signal.SIGKILL)  # only when this process fails itself
                own.process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signum is not None:
            raise Stopped(self.signum)

    def _begin(self, single: Single, on_end: Callable[[], None]) -> None:
        where = f"{single.label}, seed {single.seed}"
        try:
            single.settle()
        except (UserError, RunError, OSError) as error:
            single.state, single.why = "failed", printable(error)
        if single.state == "waiting":
            say(f"run      {where}: {single.config.run_dir}")
            self._start(single)
            return
        say(f"{single.state:8} {where}: {single.why or single.config.run_dir}")
        on_end()

    def _start(self, single: Single) -> None:
        slot, log = self.free.pop(), self.logs / f"{single.config.run.name.replace('/', '_')}.log"
        environment = {**_alone(os.environ), **slot, "FASTLG_LAUNCHER": str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        self.logs.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "fastlg", *single.command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that Ctrl-C reaches it once: from here
        )
        last: list[str] = []
        listener = threading.Thread(target=self._listen, args=(process, log, last), daemon=True)
        listener.start()
        single.state = "running"
        self.going.append(_Going(process, single, slot, listener, last))
        if self.signum is not None:  # it came while the process was made
            process.send_signal(self.signum)

    def _listen(self, process: subprocess.Popen, log: Path, last: list[str]) -> None:
        with open(log, "a", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if text := line.strip():
                    last[:] = [*last[-20:], text]
                if self.is_heard:
                    say(line.rstrip())

    def _collect(self, on_end: Callable[[], None]) -> None:
        for own in [own for own in self.going if own.process.poll() is not None]:
            own.listener.join()
            self.going.remove(own)
            self.free.append(own.slot)
            self._judge(own)
            on_end()

    def _judge(self, own: _Going) -> None:
        single, status = own.single, own.process.returncode
        if status == 0:
            try:
                single.take()
            except UserError as error:
                single.why = str(error)
        if single.state == "running":
            of_signals = [Stopped(number).status for number in Stopped.ASKS]
            is_stopped = status in of_signals or (self.signum is not None and status < 0)
            single.state = "stopped" if is_stopped else "failed"
            single.why = single.why or _reason(own.last, status)
        result = single.why or told_score(single.summary)
        say(f"{single.state:8} {single.label}, seed {single.seed}: {result}")

    def _on_signal(self, signum: int, frame) -> None:
        self.signum = signum
        for own in self.going:
            if own.process.poll() is None:
                own.process.send_signal(signum)


def _alone(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in OF_RANKS and "TORCHELASTIC" not in name}


def _reason(last: Sequence[str], status: int) -> str:
    """Why a run ended as it did, from its last lines."""
    said = [line.removeprefix("fastlg: ") for line in last if line.startswith("fastlg: ")]
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    if said:
        return said[-1]
    raised = [line for line in last if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return brief(printable((raised or list(last) or ["it said nothing"])[-1]), 300)
