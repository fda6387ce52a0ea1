"""The processes that share a run: how they meet, agree, and notice that one of them is gone.

Whoever starts them (fastlg's ``--gpus``, torchrun, the deepspeed launcher, srun) leaves each process its place in the
environment. A lone process needs none of this: every function then answers at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fastlg.errors import RunError, Silenced, UserError, exit_status, first_line
from fastlg.place import Place, is_first_by_environment, place

PATIENCE_S = 5.0  # so long do the living wait for one another's sign of life, once one of them is gone


def rank() -> int:
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    return dist.get_world_size() if _is_joined() else 1


def is_first() -> bool:
    """Whether this process speaks and writes for all. True for a lone process, and before the ranks met for rank 0."""
    return rank() == 0 if _is_joined() else is_first_by_environment()


@contextmanager
def joined(*, cuda: bool, timeout_s: float) -> Iterator[None]:
    """Inside, all processes of the run are one group: NCCL between GPUs (``cuda``), gloo between CPUs.

    Does nothing in a lone process or inside another ``joined``. ``timeout_s`` bounds the rendezvous and every
    collective. Raises UserError for more processes than GPUs, RunError for a rendezvous that fails, and RunError that
    names the ranks which no longer answer when a collective fails.
    """
    own = place()
    if own.world_size == 1 or _is_joined():
        yield
        return
    if cuda:
        _take_gpu(own)
    group = _Group(own, cuda, timeout_s)
    try:
        yield
    except Exception as error:
        if group.is_told_elsewhere(error):
            group.leave()
            raise Silenced(exit_status(error)) from None
        if is_broken_contact(error):
            line = group.who_is_gone(error)
            group.leave()
            raise RunError(line) from None
        group.leave()
        raise
    _Group.current = None
    dist.destroy_process_group()


class _Group:
    """The store beside the process group, through which ranks tell each other why they leave."""

    current: _Group | None = None

    def __init__(self, own: Place, cuda: bool, timeout_s: float):
        self.own = own
        self.store: dist.Store | None = None
        host, _, port = own.address.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent serves it already
        try:
            self.serves = own.rank == 0 and not has_store
            store = dist.TCPStore(host, int(port), own.world_size, self.serves, timeout=timeout)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self.store = dist.PrefixStore(f"fastlg/{attempt}", store)
            backend = "nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, store=self.store, rank=own.rank, world_size=own.world_size, timeout=timeout
            )
            # Small host-side exchanges (stop requests, signs of life) never wait for the device.
            self.control = dist.new_group(backend="gloo", timeout=timeout)
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise RunError(
                f"rank {own.rank} of {own.world_size} met nobody at {own.address} within {timeout_s:.0f} s "
                f"({first_line(error)}); check MASTER_ADDR, MASTER_PORT and that all ranks were started, or raise "
                "engine.timeout_s"
            ) from None
        _Group.current = self

    def leave(self) -> None:
        """Ends the contact, which the others notice; where the store is served, they get a moment to read it."""
        with contextlib.suppress(Exception):  # whatever fails here comes after the error that counts
            if dist.get_backend() == "gloo":
                dist.destroy_process_group()
            else:
                dist.destroy_process_group(self.control)
        deadline = time.monotonic() + PATIENCE_S
        left = self._count("left", 1)
        while self.serves and 0 < left < self.own.world_size and time.monotonic() < deadline:
            time.sleep(0.05)
            left = self._count("left", 0)

    def is_told_elsewhere(self, error: Exception) -> bool:
        """Whether another rank has said why the run ends. The first rank that comes here with an error of its own
        says it; one that merely lost contact gives the others a moment to speak first."""
        if not is_broken_contact(error):
            return self._count("speakers", 1) not in (0, 1)
        deadline = time.monotonic() + PATIENCE_S / 2
        while time.monotonic() < deadline:
            if self._count("speakers", 0) > 0:
                return True
            time.sleep(0.05)
        return False

    def who_is_gone(self, error: Exception) -> str:
        """Waits for the others' signs of life; a line that names the ranks without one."""
        missing = self._silent_ranks()
        if self._count("mourners", 1) > 1:  # one voice is enough
            raise Silenced(1) from None
        names = ", ".join(map(str, missing))
        who = f"rank{'s' if len(missing) > 1 else ''} {names} no longer answer{'' if len(missing) > 1 else 's'}"
        lost = who if missing else f"contact between the ranks was lost ({first_line(error)})"
        return (
            f"{lost}, so rank {self.own.rank} of {self.own.world_size} stops; the last checkpoint is "
            "whole and the same command goes on from it"
        )

    def _silent_ranks(self) -> list[int]:
        deadline = time.monotonic() + PATIENCE_S
        if self.store is None:
            return [0]  # it lives in rank 0, or in its launcher
        try:
            self.store.set(f"alive/{self.own.rank}", "1")
            while True:
                missing = [r for r in range(self.own.world_size) if not self.store.check([f"alive/{r}"])]
                if not missing or time.monotonic() > deadline:
                    return missing
                time.sleep(0.1)
        except (dist.DistError, RuntimeError):
            return [0]

    def _count(self, name: str, more: int) -> int:
        """Adds ``more`` to a counter that all ranks share; 0 when the store is gone."""
        try:
            return self.store.add(name, more) if self.store is not None else 0
        except (dist.DistError, RuntimeError):
            self.store = None
            return 0


class Agreement:
    """One number that all ranks know the largest of, without waiting for one another.

    ``ask`` is called once per step by all ranks and answers with what they asked at the step before; ``settle`` is
    called where all ranks meet anyway and answers at once.
    """

    def __init__(self):
        self.pending: tuple[dist.Work, Tensor] | None = None

    def ask(self, value: int) -> int:
        if world_size() == 1:
            return value
        answer = self._answer()
        flag = torch.tensor([value])
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=_Group.current.control, async_op=True)
        self.pending = work, flag
        return answer

    def settle(self, value: int) -> int:
        if world_size() == 1:
            return value
        before = self._answer()
        flag = torch.tensor([max(before, value)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_Group.current.control)
        return int(flag)

    def _answer(self) -> int:
        if self.pending is None:
            return 0
        work, flag = self.pending
        self.pending = None
        work.wait()
        return int(flag)


def total(values: Tensor) -> Tensor:
    """Element-wise sum over the ranks, on the device of ``values``; ``values`` itself in a lone process."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """[ranks, ...]: the tensor of every rank."""
    if world_size() == 1:
        return values[None]
    out = values.new_empty(world_size() * values.numel())
    dist.all_gather_into_tensor(out, values.flatten())
    return out.view(world_size(), *values.shape)


def first_says(value):
    """What rank 0 holds, on all ranks: a bool, number, string, or dict of such."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, group=_Group.current.control, device=torch.device("cpu"))
    return said[0]


def wait_for_all() -> None:
    """Returns once every rank is here."""
    if world_size() > 1:
        dist.barrier(group=_Group.current.control)


def is_broken_contact(error: BaseException) -> bool:
    """Whether a collective failed because of another rank. gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)) is not None
    )


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _take_gpu(own: Place) -> None:
    count = torch.cuda.device_count()
    if own.local_rank >= count:
        raise UserError(
            f"rank {own.rank} is process {own.local_rank + 1} on this host, which has {count} GPU"
            f"{'s' if count != 1 else ''}; start one process per GPU, or set engine.device=cpu"
        )
    torch.cuda.set_device(own.local_rank)
