"""``short_attention``: softmax attention of every token with every other, for up to 256 tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import check_impl
from .op import attention_forward

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_TOKENS = 256
HEAD_DIMS = (32, 64)
INSTEAD = "use torch.nn.functional.scaled_dot_product_attention"


def short_attention(qkv: Tensor, *, scale: float | None = None, impl: str = "auto") -> Tensor:
    """``softmax(scale * q k^T) v`` of every image and head, without mask and dropout: [N, L, H * D].

    qkv    [N, L, 3, H, D], what a linear layer to 3 * H * D channels gives, seen so (``.unflatten(-1, (3, H, D))``):
           queries, keys and values side by side. L is at most 256, D is 32 or 64
    scale  of the scores; None for 1 / sqrt(D)
    impl   "auto" takes the Triton kernels where they run and torch elsewhere; "triton" and "torch" insist

    On a GPU the kernels take float16 and bfloat16, and torch float32 and float64. The softmax is float32 (float64 for
    float64), products take qkv's dtype; under autocast float32 becomes autocast's. One gradient, of qkv, dense in its
    shape and dtype; no sum depends on the order of programs, so the same input gives the same bits. Backward keeps qkv
    alone and makes the scores again. Second derivatives are refused. Raises TypeError for a wrong type or dtype,
    ValueError for a shape it does not take, and RuntimeError where ``impl="triton"`` cannot run.
    """
    check_impl(impl)
    if not isinstance(qkv, Tensor):
        raise TypeError(f"qkv is a {type(qkv).__name__}; pass a tensor [N, L, 3, H, D]")
    if qkv.dtype not in FLOATS:
        raise TypeError(f"qkv is {qkv.dtype}; use one of {', '.join(map(str, FLOATS))}")
    shape = tuple(qkv.shape)
    if qkv.dim() != 5 or shape[2] != 3 or qkv.numel() == 0:
        raise ValueError(f"qkv has shape {shape}; pass [N, L, 3, H, D] with at least one element")
    if shape[1] > MOST_TOKENS:
        raise ValueError(f"qkv has {shape[1]} tokens, more than {MOST_TOKENS}; {INSTEAD}")
    if shape[4] not in HEAD_DIMS:
        raise ValueError(f"qkv has heads of {shape[4]} channels, which are neither 32 nor 64; {INSTEAD}")
    device = "cpu" if qkv.is_meta else qkv.device.type
    if qkv.dtype == torch.float32 and torch.is_autocast_enabled(device):
        qkv = qkv.to(torch.get_autocast_dtype(device))
    return attention_forward(qkv, shape[4] ** -0.5 if scale is None else float(scale), impl)
