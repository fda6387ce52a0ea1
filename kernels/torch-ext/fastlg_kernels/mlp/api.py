"""``add_mlp``: a branch joins the residual stream, and the stream gets what the MLP makes of its layer norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import check_impl
from .op import add_mlp_forward
from .plain import Half

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Pair = tuple[Tensor, Tensor]


def add_mlp(
    x: Tensor,
    branch: Tensor | None,
    norm: Pair,
    fc1: Pair,
    fc2: Pair,
    *,
    keep: Tensor | None = None,
    keep_mlp: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor:
    """``total + keep_mlp * linear(gelu(linear(layer_norm(total), *fc1)), *fc2)``, ``total = x + keep * branch``.

    x         residual stream [N, ..., C]; the result has its shape and dtype
    branch    what joins it first, of x's shape, in any dtype; None for nothing
    norm      weight [C] and bias [C] of the layer norm
    fc1, fc2  weight [hidden, C] and bias [hidden], weight [C, hidden] and bias [C]; between them is the exact GELU
    keep      [N] or None: what each sample's branch is multiplied by, 0 or 1 / (1 - p) for stochastic depth (arXiv
              1603.09382, as timm's DropPath scales it). A branch whose factor is 0 is not read, whatever it holds
    keep_mlp  the same for what the MLP makes
    eps       added to the variance; 1e-6 is timm's
    dtype     of the products; None takes autocast's dtype where autocast is on, else fc1's weight's
    impl      "auto" takes the Triton kernels where they run and torch elsewhere; "triton" and "torch" insist

    Forward keeps x and branch alone; backward makes norm and hidden layer again, which is 9 products where 6 would do,
    for less than a quarter of the bytes (plain.py counts them). Sums are float32 (float64 where an input is float64)
    and in a fixed order: the same input gives the same bits. Gradients reach x, branch and all parameters, each in its
    own dtype; the kernels round them to ``dtype`` nowhere in between. keep and keep_mlp get none. On a GPU the kernels
    take bfloat16 and float16 products of up to 192 channels, torch others. Second derivatives are refused. Raises
    TypeError for a wrong type or dtype, ValueError for shapes or devices that do not fit, and RuntimeError where
    ``impl="triton"`` cannot run.
    """
    check_impl(impl)
    for name, pair in (("norm", norm), ("fc1", fc1), ("fc2", fc2)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{name} is a {type(pair).__name__}; pass its weight and its bias, (weight, bias)")
    half = Half(x, branch, keep, keep_mlp, *norm, *fc1, *fc2)
    _check(half, dtype)
    if dtype is None:
        device = "cpu" if x.is_meta else x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else half.fc1.dtype
    keeps = (factor if factor is None else factor.detach() for factor in (keep, keep_mlp))
    return add_mlp_forward(x, branch, *keeps, *half[4:], eps, dtype, impl)


NAMES = ("x", "branch", "keep", "keep_mlp", "norm's weight", "norm's bias", "fc1's weight", "fc1's bias",
         "fc2's weight", "fc2's bias")  # fmt: skip


def _check(half: Half, dtype: torch.dtype | None) -> None:
    given = dict(zip(NAMES, half, strict=True))
    tensors = {name: t for name, t in given.items() if name not in ("branch", "keep", "keep_mlp") or t is not None}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; pass a tensor")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} is {tensor.dtype}; use one of {', '.join(map(str, FLOATS))}")
        if tensor.device != half.x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {half.x.device}; move them together")
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; use one of {', '.join(map(str, FLOATS))}")
    shape = half.x.shape
    if len(shape) < 2 or half.x.numel() == 0:
        raise ValueError(f"x has shape {tuple(shape)}; pass [N, ..., C] with at least one element")
    if half.fc1.dim() != 2 or half.fc1.numel() == 0:
        raise ValueError(f"fc1's weight has shape {tuple(half.fc1.shape)}; pass [hidden, C]")
    hidden, channels = half.fc1.shape[0], shape[-1]
    expected = (shape, shape, shape[:1], shape[:1], (channels,), (channels,), (hidden, channels), (hidden,),
                (channels, hidden), (channels,))  # fmt: skip
    for name, want in zip(NAMES, expected, strict=True):
        if name in tensors and tensors[name].shape != want:
            found = tuple(tensors[name].shape)
            raise ValueError(f"{name} has shape {found} beside x {tuple(shape)}; it must be {tuple(want)}")
