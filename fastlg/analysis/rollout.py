"""Attention rollout (Abnar and Zuidema 2020): which patches the prediction is made of, through all blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastlg.analysis.geometry import Layout, window_shares
from fastlg.models.student import Student
from fastlg.models.systems.poorvit import PoorViT


def readout(student: Student, layout: Layout) -> Tensor:
    """float64 [tokens]: shares of the last block's tokens in what the head reads; ``layout`` is that block's."""
    height, width = layout.grid
    shares = torch.zeros(layout.prefix + height * width, dtype=torch.float64)
    if layout.prefix and getattr(student.bare, "global_pool", "token") in ("token", ""):
        count = 2 if getattr(student.bare, "head_dist", None) is not None else 1
        count = layout.prefix if isinstance(student.bare, PoorViT) else count
        shares[:count] = 1 / count
    else:
        shares[layout.prefix :] = 1 / (height * width)
    return shares


def rollout(
    matrices: Sequence[Tensor], layouts: Sequence[Layout], steps: Sequence[nn.Conv2d | None], read: Tensor
) -> Tensor:
    """float64 [N, H, W]: shares of the first block's patch tokens in what ``read`` [tokens] takes of the last's.

    matrices  per block [N, tokens, keys], the mean over its heads
    steps     per block the convolution before it that changed the grid, see ``geometry.stage_steps``

    The last row of the product of (A + 1) / 2 over the blocks, A each one's attention from tokens to tokens: what goes
    to a key goes to the tokens it is made of, and between stages to the tokens that a new one is made of, as
    ``geometry.window_shares`` has it. What stays in prefix tokens is left out; the rest sums to 1.
    """
    shares = read.to(matrices[-1].device).expand(len(matrices[-1]), -1)
    for block in reversed(range(len(matrices))):
        layout = layouts[block]
        shares = (shares + _through(shares, matrices[block], layout)) / 2
        if block == 0:
            break
        before = layouts[block - 1]
        prefix, patches = _parted(shares, layout.prefix, layout.grid)
        if steps[block] is not None:
            patches = _spread(patches, *(window_shares(steps[block], side) for side in before.grid))
        prefix = prefix[:, : before.prefix]  # others joined here, and hold nothing yet
        shares = torch.cat((prefix, patches.flatten(1)), dim=1)
    _, patches = _parted(shares, layouts[0].prefix, layouts[0].grid)
    return patches / patches.sum((1, 2), keepdim=True)


def _through(shares: Tensor, matrix: Tensor, layout: Layout) -> Tensor:
    """[N, tokens] -> [N, tokens]: one block's attention backwards."""
    keys = torch.einsum("nq,nqk->nk", shares, matrix.double())
    prefix, patches = _parted(keys, layout.prefix, layout.keys)
    return torch.cat((prefix, _spread(patches, layout.rows, layout.columns).flatten(1)), dim=1)


def _parted(shares: Tensor, prefix: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return shares[:, :prefix], shares[:, prefix:].unflatten(1, grid)


def _spread(patches: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, Hk, Wk] -> [N, H, W]."""
    return rows.to(patches.device).T @ patches @ columns.to(patches.device)
