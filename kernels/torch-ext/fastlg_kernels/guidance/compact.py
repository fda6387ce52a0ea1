"""The guidance loss from teacher maps that were pulled to the student's grid once, instead of at every step.

In the notation of plain.py, |U P U' - V M V'|^2 = <P, A P A> - 2 <P, G> + |V M V'|^2 with A = U'U and
G = U'(V M V')U. G and the last number depend on the teacher alone. Where the student's grid is the smaller one, G is
smaller than M, and nothing of the larger size is formed any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .api import check_options, guidance_loss, student_grids
from .plain import Grid, axis_matrix, channels_moved_last, compute_dtype, resize, student_tokens


class CompactMap(NamedTuple):
    """What the loss needs of one pair's teacher maps M [N, D, h, w], for a student grid (H, W).

    pulled  [N, D, H, W]: G
    energy  [N]: |V M V'|^2 of each sample
    size    (max(H, h), max(W, w)), the size both sides are compared at
    """

    pulled: Tensor
    energy: Tensor
    size: Grid


def compact_map(teacher: Tensor, grid: Grid) -> CompactMap:
    """The compact form of teacher maps [N, D, h, w] for a student grid; float32, float64 for float64 maps."""
    with torch.autocast(teacher.device.type, enabled=False):
        maps = teacher.to(compute_dtype(teacher))
        size = max(grid[0], maps.shape[2]), max(grid[1], maps.shape[3])
        widen = [axis_matrix(maps.shape[2 + k], size[k], maps) for k in (0, 1)]
        target = resize(channels_moved_last(maps), *widen)
        up = [axis_matrix(grid[k], size[k], maps) for k in (0, 1)]
        pulled = resize(target, *(None if u is None else u.T for u in up))
        return CompactMap(pulled.permute(0, 3, 1, 2).contiguous(), target.square().sum((1, 2, 3)), size)


def compact_guidance(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor | CompactMap],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    grids: Sequence | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """``guidance_loss`` of pairs whose teachers are maps or CompactMap, in any mixture; arguments as there.

    Equal to ``guidance_loss`` of the maps that the compact forms were made of. A G that was rounded to float16 or
    bfloat16 shifts the value by 2 <P, dG> / count, so a perfect match may read slightly below zero.
    """
    check_options(reduction, impl)
    pairs = list(zip(students, teachers, weights, biases, student_grids(students, grids), strict=True))
    plain = [pair for pair in pairs if isinstance(pair[1], Tensor)]
    losses = [_compact_pair(*pair, reduction) for pair in pairs if isinstance(pair[1], CompactMap)]
    if plain:
        sides = ([pair[k] for pair in plain] for k in range(4))
        plain_grids = [None if pair[0].dim() == 4 else pair[4] for pair in plain]
        losses.append(guidance_loss(*sides, grids=plain_grids, reduction=reduction, impl=impl))
    return torch.stack([loss.to(torch.promote_types(loss.dtype, losses[0].dtype)) for loss in losses]).sum()


def _compact_pair(
    student: Tensor, teacher: CompactMap, weight: Tensor, bias: Tensor | None, grid: Grid, reduction: str
) -> Tensor:
    pulled, energy, size = teacher
    batch, dim = pulled.shape[:2]
    if tuple(pulled.shape[2:]) != tuple(grid) or batch != len(student):
        raise ValueError(
            f"a compact teacher of shape {tuple(pulled.shape)} does not fit a student of {len(student)} samples on "
            f"the grid {tuple(grid)}; make it with compact_map(maps, grid) of this student"
        )
    with torch.autocast(student.device.type, enabled=False):
        dtype = compute_dtype(student, weight, pulled)
        maps = torch.matmul(student_tokens(student, grid).to(dtype), weight.flatten(1).to(dtype).T)
        if bias is not None:
            maps = maps + bias.to(dtype)
        maps = maps.unflatten(1, grid)  # P [N, H, W, D]
        up = [axis_matrix(grid[k], size[k], maps) for k in (0, 1)]
        smoothed = resize(maps, *(None if u is None else u.T @ u for u in up))
        total = (maps * (smoothed - 2 * pulled.to(dtype).permute(0, 2, 3, 1))).sum() + energy.to(dtype).sum()
        count = batch * size[0] * size[1] * (1 if reduction == "sum_channels" else dim)
        return total / count
