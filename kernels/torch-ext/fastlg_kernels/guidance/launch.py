"""Launches of the guidance kernels: which kernel a pair takes, how it is tiled, and where its partial sums go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..devices import device_family, precision
from .plain import residual_scale
from .tiles import Config, choose
from .triton_forward import flat_kernel, window_kernel
from .triton_gradients import reduce_kernel, token_grad_kernel, weight_grad_kernel

Grid = tuple[int, int]
Pair = tuple[Tensor, Tensor, Tensor, Tensor, Grid]  # student, teacher, weight, bias, grid of the student
PARTIAL_BYTES = 64 * 2**20  # most that partial sums of weight and bias gradients take
MOST_TOKENS = 128  # of a tile of any configuration
WINDOW = 16  # side of a window of tokens: the smallest a tensor-core product contracts over


class Plan(NamedTuple):
    """How the forward pass of one pair is run."""

    kernel: object
    constants: dict
    config: Config
    weight_grad: Config  # of the kernel that makes the weight gradient where the forward kernel does not
    tiles: int
    blocks: int  # of the teacher's channels
    tokens: Tensor  # the student without its prefix tokens
    strides: tuple[int, int, int, int]  # of sample, row, column and channel
    wide: bool  # whether offsets need 64 bits


class Schedule(NamedTuple):
    """Plans of all pairs, and how many programs sum the loss and the gradients: the rows of their partial sums."""

    plans: list[Plan]
    loss_programs: int
    grad_programs: int


def plan_pair(pair: Pair, family: str, allow_tf32: bool = False, tuned: bool = True) -> Plan:
    """Kernel, constants and tiles of one pair; the safe configuration unless ``tuned``."""
    student, teacher, weight, _, grid = pair
    batch, dim, height, width = teacher.shape
    channels, itemsize = weight.shape[1], student.element_size()
    tokens, strides = student_strides(student, grid)
    wide = needs_64_bit(strides, teacher, grid, channels)
    plain = tuned and not wide and is_plain(tokens, strides, channels)
    facts, tf32 = (family, channels, dim, itemsize), {"tf32": tuned and allow_tf32}
    own = {"plain": plain, "side": max(*grid, height, width), **tf32}
    constants = {"C": channels, "D": dim, "HS": grid[0], "WS": grid[1], "HT": height, "WT": width}
    if grid[0] >= height and grid[1] >= width:
        kernel, config = flat_kernel, choose("flat", *facts, **own)
        constants.update(BT=config.tokens, CHANNELS_LAST=teacher.stride(1) == 1)
        tiles = triton.cdiv(batch * grid[0] * grid[1], config.tokens)
    else:
        kernel, config = window_kernel, choose("window", *facts, **own)
        window = window_constants(grid, (height, width), config)
        constants.update(window, RESIDUAL_SCALE=residual_scale(grid, teacher.shape))
        tiles = triton.cdiv(batch, window["PACK"] ** 2) * window["TILES_Y"] * window["TILES_X"]
    constants.update(BC=config.channels, BD=config.dims, CHUNKS=triton.cdiv(channels, config.channels))
    blocks = triton.cdiv(dim, config.dims)
    return Plan(kernel, constants, config, choose("weight_grad", *facts, **tf32), tiles, blocks, tokens, strides, wide)


def plan_forward(
    pairs: Sequence[Pair], family: str, processors: int, with_weights: bool, allow_tf32: bool = False
) -> Schedule:
    """Plans of all pairs, their partial gradients within PARTIAL_BYTES (or one row, where that alone is more).

    Many programs share the tiles of a pair, and each leaves its sums. A fused pair leaves its gradients in the programs
    that sum its loss; the others make theirs by blocks of channels, and where these are many, few programs fill a GPU.
    So where the gradients are too large for a row per program, no pair is fused.
    """
    width = sum(w.numel() + b.numel() for _, _, w, b, _ in pairs) if with_weights else 0
    for tuned in (True, False):
        plans = [plan_pair(pair, family, allow_tf32, tuned) for pair in pairs]
        programs = max(min(plan.tiles, processors * plan.config.programs) for plan in plans)
        grad_programs = min(programs, max(1, PARTIAL_BYTES // max(1, 4 * width)))
        if grad_programs == programs or not any(plan.config.fused for plan in plans):
            break
    return Schedule(plans, programs, grad_programs)


def window_constants(grid: Grid, teacher: Grid, config: Config) -> dict:
    """Windows over the student's grid, blocks over the larger grid; samples of at most 8 x 8 share a window."""
    pack = 2 if max(*grid, *teacher) <= WINDOW // 2 else 1
    constants = {"S": WINDOW, "PACK": pack, "H": max(grid[0], teacher[0]), "W": max(grid[1], teacher[1])}
    for axis, size, big, block in zip("YX", grid, teacher, (config.rows, config.columns), strict=True):
        whole = size <= WINDOW // pack
        halo = 0 if whole or size >= big else 1
        own = size if whole else WINDOW - 2 * halo
        constants |= {f"OWN_{axis}": own, f"HALO_{axis}": halo, f"TILES_{axis}": triton.cdiv(size, own)}
        # where the axis is not resized, a block of the larger grid is the window itself
        side = WINDOW if size >= big or pack > 1 else min(block, max(WINDOW, triton.next_power_of_2(big)))
        constants["BH" if axis == "Y" else "BW"] = side
    return constants


