"""Tile sizes of the MLP kernels by family of GPUs: data, nothing is timed at run time.

Every row compiles without register spills for compute capability 8.0 and 9.0 with Triton 3.8 (block_aot.py in the
tests). Other versions leave a few registers of 192 channels on the stack: forward 72 bytes a thread with 3.6 on 9.0,
backward 56 with 3.6 on 8.0 and 16 with 3.9 on 9.0. Of twelve other tilings two spill nothing with any of them, tiles of
half as many tokens: 64 x 32 with 8 warps forward, 16 x 32 with 4 backward. They read the weights twice as often from
the L2 cache, 54 MB more per image of 12 blocks, so the rows stay. The others leave 8 to 320 bytes, or with 32 x 32 and
8 warps backward the same 16 with 3.9.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_CHANNELS = 192  # of tokens of which a tile, its sums and its gradients are on the chip at once
HIDDEN_STEP = 32  # hidden channels come in multiples of so many


class Row(NamedTuple):
    """How a kernel is tiled.

    family  of GPUs, as devices.device_family names them; "" for any
    tokens  of a tile
    hidden  channels that a tile's tokens have at once; of the weights' kernel, those that a program owns
    warps   as Triton means them
    stages  tiles of the weights (of tokens in the weights' kernel) on their way at once
    shared  bytes of shared memory that a program takes at most
    """

    kernel: str
    family: str
    tokens: int
    hidden: int
    warps: int
    stages: int
    shared: int

    @property
    def launch(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


TABLE = (
    Row("forward", "", 128, 16, 8, 1, 65 * 1024),
    Row("backward", "", 32, 32, 4, 1, 48 * 1024),
    Row("weights", "sm90", 32, 64, 8, 2, 99 * 1024),
    Row("weights", "", 32, 32, 8, 2, 56 * 1024),
)


def parts(channels: int) -> tuple[int, int] | None:
    """Two powers of two from 16 on, the larger first, that make up so many channels; None where there are none."""
    larger = 1 << (channels - 1).bit_length() >> 1
    rest = channels - larger
    return (larger, rest) if rest >= 16 and rest & (rest - 1) == 0 else None


def choose(kernel: str, family: str, hidden: int) -> Row:
    """The first row that fits; no tile has more hidden channels than divide them."""
    row = next(row for row in TABLE if row.kernel == kernel and row.family in (family, ""))
    return row if hidden % row.hidden == 0 else row._replace(hidden=HIDDEN_STEP)


def obstacle(channels: int, hidden: int) -> str:
    """Why the kernels cannot take an MLP of such sizes; "" where they can."""
    if channels > MOST_CHANNELS:
        return f"{channels} channels are more than {MOST_CHANNELS}"
    if parts(channels) is None:
        return f"{channels} channels are no sum of two powers of two from 16 on"
    return f"{hidden} hidden channels are no multiple of {HIDDEN_STEP}" if hidden % HIDDEN_STEP else ""
