"""``add_layer_norm`` written the long way in float64, and inputs for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlg_kernels import add_layer_norm

EPS = 1e-3  # large enough that leaving it out is seen


class Inputs(NamedTuple):
    x: Tensor
    branch: Tensor
    weight: Tensor
    bias: Tensor
    keep: Tensor | None
    upstreams: tuple[Tensor, Tensor]  # of total and normed

    def leaves(self) -> list[Tensor]:
        return list(self[:4])


def draw(shape, dtype=torch.float32, keeps: bool = True, seed: int = 0, branch_dtype=None, device="cpu") -> Inputs:
    """The stream has a mean far from 0, as trained ones have; every third sample's branch is dropped."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, shift=0.0):
        return (torch.randn(size, generator=generator, dtype=torch.float64) + shift).to(device)

    keep = ((torch.arange(shape[0]) % 3 > 0) / 0.7).to(device) if keeps else None
    x, branch = normal(*shape, shift=3.0).to(dtype), normal(*shape).to(branch_dtype or dtype)
    weight, bias = normal(shape[-1], shift=1.0).to(dtype), normal(shape[-1]).to(dtype)
    leaves = [leaf.requires_grad_() for leaf in (x, branch, weight, bias)]
    return Inputs(*leaves, keep, (normal(*shape).to(dtype), normal(*shape).to(dtype)))


def truth(inputs: Inputs, with_total: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """(total, normed) and the gradients of x, branch, weight and bias, by autograd in float64."""
    x, branch, weight, bias = leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves()]
    if inputs.keep is not None:
        branch = branch * inputs.keep.double().view(-1, *(1,) * (x.dim() - 1))
    total = x + branch
    normed = F.layer_norm(total, x.shape[-1:], weight, bias, EPS)
    return [total.detach(), normed.detach()], backward(total, normed, inputs, leaves, with_total)


def backward(total, normed, inputs, leaves, with_total) -> list[Tensor]:
    loss = (normed * inputs.upstreams[1].to(normed.dtype)).sum()
    if with_total:
        loss = loss + (total * inputs.upstreams[0].to(total.dtype)).sum()
    return list(torch.autograd.grad(loss, leaves))


def ours(inputs: Inputs, with_total: bool = True, **options) -> tuple[list[Tensor], list[Tensor]]:
    total, normed = add_layer_norm(*inputs.leaves(), keep=inputs.keep, eps=EPS, **options)
    return [total.detach(), normed.detach()], backward(total, normed, inputs, inputs.leaves(), with_total)


def check(inputs: Inputs, limit: float, with_total: bool = True, **options) -> list[Tensor]:
    """Outputs and gradients are within ``limit`` of float64, relative to their norm; returns all of them."""
    results = []
    for found, correct in zip(ours(inputs, with_total, **options), truth(inputs, with_total), strict=True):
        for a, b in zip(found, correct, strict=True):
            assert a.shape == b.shape and a.is_contiguous()
            assert (a.double() - b).norm() <= limit * b.norm(), (a.double() - b).norm() / b.norm()
        results += found
    assert [g.dtype for g in results[2:]] == [leaf.dtype for leaf in inputs.leaves()]
    return results
