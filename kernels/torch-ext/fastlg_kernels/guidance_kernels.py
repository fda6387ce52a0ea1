"""Triton kernels of the guidance loss. Notation as in guidance_torch: R = U P U' - V M V', E = U'R U.

A pair takes one of two forward kernels, by which side is upsampled:

* ``flat_kernel``: the student's grid is the larger one on both axes, so E = R = P - V M V', token by token. Tiles are
  runs of tokens across samples; no grid is too large.
* ``window_kernel``: the student is upsampled on an axis. A tile is a window of S x S tokens of one sample (or of
  several small samples side by side), with a halo of one token where the sample does not fit; R is made block by
  block of the larger grid and never leaves the registers.

Both read the tokens once from memory (a second time from cache, for the weight gradient), keep weight-gradient sums in
registers over all tiles of a program, and write them once. ``reduce_kernel`` adds the programs up in a fixed order and
``token_grad_kernel`` turns E into token gradients. Offsets that grow with the batch are 64-bit. Resize weights have
integer numerators over 2 * size, so each is one rounding away from exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _centre(out, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Where output cell ``out`` samples the input (align_corners=False), times 2 * SIZE_OUT."""
    return tl.minimum(tl.maximum((2 * out + 1) * SIZE_IN - SIZE_OUT, 0), 2 * SIZE_OUT * (SIZE_IN - 1))


