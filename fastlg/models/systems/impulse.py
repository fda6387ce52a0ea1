"""Queries and keys fitted so that a head looks at the token beside each (Zheng et al. 2024, arXiv 2404.01139)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STEPS, RATE = 10_000, 1e-4  # of Adam, as the authors have them
EVERY = 100  # steps between two changes of length


def impulses(grid: tuple[int, int], offsets: Sequence[int], window: int = 3) -> Tensor:
    """float32 [heads, N, N]: 1 where the key lies at the head's offset from the query, which is an index into a
    ``window`` x ``window`` square around it; a row whose key would lie beyond the border is 0."""
    height, width = grid
    target = torch.zeros(len(offsets), height, width, height, width)
    for head, offset in enumerate(offsets):
        down, across = offset // window - window // 2, offset % window - window // 2
        for y in range(max(0, -down), min(height, height - down)):
            for x in range(max(0, -across), min(width, width - across)):
                target[head, y, x, y + down, x + across] = 1
    return target.flatten(3).flatten(1, 2)


def fit(
    positions: Tensor,
    target: Tensor,
    head_dim: int,
    random: torch.Generator,
    *,
    steps: int = STEPS,
) -> tuple[Tensor, Tensor, float]:
    """(Q [heads, D, d], K [heads, d, D], last loss) of softmax(P Q K P' / sqrt(d)) against ``target`` [heads, N, N].

    positions  P [N, D], normalised; its dtype is that of the fit. See ``refine``.
    """
    heads, dim = len(target), positions.shape[1]
    bound = math.sqrt(1 / (head_dim * heads))
    drawn = [
        bound * (2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1)
        for shape in ((heads, dim, head_dim), (heads, head_dim, dim))
    ]
    return refine(positions, target, *(own.to(positions.dtype) for own in drawn), steps=steps)


def refine(
    positions: Tensor, target: Tensor, query: Tensor, key: Tensor, *, steps: int
) -> tuple[Tensor, Tensor, float]:
    """Mean squared error, Adam without decay. Before the steps 0, 100, 200, ... each column of Q over D, and of K each
    input's column over d, gets the mean length of Q's first columns: K's are not those of Q's ranks, as in the source.
    """
    query, key = (own.clone().requires_grad_() for own in (query, key))
    length = query.detach().norm(dim=1).mean()
    target, scale = target.to(positions.dtype), query.shape[2] ** -0.5
    optimizer = torch.optim.Adam([query, key], lr=RATE)
    value = math.nan
    with torch.enable_grad():
        for step in range(steps):
            if step % EVERY == 0:
                with torch.no_grad():
                    for own in (query, key):
                        own.mul_(length / own.norm(dim=1, keepdim=True))
            matrix = ((positions @ query) @ (key @ positions.mT) * scale).softmax(dim=-1)
            loss = (matrix - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = loss.item()
    return query.detach(), key.detach(), value
