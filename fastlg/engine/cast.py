"""Weights of a half-precision step, rounded all at once: autocast rounds them one by one, a kernel each, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def of_products(unit: nn.Module) -> list[tuple[dict[str, Tensor | None], str]]:
    """(a layer's own parameters, name among them) of the float32 weights and biases that products alone read.

    Layers of torch and of this package, whose products autocast would give the same rounded values; others may reckon
    with their weights first, as does one that torch's old weight_norm or spectral_norm hooks. One that several layers
    share is left to autocast, too, and so is one that is not trained.
    """
    found, owners = [], {}
    for module in unit.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            owners[parameter] = owners.get(parameter, 0) + 1
            is_read = name in ("weight", "bias") and parameter.requires_grad and not module._forward_pre_hooks
            is_known = is_read and type(module).__module__.startswith(("torch.nn.", "fastlg."))
            if is_known and isinstance(module, PRODUCTS) and parameter.dtype == torch.float32:
                found.append((module._parameters, name))
    return [(own, name) for own, name in found if owners[own[name]] == 1]


@contextmanager
def rounded(places: list[tuple[dict[str, Tensor | None], str]], dtype: torch.dtype) -> Iterator[None]:
    """Inside, the weights in ``places`` are copies in ``dtype``; their gradients reach the float32 weights.

    One copy of all of them in forward, one of all their gradients in backward. ``places`` as ``of_products`` has them.
    """
    weights = [own[name] for own, name in places]
    copies = Rounded.apply(dtype, *weights)
    try:
        for (own, name), copy in zip(places, copies, strict=True):
            own[name] = copy
        yield
    finally:
        for (own, name), weight in zip(places, weights, strict=True):
            own[name] = weight


class Rounded(torch.autograd.Function):
    """(dtype, *weights) -> their copies in ``dtype``; the gradient of a copy that nothing read is none."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.weights = weights
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, list(weights))
        return tuple(copies)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [(weight, grad) for weight, grad in zip(ctx.weights, grads, strict=True) if grad is not None]
        whole = [torch.empty_like(weight) for weight, _ in there]
        if whole:
            torch._foreach_copy_(whole, [grad for _, grad in there])
        found = iter(whole)
        return None, *(None if grad is None else next(found) for grad in grads)