@triton.jit
def _weights(out, cell, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Bilinear weight of input ``cell`` in output ``out``; 0 for cells outside the input."""
    distance = tl.abs(_centre(out, SIZE_IN, SIZE_OUT) - 2 * SIZE_OUT * cell)
    return tl.maximum(2 * SIZE_OUT - distance, 0).to(tl.float32) * (1.0 / (2 * SIZE_OUT))


@triton.jit
def _taps(out, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """The two input cells under ``out`` and the weight of the second."""
    centre = _centre(out, SIZE_IN, SIZE_OUT)
    low = centre // (2 * SIZE_OUT)
    fraction = (centre - low * (2 * SIZE_OUT)).to(tl.float32) * (1.0 / (2 * SIZE_OUT))
    return low, tl.minimum(low + 1, SIZE_IN - 1), fraction


@triton.jit
def _resized(
    maps, offsets, y, x, mask, stride_y, stride_x,
    HT: tl.constexpr, WT: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Teacher map at (y, x) of the H x W grid, float32; ``offsets`` lead to (0, 0) of every sample and channel."""
    top, bottom, weight_y = _taps(y, HT, H)
    left, right, weight_x = _taps(x, WT, W)
    value = tl.load(maps + (offsets + (top * stride_y + left * stride_x)), mask=mask, other=0.0).to(tl.float32)
    if WT < W:
        other = tl.load(maps + (offsets + (top * stride_y + right * stride_x)), mask=mask, other=0.0).to(tl.float32)
        value += weight_x * (other - value)
    if HT < H:
        below = tl.load(maps + (offsets + (bottom * stride_y + left * stride_x)), mask=mask, other=0.0).to(tl.float32)
        if WT < W:
            other = tl.load(maps + (offsets + (bottom * stride_y + right * stride_x)), mask=mask, other=0.0).to(tl.float32)
            below += weight_x * (other - below)
        value += weight_y * (below - value)
    return value


@triton.jit
def _load_weights(
    weights, d, dtype: tl.constexpr, C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, CHUNKS: tl.constexpr
):
    """Rows ``d`` [BD] of the projection in the tokens' dtype, transposed, one [BC, BD] block per chunk of channels."""
    blocks = ()
    for chunk in tl.static_range(CHUNKS):
        c = chunk * BC + tl.arange(0, BC)
        block = tl.load(weights + (d[None, :] * C + c[:, None]), mask=(d < D)[None, :] & (c < C)[:, None], other=0.0)
        blocks = blocks + (block.to(dtype),)
    return blocks


@triton.jit
def _load_tokens(students, offsets, live, stride_c, chunk, C: tl.constexpr, BC: tl.constexpr):
    """Channels of one chunk of the tokens at ``offsets`` [BT]: [BT, BC]."""
    c = chunk * BC + tl.arange(0, BC)
    mask = live[:, None] & (c < C)[None, :]
    return tl.load(students + (offsets[:, None] + (c * stride_c)[None, :]), mask=mask, other=0.0)


@triton.jit
def _zero_sums(BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr):
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums = sums + (tl.zeros([BC, BD], tl.float32),)
    return sums


@triton.jit
def _store_weight_grad(
    partials, sums, bias_sum, d, scale, C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, CHUNKS: tl.constexpr
):
    """Scaled sums of one program: the weight gradient [D, C], then the bias gradient [D]."""
    for chunk in tl.static_range(CHUNKS):
        c = chunk * BC + tl.arange(0, BC)
        tl.store(partials + (d[None, :] * C + c[:, None]), sums[chunk] * scale, mask=(d < D)[None, :] & (c < C)[:, None])
    tl.store(partials + D * C + d, bias_sum * scale, mask=d < D)


@triton.jit(do_not_specialize=["rows", "tiles_per_program", "partial_width", "loss_column", "grad_column"])
def flat_kernel(
    students, teachers, weights, biases, residuals, partials,
    stride_sn, stride_sy, stride_sx, stride_sc, stride_tn, stride_tc, stride_ty, stride_tx,
    rows, tiles_per_program, scale, partial_width, loss_column, grad_column,
    C: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr, HT: tl.constexpr, WT: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WITH_RESIDUAL: tl.constexpr, WITH_WEIGHT: tl.constexpr, PRECISION: tl.constexpr,
    KEEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Forward of a pair whose student grid is the larger one. Grid: (blocks of channels, programs)."""
    block, program = tl.program_id(0), tl.program_id(1)
    d = block * BD + tl.arange(0, BD)
    partials += program.to(tl.int64) * partial_width
    loss, bias_sum = 0.0, tl.zeros([BD], tl.float32)
    sums = _zero_sums(BC, BD, CHUNKS)
    blocks = _load_weights(weights, d, students.dtype.element_ty, C, D, BC, CHUNKS)
    bias = tl.load(biases + d, mask=d < D, other=0.0).to(tl.float32)
    first = program * tiles_per_program
    for tile in range(first, tl.minimum(first + tiles_per_program, tl.cdiv(rows, BT))):
        first_row = tile * tl.full([], BT, tl.int64)
        first_sample = first_row // (HS * WS)
        row = (first_row - first_sample * (HS * WS)).to(tl.int32) + tl.arange(0, BT)  # from the first sample's start
        live = tl.arange(0, BT) < rows - first_row
        sample, y, x = row // (HS * WS), row % (HS * WS) // WS, row % WS
        if WIDE:
            sample, y, x = sample.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
        offsets = sample * stride_sn + y * stride_sy + x * stride_sx
        source = students + first_sample * stride_sn
        tokens = ()
        residual = tl.zeros([BT, BD], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            token = _load_tokens(source, offsets, live, stride_sc, chunk, C, BC)
            residual = tl.dot(token, blocks[chunk], residual, input_precision=PRECISION)
            if KEEP:
                tokens = tokens + (token,)
        maps = teachers + first_sample * stride_tn
        if CHANNELS_LAST:
            target = _resized(
                maps, (sample * stride_tn)[:, None] + (d * stride_tc)[None, :], y[:, None], x[:, None],
                live[:, None] & (d < D)[None, :], stride_ty, stride_tx, HT, WT, HS, WS,
            )  # fmt: skip
        else:
            target = tl.trans(_resized(
                maps, (sample * stride_tn)[None, :] + (d * stride_tc)[:, None], y[None, :], x[None, :],
                live[None, :] & (d < D)[:, None], stride_ty, stride_tx, HT, WT, HS, WS,
            ))  # fmt: skip
        mask = live[:, None] & (d < D)[None, :]
        residual = tl.where(mask, residual + bias[None, :] - target, 0.0)
        loss += tl.sum(residual * residual)
        if WITH_RESIDUAL:
            out = residuals + first_row * D
            offset = tl.arange(0, BT)[:, None] * D + d[None, :]
            tl.store(out + offset, residual.to(residuals.dtype.element_ty), mask=mask)
        if WITH_WEIGHT:
            bias_sum += tl.sum(residual, 0)
            residual = residual.to(students.dtype.element_ty)
            added = ()
            for chunk in tl.static_range(CHUNKS):
                if KEEP:
                    token = tokens[chunk]
                else:
                    token = _load_tokens(source, offsets, live, stride_sc, chunk, C, BC)
                added = added + (tl.dot(tl.trans(token), residual, sums[chunk], input_precision=PRECISION),)
            sums = added
    tl.store(partials + loss_column + block, loss * scale)
    if WITH_WEIGHT:
        _store_weight_grad(partials + grad_column, sums, bias_sum, d, 2.0 * scale, C, D, BC, CHUNKS)


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
    """Whether ``out`` counts for the loss of the window owning [own, own + OWN): by its lower tap, so exactly one does."""
    low = _centre(out, SIZE_IN, SIZE_OUT) // (2 * SIZE_OUT)
    return (out < SIZE_OUT) & (low >= own) & (low < own + OWN)


@triton.jit(do_not_specialize=["samples", "tiles_per_program", "partial_width", "loss_column", "grad_column"])
def window_kernel(
    students, teachers, weights, biases, residuals, partials,
    stride_sn, stride_sy, stride_sx, stride_sc, stride_tn, stride_tc, stride_ty, stride_tx,
    samples, tiles_per_program, scale, partial_width, loss_column, grad_column,
    C: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr, HT: tl.constexpr, WT: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, PACK: tl.constexpr,
    OWN_Y: tl.constexpr, OWN_X: tl.constexpr, HALO_Y: tl.constexpr, HALO_X: tl.constexpr,
    TILES_Y: tl.constexpr, TILES_X: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr,
    WITH_RESIDUAL: tl.constexpr, WITH_WEIGHT: tl.constexpr, PRECISION: tl.constexpr,
    KEEP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Forward of a pair whose student is upsampled on an axis. Grid: (blocks of channels, programs).

    A window holds PACK x PACK samples of SUB x SUB tokens each; of these, OWN_Y x OWN_X belong to this window and the
    rest, HALO tokens on every side, is read for its neighbours. H x W is the larger grid, blocks of it BH x BW.
    """
    SUB: tl.constexpr = S // PACK
    block, program = tl.program_id(0), tl.program_id(1)
    d = block * BD + tl.arange(0, BD)
    partials += program.to(tl.int64) * partial_width
    loss, bias_sum = 0.0, tl.zeros([BD], tl.float32)
    sums = _zero_sums(BC, BD, CHUNKS)

    cell = tl.arange(0, S * S)
    cell_row, cell_column = (cell // S) % SUB, (cell % S) % SUB
    cell_sample = (cell // S) // SUB * PACK + (cell % S) // SUB
    side = tl.arange(0, S)
    big_y, big_x = tl.arange(0, BH), tl.arange(0, BW)
    same_y = (big_y // (BH // PACK))[:, None] == (side // SUB)[None, :]
    same_x = (big_x // (BW // PACK))[:, None] == (side // SUB)[None, :]
    big_sample = (big_y // (BH // PACK))[None, :] * PACK + (big_x // (BW // PACK))[:, None]  # [BW, BH]
    blocks = _load_weights(weights, d, students.dtype.element_ty, C, D, BC, CHUNKS)
    bias = tl.load(biases + d, mask=d < D, other=0.0).to(tl.float32)

    first = program * tiles_per_program
    tiles = tl.cdiv(samples, PACK * PACK) * (TILES_Y * TILES_X)
    for tile in range(first, tl.minimum(first + tiles_per_program, tiles)):
        base = tile // (TILES_Y * TILES_X) * (PACK * PACK)
        own_y = (tile // TILES_X) % TILES_Y * OWN_Y
        own_x = tile % TILES_X * OWN_X
        y, x = own_y - HALO_Y + cell_row, own_x - HALO_X + cell_column
        live = (base + cell_sample < samples) & (y >= 0) & (y < HS) & (x >= 0) & (x < WS)
        if WIDE:
            offsets = cell_sample.to(tl.int64) * stride_sn + y.to(tl.int64) * stride_sy + x.to(tl.int64) * stride_sx
        else:
            offsets = cell_sample * stride_sn + y * stride_sy + x * stride_sx
        source = students + base * tl.full([], 1, tl.int64) * stride_sn
        tokens = ()
        projected = tl.zeros([S * S, BD], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            token = _load_tokens(source, offsets, live, stride_sc, chunk, C, BC)
            projected = tl.dot(token, blocks[chunk], projected, input_precision=PRECISION)
            if KEEP:
                tokens = tokens + (token,)
        projected = tl.reshape(projected + bias[None, :], [S, S * BD])

        gathered = tl.zeros([S, S * BD], tl.float32)
        low_y, high_y = _span(own_y, OWN_Y, HS, H)
        low_x, high_x = _span(own_x, OWN_X, WS, W)
        maps = teachers + base * tl.full([], 1, tl.int64) * stride_tn
        for start_y in range(low_y, high_y, BH):
            out_y = start_y + big_y % (BH // PACK)
            if HS < H:
                up_y = tl.where(same_y, _weights(out_y[:, None], (own_y - HALO_Y + side % SUB)[None, :], HS, H), 0.0)
                stretched = tl.dot(up_y, projected, input_precision=PRECISION)
            else:
                stretched = projected
            stretched = tl.permute(tl.reshape(stretched, [BH, S, BD]), [1, 0, 2])
            stretched = tl.reshape(stretched, [S, BH * BD])
            shrunk = tl.zeros([S, BH * BD], tl.float32)
            for start_x in range(low_x, high_x, BW):
                out_x = start_x + big_x % (BW // PACK)
                if WS < W:
                    up_x = tl.where(same_x, _weights(out_x[:, None], (own_x - HALO_X + side % SUB)[None, :], WS, W), 0.0)
                    residual = tl.dot(up_x, stretched, input_precision=PRECISION)
                else:
                    residual = stretched
                mask = ((out_x < W)[:, None] & (out_y < H)[None, :] & (base + big_sample < samples))[:, :, None]
                mask = mask & (d < D)[None, None, :]
                if WIDE:
                    out_y, out_x = out_y.to(tl.int64), out_x.to(tl.int64)
                residual = tl.reshape(residual, [BW, BH, BD]) - _resized(
                    maps, (big_sample * stride_tn)[:, :, None] + (d * stride_tc)[None, None, :],
                    out_y[None, :, None], out_x[:, None, None], mask, stride_ty, stride_tx, HT, WT, H, W,
                )  # fmt: skip
                residual = tl.where(mask, residual, 0.0)
                counts = _owned(out_x, own_x, OWN_X, WS, W)[:, None] & _owned(out_y, own_y, OWN_Y, HS, H)[None, :]
                loss += tl.sum(tl.where(counts[:, :, None], residual * residual, 0.0))
                residual = tl.reshape(residual, [BW, BH * BD])
                if WS < W:
                    shrunk = tl.dot(tl.trans(up_x), residual, shrunk, input_precision=PRECISION)
                else:
                    shrunk += residual
            shrunk = tl.permute(tl.reshape(shrunk, [S, BH, BD]), [1, 0, 2])
            shrunk = tl.reshape(shrunk, [BH, S * BD])
            if HS < H:
                gathered = tl.dot(tl.trans(up_y), shrunk, gathered, input_precision=PRECISION)
            else:
                gathered += shrunk

        gathered = tl.reshape(gathered, [S * S, BD])
        mine = live & (y >= own_y) & (y < own_y + OWN_Y) & (x >= own_x) & (x < own_x + OWN_X)
        mask = mine[:, None] & (d < D)[None, :]
        gathered = tl.where(mask, gathered, 0.0)
        if WITH_RESIDUAL:
            out = residuals + base * tl.full([], HS * WS * D, tl.int64)
            offset = (cell_sample * (HS * WS) + y * WS + x)[:, None] * D + d[None, :]
            tl.store(out + offset, gathered.to(residuals.dtype.element_ty), mask=mask)
        if WITH_WEIGHT:
            bias_sum += tl.sum(gathered, 0)
            gathered = gathered.to(students.dtype.element_ty)
            added = ()
            for chunk in tl.static_range(CHUNKS):
                if KEEP:
                    token = tokens[chunk]
                else:
                    token = _load_tokens(source, offsets, live, stride_sc, chunk, C, BC)
                added = added + (tl.dot(tl.trans(token), gathered, sums[chunk], input_precision=PRECISION),)
            sums = added
    tl.store(partials + loss_column + block, loss * scale)
    if WITH_WEIGHT:
        _store_weight_grad(partials + grad_column, sums, bias_sum, d, 2.0 * scale, C, D, BC, CHUNKS)


@triton.jit(do_not_specialize=["programs", "width"])
def reduce_kernel(
    partials, loss, grads, programs, width,
    LOSSES: tl.constexpr, BL: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Column sums of partials [programs, width] in a fixed order: program 0 the loss, the others gradients."""
    row, program = tl.arange(0, BP), tl.program_id(0)
    if program == 0:
        column = tl.arange(0, BL)
        total = tl.zeros([BL], tl.float32)
        for start in range(0, programs, BP):
            mask = (start + row < programs)[:, None] & (column < LOSSES)[None, :]
            at = partials + ((start + row).to(tl.int64)[:, None] * width + column[None, :])
            total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        tl.store(loss, tl.sum(total))
    else:
        column = LOSSES + (program - 1) * BX + tl.arange(0, BX)
        total = tl.zeros([BX], tl.float32)
        for start in range(0, programs, BP):
            mask = (start + row < programs)[:, None] & (column < width)[None, :]
            at = partials + ((start + row).to(tl.int64)[:, None] * width + column[None, :])
            total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        tl.store(grads + column - LOSSES, total, mask=column < width)


@triton.jit(do_not_specialize=["rows"])
def token_grad_kernel(
    upstream, residuals, weights, out, stride_n, stride_t, stride_c, rows, scale,
    C: tl.constexpr, D: tl.constexpr, LENGTH: tl.constexpr, PREFIX: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = upstream * scale * E W for all LENGTH tokens of every sample, 0 on the first PREFIX. Grid: (tiles,)."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    sample, token = row // LENGTH, row % LENGTH
    source = sample * (LENGTH - PREFIX) + token - PREFIX
    live = (row < rows) & (token >= PREFIX)
    factor = tl.load(upstream).to(tl.float32) * scale
    for start_c in range(0, C, BC):
        c = start_c + tl.arange(0, BC)
        grad = tl.zeros([BT, BC], tl.float32)
        for start_d in range(0, D, BD):
            d = start_d + tl.arange(0, BD)
            residual_mask = live[:, None] & (d < D)[None, :]
            residual = tl.load(residuals + (source[:, None] * D + d[None, :]), mask=residual_mask, other=0.0)
            weight = tl.load(weights + (d[:, None] * C + c[None, :]), mask=(d < D)[:, None] & (c < C)[None, :], other=0.0)
            grad = tl.dot(residual, weight.to(residual.dtype), grad, input_precision=PRECISION)
        at = out + (sample * stride_n + token * stride_t)[:, None] + (c.to(tl.int64) * stride_c)[None, :]
        tl.store(at, (grad * factor).to(out.dtype.element_ty), mask=(row < rows)[:, None] & (c < C)[None, :])
