"""A cache too large for one device, spread over the devices of all ranks: each keeps a share of the rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastlg import ranks


class ShardedRows:
    """Rank r of W keeps row i where i % W == r. Fetching is collective: all ranks ask together, once per step.

    Args:
        arrays: [rows, ...] each, the whole cache, memory-mapped.
        device: where this rank's share goes; one that the process group's backend can send from.
        batch_size: the most rows a rank ever asks for; the same number on all ranks. Every exchange has this size, so
            that no rank has to ask the others how much they want, and the host never waits.
    """

    def __init__(self, arrays: dict[str, Tensor], device: torch.device, batch_size: int):
        self.rank, self.world, self.batch_size = dist.get_rank(), dist.get_world_size(), batch_size
        self.arrays = {name: array[self.rank :: self.world].contiguous().to(device) for name, array in arrays.items()}

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows int64 [N] of every array, in their order, on this rank's device.

        Raises ValueError for more rows than ``batch_size``.
        """
        count = len(rows)
        if count > self.batch_size:
            raise ValueError(f"{count} rows were asked for, the exchange was set up for {self.batch_size}")
        wanted = rows.new_zeros(self.batch_size)
        wanted[:count] = rows
        asked = rows.new_empty(self.world * self.batch_size)
        ranks.gather_into(asked, wanted)
        own = torch.where(asked % self.world == self.rank, asked // self.world, 0)
        owner = rows % self.world
        places = torch.arange(count, device=rows.device)
        fetched = {}
        for name, array in self.arrays.items():
            answers = array.index_select(0, own)  # rank after rank: what it asked for, or any row where it is not here
            raw = answers.view(torch.uint8)  # as bytes: backends need not know the dtype
            received = torch.empty_like(raw)
            dist.all_to_all_single(received, raw)
            fetched[name] = received.view(array.dtype).unflatten(0, (self.world, self.batch_size))[owner, places]
        return fetched


def agreed_minimum(value: int, device: torch.device) -> int:
    """The smallest of all ranks' values, so that all take the same decision; ``value`` itself in a lone process."""
    if ranks.world_size() == 1:
        return value
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)
