"""The runs that a command starts, forked from a process that has imported everything: for tests of what comes of them.

tests/fastlg/commands/test_many_runs.py also starts them as a user's command does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from rank_processes import forking_context

STREAMS = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


class _Popen:
    """Forks what a Pool starts, its output in a pipe."""

    def __init__(self, command: list[str], *, env: dict[str, str], encoding: str, errors: str, **how):
        assert command[:3] == [sys.executable, "-m", "fastlg"]
        assert how == {**STREAMS, "start_new_session": True}
        context = forking_context()
        reader, writer = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(command[3:], env, os.getcwd(), writer))
        self.process.start()
        writer.close()
        self.stdout = open(os.dup(reader.fileno()), encoding=encoding, errors=errors)  # noqa: SIM115
        reader.close()
        self.pid, self.returncode = self.process.pid, None

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def wait(self) -> int | None:
        self.process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class ForkingSubprocess:
    """What fastlg.commands.many.pool takes of ``subprocess``."""

    DEVNULL, PIPE, STDOUT, Popen = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT, _Popen


def _run(words: list[str], environ: dict[str, str], folder: str, writer) -> None:
    os.setsid()
    for number in (1, 2):
        os.dup2(writer.fileno(), number)
    writer.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    del os.environ["FASTLG_LAUNCHER"]  # a run stops when that is not its parent, which here is the server of forks
    os.chdir(folder)
    import torch

    from fastlg import cli

    torch.set_num_threads(1)
    sys.argv = ["fastlg", *words]
    cli.main()
