"""Tile sizes of the layer norm kernels, by channels: data; nothing is timed at run time."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """rows: tokens of a tile. warps: as Triton means them. programs: of the backward pass, per multiprocessor."""

    channels: int  # at most so many
    rows: int
    warps: int
    programs: int

    @property
    def launch(self) -> dict:
        """Backward may take 128 registers a thread, which lets its programs share a multiprocessor: where nothing is
        said, ptxas stops short of that and spills a few bytes."""
        limit = {"maxnreg": 128} if self.programs else {}
        return {"num_warps": self.warps, "num_stages": 1, "enable_fp_fusion": True, **limit}


FORWARD = (
    Config(128, 16, 4, 0),
    Config(256, 8, 4, 0),
    Config(512, 4, 4, 0),
    Config(1024, 2, 4, 0),
    Config(4096, 1, 8, 0),
)
BACKWARD = (
    Config(128, 8, 4, 4),
    Config(256, 4, 4, 4),
    Config(512, 2, 4, 4),
    Config(1024, 1, 4, 4),
    Config(2048, 1, 8, 2),
    Config(4096, 1, 16, 1),
)


def choose(table: tuple[Config, ...], channels: int) -> Config:
    """The first row of the table that fits."""
    return next(config for config in table if channels <= config.channels)
