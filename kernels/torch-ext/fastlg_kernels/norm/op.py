"""``add_layer_norm`` as two torch.library operators."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..derivatives import only_once
from ..devices import takes_triton
from . import plain

MOST_CHANNELS = 4096  # of a row that a program holds
NO_SECOND = "add_layer_norm has no second derivative; write x + branch and F.layer_norm where one is needed"


def _fits(total: Tensor, impl: str, *others: Tensor) -> bool:
    channels = total.shape[-1]
    limit = f"{channels} channels are more than {MOST_CHANNELS}" if channels > MOST_CHANNELS else ""
    return takes_triton(impl, "layer norm", (total, *others), limit)


@torch.library.custom_op(add_op_namespace_prefix("add_norm_forward"), mutates_args=())
def add_norm_forward(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """total, normed, and mean and 1 / deviation of every token, [2, rows]."""
    if _fits(x, impl, branch, weight, bias):
        from . import launch

        return launch.forward(x, branch, weight, bias, keep, eps, dtype)
    return plain.forward(x, branch, weight, bias, keep, eps, dtype)


@add_norm_forward.register_fake
def _(x, branch, weight, bias, keep, eps, dtype, impl):
    rows = x.numel() // x.shape[-1]
    stats = x.new_empty((2, rows), dtype=plain.compute_dtype(x, branch, weight, bias))
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype), stats


@torch.library.custom_op(add_op_namespace_prefix("add_norm_backward"), mutates_args=())
def add_norm_backward(
    grad_total: Tensor | None,
    grad_normed: Tensor,
    total: Tensor,
    stats: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    branch_dtype: torch.dtype,
    with_params: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of branch, and of weight and bias as one [2, C] ([0] unless ``with_params``).

    The gradient of branch is [0] where x's is the very same.
    """
    apart = keep is not None or branch_dtype != total.dtype
    if _fits(total, impl, grad_normed, weight, stats):
        from . import launch

        return launch.backward(grad_total, grad_normed, total, stats, weight, keep, branch_dtype, apart, with_params)
    grad, grad_branch, params = plain.backward(grad_total, grad_normed, total, stats, weight, keep, branch_dtype)
    empty = grad.new_empty(0, dtype=branch_dtype)
    return grad, grad_branch if apart else empty, params if with_params else params.new_empty(0)


@add_norm_backward.register_fake
def _(grad_total, grad_normed, total, stats, weight, keep, branch_dtype, with_params, impl):
    apart = keep is not None or branch_dtype != total.dtype
    params = stats.new_empty((2, total.shape[-1]) if with_params else (0,))
    return total.new_empty(total.shape), total.new_empty(total.shape if apart else (0,), dtype=branch_dtype), params


def _setup_context(ctx, inputs, output):
    _, branch, weight, bias, keep, _, _, impl = inputs
    total, _, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(total, stats, weight, keep)
    ctx.dtypes, ctx.impl = (branch.dtype, weight.dtype, bias.dtype), impl


def _backward(ctx, grad_total, grad_normed, _):
    total, stats, weight, keep = ctx.saved_tensors
    branch_dtype, *param_dtypes = ctx.dtypes
    rest = (None,) * 4
    if grad_normed is None:
        if grad_total is None:
            return None, None, None, None, *rest
        grad_branch = plain.scaled_by(keep, grad_total)
        return grad_total, grad_branch.to(branch_dtype), None, None, *rest
    with_params = any(ctx.needs_input_grad[2:4])
    arguments = (grad_total, grad_normed, total, stats, weight, keep, branch_dtype, with_params, ctx.impl)
    grad, grad_branch, params = add_norm_backward(*arguments)
    if torch.is_grad_enabled():  # the caller asked for create_graph=True
        grad, grad_branch, params = only_once(NO_SECOND, (grad, grad_branch, params))
    if grad_branch.numel() == 0:
        grad_branch = grad
    parameters = [params[k].to(dtype) for k, dtype in enumerate(param_dtypes)] if with_params else (None, None)
    return grad, grad_branch, *parameters, *rest


add_norm_forward.register_autograd(_backward, setup_context=_setup_context)
