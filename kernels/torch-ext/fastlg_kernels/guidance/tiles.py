"""Tile sizes of the guidance kernels per GPU family: data, chosen by shape and layout; nothing is timed at run time.

Every entry compiles without register spills for the shapes and layouts of guidance_aot.py that choose it, with
Triton 3.6.0, 3.7.1, 3.8.0 and 3.9.0 (on others ptxas may spill some bytes), and the safe ones take at most 99 KiB of
shared memory there, which every GPU from compute capability 8.0 on has.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """How one kernel is tiled.

    tokens, channels, dims  tile sizes over tokens, student channels and teacher channels
    rows, columns           block of the larger grid (window kernel)
    programs                programs per multiprocessor
    warps, stages           as Triton means them
    fused                   keep the tokens of a tile on the chip and make the weight gradient from them
    registers               most per thread; where nothing is said, ptxas may stop at 128, for two blocks on a
                            multiprocessor, and spill what is beyond
    """

    tokens: int = 64
    channels: int = 64
    dims: int = 16
    rows: int = 16
    columns: int = 16
    programs: int = 2
    warps: int = 8
    stages: int = 2
    fused: bool = False
    registers: int | None = None

    @property
    def launch(self) -> dict:
        """Launch options. Fusing multiply-adds is named because Triton's default for it changes with its version."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True, **limit}


ANY = 1 << 30


class Row(NamedTuple):
    """A configuration and what it is for: tokens of ``itemsize`` bytes, at most so many channels, so large a grid.

    channels, dim  most channels of student and teacher
    side           longest side of either grid
    multiple       divides the student's channels
    plain          only where rows of channels are aligned and dense, and offsets take 32 bits (see launch.py)
    tf32           only where one TF32 product is allowed, as under autocast: three take more registers
    """

    kernel: str
    itemsize: int
    config: Config
    channels: int = ANY
    dim: int = ANY
    side: int = ANY
    multiple: int = 1
    plain: bool = False
    tf32: bool = False


SAFE = (
    Row("flat", 2, Config(tokens=64, channels=64, dims=32)),
    Row("flat", 4, Config(tokens=32, channels=32, dims=16, warps=4)),
    Row("window", 2, Config(channels=32, dims=16, rows=32), plain=True),
    Row("window", 2, Config(channels=32, dims=16, registers=255)),
    Row("window", 4, Config(channels=32, dims=16), plain=True),
    Row("window", 4, Config(channels=16, dims=16)),
    Row("weight_grad", 2, Config(tokens=64, channels=64, dims=64)),
    Row("weight_grad", 4, Config(tokens=32, channels=64, dims=32, warps=4)),
    Row("token_grad", 2, Config(tokens=128, channels=64, dims=64, stages=1), plain=True),
    Row("token_grad", 2, Config(tokens=64, channels=64, dims=64, stages=1)),
    Row("token_grad", 4, Config(tokens=32, channels=64, dims=32, warps=4, stages=1)),
)
WINDOW_16 = Config(dims=16, rows=32, programs=1, warps=16, stages=1, fused=True)
FLAT_32 = Config(tokens=32, dims=64, programs=1, fused=True)
HOPPER = (
    Row("flat", 2, Config(tokens=128, dims=64, programs=1, fused=True), channels=192, multiple=64, plain=True),
    Row("flat", 2, Config(tokens=128, dims=32, programs=1, fused=True), channels=320, plain=True),
    Row("flat", 2, Config(tokens=64, dims=32, programs=1, fused=True), channels=384, plain=True),
    Row("window", 2, WINDOW_16, channels=192, dim=16, side=32, plain=True),
    Row("window", 2, Config(dims=32, programs=1, stages=1, fused=True), channels=192, side=16, plain=True),
    Row("window", 2, Config(dims=16), dim=16, side=32, plain=True),
    Row("window", 2, Config(dims=32), side=16, plain=True),
    Row("window", 2, Config(channels=32, dims=16, rows=32), side=32),
    Row("flat", 4, FLAT_32, channels=192, multiple=64, plain=True, tf32=True),
    Row("flat", 4, Config(tokens=64, channels=32, dims=64), plain=True, tf32=True),
    Row("window", 4, Config(dims=16, rows=32, stages=1), dim=16, side=32, plain=True, tf32=True),
    Row("window", 4, Config(dims=32, stages=1), side=16, plain=True, tf32=True),
    Row("weight_grad", 4, Config(tokens=32, channels=64, dims=64, warps=4), tf32=True),
    Row("token_grad", 4, Config(tokens=64, channels=64, dims=32, stages=1)),
)
FAMILIES = {"sm90": HOPPER + SAFE}


def choose(kernel: str, family: str, channels: int, dim: int, itemsize: int, **facts) -> Config:
    """The configuration of ``kernel`` for C ``channels`` and D ``dim``; see ``choose_row``."""
    config = choose_row(kernel, family, channels, dim, itemsize, **facts).config
    return config._replace(dims=min(config.dims, max(16, 1 << (dim - 1).bit_length())))


def choose_row(
    kernel: str,
    family: str,
    channels: int,
    dim: int,
    itemsize: int,
    *,
    plain: bool = False,
    tf32: bool = False,
    side: int = ANY,
) -> Row:
    """The first row of the family's table that fits; ``plain``, ``tf32`` and ``side`` as in Row."""
    for row in FAMILIES.get(family, SAFE):
        fits = channels <= row.channels and channels % row.multiple == 0 and dim <= row.dim and side <= row.side
        allowed = (plain or not row.plain) and (tf32 or not row.tf32)
        if (row.kernel, row.itemsize) == (kernel, itemsize) and fits and allowed:
            return row
    raise LookupError(f"no {kernel} configuration for elements of {itemsize} bytes")
