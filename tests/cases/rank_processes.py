"""Real processes for tests of many ranks: forked from one that has imported everything, so that each starts at once.

``Ranks`` starts them, collects what they print, and leaves none behind. What a rank shall suffer is a Fate.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from patience import HANG_S, wait_until

PRELOADED = ["deepspeed", "fastlg.train", "fastlg.ranks.launch", "fastlg.cli", "torch.utils.data"]


class Fate(NamedTuple):
    """At its ``step``-th update (1-based, of this process), in the middle of it, ``rank`` does ``what``: a signal it
    sends itself, "raise" (a UserError) or "full" (no file may grow from here on)."""

    rank: int
    step: int
    what: int | str
    hits_launcher: bool = False  # the signal goes to the process that started the rank


class Process:
    """One forked process that runs ``main``. ``finish()`` gives (exit status or -signal, stdout, stderr); the rest is
    as of subprocess.Popen."""

    def __init__(self, context, main: Callable[[], None], environ: dict[str, str], folder: Path, prints: Path, fate):
        self.prints = prints
        prints.mkdir(parents=True)
        self.process = context.Process(target=_run, args=(main, environ, folder, prints, fate))
        self.process.start()
        self.pid = self.process.pid

    def finish(self) -> tuple[int, str, str]:
        self.process.join(HANG_S)
        assert self.process.exitcode is not None, f"hangs: {self.output()}"
        return self.process.exitcode, *self.output()

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def output(self) -> tuple[str, str]:
        return tuple((self.prints / name).read_text() for name in ("out", "err"))


def forking_context() -> multiprocessing.context.ForkServerContext:
    """Of multiprocessing; one server of a process serves all that it starts, by torch.multiprocessing, too."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as fastlg.cli does before torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Ranks:
    """Starts ``fastlg`` command lines in ``folder``; use as a context manager."""

    def __init__(self, folder: Path, prints: Path):
        self.folder, self.prints = folder, prints
        self.started: list[Process | subprocess.Popen] = []
        self.context = forking_context()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception) -> None:
        for process in self.started:
            for pid in (*children(process.pid), process.pid):
                for target in (-pid, pid):
                    try:
                        os.kill(target, signal.SIGKILL)
                    except OSError:  # it has ended, or leads no group
                        continue
            process.wait(HANG_S) if isinstance(process, subprocess.Popen) else process.process.join(HANG_S)

    def one(self, *arguments: str, fate: Fate | None = None, **environ: str) -> Process:
        """The command ``fastlg ARGUMENTS`` in a lone process, or one whose place ``environ`` says."""
        return self.call(partial(_command_line, arguments), fate=fate, **environ)

    def call(self, main: Callable[[], None], *, fate: Fate | None = None, **environ: str) -> Process:
        environ = {"FASTLG_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1", **environ}
        prints = self.prints / str(len(self.started))
        process = Process(self.context, main, environ, self.folder, prints, fate)
        self.started.append(process)
        return process

    def call_in_all(self, main: Callable[[], None], count: int = 2) -> list[Process]:
        """``main`` in ``count`` ranks, rank 0 first."""
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
        return [self.call(main, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(count)]

    def real(self, *command: str, **environ: str) -> subprocess.Popen:
        """A command of its own interpreter, with pipes."""
        environ = {**os.environ, "FASTLG_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1", **environ}
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process


def children(pid: int) -> list[int]:
    """Process ids below ``pid``, the nearest first."""
    try:
        own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [below for child in own for below in children(child)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def of_rank(rank: int, launcher: subprocess.Popen) -> int:
    """Process id of a rank below its launcher; waits until it is there."""
    found: list[int] = []

    def is_there() -> bool:
        for pid in children(launcher.pid):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if f"RANK={rank}".encode() in environ:
                found.append(pid)
        return bool(found)

    wait_until(is_there)
    return found[0]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def train_in_turn(runs: list[tuple[list[str], int | None]]) -> None:
    """Trains student.yaml with each of the overrides; a number asks to stop after so many updates, by SIGTERM."""
    from fastlg import ranks
    from fastlg.config import load_config
    from fastlg.errors import Stopped
    from fastlg.train import train

    with ranks.joined(cuda=False, timeout_s=HANG_S):
        for overrides, steps in runs:
            with _stopping(steps), contextlib.suppress(*([Stopped] if steps else [])):
                train(load_config("student.yaml", overrides))


@contextlib.contextmanager
def _stopping(steps: int | None):
    from fastlg.run.run import Run

    after_step, done = Run.after_step, []

    def stopping(self, out) -> None:
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, out)

    Run.after_step = stopping
    try:
        yield
    finally:
        Run.after_step = after_step


def _run(main: Callable[[], None], environ: dict[str, str], folder: Path, prints: Path, fate: Fate | None) -> None:
    """The life of a forked process: ``main``, in ``folder``, with ``environ`` on top of this one's."""
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(prints / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(environ)
    os.chdir(folder)
    import torch

    from fastlg.ranks import launch

    torch.set_num_threads(1)
    launch.subprocess = _ForkingSubprocess(folder, prints, fate)
    if fate is not None and os.environ.get("RANK") == str(fate.rank):
        _await(fate)
    main()


def patient_command_line(arguments: tuple[str, ...]) -> None:
    """Gives whoever holds the run's folder as long as it takes to leave."""
    from fastlg.run import lock as run_lock

    run_lock.GRACE_S = HANG_S
    _command_line(arguments)


def counting_command_line(arguments: tuple[str, ...]) -> None:
    """Every rank adds a byte to ``exchanges.RANK`` whenever all ranks have exchanged a word."""
    from fastlg import ranks

    says = ranks.first_says

    def counted(value):
        said = says(value)
        with open(f"exchanges.{ranks.rank()}", "a") as file:
            file.write(".")
        return said

    ranks.first_says = counted
    _command_line(arguments)


def _command_line(arguments: tuple[str, ...]) -> None:
    from fastlg import cli

    sys.argv = ["fastlg", *arguments]
    cli.main()


def _await(fate: Fate) -> None:
    from fastlg.engine.plain import PlainEngine

    guide, steps = PlainEngine.guide, []

    def guide_until(self, views, batch):
        result = guide(self, views, batch)
        steps.append(1)
        if len(steps) == fate.step:
            _meet(fate)
        return result

    PlainEngine.guide = guide_until


def _meet(fate: Fate) -> None:
    from fastlg.errors import UserError

    if fate.what == "raise":
        raise UserError("image 17 is bad; leave it out")
    if fate.what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    else:
        os.kill(os.getppid() if fate.hits_launcher else os.getpid(), fate.what)


class _ForkingSubprocess:
    """What fastlg.ranks.launch takes of ``subprocess``: its ranks are forked, too."""

    def __init__(self, folder: Path, prints: Path, fate: Fate | None):
        self.folder, self.prints, self.fate = folder, prints, fate

    def Popen(self, command: list[str], *, env: dict[str, str], start_new_session: bool) -> _Forked:  # noqa: N802
        assert start_new_session and command[1:3] == ["-m", "fastlg"]
        return _Forked(partial(_command_line, command[3:]), env, self.folder, self.prints, self.fate)


class _Forked:
    """As subprocess.Popen."""

    def __init__(self, *life):
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=life)
        self.process.start()
        self.pid, self.returncode = self.process.pid, None

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int | None:
        self.process.join()
        return self.poll()
