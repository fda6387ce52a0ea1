"""Tile sizes of the guidance kernels per GPU family: data, chosen by shape; nothing is timed at run time."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """tokens, channels, dims: tile sizes over tokens, student channels, teacher channels. rows, columns: block of the
    larger grid in the window kernel. programs: programs per multiprocessor. warps, stages: as Triton means them."""

    tokens: int
    channels: int
    dims: int
    rows: int = 16
    columns: int = 16
    programs: int = 2
    warps: int = 8
    stages: int = 2
    keep: bool = True

    @property
    def launch(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


DEFAULT = {
    "flat": Config(tokens=128, channels=64, dims=64),
    "window": Config(tokens=256, channels=32, dims=32),
    "token_grad": Config(tokens=128, channels=64, dims=64, stages=1),
}


def choose(kernel: str, family: str, channels: int, dim: int, itemsize: int) -> Config:
    """The configuration of ``kernel`` for tokens of ``itemsize`` bytes; unknown families get the safe default."""
    config = DEFAULT[kernel]
    dims = max(16, 1 << (dim - 1).bit_length())
    return config._replace(dims=min(config.dims, dims))
