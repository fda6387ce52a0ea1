"""The kernel of ``gather_maps``: one launch reads rows of a cache in their storage dtype and writes float32 maps."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512


def gather_triton(source: Tensor, rows: Tensor, boxes: Tensor | None, flip: Tensor | None, *, clip_to_box: bool):
    """As ``gather_maps``; ``source`` is contiguous."""
    if not source.is_contiguous():
        raise ValueError("source must be contiguous [R, C, H, W]; pass its .contiguous()")
    _, channels, height, width = source.shape
    out = torch.empty((len(rows), channels, height, width), dtype=torch.float32, device=source.device)
    grid = (len(rows), triton.cdiv(channels * height * width, BLOCK))
    gather_kernel[grid](
        source, rows, boxes, flip, out, channels * height * width, height, width, boxes is not None,
        flip is not None, clip_to_box, BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit
def _axis_taps(cell, start, extent, SIZE: tl.constexpr, CLIP: tl.constexpr):
    """The two source cells under output ``cell`` and the weight of the second."""
    whole = tl.floor(start)
    centre = (cell.to(tl.float32) + 0.5) * (extent / SIZE) - 0.5
    if CLIP:
        centre = tl.minimum(tl.maximum(centre, 0.0), extent - 1)
        last = whole + extent - 1
    else:
        centre = tl.minimum(tl.maximum(centre + (start - whole), -whole), SIZE - 1 - whole)
        last = whole * 0 + (SIZE - 1)
    low = tl.floor(centre)
    first = (low + whole).to(tl.int32)
    second = tl.minimum(low + whole + 1, last).to(tl.int32)
    return first, second, centre - low


@triton.jit
def gather_kernel(
    source, rows, boxes, flip, out,
    CHW: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    CROP: tl.constexpr, FLIP: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < CHW
    base = source + tl.load(rows + sample) * CHW
    if CROP:
        x = offset % W
        y = (offset // W) % H
        plane = offset - y * W - x
        if FLIP:
            x = tl.where(tl.load(flip + sample), W - 1 - x, x)
        box = boxes + sample * 4
        top, bottom, down = _axis_taps(y, tl.load(box), tl.load(box + 2), H, CLIP)
        left, right, across = _axis_taps(x, tl.load(box + 1), tl.load(box + 3), W, CLIP)
        a = tl.load(base + plane + top * W + left, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(base + plane + top * W + right, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(base + plane + bottom * W + left, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(base + plane + bottom * W + right, mask=mask, other=0.0).to(tl.float32)
        upper = a * (1 - across) + b * across
        lower = c * (1 - across) + d * across
        value = upper * (1 - down) + lower * down
    else:
        value = tl.load(base + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + sample * CHW + offset, value, mask=mask)
