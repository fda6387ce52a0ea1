"""``short_attention`` in plain torch: what the kernels are held to, and what runs where they do not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..devices import compute_dtype

SCORE_BYTES = 64 * 2**20  # most that the scores of the images at hand take


def _parts(qkv: Tensor) -> Iterator[slice]:
    """Runs of images, few enough for their scores."""
    batch, length, _, heads, _ = qkv.shape
    step = max(1, SCORE_BYTES // (heads * length * length * compute_dtype(qkv).itemsize))
    return (slice(start, start + step) for start in range(0, batch, step))


def _attend(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [N, H, L, D] and what every token takes of every other [N, H, L, L], float32 or wider."""
    q, k, v = qkv.to(compute_dtype(qkv)).permute(2, 0, 3, 1, 4)
    return q, k, v, torch.softmax(scale * (q @ k.mT), -1)


def forward(qkv: Tensor, scale: float) -> Tensor:
    """[N, L, H * D] in qkv's dtype."""
    batch, length, _, heads, dim = qkv.shape
    out = qkv.new_empty((batch, length, heads, dim))
    with torch.autocast(qkv.device.type, enabled=False):
        for part in _parts(qkv):
            _, _, v, weights = _attend(qkv[part], scale)
            out[part] = (weights @ v).transpose(1, 2)
    return out.flatten(2)


def backward(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """Gradient of qkv, in its shape and dtype."""
    out = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    with torch.autocast(qkv.device.type, enabled=False):
        for part in _parts(qkv):
            q, k, v, weights = _attend(qkv[part], scale)
            upstream = grad[part].to(q.dtype).unflatten(2, qkv.shape[3:]).transpose(1, 2)
            of_weights = upstream @ v.mT
            of_scores = scale * weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
            packed = torch.stack((of_scores @ k, of_scores.mT @ q, weights.mT @ upstream))
            out[part] = packed.permute(1, 3, 0, 2, 4)
    return out
