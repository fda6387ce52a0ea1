"""``add_layer_norm``: a branch joins the residual stream, and the next branch gets the stream's layer norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import check_impl
from .op import add_norm_forward

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    keep: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``total = x + keep * branch`` and ``F.layer_norm(total, (C,), weight, bias, eps)``: (total, normed).

    x       residual stream [N, ..., C]; total has its dtype
    branch  what joins it, of x's shape, in any dtype
    weight  [C], bias [C], of the layer norm
    keep    [N] or None: what each sample's branch is multiplied by, 0 or 1 / (1 - p) for stochastic depth
            (arXiv 1603.09382, as timm's DropPath scales it). A branch whose factor is 0 is not read, whatever it holds
    eps     added to the variance; 1e-6 is timm's
    dtype   of normed; None takes autocast's dtype where autocast is on, else x's
    impl    "auto" takes the Triton kernels where they run and torch elsewhere; "triton" and "torch" insist

    Sums are float32 (float64 where an input is float64) and in a fixed order: the same input gives the same bits.
    Gradients reach x, branch, weight and bias, each in its own dtype; keep gets none. Backward keeps total, and
    8 bytes per token. Second derivatives are refused. Raises TypeError for a wrong type or dtype, ValueError for shapes
    or devices that do not fit, and RuntimeError where ``impl="triton"`` cannot run.
    """
    check_impl(impl)
    _check(x, branch, weight, bias, keep, dtype)
    if dtype is None:
        device = "cpu" if x.is_meta else x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    keep = None if keep is None else keep.detach()
    return add_norm_forward(x, branch, weight, bias, keep, eps, dtype, impl)[:2]


def _check(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, dtype) -> None:
    tensors = {"x": x, "branch": branch, "weight": weight, "bias": bias} | ({} if keep is None else {"keep": keep})
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; pass a tensor")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} is {tensor.dtype}; use one of {', '.join(map(str, FLOATS))}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; move them together")
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; use one of {', '.join(map(str, FLOATS))}")
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass [N, ..., C] with at least one element")
    expected = {"branch": x.shape, "weight": x.shape[-1:], "bias": x.shape[-1:], "keep": x.shape[:1]}
    for name, tensor in tensors.items():
        if name != "x" and tensor.shape != expected[name]:
            want = tuple(expected[name])
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} beside x {tuple(x.shape)}; it must be {want}")
