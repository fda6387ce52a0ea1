"""Triton kernels of ``add_mlp``: a program holds a tile of tokens, all their channels, and walks over the hidden ones.

Channels come in two parts of CA and CB, powers of two (192 = 128 + 64), so that no product is padded. A sum over rows
beyond the last is right without masks, for their gradients are 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(rows, BM: tl.constexpr):
    """Row at which this program's tile begins, rows within it, and which of them there are."""
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    return first, row, row < rows - first


@triton.jit
def _factors(keep, row, live, length, WITH_KEEP: tl.constexpr):
    """What the branch of each row is multiplied by."""
    if WITH_KEEP:
        return tl.load(keep + row // length, mask=live, other=0.0).to(tl.float32)
    return tl.where(live, 1.0, 0.0)


@triton.jit
def _scaled(factor, values):
    """0 where the factor is 0, whatever the value."""
    return tl.where(factor[:, None] == 0.0, 0.0, factor[:, None] * values)


@triton.jit
def _total(x, branch, factor, live, at, WITH_BRANCH: tl.constexpr, KEPT: tl.constexpr):
    """Part of the stream that the norm sees. It is read again where it is needed again, from the cache: KEPT is what
    the cache should do with it, and each reading has another, for equal ones the compiler would make one that occupies
    registers in between."""
    value = tl.load(x + at, mask=live[:, None], other=0.0, eviction_policy=KEPT).to(tl.float32)
    if WITH_BRANCH:
        is_read = (live & (factor != 0.0))[:, None]
        joining = tl.load(branch + at, mask=is_read, other=0.0, eviction_policy=KEPT).to(tl.float32)
        value += factor[:, None] * joining
    return value


@triton.jit
def _moments(values, N: tl.constexpr):
    """Mean of N columns and the sum of squares around it."""
    mean = tl.sum(values, 1) * (1.0 / N)
    centred = values - mean[:, None]
    return mean, tl.sum(centred * centred, 1)


@triton.jit
def _statistics(
    x, branch, factor, live, at_a, at_b, eps,
    C: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, WITH_BRANCH: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of every row, of both parts' own (Chan, Golub and LeVeque 1979)."""
    mean_a, squares_a = _moments(_total(x, branch, factor, live, at_a, WITH_BRANCH, "evict_last"), CA)
    mean_b, squares_b = _moments(_total(x, branch, factor, live, at_b, WITH_BRANCH, "evict_last"), CB)
    apart = mean_a - mean_b
    squares = squares_a + squares_b + apart * apart * (CA * CB / C)
    return mean_a * (CA / C) + mean_b * (CB / C), 1.0 / tl.sqrt(squares * (1.0 / C) + eps)


@triton.jit
def _normed(values, mean, scale, gain, shift, c):
    gain, shift = tl.load(gain + c).to(tl.float32), tl.load(shift + c).to(tl.float32)
    return (values - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]


@triton.jit
def _gelu(x):
    """GELU (arXiv 1606.08415, the exact one) and its derivative."""
    below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    return x * below, below + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _leave(out, x, branch, factor, through, live, at, values, bias, c, WITH_BRANCH: tl.constexpr):
    """Part of the result: what the MLP made joins the stream."""
    values = _scaled(through, values + tl.load(bias + c).to(tl.float32)[None, :])
    values += _total(x, branch, factor, live, at, WITH_BRANCH, "evict_first")
    tl.store(out + at, values.to(out.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["rows", "length"])
def forward_kernel(
    x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, bias2, out, rows, length, eps,
    C: tl.constexpr, HIDDEN: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
    WITH_BRANCH: tl.constexpr, WITH_KEEP: tl.constexpr, WITH_KEEP_MLP: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles,). ``length``: tokens of a sample."""
    first, row, live = _tile(rows, BM)
    x, branch, out = x + first * C, branch + first * C, out + first * C
    factor = _factors(keep, first + row, live, length, WITH_KEEP)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    at_a, at_b = row[:, None] * C + ca[None, :], row[:, None] * C + cb[None, :]
    mean, scale = _statistics(x, branch, factor, live, at_a, at_b, eps, C, CA, CB, WITH_BRANCH)
    a = _normed(_total(x, branch, factor, live, at_a, WITH_BRANCH, ""), mean, scale, gain, shift, ca)
    a = a.to(fc1.dtype.element_ty)
    b = _normed(_total(x, branch, factor, live, at_b, WITH_BRANCH, ""), mean, scale, gain, shift, cb)
    b = b.to(fc1.dtype.element_ty)
    out_a, out_b = tl.zeros([BM, CA], tl.float32), tl.zeros([BM, CB], tl.float32)
    for start in range(0, HIDDEN, BH):
        h = start + tl.arange(0, BH)
        hidden = tl.dot(a, tl.trans(tl.load(fc1 + (h[:, None] * C + ca[None, :]))))
        hidden = tl.dot(b, tl.trans(tl.load(fc1 + (h[:, None] * C + cb[None, :]))), hidden)
        act, of_gelu = _gelu(hidden + tl.load(bias1 + h).to(tl.float32)[None, :])
        act = act.to(fc2.dtype.element_ty)
        out_a = tl.dot(act, tl.load(fc2 + (ca[None, :] * HIDDEN + h[:, None])), out_a)
        out_b = tl.dot(act, tl.load(fc2 + (cb[None, :] * HIDDEN + h[:, None])), out_b)
    through = _factors(keep_mlp, first + row, live, length, WITH_KEEP_MLP)
    _leave(out, x, branch, factor, through, live, at_a, out_a, bias2, ca, WITH_BRANCH)
    _leave(out, x, branch, factor, through, live, at_b, out_b, bias2, cb, WITH_BRANCH)


@triton.jit
def _through(grad, through, factor, live, at, sums):
    """Part of what the gradient is behind the second layer, kept in ``through``; and its sums over the tile."""
    value = tl.load(grad + at, mask=live[:, None], other=0.0, eviction_policy="evict_last").to(tl.float32)
    value = _scaled(factor, value).to(through.dtype.element_ty)
    tl.store(through + at, value, mask=live[:, None])
    tl.store(sums, tl.sum(value.to(tl.float32), 0))
    return value


@triton.jit
def _slopes(
    x, branch, factor, mean, scale, live, at, values, gain, sums, c, C: tl.constexpr, WITH_BRANCH: tl.constexpr
):
    """Sums of a part's gradients for gain and shift; and its share of what the norm takes off each row's gradient."""
    tl.store(sums + C + c, tl.sum(values, 0))
    normalised = (_total(x, branch, factor, live, at, WITH_BRANCH, "") - mean[:, None]) * scale[:, None]
    tl.store(sums + c, tl.sum(values * normalised, 0))
    values = values * tl.load(gain + c).to(tl.float32)[None, :]
    return tl.sum(values, 1) * (1.0 / C), tl.sum(values * normalised, 1) * (1.0 / C)


@triton.jit
def _finish(
    grad, x, branch, grad_x, grad_branch, factor, mean, scale, middle, slope, live, at, values, gain, c,
    WITH_BRANCH: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Part of the gradients of x and branch: through the layer norm and past it."""
    normalised = (_total(x, branch, factor, live, at, WITH_BRANCH, "evict_first") - mean[:, None]) * scale[:, None]
    values = values * tl.load(gain + c).to(tl.float32)[None, :]
    values = (values - middle[:, None] - normalised * slope[:, None]) * scale[:, None]
    values += tl.load(grad + at, mask=live[:, None], other=0.0, eviction_policy="evict_first").to(tl.float32)
    tl.store(grad_x + at, values.to(grad_x.dtype.element_ty), mask=live[:, None])
    if APART:
        tl.store(grad_branch + at, _scaled(factor, values).to(grad_branch.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=["rows", "length"])
def backward_kernel(
    grad, x, branch, keep, keep_mlp, gain, shift, fc1, bias1, fc2, grad_x, grad_branch, normed, through, partials,
    rows, length, eps,
    C: tl.constexpr, HIDDEN: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
    WITH_BRANCH: tl.constexpr, WITH_KEEP: tl.constexpr, WITH_KEEP_MLP: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles,). Gradients of the tokens; for those of the weights, ``normed`` and ``through`` are left behind,
    and a row of partials [tiles, 3 C]: sums for gain, shift and bias2."""
    first, row, live = _tile(rows, BM)
    x, branch, grad = x + first * C, branch + first * C, grad + first * C
    normed, through = normed + first * C, through + first * C
    partials += tl.program_id(0).to(tl.int64) * (3 * C)
    factor = _factors(keep, first + row, live, length, WITH_KEEP)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    at_a, at_b = row[:, None] * C + ca[None, :], row[:, None] * C + cb[None, :]
    mean, scale = _statistics(x, branch, factor, live, at_a, at_b, eps, C, CA, CB, WITH_BRANCH)
    a = _normed(_total(x, branch, factor, live, at_a, WITH_BRANCH, ""), mean, scale, gain, shift, ca)
    a = a.to(fc1.dtype.element_ty)
    tl.store(normed + at_a, a, mask=live[:, None])
    b = _normed(_total(x, branch, factor, live, at_b, WITH_BRANCH, ""), mean, scale, gain, shift, cb)
    b = b.to(fc1.dtype.element_ty)
    tl.store(normed + at_b, b, mask=live[:, None])
    behind = _factors(keep_mlp, first + row, live, length, WITH_KEEP_MLP)
    grad_a = _through(grad, through, behind, live, at_a, partials + 2 * C + ca)
    grad_b = _through(grad, through, behind, live, at_b, partials + 2 * C + cb)
    of_a, of_b = tl.zeros([BM, CA], tl.float32), tl.zeros([BM, CB], tl.float32)
    for start in range(0, HIDDEN, BH):
        h = start + tl.arange(0, BH)
        first_a, first_b = tl.load(fc1 + (h[:, None] * C + ca[None, :])), tl.load(fc1 + (h[:, None] * C + cb[None, :]))
        hidden = tl.dot(b, tl.trans(first_b), tl.dot(a, tl.trans(first_a)))
        of_act = tl.dot(grad_a, tl.load(fc2 + (ca[:, None] * HIDDEN + h[None, :])))
        of_act = tl.dot(grad_b, tl.load(fc2 + (cb[:, None] * HIDDEN + h[None, :])), of_act)
        act, of_gelu = _gelu(hidden + tl.load(bias1 + h).to(tl.float32)[None, :])
        of_hidden = (of_act * of_gelu).to(fc1.dtype.element_ty)
        of_a, of_b = tl.dot(of_hidden, first_a, of_a), tl.dot(of_hidden, first_b, of_b)
    middle_a, slope_a = _slopes(x, branch, factor, mean, scale, live, at_a, of_a, gain, partials, ca, C, WITH_BRANCH)
    middle, slope = _slopes(x, branch, factor, mean, scale, live, at_b, of_b, gain, partials, cb, C, WITH_BRANCH)
    middle, slope = middle + middle_a, slope + slope_a
    grad_x, grad_branch = grad_x + first * C, grad_branch + first * C
    _finish(grad, x, branch, grad_x, grad_branch, factor, mean, scale, middle, slope, live, at_a, of_a, gain, ca,
            WITH_BRANCH, APART)  # fmt: skip
    _finish(grad, x, branch, grad_x, grad_branch, factor, mean, scale, middle, slope, live, at_b, of_b, gain, cb,
            WITH_BRANCH, APART)  # fmt: skip


@triton.jit(do_not_specialize=["rows", "tiles_per_program"])
def weights_kernel(
    normed, through, fc1, bias1, fc2, partials, rows, tiles_per_program,
    C: tl.constexpr, HIDDEN: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Grid: (HIDDEN / BH, splits): sums over a split of the tokens for BH hidden channels, whose weights stay on the
    chip. Programs of one split run side by side, so that one of them fetches a tile and the others find it in the
    cache. A row of partials [splits, 2 C HIDDEN + HIDDEN]: gradients of fc1, fc2 and bias1."""
    h = tl.program_id(0) * BH + tl.arange(0, BH)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    at_a, at_b = h[:, None] * C + ca[None, :], h[:, None] * C + cb[None, :]
    first_a, first_b = tl.load(fc1 + at_a), tl.load(fc1 + at_b)
    second_a = tl.load(fc2 + (ca[:, None] * HIDDEN + h[None, :]))
    second_b = tl.load(fc2 + (cb[:, None] * HIDDEN + h[None, :]))
    shift = tl.load(bias1 + h).to(tl.float32)[None, :]
    fc1_a, fc1_b = tl.zeros([BH, CA], tl.float32), tl.zeros([BH, CB], tl.float32)
    fc2_a, fc2_b = tl.zeros([BH, CA], tl.float32), tl.zeros([BH, CB], tl.float32)
    sums = tl.zeros([BH], tl.float32)
    begin = tl.program_id(1) * tiles_per_program
    for tile in range(begin, tl.minimum(begin + tiles_per_program, tl.cdiv(rows, BM))):
        row = tile * tl.full([], BM, tl.int64) + tl.arange(0, BM)
        at, live = row[:, None] * C, (row < rows)[:, None]
        a, b = tl.load(normed + (at + ca[None, :]), live, 0.0), tl.load(normed + (at + cb[None, :]), live, 0.0)
        ga, gb = tl.load(through + (at + ca[None, :]), live, 0.0), tl.load(through + (at + cb[None, :]), live, 0.0)
        hidden = tl.dot(b, tl.trans(first_b), tl.dot(a, tl.trans(first_a)))
        of_act = tl.dot(gb, second_b, tl.dot(ga, second_a))
        act, slope = _gelu(hidden + shift)
        of_hidden = of_act * slope
        sums += tl.sum(of_hidden, 0)
        act, of_hidden = tl.trans(act.to(fc1.dtype.element_ty)), tl.trans(of_hidden.to(fc1.dtype.element_ty))
        fc1_a, fc1_b = tl.dot(of_hidden, a, fc1_a), tl.dot(of_hidden, b, fc1_b)
        fc2_a, fc2_b = tl.dot(act, ga, fc2_a), tl.dot(act, gb, fc2_b)
    partials += tl.program_id(1).to(tl.int64) * (2 * C * HIDDEN + HIDDEN)
    tl.store(partials + at_a, fc1_a)
    tl.store(partials + at_b, fc1_b)
    partials += C * HIDDEN
    tl.store(partials + (ca[None, :] * HIDDEN + h[:, None]), fc2_a)
    tl.store(partials + (cb[None, :] * HIDDEN + h[:, None]), fc2_b)
    tl.store(partials + C * HIDDEN + h, sums)
