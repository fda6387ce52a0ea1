"""The guidance loss as two torch.library operators: one forward and one backward call for all pairs together.

The forward leaves, per pair, the residual on the student's grid (D channels per token) and the finished weight and
bias gradients; the backward turns residuals into token gradients at the true upstream gradient. So a second backward
is right, and no gradient is rounded to half precision before the upstream gradient (a gradient scaler's, say) is in
it: 1 / (N D H W) alone would be lost in float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .._ops import add_op_namespace_prefix, ops
from ..derivatives import only_once
from ..devices import allows_tf32, takes_triton
from . import plain

TOKENS, NCHW, CHANNELS_LAST = 0, 1, 2


def pair_grids(grids: Sequence[int]) -> list[tuple[int, int]]:
    """Flat [H0, W0, H1, W1, ...] (schemas know no nested lists) -> [(H0, W0), (H1, W1), ...]."""
    return list(zip(grids[::2], grids[1::2], strict=True))


def pair_count(teacher_shape: Sequence[int], grid: tuple[int, int], sum_channels: bool) -> int:
    """What the pair's sum of squares is divided by."""
    batch, dim, height, width = teacher_shape
    positions = batch * max(grid[0], height) * max(grid[1], width)
    return positions if sum_channels else positions * dim


def student_layout(student: Tensor, grid: tuple[int, int]) -> tuple[int, int, int]:
    """What the gradient of a student must look like, as integers for the operator's schema.

    (TOKENS, L, 0) for [N, L, C]; (NCHW, H, W) or (CHANNELS_LAST, H, W) for maps. Gradients are dense in that layout,
    whatever the strides of the student.
    """
    if student.dim() == 3:
        return TOKENS, student.shape[1], 0
    is_last = not student.is_contiguous() and student.is_contiguous(memory_format=torch.channels_last)
    return CHANNELS_LAST if is_last else NCHW, *grid


def empty_gradient(residual: Tensor, weight: Tensor, layout: Sequence[int]) -> Tensor:
    """Uninitialised gradient of a student with that layout, in the residual's dtype, which is the student's."""
    kind, first, second = layout
    batch, channels = residual.shape[0], weight.shape[1]
    if kind == TOKENS:
        return residual.new_empty((batch, first, channels))
    if kind == NCHW:
        return residual.new_empty((batch, channels, first, second))
    return residual.new_empty((batch, first, second, channels)).permute(0, 3, 1, 2)


