"""``add_mlp`` in plain torch: what the kernels are held to, and what runs where they do not.

Why both layers and all around them are one kernel, in bytes and FLOPs. Let u be the bytes of a block's tokens in
bfloat16, L * C * 2 (75.6 KB per image for DeiT-Ti, whose hidden layer has 4 C channels); the stream is float32, 2 u.
The half block x + keep * mlp(norm(x + keep * branch)) moves, forward and backward, per block:

    as torch runs it under autocast   norm and first sum 14 u (as one pass, add_layer_norm), products 30 u, GELU 20 u,
                                      bias sums 5 u, second sum and drop path about 10 u                          79 u
    products by cuBLAS, all else in   forward 5 u (below); backward one kernel for the tokens that leaves GELU's
    their prologues and epilogues     output and the hidden gradient behind (+ 8 u), which the two products for the
                                      weights read, with tokens and gradients (10 u), in place of 2 u             31 u
    as here                           forward x, branch -> out: 5 u; tokens' backward x, branch, gradient -> two
                                      gradients, 8 u, and 2 u left for the weights' kernel, which reads them: 2 u  17 u

One matrix product of all tokens is 58 MFLOP per image; torch makes 6, the second way 7, this one 9: 2 forward, 3 for
the tokens, 4 for the weights, because the hidden layer is made again by each of the backward kernels. 14 u of 12 blocks
are 12.7 MB, 4.2 us at 3.0 TB/s; two products of 12 blocks are 1.4 GFLOP, 4 us at 350 TFLOP/s. So the second and the
third way are close, and the smaller count is taken; no GPU has decided it yet.

What memory is spared the L2 cache pays: the weights, 0.6 MB, are read from it once per tile of tokens (128 forward, 32
backward, for larger ones spill), and the weights' kernel reads its 2 u from it hidden / 64 times on compute capability
9.0: 11 + 44 + 22 MB per image for 12 blocks, beside which the smaller tables of sums, 0.6 MB, are little. Tiles of half
as many tokens need fewer registers and read the weights twice as often.

Why 192 channels are the most: these readings grow with the square of the channels, what memory is spared with their
number. 384 channels compile (64 tokens forward, 32 backward, 32 hidden channels), and would read 87 + 174 + 174 MB from
the L2 cache to spare memory 108 MB; 256 channels 194 MB to spare 72. An L2 cache is about twice as fast as memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import compute_dtype
from ..norm.plain import scaled_by


class Half(NamedTuple):
    """Half a block: x and branch [N, ..., C], what their samples are multiplied by [N], and the parameters."""

    x: Tensor
    branch: Tensor | None
    keep: Tensor | None
    keep_mlp: Tensor | None
    gain: Tensor
    shift: Tensor
    fc1: Tensor  # [hidden, C]
    bias1: Tensor
    fc2: Tensor  # [C, hidden]
    bias2: Tensor

    @property
    def rows(self) -> int:
        return self.x.numel() // self.x.shape[-1]


class Made(NamedTuple):
    """What forward makes and backward makes again, float32 or wider but for ``normed`` and ``hidden``."""

    total: Tensor
    normalised: Tensor  # before gain and shift
    scale: Tensor  # 1 / deviation [N, ..., 1]
    normed: Tensor
    hidden: Tensor  # before GELU


def _make(half: Half, eps: float, dtype: torch.dtype) -> Made:
    wide = compute_dtype(*half)
    total = half.x.to(wide)
    if half.branch is not None:
        total = total + scaled_by(half.keep, half.branch.to(wide))
    centred = total - total.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normalised = centred * scale
    normed = (normalised * half.gain.to(wide) + half.shift.to(wide)).to(dtype)
    return Made(total, normalised, scale, normed, F.linear(normed, half.fc1.to(dtype), half.bias1.to(dtype)))


def forward(half: Half, eps: float, dtype: torch.dtype) -> Tensor:
    """total + keep_mlp * mlp(norm(total)) in x's dtype, total being x + keep * branch."""
    with torch.autocast(half.x.device.type, enabled=False):
        made = _make(half, eps, dtype)
        out = F.linear(F.gelu(made.hidden), half.fc2.to(dtype), half.bias2.to(dtype))
        return (made.total + scaled_by(half.keep_mlp, out.to(made.total.dtype))).to(half.x.dtype).contiguous()


def backward(grad: Tensor, half: Half, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x; of branch; of gain, shift and bias2 as [3, C]; of fc1, fc2 and bias1, one behind the other."""
    with torch.autocast(half.x.device.type, enabled=False):
        made = _make(half, eps, dtype)
        wide = made.total.dtype
        through = scaled_by(half.keep_mlp, grad.to(wide)).to(dtype)
        hidden = made.hidden.to(wide)
        below = 0.5 + 0.5 * torch.erf(hidden * math.sqrt(0.5))
        slope = below + hidden * torch.exp(-0.5 * hidden.square()) / math.sqrt(2 * math.pi)
        of_hidden = ((through @ half.fc2.to(dtype)).to(wide) * slope).to(dtype)
        act = (hidden * below).to(dtype)
        fc1, fc2 = _rows(of_hidden).mT @ _rows(made.normed), _rows(through).mT @ _rows(act)
        of_normed = (of_hidden @ half.fc1.to(dtype)).to(wide)
        summed = (of_normed * made.normalised, of_normed, through.to(wide))
        scaled = of_normed * half.gain.to(wide)
        middle, slope = scaled.mean(-1, keepdim=True), (scaled * made.normalised).mean(-1, keepdim=True)
        of_total = (scaled - middle - made.normalised * slope) * made.scale + grad.to(wide)
        of_branch = of_total if half.branch is None else scaled_by(half.keep, of_total).to(half.branch.dtype)
        products = (fc1.to(wide), fc2.to(wide), _rows(of_hidden).to(wide).sum(0))
        return (
            of_total.to(half.x.dtype),
            of_branch,
            torch.stack([_rows(values).sum(0) for values in summed]),
            torch.cat([values.flatten() for values in products]),
        )


def _rows(values: Tensor) -> Tensor:
    return values.flatten(0, -2)
