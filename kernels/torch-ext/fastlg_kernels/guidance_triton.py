"""Launches of the guidance kernels: which kernel a pair takes, how it is tiled, and where its partial sums go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import guidance_kernels as kernels
from .guidance_configs import Config, choose

WINDOW = 16  # side of a window of tokens; the smallest a tensor-core product can contract
MAX_CHANNELS = 2048  # a program keeps a [channels, 16] block of the weight gradient in registers


class Plan(NamedTuple):
    """How one pair is run: kernel, constants for it, number of tiles."""

    kernel: object
    constants: dict
    config: Config
    tiles: int
    blocks: int


def plan_pair(shape: Sequence[int], grid: tuple[int, int], teacher: Sequence[int], itemsize: int, family: str) -> Plan:
    """Choose the kernel for students [N, L, C] (``shape`` = N, C), their grid and teacher maps [N, D, h, w]."""
    batch, channels = shape
    dim, height, width = teacher[1:]
    constants = {"C": channels, "D": dim, "HS": grid[0], "WS": grid[1], "HT": height, "WT": width}
    if grid[0] >= height and grid[1] >= width:
        config = choose("flat", family, channels, dim, itemsize)
        constants["BT"] = config.tokens
        tiles = triton.cdiv(batch * grid[0] * grid[1], config.tokens)
        kernel = kernels.flat_kernel
    else:
        config = choose("window", family, channels, dim, itemsize)
        window = window_constants(grid, (height, width), config)
        constants.update(window)
        tiles = triton.cdiv(batch, window["PACK"] ** 2) * window["TILES_Y"] * window["TILES_X"]
        kernel = kernels.window_kernel
    constants.update(BC=config.channels, BD=config.dims, CHUNKS=triton.cdiv(channels, config.channels), KEEP=config.keep)
    return Plan(kernel, constants, config, tiles, triton.cdiv(dim, config.dims))


def window_constants(grid: tuple[int, int], teacher: tuple[int, int], config: Config) -> dict:
    """Windows over the student's grid, blocks of the larger grid. Samples of up to 8 x 8 on both sides share one."""
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


def device_family(device: torch.device) -> tuple[str, int]:
    """(family of the tuned configurations, number of multiprocessors); ("default", 2) under Triton's interpreter."""
    if device.type != "cuda":
        return "default", 2
    properties = torch.cuda.get_device_properties(device)
    return f"sm{properties.major}{properties.minor}", properties.multi_processor_count


def token_strides(student: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The student without its prefix tokens, and its strides along sample, row, column, channel."""
    if student.dim() == 4:
        n, c, y, x = student.stride()
        return student, (n, y, x, c)
    student = student[:, student.shape[1] - grid[0] * grid[1] :]
    n, t, c = student.stride()
    return student, (n, t * grid[1], t, c)


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """Of tensor-core products of float32 values: three TF32 products make float32, one is enough for half inputs."""
    return "tf32" if allow_tf32 or dtype != torch.float32 else "tf32x3"


def forward(
    pairs: Sequence[tuple],
    counts: Sequence[int],
    with_residuals: bool,
    with_weights: bool,
    allow_tf32: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """All pairs (student, teacher, weight, bias, grid): loss, residuals, weight and bias gradients in one flat tensor."""
    device = pairs[0][0].device
    family, processors = device_family(device)
    plans = [
        plan_pair((s.shape[0], w.shape[1]), grid, t.shape, s.element_size(), family) for s, t, w, _, grid in pairs
    ]
    losses = sum(plan.blocks for plan in plans)
    sizes = [w.numel() + b.numel() for _, _, w, b, _ in pairs] if with_weights else []
    programs = max(min(plan.tiles, processors * plan.config.programs) for plan in plans)
    partials = torch.empty((programs, losses + sum(sizes)), dtype=torch.float32, device=device)
    residuals, loss_column, grad_column = [], 0, losses
    with torch.cuda.device_of(partials):
        for index, ((student, teacher, weight, bias, grid), plan) in enumerate(zip(pairs, plans, strict=True)):
            residual = student.new_empty((student.shape[0], grid[0] * grid[1], weight.shape[0]))
            tokens, strides = token_strides(student, grid)
            plan.kernel[(plan.blocks, programs)](
                tokens, teacher, weight.contiguous(), bias.contiguous(), residual, partials, *strides, *teacher.stride(),
                tokens.shape[0] * (grid[0] * grid[1] if plan.kernel is kernels.flat_kernel else 1),
                triton.cdiv(plan.tiles, programs), 1 / counts[index], partials.shape[1], loss_column, grad_column,
                **plan.constants, WITH_RESIDUAL=with_residuals, WITH_WEIGHT=with_weights,
                PRECISION=precision(student.dtype, allow_tf32), WIDE=False, **plan.config.launch,
                **({"CHANNELS_LAST": teacher.stride(1) == 1} if plan.kernel is kernels.flat_kernel else {}),
            )  # fmt: skip
            residuals.append(residual)
            loss_column += plan.blocks
            grad_column += sizes[index] if with_weights else 0
        loss, grads = partials.new_empty(()), partials.new_empty(sum(sizes))
        columns = 128
        kernels.reduce_kernel[(1 + triton.cdiv(grads.numel(), columns),)](
            partials, loss, grads, programs, partials.shape[1],
            LOSSES=losses, BL=triton.next_power_of_2(losses), BP=32, BX=columns, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return loss, residuals if with_residuals else [], grads


def token_grad(residual: Tensor, weight: Tensor, upstream: Tensor, scale: float, out: Tensor, allow_tf32: bool) -> None:
    """``upstream * scale * E W`` into ``out`` [N, L, C] or [N, C, H, W], zeros on prefix tokens."""
    dim, channels = weight.shape
    length = out.shape[1] if out.dim() == 3 else out.shape[2] * out.shape[3]
    n, *_, t = out.stride() if out.dim() == 4 else (out.stride(0), out.stride(1))
    c = out.stride(1 if out.dim() == 4 else 2)
    config = choose("token_grad", device_family(out.device)[0], channels, dim, out.element_size())
    rows = out.shape[0] * length
    with torch.cuda.device_of(out):
        kernels.token_grad_kernel[(triton.cdiv(rows, config.tokens),)](
            upstream, residual, weight.contiguous(), out, n, t, c, rows, scale,
            C=channels, D=dim, LENGTH=length, PREFIX=length - residual.shape[1],
            BT=config.tokens, BC=config.channels, BD=config.dims,
            PRECISION=precision(out.dtype, allow_tf32), **config.launch,
        )  # fmt: skip