# _v2: torch.compile's caches on disk know an operator by its name and schema alone, and bake its outputs' strides into
# code. A change of these needs a new name, or users who upgrade run code compiled for the old ones.
@torch.library.custom_op(add_op_namespace_prefix("guidance_forward_v2"), mutates_args=())
def guidance_forward(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grids: Sequence[int],
    sum_channels: bool,
    with_residuals: bool,
    with_weights: bool,
    impl: str,
    autocast: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss (0-d), residuals [N, H*W, D] in the students' dtypes, and W0, b0, W1, ... gradients in one flat tensor.

    A residual is E of plain.py times its ``residual_scale``.
    """
    pairs = list(zip(students, teachers, weights, biases, pair_grids(grids), strict=True))
    counts = [pair_count(teacher.shape, grid, sum_channels) for _, teacher, _, _, grid in pairs]
    if takes_triton(impl, "guidance", (*students, *teachers, *weights, *biases)):
        from . import launch

        return launch.forward(pairs, counts, with_residuals, with_weights, allows_tf32(autocast))
    return plain.forward(pairs, counts, with_residuals, with_weights)


@guidance_forward.register_fake
def _(students, teachers, weights, biases, grids, sum_channels, with_residuals, with_weights, impl, autocast):
    dtype = plain.compute_dtype(*students, *teachers, *weights, *biases)
    residuals = []
    for student, weight, (height, width) in zip(students, weights, pair_grids(grids), strict=True):
        shape = student.shape[0], height * width, weight.shape[0]
        residuals.append(student.new_empty(shape))
    size = sum(tensor.numel() for tensor in (*weights, *biases)) if with_weights else 0
    loss = students[0].new_empty((), dtype=dtype)
    return loss, residuals if with_residuals else [], students[0].new_empty((size,), dtype=dtype)


@torch.library.custom_op(add_op_namespace_prefix("guidance_backward"), mutates_args=())
def guidance_backward(
    grad: Tensor,
    residuals: Sequence[Tensor],
    weights: Sequence[Tensor],
    param_grads: Tensor,
    layouts: Sequence[int],
    scales: Sequence[float],
    impl: str,
    autocast: bool,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the students, and the flat parameter gradients, at the upstream gradient ``grad`` (0-d).

    scales: per pair, the student's gradient over residual times weight at an upstream gradient of 1.
    """
    outs = []
    use_triton = bool(residuals) and takes_triton(impl, "guidance", (*residuals, *weights))
    for index, (residual, weight, scale) in enumerate(zip(residuals, weights, scales, strict=True)):
        outs.append(empty_gradient(residual, weight, layouts[3 * index : 3 * index + 3]))
        if use_triton:
            from . import launch

            launch.token_grad(residual, weight, grad, scale, outs[-1], allows_tf32(autocast))
        else:
            plain.token_grad(residual, weight, grad * scale, outs[-1])
    return outs, param_grads * grad.to(param_grads.dtype)


@guidance_backward.register_fake
def _(grad, residuals, weights, param_grads, layouts, scales, impl, autocast):
    outs = [empty_gradient(r, weights[i], layouts[3 * i : 3 * i + 3]) for i, r in enumerate(residuals)]
    return outs, torch.empty_like(param_grads)


def _setup_context(ctx, inputs, output):
    students, teachers, weights, biases, grids, sum_channels, _, with_weights, impl, autocast = inputs
    _, residuals, param_grads = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*residuals, param_grads)
    ctx.save_for_backward(param_grads, *residuals, *(weights if residuals else ()))
    ctx.parameters = [(p.shape, p.dtype) for pair in zip(weights, biases, strict=True) for p in pair]
    ctx.with_weights, ctx.flags = with_weights, (impl, autocast)
    pairs = list(zip(students, teachers, pair_grids(grids), strict=True))
    ctx.layouts = [n for student, _, grid in pairs for n in student_layout(student, grid)]
    ctx.scales = [
        2 / (pair_count(teacher.shape, grid, sum_channels) * plain.residual_scale(grid, teacher.shape))
        for _, teacher, grid in pairs
    ]


NO_SECOND = (
    "guidance_loss has no second derivative; detach its gradient, or write the loss with conv2d, interpolate and "
    "mse_loss where a gradient of the gradient is needed"
)


def _backward(ctx, grad, *_):
    none = [None] * len(ctx.scales)
    options = (None,) * 6
    if grad is None:
        return none, none, none, none, *options
    param_grads, *saved = ctx.saved_tensors
    residuals, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
    scales = ctx.scales if residuals else []
    tokens, param_grads = guidance_backward(grad, residuals, weights, param_grads, ctx.layouts, scales, *ctx.flags)
    if torch.is_grad_enabled():  # the caller asked for create_graph=True
        *tokens, param_grads = only_once(NO_SECOND, (*tokens, param_grads))
    parameters = 2 * none
    if ctx.with_weights:
        parts = param_grads.split([shape.numel() for shape, _ in ctx.parameters])
        parameters = [part.view(shape).to(dtype) for part, (shape, dtype) in zip(parts, ctx.parameters, strict=True)]
    return tokens if residuals else none, none, parameters[::2], parameters[1::2], *options


guidance_forward.register_autograd(_backward, setup_context=_setup_context)


def _product_flops(token_count: int, weight_shape: Sequence[int]) -> int:
    """Multiply-adds count twice; one product of all tokens with the projection."""
    return 2 * token_count * weight_shape[0] * weight_shape[1]


@register_flop_formula(ops.guidance_forward_v2)
def _forward_flops(students, teachers, weights, biases, grids, sum_channels, with_residuals, with_weights, *_, **__):
    """Projection, and the weight gradient where it is made; resizes are left out, as for interpolate."""
    grids = pair_grids(grids)
    triples = zip(students, weights, grids, strict=True)
    return sum(_product_flops(s[0] * h * w, weight) for s, weight, (h, w) in triples) * (2 if with_weights else 1)


@register_flop_formula(ops.guidance_backward)
def _backward_flops(grad, residuals, weights, *_, **__):
    return sum(_product_flops(r[0] * r[1], weight) for r, weight in zip(residuals, weights, strict=True))
