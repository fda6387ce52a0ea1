"""Which of a run's processes this one is, read from the environment; needs no torch, so that errors are instant."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from fastlg.errors import UserError


class Place(NamedTuple):
    """One process among those of a run. ``address`` is host:port of the rendezvous, "" for a lone process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process's place, as torchrun, the deepspeed launcher and ``--gpus`` set it, or srun does.

    Raises UserError for a place that cannot be.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        numbers = [_number(name, environ.get(name, "0")) for name in names]
        host, port = environ.get("MASTER_ADDR", "127.0.0.1"), environ.get("MASTER_PORT", "29500")
    elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:  # a process of srun, not the batch script's own
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        numbers = [_number(name, environ.get(name, "1" if name.endswith("TASKS") else "0")) for name in names]
        host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        job = _number("SLURM_JOB_ID", environ.get("SLURM_JOB_ID", "0"))
        port = environ.get("MASTER_PORT") or str(20000 + job % 20000)
    else:
        return Place()
    own = Place(*numbers, f"{host}:{port}")
    _number("MASTER_PORT", port)
    if not 0 <= own.rank < own.world_size:
        raise UserError(f"{names[0]}={own.rank} does not fit {names[1]}={own.world_size}; ranks count from 0")
    return own


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: ``gpu[003-007,9],cpu1`` -> ``gpu003``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def is_first_by_environment() -> bool:
    """Whether this is rank 0 or a lone process, as far as the environment tells."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name} is '{value}', which is no number; unset it or start the run anew") from None
