"""Triton kernels of ``short_attention``: a program holds the keys and values of one head and walks over its queries.

All scores of a query are in the tile at once, so its softmax is made whole and in backward made again: neither its
normaliser nor the output is kept, and the gradient of the queries is finished where it is made. What the tile has
beyond the last token is never read nor written: such keys score minus infinity, such queries and gradients are 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _heads(qkv, stride_n, stride_h, HEADS: tl.constexpr):
    """Where the image and head of this program begin."""
    program = tl.program_id(0)
    return qkv + (program // HEADS).to(tl.int64) * stride_n + (program % HEADS) * stride_h


@triton.jit
def _rows(base, token, stride_l, LENGTH: tl.constexpr, D: tl.constexpr):
    """Rows ``token`` of a matrix [LENGTH, D], zeros beyond."""
    at = base + (token[:, None] * stride_l + tl.arange(0, D)[None, :])
    return tl.load(at, mask=(token < LENGTH)[:, None], other=0.0)


@triton.jit
def _exponentials(query, keys, key, scale, LENGTH: tl.constexpr):
    """2 ** (scores - their largest) [BQ, BL] and their sums [BQ]; ``scale`` holds the base-2 logarithm of e."""
    score = tl.dot(query, tl.trans(keys)) * scale
    score = tl.where((key < LENGTH)[None, :], score, float("-inf"))
    weight = tl.exp2(score - tl.max(score, 1)[:, None])
    return weight, tl.sum(weight, 1)


@triton.jit
def forward_kernel(
    qkv, out, stride_n, stride_l, stride_s, stride_h, scale,
    HEADS: tl.constexpr, LENGTH: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """out [N, LENGTH, HEADS, D]. Grid: (N * HEADS,)."""
    base = _heads(qkv, stride_n, stride_h, HEADS)
    out = _heads(out, LENGTH * HEADS * D, D, HEADS)
    key = tl.arange(0, BL)
    keys = _rows(base + stride_s, key, stride_l, LENGTH, D)
    values = _rows(base + 2 * stride_s, key, stride_l, LENGTH, D)
    for start in range(0, LENGTH, BQ):
        token = start + tl.arange(0, BQ)
        query = _rows(base, token, stride_l, LENGTH, D)
        weight, total = _exponentials(query, keys, key, scale, LENGTH)
        mixed = tl.dot(weight.to(values.dtype), values) / total[:, None]
        at = out + (token[:, None] * (HEADS * D) + tl.arange(0, D)[None, :])
        tl.store(at, mixed.to(out.dtype.element_ty), mask=(token < LENGTH)[:, None])


@triton.jit
def backward_kernel(
    grad, qkv, out, stride_n, stride_l, stride_s, stride_h, scale_log2, scale,
    HEADS: tl.constexpr, LENGTH: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """out [N, LENGTH, 3, HEADS, D] of grad [N, LENGTH, HEADS, D]. Grid: (N * HEADS,)."""
    base = _heads(qkv, stride_n, stride_h, HEADS)
    grad = _heads(grad, LENGTH * HEADS * D, D, HEADS)
    out = _heads(out, 3 * LENGTH * HEADS * D, D, HEADS)
    key = tl.arange(0, BL)
    keys = _rows(base + stride_s, key, stride_l, LENGTH, D)
    values = _rows(base + 2 * stride_s, key, stride_l, LENGTH, D)
    of_keys, of_values = tl.zeros([BL, D], tl.float32), tl.zeros([BL, D], tl.float32)
    channel = tl.arange(0, D)[None, :]
    for start in range(0, LENGTH, BQ):
        token = start + tl.arange(0, BQ)
        query = _rows(base, token, stride_l, LENGTH, D)
        upstream = _rows(grad, token, HEADS * D, LENGTH, D)
        weight, total = _exponentials(query, keys, key, scale_log2, LENGTH)
        weight = weight / total[:, None]
        of_weight = tl.dot(upstream, tl.trans(values))
        of_score = weight * (of_weight - tl.sum(weight * of_weight, 1)[:, None])
        weight, of_score = weight.to(values.dtype), of_score.to(values.dtype)
        of_values = tl.dot(tl.trans(weight), upstream, of_values)
        of_keys = tl.dot(tl.trans(of_score), query, of_keys)
        of_query = tl.dot(of_score, keys) * scale
        at = out + (token[:, None] * (3 * HEADS * D) + channel)
        tl.store(at, of_query.to(out.dtype.element_ty), mask=(token < LENGTH)[:, None])
    at, live = out + (key[:, None] * (3 * HEADS * D) + channel), (key < LENGTH)[:, None]
    tl.store(at + HEADS * D, (of_keys * scale).to(out.dtype.element_ty), mask=live)
    tl.store(at + 2 * HEADS * D, of_values.to(out.dtype.element_ty), mask=live)
