"""Triton kernel of the AdamW step: a program takes a chunk of one of the parameters, found by their addresses."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(
    addresses, chunks, rates, steps, like_weight, like_grad, like_copy, CHUNK: tl.constexpr, WITH_COPY: tl.constexpr
):
    """Grid: (chunks,). addresses [tensors, 6]: of weight, gradient, both moments and copy, and the number of elements.
    chunks [.., 3]: tensor, first element, group. The tensors that are only there for their dtype are not read.

    What is one number per group is float64, and so is 1 - beta ** steps: near the start float32 has few digits of it.
    """
    chunk = chunks + tl.program_id(0) * 3
    row, group = addresses + tl.load(chunk) * 6, rates + tl.load(chunk + 2) * 6
    at = tl.load(chunk + 1) + tl.arange(0, CHUNK)
    mask = at < tl.load(row + 5)
    weight_at = tl.load(row).to(like_weight.dtype) + at
    grad_at = tl.load(row + 1).to(like_grad.dtype) + at
    first_at, second_at = tl.load(row + 2).to(like_weight.dtype) + at, tl.load(row + 3).to(like_weight.dtype) + at
    beta1, beta2, count = tl.load(group + 2), tl.load(group + 3), tl.load(steps)
    lr = tl.load(group)
    shrink = (1.0 - lr * tl.load(group + 1)).to(tl.float32)
    rate = (lr / (1.0 - tl.exp2(count * tl.log2(beta1)))).to(tl.float32)
    variance = (1.0 / (1.0 - tl.exp2(count * tl.log2(beta2)))).to(tl.float32)
    grad = tl.load(grad_at, mask=mask, other=0.0).to(tl.float32) * tl.load(group + 5).to(tl.float32)
    first, second = tl.load(first_at, mask=mask, other=0.0), tl.load(second_at, mask=mask, other=0.0)
    first = first * beta1.to(tl.float32) + grad * (1.0 - beta1).to(tl.float32)
    second = second * beta2.to(tl.float32) + grad * grad * (1.0 - beta2).to(tl.float32)
    tl.store(first_at, first, mask=mask)
    tl.store(second_at, second, mask=mask)
    weight = tl.load(weight_at, mask=mask, other=0.0) * shrink
    weight -= rate * first / (tl.sqrt(second * variance) + tl.load(group + 4).to(tl.float32))
    tl.store(weight_at, weight, mask=mask)
    if WITH_COPY:
        tl.store(tl.load(row + 4).to(like_copy.dtype) + at, weight.to(like_copy.dtype.element_ty), mask=mask)
