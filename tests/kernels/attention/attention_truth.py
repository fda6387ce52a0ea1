"""Softmax attention written the long way in float64, and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlg_kernels import short_attention


def draw(batch, length, heads, dim, dtype=torch.float32, seed=0) -> tuple[Tensor, Tensor]:
    """Packed queries, keys and values with scores of some size, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, length, 3, heads, dim, generator=generator, dtype=torch.float64)
    qkv[:, :, 0] *= 2.0
    upstream = torch.randn(batch, length, heads * dim, generator=generator, dtype=torch.float64)
    return qkv.to(dtype).requires_grad_(), upstream.to(dtype)


def truth(qkv: Tensor, upstream: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output and gradient, one head and image after another."""
    leaf = qkv.detach().double().requires_grad_()
    images = []
    for image in leaf:
        heads = []
        for head in range(qkv.shape[3]):
            q, k, v = (image[:, part, head] for part in range(3))
            scores = q @ k.T * (qkv.shape[4] ** -0.5 if scale is None else scale)
            weights = (scores - scores.max(1, keepdim=True).values).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ v)
        images.append(torch.cat(heads, 1))
    out = torch.stack(images)
    return out.detach(), torch.autograd.grad(out, leaf, upstream.double())[0]


def check(qkv: Tensor, upstream: Tensor, limit: float, scale: float | None = None, **options) -> tuple[Tensor, Tensor]:
    """Output and gradient are within ``limit`` of float64, relative to their norm; the three gradients each."""
    out = short_attention(qkv, scale=scale, **options)
    (grad,) = torch.autograd.grad(out, qkv, upstream)
    correct, correct_grad = truth(qkv, upstream, scale)
    assert out.dtype == grad.dtype == qkv.dtype and out.is_contiguous() and grad.is_contiguous()
    for ours, expected in ((out.detach(), correct), *zip(grad.unbind(2), correct_grad.unbind(2), strict=True)):
        error = (ours.double() - expected).norm()
        assert error <= limit * expected.norm() + limit, error / expected.norm()
    return out.detach(), grad
