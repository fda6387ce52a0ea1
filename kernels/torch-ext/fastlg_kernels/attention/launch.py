"""Launches of the attention kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tiles import choose, padded
from .triton_attention import backward_kernel, forward_kernel


def _constants(kernel: str, qkv: Tensor) -> dict:
    _, length, _, heads, dim = qkv.shape
    row = choose(kernel, length, dim)
    return {"HEADS": heads, "LENGTH": length, "D": dim, "BQ": row.queries, "BL": padded(length)} | row.launch


def _readable(qkv: Tensor) -> Tensor:
    """Any strides but those of channels, and of tokens that are far apart: offsets within an image are 32-bit."""
    within = sum(size * stride for size, stride in zip(qkv.shape[1:], qkv.stride()[1:], strict=True))
    return qkv if qkv.stride(4) == 1 and within < 2**31 else qkv.contiguous()


def forward(qkv: Tensor, scale: float) -> Tensor:
    """As plain.forward."""
    batch, length, _, heads, dim = qkv.shape
    qkv, out = _readable(qkv), qkv.new_empty((batch, length, heads * dim))
    with torch.cuda.device_of(qkv):
        forward_kernel[(batch * heads,)](
            qkv, out, *qkv.stride()[:4], scale * math.log2(math.e), **_constants("forward", qkv)
        )
    return out


def backward(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """As plain.backward."""
    batch, _, _, heads, _ = qkv.shape
    qkv, out = _readable(qkv), qkv.new_empty(qkv.shape)
    with torch.cuda.device_of(qkv):
        backward_kernel[(batch * heads,)](
            grad.contiguous(), qkv, out, *qkv.stride()[:4], scale * math.log2(math.e), scale,
            **_constants("backward", qkv),
        )  # fmt: skip
    return out
