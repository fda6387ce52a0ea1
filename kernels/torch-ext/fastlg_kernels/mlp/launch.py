"""Launches of the MLP kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..devices import device_family
from ..triton_common import sum_kernel
from .plain import Half
from .tiles import choose, parts
from .triton_mlp import backward_kernel, forward_kernel, weights_kernel


def _constants(kernel: str, half: Half) -> dict:
    hidden, channels = half.fc1.shape
    row, (larger, smaller) = choose(kernel, device_family(half.x.device)[0], hidden), parts(channels)
    sizes = {"C": channels, "HIDDEN": hidden, "CA": larger, "CB": smaller, "BM": row.tokens, "BH": row.hidden}
    return sizes | row.launch


def _read(half: Half, dtype: torch.dtype) -> tuple[Half, dict]:
    """What the kernels read, where they can read it, and which of it there is. What is not there is never read."""
    flags = {
        "WITH_BRANCH": half.branch is not None,
        "WITH_KEEP": half.keep is not None and half.branch is not None,
        "WITH_KEEP_MLP": half.keep_mlp is not None,
    }
    weights = {"fc1": half.fc1.to(dtype), "fc2": half.fc2.to(dtype)}
    tensors = half._replace(**weights)
    return Half(*(half.x.contiguous() if t is None else t.contiguous() for t in tensors)), flags


def forward(half: Half, eps: float, dtype: torch.dtype) -> Tensor:
    """As plain.forward."""
    read, flags = _read(half, dtype)
    constants, rows = _constants("forward", half), half.rows
    out = half.x.new_empty(half.x.shape)
    with torch.cuda.device_of(out):
        forward_kernel[(triton.cdiv(rows, constants["BM"]),)](
            read.x, read.branch, read.keep, read.keep_mlp, read.gain, read.shift, read.fc1, read.bias1, read.fc2,
            read.bias2, out, rows, rows // out.shape[0], eps, **constants, **flags,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, half: Half, eps: float, dtype: torch.dtype, apart: bool, with_params: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As plain.backward; the gradient of branch is [0] unless ``apart``, those of parameters unless asked for."""
    read, flags = _read(half, dtype)
    constants, rows = _constants("backward", half), half.rows
    tiles = triton.cdiv(rows, constants["BM"])
    channels = half.x.shape[-1]
    grad_x = half.x.new_empty(half.x.shape)
    grad_branch = half.branch.new_empty(half.x.shape) if apart else grad_x.new_empty(0)
    normed, through = (half.x.new_empty((rows, channels), dtype=dtype) for _ in range(2))
    partials = half.x.new_empty((tiles, 3 * channels), dtype=torch.float32)
    with torch.cuda.device_of(grad_x):
        backward_kernel[(tiles,)](
            grad.contiguous(), read.x, read.branch, read.keep, read.keep_mlp, read.gain, read.shift, read.fc1,
            read.bias1, read.fc2, grad_x, grad_branch, normed, through, partials,
            rows, rows // grad_x.shape[0], eps, APART=apart, **constants, **flags,
        )  # fmt: skip
        if not with_params:
            return grad_x, grad_branch, partials.new_empty(0), partials.new_empty(0)
        tokenwise = _summed(partials, 128, 16).view(3, channels)
        return grad_x, grad_branch, tokenwise, _weights(normed, through, read)


def _weights(normed: Tensor, through: Tensor, read: Half) -> Tensor:
    """Gradients of fc1, fc2 and bias1, one behind the other."""
    constants, rows = _constants("weights", read), normed.shape[0]
    hidden, channels = read.fc1.shape
    slices, tiles = hidden // constants["BH"], triton.cdiv(rows, constants["BM"])
    splits = min(tiles, max(1, device_family(normed.device)[1] // slices))
    partials = normed.new_empty((splits, 2 * channels * hidden + hidden), dtype=torch.float32)
    weights_kernel[(slices, splits)](
        normed, through, read.fc1, read.bias1, read.fc2, partials, rows, triton.cdiv(tiles, splits), **constants
    )
    return _summed(partials, 16, 64)


def _summed(partials: Tensor, programs: int, columns: int) -> Tensor:
    """Sums of partials [programs, width] over the programs; the tile that a program of its own sums at once."""
    count, width = partials.shape
    sums = partials.new_empty(width)
    sum_kernel[(triton.cdiv(width, columns),)](
        partials, sums, count, width, BP=programs, BX=columns, num_warps=4, enable_fp_fusion=True
    )
    return sums
