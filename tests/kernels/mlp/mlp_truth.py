"""``add_mlp`` written the long way in float64, and inputs for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlg_kernels import add_mlp

EPS = 1e-3  # large enough that leaving it out is seen


class Inputs(NamedTuple):
    x: Tensor
    branch: Tensor | None
    keep: Tensor | None
    keep_mlp: Tensor | None
    parameters: tuple[Tensor, ...]  # weight and bias of norm, fc1 and fc2
    upstream: Tensor

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.x, self.branch, *self.parameters) if leaf is not None]


def draw(shape, hidden, dtype=torch.float32, *, stream=None, keeps=True, joins=True, device="cpu") -> Inputs:
    """The stream has a mean far from 0, as trained ones have; other samples' branches are dropped than their MLPs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size, shift=0.0, scale=1.0, to=dtype):
        values = torch.randn(size, generator=generator, dtype=torch.float64) * scale + shift
        return values.to(device, to)

    def factors(first):
        return ((torch.arange(first, first + shape[0]) % 3 > 0) / 0.7).to(device) if keeps else None

    channels, stream = shape[-1], stream or dtype
    x = normal(*shape, shift=3.0, to=stream)
    branch = normal(*shape) if joins else None
    parameters = (
        normal(channels, shift=1.0),
        normal(channels),
        normal(hidden, channels, scale=channels**-0.5),
        normal(hidden),
        normal(channels, hidden, scale=hidden**-0.5),
        normal(channels),
    )
    for leaf in (x, branch, *parameters):
        if leaf is not None:
            leaf.requires_grad_()
    return Inputs(x, branch, factors(0) if joins else None, factors(1), parameters, normal(*shape, to=stream))


def truth(inputs: Inputs) -> list[Tensor]:
    """The result and the gradients of all leaves, by autograd in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves()]
    x, *branch, gain, shift, fc1, bias1, fc2, bias2 = leaves

    def kept(factor, values):
        return values if factor is None else values * factor.double().view(-1, *(1,) * (values.dim() - 1))

    total = x + kept(inputs.keep, branch[0]) if branch else x
    normed = F.layer_norm(total, x.shape[-1:], gain, shift, EPS)
    out = total + kept(inputs.keep_mlp, F.linear(F.gelu(F.linear(normed, fc1, bias1)), fc2, bias2))
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.upstream.double())]


def ours(inputs: Inputs, **options) -> list[Tensor]:
    gain, shift, fc1, bias1, fc2, bias2 = inputs.parameters
    keeps = {"keep": inputs.keep, "keep_mlp": inputs.keep_mlp}
    out = add_mlp(inputs.x, inputs.branch, (gain, shift), (fc1, bias1), (fc2, bias2), **keeps, eps=EPS, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs.leaves(), inputs.upstream.to(out.dtype))]


def check(inputs: Inputs, limit: float, **options) -> list[Tensor]:
    """Result and gradients are within ``limit`` of float64, relative to their norm; returns all of them."""
    found = ours(inputs, **options)
    for k, (a, b) in enumerate(zip(found, truth(inputs), strict=True)):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= limit * b.norm(), (k, (a.double() - b).norm() / b.norm())
    assert [value.dtype for value in found] == [inputs.x.dtype, *(leaf.dtype for leaf in inputs.leaves())]
    return found
