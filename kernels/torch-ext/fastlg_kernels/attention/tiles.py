"""Tile sizes of the attention kernels by tokens and channels of a head: data, nothing is timed at run time.

Every row compiles without register spills for compute capability 8.0 and 9.0 (tests/kernels/block_aot.py).
"""

from __future__ import annotations

from typing import NamedTuple

SMALLEST = 16  # tokens that a tensor-core product contracts over


class Row(NamedTuple):
    """How a kernel is tiled for up to ``tokens`` (a power of two) of up to ``dim`` channels.

    queries  tokens whose scores with all others are on the chip at once
    warps    as Triton means them
    shared   bytes of shared memory that a program takes at most
    """

    kernel: str
    tokens: int
    dim: int
    queries: int
    warps: int
    shared: int

    @property
    def launch(self) -> dict:
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": True}


TABLE = (
    Row("forward", 64, 64, 64, 4, 99 * 1024),
    Row("forward", 256, 64, 32, 8, 99 * 1024),
    Row("backward", 64, 64, 32, 4, 99 * 1024),
    Row("backward", 256, 32, 16, 8, 99 * 1024),
    Row("backward", 128, 64, 32, 8, 99 * 1024),
    Row("backward", 256, 64, 16, 8, 116 * 1024),
)


def padded(length: int) -> int:
    """Tokens of the tile that holds so many: a power of two."""
    return max(SMALLEST, 1 << (length - 1).bit_length())


def choose(kernel: str, length: int, dim: int) -> Row:
    """The first row that fits; no tile of queries is longer than the tile that holds all."""
    tokens = padded(length)
    row = next(row for row in TABLE if row.kernel == kernel and tokens <= row.tokens and dim <= row.dim)
    return row._replace(queries=min(row.queries, tokens))
