"""Gradients of operators that have no second derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _NoSecondDerivative(torch.autograd.Function):
    """Gradients that refuse to be differentiated: without it, they would count as constants."""

    @staticmethod
    def forward(ctx, message, *grads):
        ctx.message = message
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(ctx.message)


def only_once(message: str, grads: Sequence[Tensor]) -> list[Tensor]:
    """``grads`` that raise ``message`` where they are differentiated: for a caller who asked for create_graph=True."""
    return list(_NoSecondDerivative.apply(message, *(grad.detach().requires_grad_() for grad in grads)))
