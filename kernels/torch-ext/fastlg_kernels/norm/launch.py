"""Launches of the layer norm kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..devices import device_family
from ..triton_common import sum_kernel
from .tiles import BACKWARD, FORWARD, choose
from .triton_norm import backward_kernel, forward_kernel


def forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """As plain.forward."""
    channels = x.shape[-1]
    rows, config = x.numel() // channels, choose(FORWARD, channels)
    total, normed = x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)
    stats = x.new_empty((2, rows), dtype=torch.float32)
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(rows, config.rows),)](
            x.contiguous(), branch.contiguous(), weight.contiguous(), bias.contiguous(), _factors(keep, stats),
            total, normed, stats, rows, rows // x.shape[0], eps,
            C=channels, BM=config.rows, BC=triton.next_power_of_2(channels), WITH_KEEP=keep is not None,
            **config.launch,
        )  # fmt: skip
    return total, normed, stats


def backward(
    grad_total: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    stats: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    branch_dtype: torch.dtype,
    apart: bool,
    with_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As plain.backward; the gradient of branch is [0] unless ``apart``, those of weight and bias unless asked for."""
    channels = total.shape[-1]
    rows, config = total.numel() // channels, choose(BACKWARD, channels)
    tiles = triton.cdiv(rows, config.rows)
    programs = min(tiles, config.programs * device_family(total.device)[1])
    grad_x = total.new_empty(total.shape)
    grad_branch = total.new_empty(total.shape if apart else (0,), dtype=branch_dtype)
    partials = stats.new_empty((programs if with_params else 0, 2 * channels))
    params = stats.new_empty((2, channels) if with_params else (0,))
    with torch.cuda.device_of(total):
        backward_kernel[(programs,)](
            stats if grad_total is None else grad_total.contiguous(), grad_normed.contiguous(), total, stats,
            weight.contiguous(), _factors(keep, stats), grad_x, grad_branch, partials,
            rows, rows // total.shape[0], triton.cdiv(tiles, programs),
            C=channels, BM=config.rows, BC=triton.next_power_of_2(channels),
            WITH_TOTAL=grad_total is not None, WITH_KEEP=keep is not None, APART=apart, WITH_PARAMS=with_params,
            **config.launch,
        )  # fmt: skip
        if with_params:
            sum_kernel[(triton.cdiv(2 * channels, 64),)](
                partials, params, programs, 2 * channels, BP=32, BX=64, num_warps=4, enable_fp_fusion=True
            )
    return grad_x, grad_branch, params


def _factors(keep: Tensor | None, unread: Tensor) -> Tensor:
    """What the kernel gets where there is nothing to read is never read."""
    return unread if keep is None else keep.contiguous()
