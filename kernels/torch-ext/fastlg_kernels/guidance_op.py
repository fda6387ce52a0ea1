"""The guidance loss as two torch.library operators: one forward and one backward call for all pairs together.

The forward leaves, per pair, the residual on the student's grid (D channels per token) and the finished weight and
bias gradients; the backward turns residuals into token gradients at the true upstream gradient. Nothing here is scaled
in half precision before that: 1 / (N D H W) alone would be lost in float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import guidance_torch
from ._ops import add_op_namespace_prefix

TOKENS, NCHW, CHANNELS_LAST = 0, 1, 2


def pair_grids(grids: Sequence[int]) -> list[tuple[int, int]]:
    """Flat [H0, W0, H1, W1, ...] (schemas know no nested lists) -> [(H0, W0), (H1, W1), ...]."""
    return list(zip(grids[::2], grids[1::2], strict=True))


def pair_count(student: Tensor, teacher: Tensor, grid: tuple[int, int], sum_channels: bool) -> int:
    """What the pair's sum of squares is divided by."""
    batch, dim, height, width = teacher.shape
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


@torch.library.custom_op(add_op_namespace_prefix("guidance_forward"), mutates_args=())
def guidance_forward(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grids: Sequence[int],
    sum_channels: bool,
    with_residuals: bool,
    with_weights: bool,
    use_triton: bool,
    allow_tf32: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Loss (0-d), residuals [N, H*W, D] in the students' dtypes, weight gradients [D, C], bias gradients [D]."""
    loss_dtype = guidance_torch.compute_dtype(*students, *teachers, *weights, *biases)
    total, residuals, weight_grads, bias_grads = None, [], [], []
    for pair in zip(students, teachers, weights, biases, pair_grids(grids), strict=True):
        loss, residual, weight_grad, bias_grad = guidance_torch.pair_forward(*pair, with_residuals, with_weights)
        count = pair_count(pair[0], pair[1], pair[4], sum_channels)
        total = loss / count if total is None else total + loss / count
        if with_residuals:
            residuals.append(residual)
        if with_weights:
            weight_grads.append(weight_grad * (2 / count))
            bias_grads.append(bias_grad * (2 / count))
    return total.to(loss_dtype), residuals, weight_grads, bias_grads


@guidance_forward.register_fake
def _(students, teachers, weights, biases, grids, sum_channels, with_residuals, with_weights, use_triton, allow_tf32):
    loss_dtype = guidance_torch.compute_dtype(*students, *teachers, *weights, *biases)
    loss = students[0].new_empty((), dtype=loss_dtype)
    residuals, weight_grads, bias_grads = [], [], []
    for student, teacher, weight, bias, (height, width) in zip(
        students, teachers, weights, biases, pair_grids(grids), strict=True
    ):
        if with_residuals:
            residuals.append(student.new_empty((student.shape[0], height * width, weight.shape[0])))
        if with_weights:
            dtype = guidance_torch.compute_dtype(student, teacher, weight, bias)
            weight_grads.append(weight.new_empty(weight.shape, dtype=dtype))
            bias_grads.append(bias.new_empty(bias.shape, dtype=dtype))
    return loss, residuals, weight_grads, bias_grads


@torch.library.custom_op(add_op_namespace_prefix("guidance_backward"), mutates_args=())
def guidance_backward(
    grad: Tensor,
    residuals: Sequence[Tensor],
    weights: Sequence[Tensor],
    weight_grads: Sequence[Tensor],
    bias_grads: Sequence[Tensor],
    layouts: Sequence[int],
    counts: Sequence[int],
    use_triton: bool,
    allow_tf32: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of students, weights and biases at the upstream gradient ``grad`` (0-d); [] for what was not kept."""
    outs = []
    for index, residual in enumerate(residuals):
        out = empty_gradient(residual, weights[index], layouts[3 * index : 3 * index + 3])
        guidance_torch.pair_backward(residual, weights[index], grad * (2 / counts[index]), out)
        outs.append(out)
    scaled = [[grad.to(g.dtype) * g for g in group] for group in (weight_grads, bias_grads)]
    return outs, scaled[0], scaled[1]


@guidance_backward.register_fake
def _(grad, residuals, weights, weight_grads, bias_grads, layouts, counts, use_triton, allow_tf32):
    outs = [empty_gradient(r, weights[i], layouts[3 * i : 3 * i + 3]) for i, r in enumerate(residuals)]
    return outs, [torch.empty_like(g) for g in weight_grads], [torch.empty_like(g) for g in bias_grads]


def _setup_context(ctx, inputs, output):
    students, teachers, weights, biases, grids, sum_channels, _, _, use_triton, allow_tf32 = inputs
    _, residuals, weight_grads, bias_grads = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*residuals, *weight_grads, *bias_grads)
    ctx.save_for_backward(*residuals, *(weights if residuals else ()), *weight_grads, *bias_grads)
    ctx.pairs, ctx.with_residuals, ctx.with_weights = len(students), bool(residuals), bool(weight_grads)
    ctx.dtypes = [w.dtype for w in weights], [b.dtype for b in biases]
    shapes = list(zip(students, teachers, pair_grids(grids), strict=True))
    ctx.layouts = [n for s, _, grid in shapes for n in student_layout(s, grid)]
    ctx.counts = [pair_count(s, t, grid, sum_channels) for s, t, grid in shapes]
    ctx.flags = use_triton, allow_tf32


def _backward(ctx, grad, *_):
    none = [None] * ctx.pairs
    if grad is None:
        return none, none, none, none, None, None, None, None, None, None
    saved, pairs = ctx.saved_tensors, ctx.pairs
    groups = [saved[i : i + pairs] for i in range(0, len(saved), pairs)]
    residuals, weights = groups[:2] if ctx.with_residuals else ((), ())
    weight_grads, bias_grads = groups[-2:] if ctx.with_weights else ((), ())
    tokens, weight_grads, bias_grads = guidance_backward(
        grad, residuals, weights, weight_grads, bias_grads, ctx.layouts, ctx.counts, *ctx.flags
    )
    cast = [
        [g.to(dtype) for g, dtype in zip(group, dtypes, strict=True)] if ctx.with_weights else none
        for group, dtypes in zip((weight_grads, bias_grads), ctx.dtypes, strict=True)
    ]
    return tokens if ctx.with_residuals else none, none, *cast, None, None, None, None, None, None


guidance_forward.register_autograd(_backward, setup_context=_setup_context)
