"""Launch of the AdamW kernel over the parameters of one kind, and the tables that it finds them by."""

from __future__ import annotations

import torch
from torch import Tensor

from .triton_adamw import adamw_kernel

CHUNK, WARPS = 2048, 4


def addresses(
    weights: list[Tensor], grads: list[Tensor], firsts: list[Tensor], seconds: list[Tensor], copies: list[Tensor]
) -> list[list[int]]:
    """Per tensor where everything lies, and how many elements it has."""
    copies = copies or weights
    columns = zip(weights, grads, firsts, seconds, copies, strict=True)
    return [[*(tensor.data_ptr() for tensor in row), row[0].numel()] for row in columns]


def chunks(sizes: list[int], groups: list[int]) -> list[list[int]]:
    """Tensor, first element and group of every program."""
    starts = ((k, start) for k, size in enumerate(sizes) for start in range(0, size, CHUNK))
    return [[k, start, groups[k]] for k, start in starts]


class Tables:
    """Both tables of the parameters of one kind, on their device, made again where something lies elsewhere."""

    def __init__(self):
        self.rows: list | None = None
        self.facts: tuple | None = None
        self.spare: Tensor | None = None
        self.captured: list = []  # what a CUDA graph reads when it is replayed

    def current(self, rows: list[list[int]], groups: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Where everything lies, and the chunks. Raises RuntimeError in a capture that no step has gone before."""
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        facts = ([row[-1] for row in rows], groups)
        if facts != self.facts:
            if capturing:
                raise RuntimeError("AdamW cannot be captured before its first step; take one, then capture")
            self.facts, self.chunks = facts, _on_device(torch.tensor(chunks(*facts), dtype=torch.int64), device)
            self.rows = None
        if rows != self.rows or capturing:
            table = torch.tensor(rows, dtype=torch.int64)
            if capturing:  # the graph copies from this memory at every replay: nothing else may use it
                if self.spare is None:
                    raise RuntimeError("AdamW needs a step outside of a capture between two captures; take one")
                table, self.spare = self.spare.copy_(table), None
                self.captured += [table, self.chunks]
                return table.to(device, non_blocking=True), self.chunks
            self.rows, self.table = rows, _on_device(table, device)
        if self.spare is None or self.spare.shape != self.table.shape:
            self.spare = torch.empty(self.table.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        return self.table, self.chunks


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the device: torch's allocator keeps pinned memory until a copy has left it."""
    return table if device.type != "cuda" else table.pin_memory().to(device, non_blocking=True)


def step(
    table: Tensor, chunk_table: Tensor, rates: Tensor, steps: Tensor, weight: Tensor, grad: Tensor, copy: Tensor | None
) -> None:
    """One launch. weight, grad and copy: any of the tensors, for their dtypes."""
    with torch.cuda.device_of(rates):
        adamw_kernel[(chunk_table.shape[0],)](
            table, chunk_table, rates, steps, weight, grad, weight if copy is None else copy,
            CHUNK=CHUNK, WITH_COPY=copy is not None, num_warps=WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
