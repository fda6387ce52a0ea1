"""The processes that share a run: how they meet, agree, and notice that one of them is gone.

Whoever starts them (fastlg's ``--gpus``, torchrun, the deepspeed launcher, srun) leaves each process its place in the
environment. A lone process needs none of this: every function then answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from fastlg.errors import Silenced, UserError
from fastlg.ranks.contact import Contact
from fastlg.ranks.place import Place, is_first_by_environment, place


def rank() -> int:
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    return dist.get_world_size() if _is_joined() else 1


def is_first() -> bool:
    """Whether this process speaks and writes for all. True for a lone process, and before the ranks met for rank 0."""
    return rank() == 0 if _is_joined() else is_first_by_environment()


def has_begun() -> bool:
    """Whether this process came to meet the other ranks and did not yet part from them in peace."""
    return _Meeting.has_begun


@contextmanager
def joined(*, cuda: bool, timeout_s: float) -> Iterator[None]:
    """Inside, all processes of the run are one group: NCCL between GPUs (``cuda``), gloo between CPUs.

    Does nothing in a lone process or inside another ``joined``. ``timeout_s`` bounds the rendezvous and every
    collective. Raises UserError for more processes than GPUs, RunError for a rendezvous that fails, and RunError that
    names the ranks which no longer answer when a collective fails. An error in any rank ends all of them: one raises
    it, the others raise Silenced, or end where they are when they wait for ranks that do not come.
    """
    own = place()
    if own.world_size == 1 or _is_joined():
        yield
        return
    _Meeting.has_begun = True
    if cuda:
        _take_gpu(own)
    contact = _Meeting.contact = Contact(own, backend="nccl" if cuda else "gloo", timeout_s=timeout_s)
    try:
        yield
    except Exception as error:
        said = contact.farewell(error)
        if said is error:
            raise
        raise said from None
    contact.end()
    _Meeting.has_begun = False


class _Meeting:
    """Of this process and the other ranks."""

    has_begun = False
    contact: Contact


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
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=_Meeting.contact.control, async_op=True)
        self.pending = work, flag
        return answer

    def settle(self, value: int) -> int:
        if world_size() == 1:
            return value
        before = self._answer()
        flag = torch.tensor([max(before, value)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_Meeting.contact.control)
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
    gather_into(out, values.flatten())
    return out.view(world_size(), *values.shape)


def gather_into(out: Tensor, values: Tensor) -> None:
    """Fills ``out`` [ranks * N] with the ``values`` [N] of every rank, by the name that this torch has for it."""
    gather = getattr(dist, "all_gather_single", None)  # since 2.14, which warns at every call by the older name
    (gather or dist.all_gather_into_tensor)(out, values)


def first_says(value):
    """What rank 0 holds, on all ranks: a bool, number, string, or dict of such."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, group=_Meeting.contact.control, device=torch.device("cpu"))
    return said[0]


def wait_for_all() -> None:
    """Returns once every rank is here."""
    if world_size() > 1:
        dist.barrier(group=_Meeting.contact.control)


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _take_gpu(own: Place) -> None:
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_PROCID" in os.environ:  # srun may show each task its own GPU alone
        torch.cuda.set_device(0)
        return
    if own.local_rank > count:
        raise Silenced(2)  # the first one too many speaks
    if own.local_rank == count:
        raise UserError(
            f"rank {own.rank} is process {own.local_rank + 1} on this host, which has {count} GPU"
            f"{'s' if count != 1 else ''}; start one process per GPU, or set engine.device=cpu"
        )
    torch.cuda.set_device(own.local_rank)
