"""Which of a run's processes this one is, read from the environment; needs no torch, so that errors are instant."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from fastlg.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # and the deepspeed launcher, and --gpus
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
INTERACTIVE_STEP = "4294967290"  # SLURM_INTERACTIVE_STEP: the shell that salloc opens on a node
TERMINAL = ("SLURM_PTY_PORT", "SLURM_PTY_WIN_COL")  # of srun --pty, and of what is started from its shell


class Place(NamedTuple):
    """One process among those of a run. ``address`` is host:port of the rendezvous, "" for a lone process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process's place, as torchrun, the deepspeed launcher and ``--gpus`` set it, or srun does.

    Without a whole place it is alone, whatever single variables say (``ignored``). Raises UserError for a place that
    cannot be.
    """
    names = _names(environ)
    if not names:
        return Place()
    numbers = _numbers(names, environ)
    if names == TORCHRUN:
        host, port = environ.get("MASTER_ADDR") or "127.0.0.1", environ.get("MASTER_PORT", "29500")
    else:
        host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        job = _number("SLURM_JOB_ID", environ.get("SLURM_JOB_ID", "0"))
        port = environ.get("MASTER_PORT") or str(20000 + job % 20000)
    if not 1 <= _number("MASTER_PORT", port) <= 65535:
        raise UserError(f"MASTER_PORT is {port[:20]}; a port is 1 to 65535, the same on all ranks")
    return Place(*numbers, f"{host}:{int(port)}")


def ignored(environ: Mapping[str, str] = os.environ) -> str:
    """What the environment says of ranks though this process is alone, for a person; "" when there is nothing."""
    if _names(environ):
        return ""
    if _is_interactive(environ) and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        tasks = environ["SLURM_STEP_NUM_TASKS"]
        return f"SLURM_STEP_NUM_TASKS={tasks}: an interactive shell is one process, --gpus N starts N ranks"
    for name, partner, alone in (
        ("RANK", "WORLD_SIZE", "0"),
        ("WORLD_SIZE", "RANK", "1"),
        ("SLURM_PROCID", "SLURM_STEP_ID", "0"),
    ):
        if environ.get(name, alone) not in (alone, "") and partner not in environ:
            return f"{name}={environ[name]}: without {partner} it names no rank of a run, so this process is alone"
    return ""


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: ``gpu[003-007,9],cpu1`` -> ``gpu003``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def is_first_by_environment(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks: rank 0, a lone process, or one whose own place makes no sense."""
    try:
        names = _names(environ)
        return not names or _numbers(names, environ)[0] == 0
    except UserError:
        return True


def expect_no_tasks(environ: Mapping[str, str] = os.environ) -> None:
    """``--gpus`` starts ranks from one process. Raises UserError where srun started several already."""
    names = _names(environ)
    if names == SRUN and _numbers(names, environ)[1] > 1:
        raise UserError(
            f"--gpus starts ranks itself, but SLURM_STEP_NUM_TASKS={environ[SRUN[1]]}: srun has started as many; leave "
            "--gpus out (one rank per task), or start it from one task (srun --ntasks=1)"
        )


def drop_shell(environ: MutableMapping[str, str] = os.environ) -> None:
    """For ``--gpus``: takes away the place that srun gave to the shell in which the command was typed."""
    is_shell = any(name in environ for name in TERMINAL) or environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP
    if is_shell and environ.get("SLURM_PROCID") == "0":
        for name in SRUN:
            environ.pop(name, None)


def _names(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that hold rank, world size and local rank; () for a lone process."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return TORCHRUN
    # Without a step it is the batch script's own process.
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ and not _is_interactive(environ):
        return SRUN
    return ()


def _is_interactive(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a shell that SLURM opened, whose other tasks run no fastlg.

    A job that is submitted from such a shell inherits its variables, but not its terminal.
    """
    if environ.get("SLURM_PROCID", "0") != "0":
        return False
    if environ.get("SLURM_STEP_ID") == INTERACTIVE_STEP:
        return True
    return any(name in environ for name in TERMINAL) and any(map(_is_terminal, range(3)))


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _numbers(names: tuple[str, ...], environ: Mapping[str, str]) -> list[int]:
    """Rank, world size and local rank. Raises UserError for those that cannot be."""
    alone = ("0", "1", "0")
    rank, world_size, local_rank = (
        _number(name, environ.get(name, value)) for name, value in zip(names, alone, strict=True)
    )
    if not 0 <= rank < world_size:
        raise UserError(f"{names[0]}={rank} does not fit {names[1]}={world_size}; ranks count from 0")
    if local_rank < 0:
        raise UserError(f"{names[2]}={local_rank} is negative; local ranks count from 0")
    return [rank, world_size, local_rank]


def _number(name: str, value: str) -> int:
    try:
        if len(value) > 18:
            raise ValueError
        return int(value)
    except ValueError:
        raise UserError(f"{name} is '{value[:40]}', which is no number; unset it or start the run anew") from None
