"""Triton kernels of the guidance loss, forward. Notation as in plain.py: R = U P U' - V M V', E = U'R U.

A pair takes one of two forward kernels, by which side is upsampled:

* ``flat_kernel``: the student's grid is the larger one on both axes, so E = R = P - V M V', token by token. Tiles are
  runs of tokens across samples; no grid is too large.
* ``window_kernel``: the student is upsampled on an axis. A tile is a window of S x S tokens of one sample (or of
  several small samples side by side), with a halo of one token where the sample does not fit; R is made block by
  block of the larger grid and never leaves the registers.

With ``FUSED`` the tokens of a tile stay on the chip: read once, they make P and the weight gradient, whose sums stay in
registers over all tiles of a program. Otherwise weight_grad_kernel makes the weight gradient from E and the tokens.
Offsets that grow with the batch are 64-bit. Loops over tiles keep invariants inside: hoisted, they are what spills.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import rounded
from .triton_parts import (
    bilinear_weights,
    load_tokens,
    load_weights,
    positions,
    project,
    resized,
    source_centre,
    store_weight_grad,
    widened,
    zero_sums,
)


@triton.jit(do_not_specialize=["rows", "tiles_per_program", "loss_width", "grad_width", "loss_column", "grad_column"])
def flat_kernel(
    students, teachers, weights, biases, residuals, loss_partials, grad_partials,
    stride_sn, stride_sy, stride_sx, stride_sc, stride_tn, stride_tc, stride_ty, stride_tx,
    rows, tiles_per_program, scale, loss_width, grad_width, loss_column, grad_column,
    C: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr, HT: tl.constexpr, WT: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    FUSED: tl.constexpr, WITH_RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Forward of a pair whose student grid is the larger one. Grid: (blocks of channels, programs)."""
    block, program = tl.program_id(0), tl.program_id(1)
    d = block * BD + tl.arange(0, BD)
    channel = widened(tl.minimum(d, D - 1), WIDE)
    loss, bias_sum = 0.0, tl.zeros([BD], tl.float32)
    if FUSED:
        sums = zero_sums(BC, BD, CHUNKS)
        blocks = load_weights(weights, d, students.dtype.element_ty, C, D, BC, CHUNKS, PRECISION)
    bias = tl.load(biases + d, mask=d < D, other=0.0).to(tl.float32)
    first = program * tiles_per_program
    last = tl.minimum(first + tiles_per_program, tl.cdiv(rows, BT))
    for tile in tl.range(first, last, disable_licm=True):
        first_row = tile * tl.full([], BT, tl.int64)
        first_sample = first_row // (HS * WS)
        live = tl.arange(0, BT) < rows - first_row
        row = tl.minimum(tl.arange(0, BT), rows - first_row - 1) + (first_row - first_sample * (HS * WS))
        sample, y, x = positions(row.to(tl.int32), HS, WS, WIDE)  # counted from the start of the first sample
        offsets = sample * stride_sn + y * stride_sy + x * stride_sx
        source = students + first_sample * stride_sn
        maps = teachers + first_sample * stride_tn
        if CHANNELS_LAST:
            target = resized(
                maps, (sample * stride_tn)[:, None] + (channel * stride_tc)[None, :], y[:, None], x[:, None],
                stride_ty, stride_tx, HT, WT, HS, WS,
            )  # fmt: skip
        else:
            target = tl.trans(resized(
                maps, (sample * stride_tn)[None, :] + (channel * stride_tc)[:, None], y[None, :], x[None, :],
                stride_ty, stride_tx, HT, WT, HS, WS,
            ))  # fmt: skip
        residual = bias[None, :] - target
        if FUSED:
            tokens = ()
            for chunk in tl.static_range(CHUNKS):
                c = chunk * BC + tl.arange(0, BC)
                token = load_tokens(source, offsets, live, stride_sc, c, C, WIDE)
                tokens = tokens + (rounded(token, PRECISION),)
                residual = tl.dot(tokens[chunk], blocks[chunk], residual, input_precision=PRECISION)
        else:
            residual = project(residual, source, weights, offsets, live, stride_sc, d, C, D, BC, PRECISION, WIDE)
        mask = live[:, None] & (d < D)[None, :]
        residual = tl.where(mask, residual, 0.0)
        loss += tl.sum(residual * residual)
        if FUSED:
            bias_sum += tl.sum(residual, 0)
        residual = residual.to(students.dtype.element_ty)
        if WITH_RESIDUAL:
            out = residuals + first_row * D
            tl.store(out + tl.arange(0, BT)[:, None] * D + d[None, :], residual, mask=mask)
        if FUSED:
            added, residual = (), rounded(residual, PRECISION)
            for chunk in tl.static_range(CHUNKS):
                added = added + (tl.dot(tl.trans(tokens[chunk]), residual, sums[chunk], input_precision=PRECISION),)
            sums = added
    tl.store(loss_partials + program.to(tl.int64) * loss_width + loss_column + block, loss * scale)
    if FUSED:
        grad_partials += program.to(tl.int64) * grad_width + grad_column
        store_weight_grad(grad_partials, sums, bias_sum, d, 2.0 * scale, C, D, BC, CHUNKS)


