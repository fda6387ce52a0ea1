"""``add_layer_norm`` in plain torch: what the kernels are held to, and what runs where they do not."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def scaled_by(keep: Tensor, values: Tensor) -> Tensor:
    """keep * values [N, ..., C], and 0 where keep is 0, whatever the value."""
    factor = keep.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    return torch.where(factor == 0, 0, factor * values)


def forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """total, normed and the statistics [2, rows]: mean and 1 / deviation of every token of total as it is stored."""
    wide = compute_dtype(x, branch, weight, bias)
    joining = branch.to(wide)
    if keep is not None:
        joining = scaled_by(keep, joining)
    total = (x.to(wide) + joining).to(x.dtype)
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
    grad_branch = grad if keep is None else scaled_by(keep, grad)
    params = torch.stack(((upstream * normalised).flatten(0, -2).sum(0), upstream.flatten(0, -2).sum(0)))
    return grad.to(total.dtype), grad_branch.to(branch_dtype), params


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(*like.shape[:-1], 1)
