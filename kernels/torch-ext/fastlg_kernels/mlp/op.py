"""``add_mlp`` as two torch.library operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._ops import add_op_namespace_prefix, ops
from ..derivatives import only_once
from ..devices import device_family, takes_triton
from . import plain
from .plain import Half
from .tiles import choose, obstacle

NO_SECOND = "add_mlp has no second derivative; write its parts in torch where one is needed"


def _takes_triton(half: Half, dtype: torch.dtype, kernels: tuple[str, ...], impl: str) -> bool:
    hidden, channels = half.fc1.shape
    limit = obstacle(channels, hidden)
    if not limit and half.x.device.type == "cuda":
        family = device_family(half.x.device)[0]
        needed = max(choose(kernel, family, hidden).shared for kernel in kernels)
        there = torch.cuda.get_device_properties(half.x.device).shared_memory_per_block_optin
        if dtype == torch.float32:
            limit = "on a GPU they multiply bfloat16 and float16"
        elif needed > there:
            limit = f"a tile takes {needed} bytes of shared memory, this GPU has {there}"
    tensors = [tensor for tensor in half if tensor is not None]
    return takes_triton(impl, "MLP", [*tensors, half.x.new_empty(0, dtype=dtype)], limit)


@torch.library.custom_op(add_op_namespace_prefix("add_mlp_forward"), mutates_args=())
def add_mlp_forward(
    x: Tensor,
    branch: Tensor | None,
    keep: Tensor | None,
    keep_mlp: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    fc1: Tensor,
    bias1: Tensor,
    fc2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
    impl: str,
) -> Tensor:
    """[N, ..., C] in x's dtype."""
    half = Half(x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2)
    if _takes_triton(half, dtype, ("forward",), impl):
        from . import launch

        return launch.forward(half, eps, dtype)
    return plain.forward(half, eps, dtype)


@add_mlp_forward.register_fake
def _(x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2, eps, dtype, impl):
    return x.new_empty(x.shape)


def _apart(x: Tensor, branch: Tensor | None, keep: Tensor | None) -> bool:
    """Whether branch's gradient is another than x's."""
    return branch is not None and (keep is not None or branch.dtype != x.dtype)


@torch.library.custom_op(add_op_namespace_prefix("add_mlp_backward"), mutates_args=())
def add_mlp_backward(
    grad: Tensor,
    x: Tensor,
    branch: Tensor | None,
    keep: Tensor | None,
    keep_mlp: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    fc1: Tensor,
    bias1: Tensor,
    fc2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
    with_params: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x; of branch ([0] where x's is the very same); of gain, shift and bias2 as one [3, C]; of fc1, fc2
    and bias1, one behind the other. Those of parameters are [0] unless ``with_params``."""
    half = Half(x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2)
    apart = _apart(x, branch, keep)
    if _takes_triton(half, dtype, ("backward", "weights"), impl):
        from . import launch

        return launch.backward(grad, half, eps, dtype, apart, with_params)
    grad_x, grad_branch, tokenwise, products = plain.backward(grad, half, eps, dtype)
    if not apart:
        grad_branch = grad_x.new_empty(0)
    if not with_params:
        tokenwise, products = tokenwise.new_empty(0), products.new_empty(0)
    return grad_x, grad_branch, tokenwise, products


@add_mlp_backward.register_fake
def _(grad, x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2, eps, dtype, with_params, impl):
    hidden, channels = fc1.shape
    wide = plain.compute_dtype(x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2)
    grad_branch = branch.new_empty(x.shape) if _apart(x, branch, keep) else x.new_empty(0)
    tokenwise = x.new_empty((3, channels) if with_params else (0,), dtype=wide)
    products = x.new_empty((2 * channels * hidden + hidden) if with_params else 0, dtype=wide)
    return x.new_empty(x.shape), grad_branch, tokenwise, products


def _setup_context(ctx, inputs, output):
    *tensors, ctx.eps, ctx.dtype, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    half = Half(*ctx.saved_tensors)
    with_params = any(ctx.needs_input_grad[4:10])
    grads = add_mlp_backward(grad, *half, ctx.eps, ctx.dtype, with_params, ctx.impl)
    if torch.is_grad_enabled():  # the caller asked for create_graph=True
        grads = only_once(NO_SECOND, grads)
    grad_x, grad_branch, tokenwise, products = grads
    if half.branch is None:
        grad_branch = None
    elif not _apart(half.x, half.branch, half.keep):
        grad_branch = grad_x
    parameters = [None] * 6
    if with_params:
        hidden, channels = half.fc1.shape
        fc1, fc2, bias1 = products.split((hidden * channels, hidden * channels, hidden))
        parameters = [tokenwise[0], tokenwise[1], fc1.view(hidden, channels), bias1, fc2.view(channels, hidden)]
        parameters.append(tokenwise[2])
        parameters = [value.to(old.dtype) for value, old in zip(parameters, half[4:], strict=True)]
    return grad_x, grad_branch, None, None, *parameters, None, None, None


add_mlp_forward.register_autograd(_backward, setup_context=_setup_context)


def _product_flops(x_shape, fc1_shape) -> int:
    """Multiply-adds count twice; one product of all tokens with one of the layers."""
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * fc1_shape[0] * fc1_shape[1]


@register_flop_formula(ops.add_mlp_forward)
def _forward_flops(x_shape, branch, keep, keep_mlp, gain, shift, fc1_shape, *_, **__):
    return 2 * _product_flops(x_shape, fc1_shape)


@register_flop_formula(ops.add_mlp_backward)
def _backward_flops(grad_shape, x_shape, branch, keep, keep_mlp, gain, shift, fc1_shape, *_, **__):
    """Of the kernels, both of which make the hidden layer again."""
    return 7 * _product_flops(x_shape, fc1_shape)
