"""Tile sizes of the guidance kernels per GPU family: data, chosen by shape; nothing is timed at run time.

Every entry compiles without register spills for the shapes it is chosen for (tests/kernels/test_guidance_aot.py).
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

    @property
    def launch(self) -> dict:
        """Launch options. Fusing multiply-adds is named because Triton's default for it changes with its version."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# (kernel, bytes per token element, most student channels, most teacher channels) -> configuration; first match wins.
ANY = 1 << 30
SAFE = (
    ("flat", 2, ANY, ANY, Config(tokens=64, channels=64, dims=32)),
    ("flat", 4, ANY, ANY, Config(tokens=32, channels=64, dims=16, warps=4)),
    ("window", 2, ANY, ANY, Config(channels=32, dims=16)),
    ("window", 4, ANY, ANY, Config(channels=32, dims=16)),
    ("weight_grad", 2, ANY, ANY, Config(tokens=64, channels=64, dims=64)),
    ("weight_grad", 4, ANY, ANY, Config(tokens=32, channels=64, dims=32, warps=4)),
    ("token_grad", 2, ANY, ANY, Config(tokens=128, channels=64, dims=64, stages=1)),
    ("token_grad", 4, ANY, ANY, Config(tokens=64, channels=64, dims=32, stages=1)),
)
HOPPER = (
    ("flat", 2, 192, ANY, Config(tokens=128, dims=64, programs=1, fused=True)),
    ("flat", 2, 320, ANY, Config(tokens=128, dims=32, programs=1, fused=True)),
    ("flat", 2, 384, ANY, Config(tokens=64, dims=32, programs=1, fused=True)),
    ("window", 2, 192, 16, Config(dims=16, rows=32, programs=1, warps=16, stages=1, fused=True)),
    ("window", 2, 192, ANY, Config(dims=32, programs=1, stages=1, fused=True)),
    ("window", 2, ANY, ANY, Config(dims=32)),
)
FAMILIES = {"sm90": HOPPER + SAFE}


def choose(kernel: str, family: str, channels: int, dim: int, itemsize: int) -> Config:
    """The configuration of ``kernel`` for C ``channels``, D ``dim`` and tokens of ``itemsize`` bytes."""
    for name, size, most_channels, most_dim, config in FAMILIES.get(family, SAFE):
        if name == kernel and size == itemsize and channels <= most_channels and dim <= most_dim:
            return config._replace(dims=min(config.dims, max(16, 1 << (dim - 1).bit_length())))
    raise LookupError(f"no {kernel} configuration for elements of {itemsize} bytes")
