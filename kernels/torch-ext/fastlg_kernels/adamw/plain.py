"""One AdamW step in plain torch: what the kernel is held to, and what runs where it does not."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Columns(NamedTuple):
    """Columns of ``rates`` [groups, 6], float64 on the parameters' device."""

    lr: int = 0
    decay: int = 1
    beta1: int = 2
    beta2: int = 3
    eps: int = 4
    direction: int = 5  # -1 where the group is to be maximised, else 1


def step(
    weights: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    copies: list[Tensor],
    groups: list[int],
    rates: Tensor,
    steps: Tensor,
) -> None:
    """In place, with decoupled weight decay (arXiv 1711.05101) as torch.optim.AdamW has it, in the weights' dtype."""
    for k, (weight, grad, first, second) in enumerate(zip(weights, grads, firsts, seconds, strict=True)):
        lr, decay, beta1, beta2, eps, direction = rates[groups[k]].unbind()
        bias1, bias2 = 1 - beta1**steps, 1 - beta2**steps
        grad = (grad.to(weight.dtype) * direction).to(weight.dtype)
        first.copy_(first * beta1 + grad * (1 - beta1))
        second.copy_(second * beta2 + grad * grad * (1 - beta2))
        deviation = (second / bias2).sqrt() + eps
        weight.copy_(weight * (1 - lr * decay) - (lr / bias1) * first / deviation)
        if copies:
            copies[k].copy_(weight)