@triton.jit
def _span(own, OWN: tl.constexpr, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Outputs [low, high) that touch the inputs [own, own + OWN), at their ends one too many at most."""
    if OWN >= SIZE_IN:
        return 0, SIZE_OUT
    if SIZE_IN == SIZE_OUT:
        return own, tl.minimum(own + OWN, SIZE_OUT)
    low = tl.maximum(((2 * own - 1) * SIZE_OUT - SIZE_IN) // (2 * SIZE_IN), 0)
    end = tl.minimum(own + OWN, SIZE_IN)
    high = ((2 * end + 1) * SIZE_OUT - SIZE_IN) // (2 * SIZE_IN) + 1
    return low, tl.where(end == SIZE_IN, SIZE_OUT, tl.minimum(high, SIZE_OUT))


@triton.jit
def _owned(out, own, OWN: tl.constexpr, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Whether ``out`` counts for the loss of the window that owns [own, own + OWN): by its lower tap, so one does."""
    low = source_centre(out, SIZE_IN, SIZE_OUT) // (2 * SIZE_OUT)
    return (out < SIZE_OUT) & (low >= own) & (low < own + OWN)


@triton.jit(
    do_not_specialize=["samples", "tiles_per_program", "loss_width", "grad_width", "loss_column", "grad_column"]
)
def window_kernel(
    students, teachers, weights, biases, residuals, loss_partials, grad_partials,
    stride_sn, stride_sy, stride_sx, stride_sc, stride_tn, stride_tc, stride_ty, stride_tx,
    samples, tiles_per_program, scale, loss_width, grad_width, loss_column, grad_column,
    C: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr, HT: tl.constexpr, WT: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PACK: tl.constexpr,
    OWN_Y: tl.constexpr, OWN_X: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    TILES_Y: tl.constexpr, TILES_X: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
    FUSED: tl.constexpr, WITH_RESIDUAL: tl.constexpr, RESIDUAL_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Forward of a pair whose student is upsampled on an axis. Grid: (blocks of channels, programs).

    A window holds PACK x PACK samples of SUB x SUB tokens each; of these, OWN_Y x OWN_X belong to this window and the
    rest, HALO tokens on every side, is read for its neighbours. H x W is the larger grid, blocks of it BH x BW.
    E is stored times RESIDUAL_SCALE, a power of two.
    """
    SUB: tl.constexpr = S // PACK
    block, program = tl.program_id(0), tl.program_id(1)
    d = block * BD + tl.arange(0, BD)
    channel = widened(tl.minimum(d, D - 1), WIDE)
    loss, bias_sum = 0.0, tl.zeros([BD], tl.float32)
    sums = zero_sums(BC, BD, CHUNKS)

    cell = tl.arange(0, S * S)
    cell_row, cell_column = (cell // S) % SUB, (cell % S) % SUB
    cell_sample = (cell // S) // SUB * PACK + (cell % S) // SUB
    side = tl.arange(0, S)
    big_y, big_x = tl.arange(0, BH), tl.arange(0, BW)
    same_y = (big_y // (BH // PACK))[:, None] == (side // SUB)[None, :]
    same_x = (big_x // (BW // PACK))[:, None] == (side // SUB)[None, :]
    big_sample = (big_y // (BH // PACK))[None, :] * PACK + (big_x // (BW // PACK))[:, None]  # [BW, BH]
    blocks = load_weights(weights, d, students.dtype.element_ty, C, D, BC, CHUNKS, PRECISION)
    bias = tl.load(biases + d, mask=d < D, other=0.0).to(tl.float32)

    first = program * tiles_per_program
    tiles = tl.cdiv(samples, PACK * PACK) * (TILES_Y * TILES_X)
    for tile in tl.range(first, tl.minimum(first + tiles_per_program, tiles), disable_licm=True):
        base = tile // (TILES_Y * TILES_X) * (PACK * PACK)
        own_y = (tile // TILES_X) % TILES_Y * OWN_Y
        own_x = tile % TILES_X * OWN_X
        y, x = own_y - HALO_Y + cell_row, own_x - HALO_X + cell_column
        live = (base + cell_sample < samples) & (y >= 0) & (y < HS) & (x >= 0) & (x < WS)
        offsets = widened(cell_sample, WIDE) * stride_sn + widened(y, WIDE) * stride_sy + widened(x, WIDE) * stride_sx
        source = students + base * tl.full([], 1, tl.int64) * stride_sn
        projected = tl.zeros([S * S, BD], tl.float32) + bias[None, :]
        if FUSED:
            tokens = ()
            for chunk in tl.static_range(CHUNKS):
                c = chunk * BC + tl.arange(0, BC)
                token = load_tokens(source, offsets, live, stride_sc, c, C, WIDE)
                tokens = tokens + (rounded(token, PRECISION),)
                projected = tl.dot(tokens[chunk], blocks[chunk], projected, input_precision=PRECISION)
        else:
            projected = project(projected, source, weights, offsets, live, stride_sc, d, C, D, BC, PRECISION, WIDE)
        projected = tl.reshape(projected, [S, S * BD])
        if HS < H:
            projected = rounded(projected, PRECISION)

        gathered = tl.zeros([S, S * BD], tl.float32)
        low_y, high_y = _span(own_y, OWN_Y, HS, H)
        low_x, high_x = _span(own_x, OWN_X, WS, W)
        maps = teachers + base * tl.full([], 1, tl.int64) * stride_tn
        map_sample = widened(tl.minimum(big_sample, samples - 1 - base), WIDE)
        map_offsets = (map_sample * stride_tn)[:, :, None] + (channel * stride_tc)[None, None, :]
        for start_y in range(low_y, high_y, BH):
            out_y = start_y + big_y % (BH // PACK)
            if HS < H:
                inner_y = own_y - HALO_Y + side % SUB
                up_y = tl.where(same_y, bilinear_weights(out_y[:, None], inner_y[None, :], HS, H), 0.0)
                up_y = rounded(up_y, PRECISION)
                stretched = tl.dot(up_y, projected, input_precision=PRECISION)
            else:
                stretched = projected
            stretched = tl.permute(tl.reshape(stretched, [BH, S, BD]), [1, 0, 2])
            stretched = tl.reshape(stretched, [S, BH * BD])
            if WS < W:
                stretched = rounded(stretched, PRECISION)
            shrunk = tl.zeros([S, BH * BD], tl.float32)
            for start_x in range(low_x, high_x, BW):
                out_x = start_x + big_x % (BW // PACK)
                if WS < W:
                    inner_x = own_x - HALO_X + side % SUB
                    up_x = tl.where(same_x, bilinear_weights(out_x[:, None], inner_x[None, :], WS, W), 0.0)
                    up_x = rounded(up_x, PRECISION)
                    residual = tl.dot(up_x, stretched, input_precision=PRECISION)
                else:
                    residual = stretched
                mask = ((out_x < W)[:, None] & (out_y < H)[None, :] & (base + big_sample < samples))[:, :, None]
                mask = mask & (d < D)[None, None, :]
                at_y, at_x = widened(tl.minimum(out_y, H - 1), WIDE), widened(tl.minimum(out_x, W - 1), WIDE)
                residual = tl.reshape(residual, [BW, BH, BD]) - resized(
                    maps, map_offsets, at_y[None, :, None], at_x[:, None, None], stride_ty, stride_tx, HT, WT, H, W
                )
                residual = tl.where(mask, residual, 0.0)
                counts = _owned(out_x, own_x, OWN_X, WS, W)[:, None] & _owned(out_y, own_y, OWN_Y, HS, H)[None, :]
                loss += tl.sum(tl.where(counts[:, :, None], residual * residual, 0.0))
                residual = tl.reshape(residual, [BW, BH * BD])
                if WS < W:
                    residual = rounded(residual, PRECISION)
                    shrunk = tl.dot(tl.trans(up_x), residual, shrunk, input_precision=PRECISION)
                else:
                    shrunk += residual
            shrunk = tl.permute(tl.reshape(shrunk, [S, BH, BD]), [1, 0, 2])
            shrunk = tl.reshape(shrunk, [BH, S * BD])
            if HS < H:
                shrunk = rounded(shrunk, PRECISION)
                gathered = tl.dot(tl.trans(up_y), shrunk, gathered, input_precision=PRECISION)
            else:
                gathered += shrunk

        gathered = tl.reshape(gathered, [S * S, BD])
        mine = live & (y >= own_y) & (y < own_y + OWN_Y) & (x >= own_x) & (x < own_x + OWN_X)
        mask = mine[:, None] & (d < D)[None, :]
        gathered = tl.where(mask, gathered * RESIDUAL_SCALE, 0.0)
        if FUSED:
            bias_sum += tl.sum(gathered, 0)
        gathered = gathered.to(students.dtype.element_ty)
        if WITH_RESIDUAL:
            out = residuals + base * tl.full([], HS * WS * D, tl.int64)
            offset = (cell_sample * (HS * WS) + y * WS + x)[:, None] * D + d[None, :]
            tl.store(out + offset, gathered, mask=mask)
        if FUSED:
            added, gathered = (), rounded(gathered, PRECISION)
            for chunk in tl.static_range(CHUNKS):
                added = added + (tl.dot(tl.trans(tokens[chunk]), gathered, sums[chunk], input_precision=PRECISION),)
            sums = added
    tl.store(loss_partials + program.to(tl.int64) * loss_width + loss_column + block, loss * scale)
    if FUSED:
        grad_partials += program.to(tl.int64) * grad_width + grad_column
        store_weight_grad(grad_partials, sums, bias_sum, d, 2.0 / RESIDUAL_SCALE * scale, C, D, BC, CHUNKS)
