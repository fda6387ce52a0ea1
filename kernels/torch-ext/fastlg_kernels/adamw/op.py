"""The AdamW step as a torch.library operator that writes in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from . import plain

WRITTEN = ("weights", "firsts", "seconds", "copies")


@torch.library.custom_op(add_op_namespace_prefix("adamw_step"), mutates_args=WRITTEN)
def adamw_step(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    copies: list[Tensor],
    groups: list[int],
    rates: Tensor,
    steps: Tensor,
    table: Tensor | None,
    chunks: Tensor | None,
) -> None:
    """weights, moments (and copies, where there are any) after one more step. The kernel runs where its tables are."""
    if table is None or chunks is None:
        plain.step(weights, grads, firsts, seconds, copies, groups, rates, steps)
        return
    from . import launch

    launch.step(table, chunks, rates, steps, weights[0], grads[0], copies[0] if copies else None)


@adamw_step.register_fake
def _(weights, grads, firsts, seconds, copies, groups, rates, steps, table, chunks):
    return None
