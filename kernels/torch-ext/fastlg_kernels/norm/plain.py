"""``add_layer_norm`` in plain torch: what the kernels are held to, and what runs where they do not."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import compute_dtype


def scaled_by(keep: Tensor | None, values: Tensor) -> Tensor:
    """keep * values [N, ..., C], and 0 where keep is 0, whatever the value; values themselves without keep."""
    if keep is None:
        return values
    factor = keep.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    return torch.where(factor == 0, 0, factor * values)


def forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """total, normed and the statistics [2, rows]: mean and 1 / deviation of every token of total as it is stored."""
    wide = compute_dtype(x, branch, weight, bias)
    total = (x.to(wide) + scaled_by(keep, branch.to(wide))).to(x.dtype)
    parameters = (weight.to(wide), bias.to(wide))
    normed, mean, scale = torch.native_layer_norm(total.to(wide), x.shape[-1:], *parameters, eps)
    return total.contiguous(), normed.to(dtype).contiguous(), torch.stack((mean.flatten(), scale.flatten()))


def backward(
    grad_total: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    stats: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of branch (in ``branch_dtype``), and of weight and bias as one [2, C]."""
    wide = stats.dtype
    normalised = (total.to(wide) - _rows(stats[0], total)) * _rows(stats[1], total)
    upstream = grad_normed.to(wide)
    scaled = upstream * weight.to(wide)
    mean, slope = scaled.mean(-1, keepdim=True), (scaled * normalised).mean(-1, keepdim=True)
    grad = (scaled - mean - normalised * slope) * _rows(stats[1], total)
    if grad_total is not None:
        grad = grad + grad_total.to(wide)
    grad_branch = scaled_by(keep, grad)
    params = torch.stack(((upstream * normalised).flatten(0, -2).sum(0), upstream.flatten(0, -2).sum(0)))
    return grad.to(total.dtype), grad_branch.to(branch_dtype), params


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(*like.shape[:-1], 1)
