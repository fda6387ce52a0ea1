"""The guidance loss of one pair in plain torch: any device, any floating dtype, the truth the kernels are held to.

Notation, one axis at a time: ``U`` upsamples the student's axis to the larger of the two sizes, ``V`` the teacher's;
both are the identity where there is nothing to resize. ``P`` is the projected student map on its own grid. Then

    R = U P U' - V M V',     loss = |R|^2,     d loss / d P = 2 U' R U = 2 E

``E``, on the student's grid, is all that the gradients need. Written as 2 (A P A - G) with A = U'U and G = U'(V M V')U
it needs no map of the larger size (``compact`` keeps G); forming R, as here, is faster on a CPU and loses no digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import compute_dtype

Grid = tuple[int, int]


def upsample_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear resize of one axis (``align_corners=False``) as a matrix [size_out, size_in].

    Every entry is one rounding away from exact: numerators are integers over 2 * size_out.
    """
    if device.type == "cpu":
        return _cpu_upsample_matrix(size_in, size_out, dtype)
    return _upsample_matrix(size_in, size_out, dtype, device)  # not kept: it could end up in a CUDA graph's pool


def _upsample_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    out = torch.arange(size_out, device=device).unsqueeze(1)
    cell = torch.arange(size_in, device=device).unsqueeze(0)
    centre = ((2 * out + 1) * size_in - size_out).clamp(0, 2 * size_out * (size_in - 1))
    distance = (centre - 2 * size_out * cell).abs()
    return (2 * size_out - distance).clamp(min=0).to(dtype) / (2 * size_out)


@lru_cache(maxsize=256)
def _cpu_upsample_matrix(size_in: int, size_out: int, dtype: torch.dtype) -> Tensor:
    return _upsample_matrix(size_in, size_out, dtype, torch.device("cpu"))


def axis_matrix(size_in: int, size_out: int, like: Tensor) -> Tensor | None:
    """``upsample_matrix`` in the dtype and on the device of ``like``; None where the size stays."""
    return None if size_in == size_out else upsample_matrix(size_in, size_out, like.dtype, like.device)


def resize(maps: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """``rows @ maps @ columns'`` for every channel of maps [N, h, w, D]; None is the identity."""
    if rows is not None:
        flat = maps.flatten(2)
        maps = torch.bmm(rows.expand(len(flat), -1, -1), flat).unflatten(2, maps.shape[2:])
    if columns is not None:
        flat = maps.flatten(0, 1)
        maps = torch.bmm(columns.expand(len(flat), -1, -1), flat).unflatten(0, maps.shape[:2])
    return maps


def channels_moved_last(maps: Tensor) -> Tensor:
    """Maps [N, D, h, w] as dense [N, h, w, D]."""
    if maps.device.type != "cpu" or maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).contiguous()
    # exact for finite maps, and several times as fast as a strided copy on a CPU
    unit = torch.eye(maps.shape[1], dtype=maps.dtype).expand(len(maps), -1, -1)
    return torch.bmm(maps.flatten(2).mT, unit).unflatten(1, maps.shape[2:])


def student_tokens(student: Tensor, grid: Grid) -> Tensor:
    """Tokens [N, H*W, C] of a student: the last H*W of [N, L, C], or a map [N, C, H, W] with channels moved last."""
    if student.dim() == 4:
        is_contiguous = student.is_contiguous()
        return student.flatten(2).mT if is_contiguous else student.permute(0, 2, 3, 1).flatten(1, 2)
    return student[:, student.shape[1] - grid[0] * grid[1] :]


def residual_scale(grid: Grid, teacher: Sequence[int]) -> float:
    """What a residual E of a student on ``grid`` is stored times, for teacher maps [N, D, h, w]: a power of two.

    E sums R over what a student's cell covers of the larger grid. As a float16 it would overflow where the cells are
    large and the maps differ by much, whatever a gradient scaler does; the mean over a cell does not.
    """
    cell = max(1.0, teacher[2] / grid[0]) * max(1.0, teacher[3] / grid[1])
    return 2.0 ** -math.ceil(math.log2(cell))


def forward(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Grid]],
    counts: Sequence[int],
    with_residuals: bool,
    with_weights: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, residuals [N, H*W, D], and all weight and bias gradients in one flat tensor (W0, b0, W1, ...).

    Loss and gradients are divided by counts; residuals are E times ``residual_scale``.
    """
    dtype = compute_dtype(*(tensor for pair in pairs for tensor in pair[:4]))
    total, residuals, grads = None, [], []
    with torch.autocast(pairs[0][0].device.type, enabled=False):
        for (student, teacher, weight, bias, grid), count in zip(pairs, counts, strict=True):
            tokens = student_tokens(student, grid).to(dtype)
            loss, residual = pair_residual(tokens, teacher.to(dtype), weight.to(dtype), bias.to(dtype), grid)
            total = loss / count if total is None else total + loss / count
            if with_weights:
                weight_grad = torch.bmm(residual.mT, tokens).sum(0)
                grads += [weight_grad.flatten() * (2 / count), residual.sum((0, 1)) * (2 / count)]
            if with_residuals:
                residuals.append(residual.mul_(residual_scale(grid, teacher.shape)).to(student.dtype))
    return total, residuals, torch.cat(grads) if grads else total.new_empty(0)


def pair_residual(tokens: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """|R|^2 (0-d) and E = U'RU [N, H*W, D] of one pair; all in one dtype.

    tokens [N, H*W, C]; teacher [N, D, h, w]; weight [D, C]; bias [D]; grid (H, W) of the student.
    """
    maps = torch.baddbmm(bias, tokens, weight.T.expand(len(tokens), -1, -1)).unflatten(1, grid)  # P [N, H, W, D]
    size = max(grid[0], teacher.shape[2]), max(grid[1], teacher.shape[3])
    widen = [axis_matrix(teacher.shape[2 + k], size[k], maps) for k in (0, 1)]
    up = [axis_matrix(grid[k], size[k], maps) for k in (0, 1)]
    residual = resize(maps, *up).sub_(resize(channels_moved_last(teacher), *widen))  # R
    # by rows of one sample: one long float32 sum would lose digits
    loss = torch.linalg.vector_norm(residual.flatten(2), dim=2).square().sum()
    return loss, resize(residual, *(None if u is None else u.T for u in up)).flatten(1, 2)


def token_grad(residual: Tensor, weight: Tensor, scale: Tensor, out: Tensor) -> None:
    """``scale * residual W`` into ``out`` [N, L, C] or [N, C, H, W], zeros on prefix tokens; residual [N, H*W, D]."""
    dtype = compute_dtype(out)
    with torch.autocast(out.device.type, enabled=False):
        left, right = residual.to(dtype), (weight.to(dtype) * scale.to(dtype)).expand(len(residual), -1, -1)
        if out.dim() == 4:
            if out.is_contiguous():
                out, left, right = out.flatten(2), right.mT, left.mT
            else:
                out = out.permute(0, 2, 3, 1).flatten(1, 2)
        elif prefix := out.shape[1] - residual.shape[1]:  # prefix tokens: their zeros come out of the same product
            left = F.pad(left, (0, 0, prefix, 0))
        if out.dtype == dtype:
            torch.bmm(left, right, out=out)
        else:
            out.copy_(torch.bmm(left, right))
