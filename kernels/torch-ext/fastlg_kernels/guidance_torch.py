"""The guidance loss of one pair in plain torch: any device, any floating dtype, the truth the kernels are held to.

Notation, one axis at a time: ``U`` upsamples the student's axis to the larger of the two sizes, ``V`` the teacher's;
both are the identity where there is nothing to resize. ``P`` is the projected student map on its own grid. Then

    R = U P U' - V M V',     loss = |R|^2,     d loss / d P = 2 U' R U = 2 (A P A - G),     A = U'U,  G = U'(V M V')U

so the upsampled student map is never formed: with ``E = A P A - G``, |R|^2 = <P, E> - <P, G> + |V M V'|^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

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


def apply_axes(maps: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """``rows @ maps @ columns'`` for maps [..., h, w]; None is the identity."""
    if columns is not None:
        maps = maps @ columns.T
    if rows is not None:
        maps = rows @ maps
    return maps


def student_tokens(student: Tensor, grid: Grid) -> Tensor:
    """Tokens [N, H*W, C] of a student: the last H*W of [N, L, C], or a map [N, C, H, W] with channels moved last."""
    if student.dim() == 4:
        is_contiguous = student.is_contiguous()
        return student.flatten(2).mT if is_contiguous else student.permute(0, 2, 3, 1).flatten(1, 2)
    return student[:, student.shape[1] - grid[0] * grid[1] :]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 as soon as one input is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def forward(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Grid]],
    counts: Sequence[int],
    with_residuals: bool,
    with_weights: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, residuals, and all weight and bias gradients in one flat tensor (W0, b0, W1, ...), divided by counts."""
    dtype = compute_dtype(*(tensor for pair in pairs for tensor in pair[:4]))
    total, residuals, grads = None, [], []
    for (student, teacher, weight, bias, grid), count in zip(pairs, counts, strict=True):
        tokens = student_tokens(student, grid).to(dtype)
        loss, residual = pair_residual(tokens, teacher.to(dtype), weight.to(dtype), bias.to(dtype), grid)
        total = loss / count if total is None else total + loss / count
        if with_weights:
            weight_grad = torch.matmul(residual.mT, tokens).sum(0)
            grads += [weight_grad.flatten() * (2 / count), residual.sum((0, 1)) * (2 / count)]
        if with_residuals:
            residuals.append(residual.to(student.dtype).contiguous())
    return total, residuals, torch.cat(grads) if grads else total.new_empty(0)


def pair_residual(tokens: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """|R|^2 (0-d) and E = U'RU [N, H*W, D] of one pair; all in one dtype.

    tokens [N, H*W, C]; teacher [N, D, h, w]; weight [D, C]; bias [D]; grid (H, W) of the student.
    """
    projected = torch.matmul(tokens, weight.T) + bias
    maps = projected.mT.unflatten(2, grid)  # [N, D, H, W]
    size = max(grid[0], teacher.shape[2]), max(grid[1], teacher.shape[3])
    target = apply_axes(teacher, *(axis_matrix(teacher.shape[2 + k], size[k], maps) for k in (0, 1)))
    if size == grid:
        residual = maps - target
        loss = residual.square().sum()
    else:
        rows, columns = (axis_matrix(grid[k], size[k], maps) for k in (0, 1))
        pulled = apply_axes(target, *(None if u is None else u.T for u in (rows, columns)))
        residual = apply_axes(maps, *(None if u is None else u.T @ u for u in (rows, columns))) - pulled
        terms = (maps * (residual - pulled)).sum() + target.square().sum()
        loss = terms.clamp(min=0)  # three rounded terms of an exact match may end just below zero
    return loss, residual.flatten(2).mT


def token_grad(residual: Tensor, weight: Tensor, scale: Tensor, out: Tensor) -> None:
    """``scale * E W`` into ``out`` [N, L, C] or [N, C, H, W], zeros on prefix tokens."""
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    grad = torch.matmul(residual.to(dtype), weight.to(dtype) * scale.to(dtype))
    if out.dim() == 4:
        out.copy_(grad.mT.unflatten(2, out.shape[2:]))
        return
    prefix = out.shape[1] - grad.shape[1]
    out[:, :prefix].zero_()
    out[:, prefix:].copy_(grad)