def student_strides(student: Tensor, grid: Grid) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The student without its prefix tokens, and its strides along sample, row, column and channel."""
    if student.dim() == 4:
        n, c, y, x = student.stride()
        return student, (n, y, x, c)
    student = student[:, student.shape[1] - grid[0] * grid[1] :]
    n, t, c = student.stride()
    return student, (n, t * grid[1], t, c)


def needs_64_bit(strides: Sequence[int], teacher: Tensor, grid: Grid, channels: int) -> bool:
    """Whether offsets within one tile may pass 2^31; those between tiles are always 64-bit."""
    samples = min(teacher.shape[0], 4 + MOST_TOKENS // (grid[0] * grid[1]))  # four to a window, or of a run of tokens
    own = sum(size * stride for size, stride in zip((samples, *grid, channels), strides, strict=True))
    theirs = sum(size * stride for size, stride in zip((samples, *teacher.shape[1:]), teacher.stride(), strict=True))
    return max(own, theirs) >= 2**31


def is_plain(tokens: Tensor, strides: Sequence[int], channels: int) -> bool:
    """Whether channels lie in dense rows that Triton sees to be aligned: what tuned configurations are compiled for."""
    *outer, inner = strides
    aligned = all(number % 16 == 0 for number in (*outer, channels, tokens.data_ptr()))
    return inner == 1 and aligned


def forward(
    pairs: Sequence[Pair],
    counts: Sequence[int],
    with_residuals: bool,
    with_weights: bool,
    allow_tf32: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, residuals, and all weight and bias gradients in one flat tensor (W0, b0, W1, ...).

    Loss and gradients are divided by counts; residuals are E times ``residual_scale``.
    """
    device = pairs[0][0].device
    plans, programs, grad_programs = plan_forward(pairs, *device_family(device), with_weights, allow_tf32)
    sizes = [w.numel() + b.numel() if with_weights else 0 for _, _, w, b, _ in pairs]
    losses = sum(plan.blocks for plan in plans)
    partials = (
        torch.empty((programs, losses), dtype=torch.float32, device=device),
        torch.empty((grad_programs, sum(sizes)), dtype=torch.float32, device=device),
    )
    residuals, columns = [], [0, 0]
    with torch.cuda.device_of(partials[0]):
        for pair, plan, count, size in zip(pairs, plans, counts, sizes, strict=True):
            flags = (with_residuals, with_weights, allow_tf32)
            residuals.append(_forward_pair(pair, plan, partials, columns, 1 / count, *flags))
            columns = [columns[0] + plan.blocks, columns[1] + size]
        loss, grads = partials[0].new_empty(()), partials[0].new_empty(sum(sizes))
        reduce_kernel[(1 + triton.cdiv(sum(sizes), 128),)](
            *partials, loss, grads, programs, grad_programs, sum(sizes),
            LOSSES=losses, BL=triton.next_power_of_2(losses), BP=32, BX=128, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return loss, residuals if with_residuals else [], grads


def _forward_pair(
    pair: Pair,
    plan: Plan,
    partials: tuple[Tensor, Tensor],
    columns: Sequence[int],
    scale: float,
    with_residuals: bool,
    with_weights: bool,
    allow_tf32: bool,
) -> Tensor:
    """Launch one pair: partial sums into ``partials`` at ``columns`` (loss, gradients); returns the residual."""
    student, teacher, weight, bias, grid = pair
    dim, channels = weight.shape
    fused = plan.config.fused and with_weights
    store = with_residuals or (with_weights and not fused)
    residual = student.new_empty((student.shape[0], grid[0] * grid[1], dim) if store else (0,))
    rows = student.shape[0] * grid[0] * grid[1]
    programs, grad_programs = len(partials[0]), len(partials[1])
    widths = partials[0].shape[1], partials[1].shape[1]
    common = {"PRECISION": precision(student.dtype, allow_tf32), "WIDE": plan.wide}
    plan.kernel[(plan.blocks, programs)](
        plan.tokens, teacher, weight.contiguous(), bias.contiguous(), residual, *partials,
        *plan.strides, *teacher.stride(), rows if plan.kernel is flat_kernel else student.shape[0],
        triton.cdiv(plan.tiles, programs), scale, *widths, *columns,
        **plan.constants, FUSED=fused, WITH_RESIDUAL=store, **common, **plan.config.launch,
    )  # fmt: skip
    if with_weights and not fused:
        config = plan.weight_grad
        blocks = triton.cdiv(channels, config.channels), triton.cdiv(dim, config.dims)
        weight_grad_kernel[(*blocks, grad_programs)](
            plan.tokens, residual, partials[1], *plan.strides,
            rows, triton.cdiv(triton.cdiv(rows, config.tokens), grad_programs),
            2 * scale / residual_scale(grid, teacher.shape), widths[1], columns[1],
            C=channels, D=dim, HS=grid[0], WS=grid[1], BT=config.tokens, BC=config.channels, BD=config.dims,
            **common, **config.launch,
        )  # fmt: skip
    return residual


def token_grad(residual: Tensor, weight: Tensor, upstream: Tensor, scale: float, out: Tensor, allow_tf32: bool) -> None:
    """``upstream * scale * residual W`` into ``out`` [N, L, C] or [N, C, H, W] (dense), zeros on prefix tokens."""
    dim, channels = weight.shape
    if out.dim() == 3:
        length, (n, t, c) = out.shape[1], out.stride()
    else:
        length, (n, c, _, t) = out.shape[2] * out.shape[3], out.stride()
    facts = device_family(out.device)[0], channels, dim, out.element_size()
    config = choose("token_grad", *facts, plain=c == 1, tf32=allow_tf32)
    rows = out.shape[0] * length
    with torch.cuda.device_of(out):
        token_grad_kernel[(triton.cdiv(rows, config.tokens),)](
            upstream, residual, weight.contiguous(), out, n, t, c, rows, scale,
            C=channels, D=dim, LENGTH=length, PREFIX=length - residual.shape[1],
            BT=config.tokens, BC=config.channels, BD=config.dims,
            PRECISION=precision(out.dtype, allow_tf32), **config.launch,
        )  # fmt: skip
