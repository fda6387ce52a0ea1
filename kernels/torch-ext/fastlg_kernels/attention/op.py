"""``short_attention`` as two torch.library operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._ops import add_op_namespace_prefix, ops
from ..derivatives import only_once
from ..devices import takes_triton
from . import plain
from .tiles import choose

NO_SECOND = "short_attention has no second derivative; write softmax(q @ k.mT) @ v where one is needed"


def _limit(kernel: str, qkv: Tensor) -> str:
    """Why this GPU cannot take what the kernels otherwise do; "" where it can."""
    if qkv.device.type != "cuda":
        return ""
    if qkv.dtype == torch.float32:
        return "on a GPU they take float16 and bfloat16: a head of float32 fits on no chip"
    needed = choose(kernel, qkv.shape[1], qkv.shape[4]).shared
    there = torch.cuda.get_device_properties(qkv.device).shared_memory_per_block_optin
    shape = f"{qkv.shape[1]} tokens of {qkv.shape[4]} channels"
    return "" if needed <= there else f"{shape} need {needed} bytes of shared memory, this GPU has {there}"


@torch.library.custom_op(add_op_namespace_prefix("attention_forward"), mutates_args=())
def attention_forward(qkv: Tensor, scale: float, impl: str) -> Tensor:
    """[N, L, H * D] of qkv [N, L, 3, H, D]."""
    if takes_triton(impl, "attention", (qkv,), _limit("forward", qkv)):
        from . import launch

        return launch.forward(qkv, scale)
    return plain.forward(qkv, scale)


@attention_forward.register_fake
def _(qkv, scale, impl):
    batch, length, _, heads, dim = qkv.shape
    return qkv.new_empty((batch, length, heads * dim))


@torch.library.custom_op(add_op_namespace_prefix("attention_backward"), mutates_args=())
def attention_backward(grad: Tensor, qkv: Tensor, scale: float, impl: str) -> Tensor:
    """Gradient of qkv, packed as qkv is."""
    if takes_triton(impl, "attention", (qkv, grad), _limit("backward", qkv)):
        from . import launch

        return launch.backward(grad, qkv, scale)
    return plain.backward(grad, qkv, scale)


@attention_backward.register_fake
def _(grad, qkv, scale, impl):
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx, inputs, output):
    qkv, ctx.scale, ctx.impl = inputs
    ctx.save_for_backward(qkv)


def _backward(ctx, grad):
    packed = attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.impl)
    if torch.is_grad_enabled():  # the caller asked for create_graph=True
        (packed,) = only_once(NO_SECOND, [packed])
    return packed, None, None


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def _product_flops(qkv_shape) -> int:
    """Multiply-adds count twice; one product of all tokens with all tokens."""
    batch, length, _, heads, dim = qkv_shape
    return 2 * batch * heads * length * length * dim


@register_flop_formula(ops.attention_forward)
def _forward_flops(qkv_shape, *_, **__):
    return 2 * _product_flops(qkv_shape)


@register_flop_formula(ops.attention_backward)
def _backward_flops(grad_shape, qkv_shape, *_, **__):
    """With the scores, which are made again."""
    return 5 * _product_flops(qkv_shape)
